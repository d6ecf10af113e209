"""Evaluation: the same numbers for any batch size and any number of processes."""
import csv
import itertools
import json
import weakref

import numpy as np
import pytest
import torch
from conftest import MODEL, opened
from test_dist import ranks

import egokit
from egokit import tasks
from egokit.config.resolve import outputs_folder
from egokit.model import weights
from egokit.runs.run_folder import Run
from egokit.tasks import losses, metrics
from egokit.train import evaluate

RECIPES = ("egomcq", "ek100_finetune", "charades_finetune")


@pytest.mark.parametrize("name", RECIPES)
def test_batch_size_does_not_matter(checkpoint, resolve, name):
    results = []
    for size in (1, 2, 7):
        config = resolve(f"toy/{name}", f"evaluate.batch_size={size} data.limit=0", run="random")
        task = tasks.make(config)
        results.append(evaluate.evaluate(weights.initial_model(config), task))
    for metrics_of_size, rows, _ in results[1:]:
        for key in rows:
            assert np.allclose(rows[key], results[0][1][key], atol=1e-5), key
        assert {k: v for k, v in metrics_of_size.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in results[0][0].items() if k != "seconds"}, abs=1e-6)


def test_dual_softmax_stands_beside_the_plain_numbers(checkpoint, resolve):
    model = weights.initial_model(resolve("toy/ek100_finetune", run="random"))
    configs = [resolve("toy/ek100_finetune", f"task.dual_softmax={temperature}", run="random")
               for temperature in (0, 0.05)]
    plain, both = (evaluate.evaluate(model, tasks.make(config)) for config in configs)
    names = [f"{kind}{way}" for kind in ("mAP", "nDCG") for way in ("", "_V2T", "_T2V")]
    assert [plain[0][name] for name in names] == [both[0][name] for name in names]
    assert not any("dual_softmax" in name for name in plain[0])
    task = tasks.make(resolve("toy/ek100_finetune", "task.dual_softmax=0.05", run="random"))
    expected = metrics.retrieval(task.score_matrix(*both[1:]), task.truth(), 0.05)
    assert {name: both[0][f"{name}_dual_softmax"] for name in names} == expected and expected["mAP"] != plain[0]["mAP"]


def test_symmetric_multi_similarity_knows_every_pairs_relevancy(checkpoint, resolve):
    """The relevancy of text i and clip j is the table's, for the sentence drawn for clip i."""
    overrides = "task.retrieval_loss=symmetric_multi_similarity task.similarity_slack=0.01"
    task = tasks.make(resolve("toy/ek100_finetune", overrides, "random"))
    model, dataset = weights.initial_model(task.config).eval(), task.dataset("train")
    items = [dataset[0, i] for i in range(8)]
    table = dataset.relevancy.array()
    c = torch.tensor([[table[clip["index"], text["sentence"]] for clip in items] for text in items])
    assert c.diagonal().tolist() == pytest.approx([item["relevancy"] for item in items]) and not torch.equal(c, c.T)
    sentences = [dataset.sentences.narration[item["sentence"]] for item in items]
    assert [item["text"] for item in items] == sentences
    with torch.no_grad():
        batch = task.collate(items)
        video_BE, text_BE = task.embeddings(model, batch)
        expected = losses.symmetric_multi_similarity(egokit.similarity(text_BE, video_BE), c, 0.6, 0.01)
        assert task.loss(model, batch, 0) == {"symmetric_multi_similarity": pytest.approx(expected.item(), rel=1e-5)}


def test_charades_submission_gives_the_same_map(checkpoint, resolve, tmp_path):
    """The file is read and scored in the plain way, and so is the table of labels."""
    task = tasks.make(resolve("toy/charades_finetune", run="random"))
    reported, rows, prompts_KE = evaluate.evaluate(weights.initial_model(task.config), task)
    task.save_outputs(Run(tmp_path), "zeroshot", rows, prompts_KE)
    lines = [line.split(" ") for line in (tmp_path / "submission-zeroshot.txt").read_text().splitlines()]
    scores = {uid: [float(score) for score in values] for uid, *values in lines}
    folder = task.require_file("CharadesEgo", "CharadesEgo")
    with open(folder / "CharadesEgo_v1_test_only1st.csv") as file:
        actions = {row["id"]: {int(action[1:4]) for action in row["actions"].split(";") if action}
                   for row in csv.DictReader(file)}
    assert list(scores) == list(actions) and {len(values) for values in scores.values()} == {len(task.classes)}
    precisions = []
    for k in range(len(task.classes)):
        order = sorted(scores, key=lambda uid, k=k: -scores[uid][k] if actions[uid] else np.inf)
        places = [place for place, uid in enumerate(order, 1) if k in actions[uid]]
        if places:
            precisions.append(np.mean([hit / place for hit, place in enumerate(places, 1)]))
    assert reported["mAP"] == pytest.approx(100 * np.mean(precisions), rel=1e-9)
    # to the last digit
    assert np.array_equal(np.array(list(scores.values()), np.float32), task.score_matrix(rows, prompts_KE))


