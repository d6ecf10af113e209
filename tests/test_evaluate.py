"""Evaluation: the same numbers for any batch size and number of processes, each sample once, passes counted."""
import csv

import numpy as np
import pytest
import torch
from conftest import MODEL

import egokit
from egokit import evaluate, losses, metrics, tasks, train, weights
from egokit.resolve import outputs_folder
from egokit.runs import Run


@pytest.fixture(scope="module")
def checkpoint(project):
    """A model with open gates and random weights, so that every score depends on everything."""
    from egokit.resolve import resolve
    config = resolve("toy/pretrain", "tiny", MODEL)
    model = train.initial_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.7)
            elif parameter.dim() > 1:
                parameter.mul_(2)
    path = outputs_folder() / "02_pretrain" / "random" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(model, path)
    return path


@pytest.mark.parametrize("name", ["egomcq", "ek100_finetune", "charades_finetune"])
def test_batch_size_does_not_matter(checkpoint, resolve, name):
    results = []
    for size in (1, 2, 7):
        config = resolve(f"toy/{name}", f"evaluate.batch_size={size} data.limit=0", run="random")
        task = tasks.make(config)
        results.append(evaluate.evaluate(train.initial_model(config), task))
    for found, rows, _ in results[1:]:
        for key in rows:
            assert np.allclose(rows[key], results[0][1][key], atol=1e-5), key
        assert {k: v for k, v in found.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in results[0][0].items() if k != "seconds"}, abs=1e-6)


def test_dual_softmax_stands_beside_the_plain_numbers(checkpoint, resolve):
    model = train.initial_model(resolve("toy/ek100_finetune", run="random"))
    plain, both = (evaluate.evaluate(model, tasks.make(resolve("toy/ek100_finetune", f"evaluate.dual_softmax={temperature}", run="random")))
                   for temperature in (0, 0.05))
    names = [f"{kind}{way}" for kind in ("mAP", "nDCG") for way in ("", "_V2T", "_T2V")]
    assert [plain[0][name] for name in names] == [both[0][name] for name in names]
    assert not any("dual_softmax" in name for name in plain[0])
    task = tasks.make(resolve("toy/ek100_finetune", "evaluate.dual_softmax=0.05", run="random"))
    expected = metrics.retrieval(task.scores(*both[1:]), task.truth(), 0.05)
    assert {name: both[0][f"{name}_dual_softmax"] for name in names} == expected and expected["mAP"] != plain[0]["mAP"]
    assert task.recipe(trained=False) == {"dual_softmax_temperature": 0.05}


def test_symmetric_multi_similarity_knows_every_pairs_relevancy(checkpoint, resolve):
    """Text i and clip j: the relevancy of clip j and the sentence that was drawn for clip i, from the table of annotations."""
    overrides = "train.retrieval_loss=symmetric_multi_similarity train.similarity_slack=0.01"
    task = tasks.make(resolve("toy/ek100_finetune", overrides, "random"))
    model, dataset = train.initial_model(task.config).eval(), task.dataset("train")
    items = [dataset[0, i] for i in range(8)]
    table = dataset.relevancy.array()
    c = torch.tensor([[table[clip["index"], text["sentence"]] for clip in items] for text in items])
    assert c.diagonal().tolist() == pytest.approx([item["relevancy"] for item in items]) and not torch.equal(c, c.T)
    assert [item["text"] for item in items] == [dataset.sentences.narration[item["sentence"]] for item in items]
    with torch.no_grad():
        batch = task.collate(items)
        video_BE, text_BE = task.embeddings(model, batch)
        expected = losses.symmetric_multi_similarity(egokit.similarity(text_BE, video_BE), c, 0.6, 0.01)
        assert task.loss(model, batch, 0) == {"symmetric_multi_similarity": pytest.approx(expected.item(), rel=1e-5)}


def test_charades_submission_gives_the_same_map(checkpoint, resolve, tmp_path):
    """The file, read and scored in the plain way against the published table, which is read in the plain way, too."""
    task = tasks.make(resolve("toy/charades_finetune", run="random"))
    found, rows, prompts_KE = evaluate.evaluate(train.initial_model(task.config), task)
    task.keep(Run(tmp_path), "zeroshot", rows, prompts_KE)
    lines = [line.split(" ") for line in (tmp_path / "submission-zeroshot.txt").read_text().splitlines()]
    scores = {uid: [float(score) for score in values] for uid, *values in lines}
    folder = task.need("CharadesEgo", "CharadesEgo")
    with open(folder / "CharadesEgo_v1_test_only1st.csv") as file:
        actions = {row["id"]: {int(one[1:4]) for one in row["actions"].split(";") if one} for row in csv.DictReader(file)}
    assert list(scores) == list(actions) and {len(values) for values in scores.values()} == {len(task.classes)}
    precisions = []
    for k in range(len(task.classes)):
        order = sorted(scores, key=lambda uid, k=k: -scores[uid][k] if actions[uid] else np.inf)
        places = [place for place, uid in enumerate(order, 1) if k in actions[uid]]
        if places:
            precisions.append(np.mean([hit / place for hit, place in enumerate(places, 1)]))
    assert found["mAP"] == pytest.approx(100 * np.mean(precisions), rel=1e-9)
    assert np.array_equal(np.array(list(scores.values()), np.float32), task.scores(rows, prompts_KE)), "to the last digit"


