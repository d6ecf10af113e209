"""Figures by class: their numbers, read back from what is drawn."""
import ast
import re
import types

import numpy as np
import pytest

from egokit import tasks, viz
from egokit.model.checkpoints import fingerprint
from egokit.runs.run_folder import Run
from egokit.tasks import class_names, metrics
from egokit.tasks.egomcq import EgoMCQ
from egokit.viz import per_class


def scored(of: int, prompts=(), **given):
    """Return a retrieval task with these prompts and `of` rows, of which a test gives the hooks that it needs."""
    return types.SimpleNamespace(prompts=lambda: prompts, num_rows=lambda: of, tables=lambda: [],
                                 score_matrix=lambda rows, prompts_KE: rows["scores"], **given)


def asked(queries: list[dict], types: list[int]):
    """Return an EgoMCQ of these queries, each with five clips of which the first is the answer."""
    task = EgoMCQ.__new__(EgoMCQ)
    task.texts, task.questions = [query.get("clip_text", "") for query in queries], [{"query": query}
                                                                                    for query in queries]
    task.kinds = [[{1: "inter-video", 2: "intra-video"}[number]] for number in types]
    task.choices, task.answers = np.zeros((len(queries), 5), int), np.zeros(len(queries), int)
    task.tables = list
    return task


def write(run, section, scores, prompts: int):
    """Write rows from which `scored` returns these scores, and `asked` a row for each question and choice."""
    rows = {"scores": scores} if prompts else {"dual": scores.ravel(), "fusion": np.zeros(scores.size)}
    run.write_rows(section, rows | {"index": np.arange(len(next(iter(rows.values()))))},
                   np.zeros((prompts, 1)) if prompts else None)


def drawn(axis):
    """Return {label: {name: value}} of a dot plot."""
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    return {line.get_label(): dict(zip(names, line.get_xdata(), strict=False)) for line in axis.lines}


def test_average_precisions_are_the_metrics_sorted_and_absent_classes_are_said(tmp_path):
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 50)) < 0.2).astype(float)
    targets[:, [4, 30]] = 0
    targets[:12] = 0
    task = scored(60, [f"doing {k}" for k in range(50)], truth=lambda: targets)
    run = Run(tmp_path)
    scores = {name: factor * targets + rng.normal(size=targets.shape)
              for name, factor in {"zeroshot": 1, "finetune": 2}.items()}
    for section, values in scores.items():
        write(run, section, values, 50)
    figure = per_class.average_precisions(task, run, "zeroshot", "finetune")
    left, right = figure.axes
    assert left.get_title() == "48 of 50 classes occur, 2 have no value"
    for line, (section, values) in zip(left.lines, scores.items(), strict=True):
        mean = metrics.charades(values, targets)["mAP"]
        assert line.get_label() == f"{section}: mAP {mean:.1f}" and np.mean(line.get_ydata()) == pytest.approx(mean)
    dots, expected = drawn(right), 100 * metrics.each_class(scores["finetune"], targets)
    shown = [int(name.split()[1]) for name in dots["finetune"]]
    assert len(shown) == 40 and not {4, 30} & set(shown)
    assert [*dots["finetune"].values()] == sorted(dots["finetune"].values(), reverse=True)
    assert expected[shown] == pytest.approx([*dots["finetune"].values()])
    by_chance = dots["chance: share of labelled videos with it"]
    assert [*by_chance.values()] == pytest.approx(100 * targets.sum(0)[shown] / np.count_nonzero(targets.sum(1)))
    assert (tmp_path / "figures/average-precisions.png").stat().st_size > 10_000


def test_accuracy_by_word(tmp_path):
    """Verbs 0 and 1, noun 7, and one question without tags; tags are lists or their text."""
    texts = ["#C C picks up the cup", "#C C picks up the red cup", "#C C cuts the cup", "#C C cuts the cup slowly",
             "#O A man waves"]
    tags = [([0], "[7]"), ("[0]", [7]), ([1], [7, 7]), ([1], "[7]"), (None, "nan")]
    queries = [{"clip_text": text} | ({"tag_verb": verb, "tag_noun": noun} if verb else {"tag_noun": noun})
               for text, (verb, noun) in zip(texts, tags, strict=True)]
    task, run = asked(queries, [1, 2, 1, 1, 1]), Run(tmp_path)
    write(run, "egomcq", np.eye(2, 5)[[0, 1, 0, 1, 0]], 0)
    verbs, nouns = (drawn(axis) for axis in per_class.accuracy_by_word(task, run, "egomcq").axes)
    assert verbs["inter-video"] == {"picks up  (2)": 100, "cuts  (2)": 50}
    assert verbs["intra-video"]["picks up  (2)"] == 0 and np.isnan(verbs["intra-video"]["cuts  (2)"])
    assert [*nouns["inter-video"]] == ["the cup  (4)"]
    assert nouns["inter-video"]["the cup  (4)"] == pytest.approx(200 / 3)


