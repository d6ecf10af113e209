"""A driver of every public function that shows something: it is given hostile texts wherever texts go."""
import json
import sys
from types import SimpleNamespace

import hostile_answers
import hostile_runs
import hostile_tasks
import numpy as np
from hostile import FILES, NAME
from hostile_tasks import DRAWN, FEW, WORDS, evaluated, job_of, trained, with_files
from test_moment_figures import mq_run, nlq_run

import egokit
from egokit import tasks, viz
from egokit.runs.ledger import Result
from egokit.runs.run_folder import Run
from egokit.search.questions import Stretch
from egokit.search.searcher import Answer

NAMED = [NAME, f"{NAME}-2"]
CLASSES = [text for text in DRAWN if "\udcff" not in text]  # which no file of results may have
RESULT = Result(NAME, NAME, NAME, 1.0, chance=NAME)


def module(name):
    """Return a module of egokit.viz, whose name in the package is its function."""
    return sys.modules[f"egokit.viz.{name}"]


# every public function that shows something: how it is given hostile texts -> (what it returns, the texts to be seen,
# and what legends name); `own` has the project's fixtures

def accuracy_by_word(folder, own):
    _, task, _, run = evaluated(folder, DRAWN)
    return viz.accuracy_by_word(task, run, NAME), DRAWN[:10], DRAWN[:3]


def average_precisions(folder, own):
    task, _, run, _ = evaluated(folder, DRAWN)
    return viz.average_precisions(task, run, *NAMED), DRAWN, NAMED


def retrieval_by_word(folder, own):
    task, _, run, _ = evaluated(folder, DRAWN)
    return viz.retrieval_by_word(task, run, *NAMED), DRAWN[:10], NAMED


def batch(folder, own):
    return viz.batch(evaluated(folder, DRAWN)[0], Run(folder / NAME), count=len(DRAWN)), DRAWN, ()


def narrations(folder, own):
    config, root = own.copied[0](own.resolve()), own.copied[1]
    lines = (root / "egoclip.csv").read_text().splitlines()
    at = lines[0].split("\t").index("clip_text")
    texts = [text for text in DRAWN
             if len(text) < 999 and text != "None" and not set("\t\n\r\v\0\"\u2028\udcff") & set(text)]
    rows = [line.split("\t") for line in lines[1:]]
    rows = [row for row in rows if len(row) == len(lines[0].split("\t"))][:len(texts)]
    for row, text in zip(rows, texts, strict=False):
        row[at] = text
    (root / "egoclip.csv").write_text("\n".join([lines[0], *map("\t".join, rows)]) + "\n")
    return viz.narrations(config, count=len(rows)), [row[at] for row in rows], ()


def watched(folder, own):
    run, shows = trained(folder), []
    own.monkeypatch.setattr(module("predictions"), "pictures", lambda job: lambda number: own.grey)
    own.monkeypatch.setattr(module("curves"), "curves", lambda run: shows.append(viz.curves(run)))
    own.monkeypatch.setattr(module("curves"), "predictions", lambda job: shows.append(viz.predictions(job)))
    viz.watch(job_of(run))
    return shows


def questions(folder, own):
    _, task, _, run = evaluated(folder, DRAWN)
    return viz.questions(task, run, NAME, len(DRAWN)), DRAWN, ()


def retrieved(folder, own):
    task, _, run, _ = evaluated(folder, DRAWN)
    return viz.retrieved(task, run, NAME, len(DRAWN)), DRAWN, ()


def question(folder, own):
    task = evaluated(folder, DRAWN)[1]
    return [viz.question(task, number, Run(folder / "q")).figure for number in map(DRAWN.index, FEW)], FEW, ()


def reranked(folder, own):
    task = evaluated(folder, DRAWN)[0]
    return [viz.reranked(hostile_tasks.Model(), task, text, Run(folder / "r")) for text in FEW], FEW, ()


def fusion(folder, own):
    model = egokit.load(own.checkpoint, tokenizer=own.resolve().site.tokenizer)
    frames = viz.question(tasks.make(own.resolve()).validation(), 0).pixels[0]
    texts = [text for text in FEW if "\udcff" not in text]  # which no tokenizer takes
    return [viz.fusion(model, frames, text) for text in texts], texts, ()


def features(folder, own):
    import torch
    run = Run(folder / NAME)
    (run.path / "features").mkdir()
    torch.save(torch.rand(9, 4), run.path / "features/a.pt")
    clips = [{"clip_uid": "a", "split": text, "start": 0.0, "stop": 1.0} for text in DRAWN[:3]]
    (run.path / "features/manifest.json").write_text(json.dumps({"format": "pt", "clips": clips}))
    return viz.features(Run(folder / NAME)), DRAWN[:3], ()


def browser(folder, own):
    task, choice, run, other = evaluated(folder)
    pages = [viz.browser(task, run, NAME, f"{NAME}-2"), viz.browser(choice, other, NAME)]
    return [*pages, *(file.read_text() for file in folder.glob("outputs/*/*/figures/browser*.html"))], [NAME], ()