@pytest.mark.slow
def test_neither_processes_nor_batch_size_matter(checkpoint, project, tmp_path):
    """Compare 1, 2 and 3 gloo ranks with batches of 1, 2 and 7.

    Each sample is read once; metrics are equal, and scores are equal but for rounding.
    """
    result_of = {}
    for world in (1, 2, 3):
        (tmp_path / str(world)).mkdir()
        read = ranks("rank_evaluate.py", world, tmp_path / str(world), project, ",".join(RECIPES), "1,2,7")
        results = torch.load(tmp_path / str(world) / "results.pt")
        result_of |= {(world, *case.split()): result for case, result in results.items()}
        for case in read[0]:
            shares = [len(part[case]) for part in read]
            assert sorted(index for part in read for index in part[case]) == list(range(sum(shares)))
            assert max(shares) - min(shares) <= 1
    assert len(result_of) == 3 * 3 * len(RECIPES)
    for case, result in result_of.items():
        expected = result_of[1, case[1], "1"]
        assert result["metrics"] == expected["metrics"], case
        for key, rows in expected["rows"].items():
            assert torch.allclose(result["rows"][key].double(), rows.double(), rtol=1e-6, atol=2e-6), (case, key)


@pytest.mark.slow
def test_a_job_says_what_it_scored(checkpoint, resolve):
    config = resolve("toy/egomcq", "launch.tasks_per_node=2 data.limit=0", run="random")
    run = Run(outputs_folder() / "tests" / "scored")
    section = egokit.submit(config, run, "evaluate", "egomcq").wait(progress=False)
    assert section["samples"] == section["expected"] == len(tasks.make(config).questions)
    assert section["failed"] == 0 and section["processes"] == 2
    assert len(section["init_sha256"]) == 12 and 0 < section["evaluation_seconds"] < section["seconds"]
    assert section["recipe"]["data.eval_frames"] == section["frames"]
    assert section["recipe"]["evaluate.precision"] == section["precision"]


def test_egomcq_equals_the_plain_way(checkpoint, resolve):
    """Each question by itself, with its five clips, through the model's public methods."""
    config = resolve("toy/egomcq", "data.limit=0", run="random")
    task, model = tasks.make(config), weights.initial_model(config).eval()
    reported, rows, _ = evaluate.evaluate(model, task)
    questions = len(task.questions)
    assert reported["samples"] == questions and len(rows["index"]) == task.num_rows() == 5 * questions
    scores = task.score_matrix(rows)
    from egokit.viz import question
    for q in (0, 7, 20):
        asked = question(task, q)
        with torch.no_grad():
            dual = egokit.similarity(model.encode_text([asked.text]), model.encode_video(asked.frames))[0]
            fusion = model.match(asked.frames, [asked.text] * 5)
        assert np.allclose(scores["dual"][q], dual, atol=1e-5) and np.allclose(scores["fusion"][q], fusion, atol=1e-5)
        assert np.allclose(scores["ensemble"][q], dual + fusion, atol=1e-5) and asked.answer == task.answers[q]


def test_verb_only_questions_share_their_set_of_nouns(resolve, copied):
    """The order and form of tags do not matter; clips without tags share none."""
    on_copy, root = copied
    path = root / "egomcq.json"
    document = json.loads(path.read_text())
    tags = {"0": [[3, 17], [17, 3], "[3, 17]", "[17,3]", [3, 17, 3]], "1": [[]] * 5, "2": [None] * 5, "3": ["nan"] * 5,
            "4": [[3], [3], [3], [3], [4]], "5": [[3], [3], [3], [3], [3, 4]], "6": ["[8]", [8], [8], [8], [8]]}
    for q, five in tags.items():
        for clip, nouns in zip(document[q]["choices"].values(), five, strict=True):
            clip["tag_noun"] = nouns
    path.write_text(json.dumps(document))
    task = tasks.make(on_copy(resolve("toy/egomcq", "data.limit=7 init=")))
    assert task.verb_only.tolist() == [True, False, False, False, False, False, True]