@pytest.mark.slow
def test_number_of_processes_does_not_matter(checkpoint, resolve):
    results = []
    for world in (1, 3):
        config = resolve("toy/egomcq", f"launch.processes={world} data.limit=0", run="random")
        run = Run(outputs_folder() / "tests" / f"evaluate-{world}")
        results.append((egokit.submit(config, run, "evaluate", "egomcq").wait(progress=False), run.read_rows("egomcq")[0]))
    (one, rows_one), (three, rows_three) = results
    assert all(np.allclose(rows_one[key], rows_three[key], atol=1e-6) for key in rows_one)
    for key in one:
        if "_" in key and key.split("_")[0] in ("dual", "fusion", "ensemble"):
            assert one[key] == three[key]
    assert one["samples"] == one["expected"] and one["failed"] == 0
    assert one["init_sha256"] == three["init_sha256"] and len(one["init_sha256"]) == 12


def test_egomcq_equals_the_plain_way(checkpoint, resolve):
    """Every question by itself, each of its five clips through the public methods."""
    config = resolve("toy/egomcq", "data.limit=0", run="random")
    task, model = tasks.make(config), train.initial_model(config).eval()
    _, rows, _ = evaluate.evaluate(model, task)
    scores = task.scores(rows)
    from egokit.look import question
    for q in (0, 7, 20):
        asked = question(task, q)
        with torch.no_grad():
            dual = egokit.similarity(model.encode_text([asked.text]), model.encode_video(asked.frames))[0]
            fusion = model.match(asked.frames, [asked.text] * 5)
        assert np.allclose(scores["dual"][q], dual, atol=1e-5) and np.allclose(scores["fusion"][q], fusion, atol=1e-5)
        assert np.allclose(scores["ensemble"][q], dual + fusion, atol=1e-5) and asked.answer == task.answers[q]


def test_egomcq_passes_are_shared(checkpoint, resolve):
    """depth + unfused block passes for each distinct clip, and `fused` for each question and clip."""
    config = resolve("toy/egomcq", "data.limit=0 evaluate.batch_size=4", run="random")
    task, model = tasks.make(config), train.initial_model(config)
    passed = np.zeros(model.config.depth)
    for number, block in enumerate(model.video.blocks):
        block.register_forward_hook(lambda module, inputs, output, number=number: passed.__setitem__(number, passed[number] + len(output)))
    evaluate.evaluate(model, task)
    clips, pairs, fused = len(task.clips), 5 * len(task.texts), model.config.fused
    assert passed.sum() == clips * (2 * model.config.depth - fused) + pairs * fused
    assert clips < pairs


def test_a_missing_sample_is_an_error():
    rows = {"index": np.array([0, 1, 1, 3]), "score": np.zeros(4)}
    with pytest.raises(RuntimeError, match="saw 3 samples, expected 4"):
        evaluate.collect([rows], 4)
    ordered = evaluate.collect([{"index": np.array([2, 0])}, {"index": np.array([1, 2])}, {}], 3)
    assert ordered["index"].tolist() == [0, 1, 2]


def test_scene_aware_negatives_share_video_and_minute(resolve):
    dataset = tasks.make(resolve(overrides="data.limit=0")).dataset("train")
    rng, columns = np.random.default_rng(0), dataset.table.columns
    minutes = columns["narration_time"] // 60
    alone = 0
    for index in range(len(dataset)):
        other = dataset.negative(index, rng)
        same = (columns["video_uid"] == columns["video_uid"][index]) & (minutes == minutes[index])
        alone += other == index
        assert same[other] and (other != index or same.sum() == 1)
    assert alone < len(dataset)


def test_malformed_rows_are_counted_not_read(resolve, project):
    from egokit.egoclip_table import EgoClipTable
    path = project / "outputs/toy/egoclip.csv"
    with pytest.warns(UserWarning, match=r"5 malformed rows of \d+ left out"):
        table = EgoClipTable(path)
    import json
    assert len(table) == json.loads((project / "outputs/toy/toy.json").read_text())["counts"]["egoclip_clips"]


def test_train_and_test_videos_are_disjoint(resolve, project):
    from egokit.egoclip_table import EgoClipTable
    train_videos = set(EgoClipTable(project / "outputs/toy/egoclip.csv").videos)
    assert not train_videos & {uid for uid, _, _ in tasks.make(resolve("toy/egomcq")).clips}


def test_mq_features_are_those_of_their_frames(checkpoint, resolve, project):
    config = resolve("toy/egomq_features", "data.limit=2 evaluate.batch_size=3", run="random")
    task, model = tasks.make(config), train.initial_model(config).eval()
    clip = task.clips()[0]
    features = task.features(model, clip)
    assert len(features) == int((clip["stop"] - clip["start"]) * 1.87 * 4 + 1) // 4
    from egokit import sampling
    from egokit.frames import open_video
    from egokit.transforms import normalise
    video = open_video(project / f"outputs/toy/Ego4D_256/{clip['video_uid']}.mp4")
    indices = sampling.mq(int(clip["start"] * 10), int(clip["stop"] * 10), 1.87, 10, 4)
    for at in (0, 5, len(features) - 1):
        with torch.no_grad():
            frames = normalise(task.transform(video.read(sampling.inside(indices[4 * at:4 * at + 4], video.length)), None))
            assert torch.allclose(model.encode_video(frames[None])[0], features[at], atol=1e-5)