def test_annotations_without_tags_are_said(tmp_path):
    task = asked([{"clip_text": "#C C walks"}], [1])
    write(Run(tmp_path), "egomcq", np.eye(1, 5), 0)
    figure = per_class.accuracy_by_word(task, Run(tmp_path), "egomcq")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["the annotations name no verbs", "the annotations name no nouns"]


def test_ndcg_by_word_is_each_clips_of_its_class(tmp_path):
    rng = np.random.default_rng(0)
    scores, truth = rng.random((4, 6)), np.round(rng.random((4, 6)) * 2) / 2
    truth[:, 0] = 1
    verbs = class_names.most_frequent([[3], [3], [5], [3]], [["cut"], ["slice"], ["wash"], ["cut"]])
    nouns = class_names.most_frequent([[0], [1], [2], [0, 1]], [["onion"], ["tomato"], ["pan"], ["onion", "tomato"]])
    task = scored(4, ["a text"] * 6, truth=lambda: truth, clip_tags=lambda: {"verb": verbs, "noun": nouns})
    write(Run(tmp_path), "zeroshot", scores, 6)
    figure = per_class.retrieval_by_word(task, Run(tmp_path), "zeroshot")
    verbs, nouns = (drawn(axis)["zeroshot"] for axis in figure.axes)
    ndcg = [metrics.retrieval(scores[[row, row]], truth[[row, row]])["nDCG_V2T"] for row in range(4)]
    assert verbs == pytest.approx({"cut  (3)": np.mean([ndcg[0], ndcg[1], ndcg[3]]), "wash  (1)": ndcg[2]})
    assert nouns["onion  (2)"] == pytest.approx(np.mean([ndcg[0], ndcg[3]]))


def test_ek100_is_grouped_by_the_words_of_its_table(resolve):
    import pandas as pd
    task = tasks.make(resolve("toy/ek100_finetune", "init="))
    table, tags = pd.read_csv(task.tables()[0]), task.clip_tags()
    assert tags["verb"] == [[verb] for verb in table.verb]
    assert tags["noun"] == [list(dict.fromkeys(ast.literal_eval(nouns))) for nouns in table.all_nouns]
    sentence = task.prompts().index(table.narration[0])
    assert {kind: labels[sentence] for kind, labels in task.query_tags().items()} == \
        {kind: labels[0] for kind, labels in tags.items()}


@pytest.mark.parametrize("recipe, draw, table", [
    ("charades_finetune", viz.average_precisions, "CharadesEgo_v1_test_only1st.csv"),
    ("charades_finetune", viz.retrieved, "CharadesEgo_v1_test_only1st.csv"),
    ("ek100_finetune", viz.retrieval_by_word, "EPIC_100_retrieval_test.csv"),
    ("ek100_finetune", viz.retrieved, "EPIC_100_retrieval_test.csv"),
    ("egomcq", viz.accuracy_by_word, "egomcq.json"),
    ("egomcq", viz.questions, "egomcq.json"),
])
def test_annotations_edited_since_the_evaluation_are_an_error(resolve, copied, tmp_path, recipe, draw, table):
    """Scores must not be drawn beside the rows of another table."""
    on_copy, root = copied
    config, run = on_copy(resolve(f"toy/{recipe}", "data.limit=0 init=")), Run(tmp_path / "run")
    task = tasks.make(config)
    texts, rng = len(task.prompts()), np.random.default_rng(0)
    count = task.num_rows()
    rows = {"index": np.arange(count)} | ({"video": rng.normal(size=(count, 4))} if texts else
                                          {name: rng.random(count) for name in ("dual", "fusion")})
    run.write_rows("scored", rows, rng.normal(size=(texts, 4)) if texts else None)
    run.write_metrics("scored", {"data": {path.name: fingerprint(path) for path in task.tables()}})
    assert draw(task, run, "scored")
    path, = root.rglob(table)
    path.write_bytes(path.read_bytes() + b"\n")
    message = rf"rows-scored\.npz was scored with another {re.escape(table)} .* evaluate it again"
    with pytest.raises(ValueError, match=message):
        draw(tasks.make(config), run, "scored")