def test_egomcq_passes_are_counted_and_memory_is_bounded(resolve):
    """At the released depth, 18 video blocks run for each distinct clip and 6 for each pair.

    No more clips are in memory than two batches have.
    """
    shape = f"{MODEL} init= model.depth=12 model.num_fused_layers=6 data.limit=0"
    config = resolve("toy/egomcq", f"{shape} evaluate.batch_size=4")
    task, model = tasks.make(config), opened(config)
    passed, most, trunks = {"video": 0, "text": 0}, 0, weakref.WeakSet()

    def count(side):
        def hook(module, inputs, output):
            nonlocal most
            passed[side] += len(output)
            most = max(most, len(output))
        return hook
    for side, blocks in (("video", model.video.blocks), ("text", model.text.layers)):
        for block in blocks:
            block.register_forward_hook(count(side))
    original, kept = model.fusion_trunk, []

    def trunk(frames_BTCHW):
        trunks.add(made := original(frames_BTCHW))
        kept.append(sum(map(len, trunks)))
        return made
    model.fusion_trunk = trunk
    evaluate.evaluate(model, task)
    clips, pairs, questions = len(task.clips), 5 * len(task.texts), len(task.texts)
    assert clips < pairs and passed["video"] == 18 * clips + 6 * pairs
    # a batch's trunk is freed when the next one's is made
    assert most <= 4 and len(kept) == -(-clips // 4) and max(kept) <= 2 * 4
    # layers of a question's text: 12 and 6 for each batch of pairs that it is in, 6 for each pair
    assert 18 * questions + 6 * pairs <= passed["text"] < 24 * pairs
    together = resolve("toy/egomcq", f"{shape} evaluate.batch_size={pairs}")
    passed["text"] = 0
    evaluate.evaluate(model, tasks.make(together))
    assert passed["text"] == 18 * questions + 6 * pairs


@pytest.mark.parametrize("name, part, value", [("dual", "embed_video", np.nan), ("fusion", "fusion_trunk", np.inf)])
def test_a_score_that_is_no_number_is_an_error_that_names_it(checkpoint, resolve, monkeypatch, name, part, value):
    config = resolve("toy/egomcq", "evaluate.batch_size=1 data.limit=0", run="random")
    task, model = tasks.make(config), weights.initial_model(config)
    original, clips = getattr(model, part), itertools.count()
    monkeypatch.setattr(model, part, lambda frames: original(frames) * (value if next(clips) == 3 else 1))
    message = rf"question \d+, choice \d: the {name} score is nan, of '.*' and clip {task.clips[3][0]} "
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(model, task)


def test_a_missing_sample_is_an_error():
    rows = {"index": np.array([0, 1, 1, 3]), "score": np.zeros(4)}
    with pytest.raises(RuntimeError, match="saw 3 rows, expected 4"):
        evaluate.collect([rows], 4)
    with pytest.raises(RuntimeError, match="saw 3 rows, expected 2"):
        evaluate.collect([rows], 2)
    with pytest.raises(ValueError, match=r"no samples to evaluate \(expected 0\)"):
        evaluate.collect([{}, {}], 0)
    ordered = evaluate.collect([{"index": np.array([2, 0])}, {"index": np.array([1, 2])}, {}], 3)
    assert ordered["index"].tolist() == [0, 1, 2]


def test_scene_aware_negatives_share_video_and_minute(resolve):
    dataset = tasks.make(resolve(overrides="data.limit=0")).dataset("train")
    rng, columns = np.random.default_rng(0), dataset.table.columns
    minutes = columns["narration_time"] // 60
    alone = 0
    for index in range(len(dataset)):
        negative_index = dataset.negative(index, rng)
        same = (columns["video_uid"] == columns["video_uid"][index]) & (minutes == minutes[index])
        alone += negative_index == index
        assert same[negative_index] and (negative_index != index or same.sum() == 1)
    assert alone < len(dataset)


def test_malformed_rows_are_counted_not_read(resolve, project):
    from egokit.data.egoclip_table import EgoClipTable
    path = project / "outputs/toy/egoclip.csv"
    with pytest.warns(UserWarning, match=r"5 malformed rows of \d+ left out"):
        table = EgoClipTable(path)
    assert len(table) == json.loads((project / "outputs/toy/toy.json").read_text())["counts"]["egoclip_clips"]


def test_train_and_test_videos_are_disjoint(resolve, project):
    from egokit.data.egoclip_table import EgoClipTable
    train_videos = set(EgoClipTable(project / "outputs/toy/egoclip.csv").videos)
    assert not train_videos & {uid for uid, _, _ in tasks.make(resolve("toy/egomcq")).clips}