def comparison(folder, own):
    run, task = with_files(folder), evaluated(folder)[0]
    section = run.metrics()["own"]
    (run.path / "metrics.json").unlink()
    for name in NAMED:
        run.write_metrics(name, section)
        run.write_rows(name, {"index": np.arange(task.count)})
    task.per_query = lambda rows, prompts_KE: {text: [np.arange(3.0) - 1 + section.get(text, 0)]
                                               for text in WORDS}
    return viz.comparison(task, run, *NAMED), [NAME], ()


def detected(folder) -> Run:
    """Return a run whose classes are hostile."""
    spans = [[k, k + 0.5, text] for k, text in enumerate(CLASSES)]
    return mq_run(folder / NAME, {NAME: spans}, {NAME: [(text, 0.5, [start, stop]) for start, stop, text in spans]})


def answered(folder) -> Run:
    """Return a run whose questions and templates are hostile."""
    return nlq_run(folder / NAME, [{"query": text, "template": text} for text in WORDS], [[[1, 2]]] * len(WORDS))


def answers(folder, own):
    return viz.answers(answered(folder), len(WORDS)), DRAWN, ()


FIGURES = {
    **hostile_runs.FIGURES,
    **{name: getattr(hostile_answers, name) for name in ("accuracy_by_kind", "answer_attention", "asked_clips")},
    "accuracy_by_word": accuracy_by_word, "average_precisions": average_precisions, "batch": batch,
    "curves": lambda folder, own: (viz.curves(trained(folder)), [NAME], [NAME.replace("_", "")]),
    "answers": answers,
    "detections": lambda folder, own: (viz.detections(detected(folder)), [NAME, *CLASSES[:20]], ()),
    "detections_per_class": lambda folder, own: (viz.detections_per_class(detected(folder)), CLASSES, ()),
    "false_positives": lambda folder, own: (viz.false_positives(detected(folder)), (), ()),
    "features": features, "fusion": fusion, "narrations": narrations,
    "predictions": lambda folder, own: (watched(folder, own)[1], [NAME, *DRAWN], ()),
    "published": lambda folder, own: (viz.published(with_files(folder)), [NAME], ()),
    "question": question,
    "questions": questions,
    "reranked": reranked, "retrieval_by_word": retrieval_by_word,
    "retrieved": retrieved,
    "watch": lambda folder, own: (watched(folder, own), [], ()),
}
HTML = {
    **hostile_runs.HTML,
    "browser": browser, "comparison": comparison, "confusions": hostile_answers.confusions,
    "counts": lambda folder, own: (viz.counts(dict.fromkeys(WORDS, 1)), [word.replace("_", " ") for word in WORDS], ()),
    "files": lambda folder, own: (viz.files(with_files(folder)), [*FILES, NAME], ()),
    "findings": lambda folder, own: (viz.findings(hostile_tasks.findings()), WORDS, ()),
    "ledger": lambda folder, own: (viz.ledger(with_files(folder).path.parents[1]), [NAME], ()),
    "metrics": lambda folder, own: (viz.metrics(dict.fromkeys(WORDS, 1.5)), [word.replace("_", " ") for word in WORDS],
                                    ()),
    "recalls_by_template": lambda folder, own: (viz.recalls_by_template(answered(folder)), WORDS, ()),
    "results": lambda folder, own: (viz.results(with_files(folder)), [NAME], ()),
    "table": lambda folder, own: (viz.table([(RESULT, {NAME: {NAME: text}, "chance": {NAME: [text]}})
                                             for text in WORDS]), [NAME, *WORDS], ()),
}
NO_TEXT = {"strip"}
SEARCH = {"answer_box", "answer_cards", "answer_table", "ask_browser", "browser", "card", "figures", "grid",
          "question_box", "table", "write_page"}


def markup(shows) -> list[str]:
    """Return tables and pages as HTML."""
    return [show if isinstance(show, str) else show.to_html() if hasattr(show, "to_html") else show.data
            for show in (shows if isinstance(shows, list) else [shows])]


def found(folder) -> tuple:
    """Return what `searcher(...)` needs for search.browser, with hostile answers."""
    searcher = SimpleNamespace(folder=folder / NAME, run=Run(folder / "outputs/07" / NAME),
                               model=SimpleNamespace(fuses=True))
    answer = hostile_tasks.answer(folder)

    class Searcher(SimpleNamespace):
        def __call__(self, text, top, rerank, **more):
            return answer
    return Searcher(**vars(searcher)), answer


def asker(folder) -> tuple:
    """Return what search.ask_browser needs, with hostile answers and clips, and such an answer."""
    answer = hostile_tasks.answer(folder)
    stretches = Answer([Stretch(hit.video, 0, 1, 0.5, None, hit.path) for hit in answer], answer.notes)

    class Asker(SimpleNamespace):
        def __call__(self, question, clip, top):
            return stretches
    return Asker(run=Run(folder / "outputs/08" / NAME), clips=dict.fromkeys(WORDS)), stretches
