"""EgoNLQ's features: of clips alone and fused with their questions, the questions' words, disks that are full."""
import collections
import json

import numpy as np
import pytest
import torch
from conftest import MODEL, ROOT, opened
from mq_features import RECIPE, extracted, same
from nlq_site import FUSED, questions_of, save_nlq, site_with_questions

from egokit import tasks
from egokit.config.build import ConfigError
from egokit.data.video import frame_sampling, open_video
from egokit.data.video.transforms import normalise
from egokit.model import weights
from egokit.model.text_encoder import additive_mask
from egokit.runs.run_folder import Run
from egokit.tasks import clip_features, extraction, nlq_features, windows


@pytest.fixture
def nlq(checkpoint, resolve, copied, tmp_path):
    return site_with_questions(resolve, copied, tmp_path)


def pixels_of(task, clip):
    """Return a clip's windows, (N, T, 3, size, size), normalised."""
    return normalise(torch.stack(list(windows.ClipWindows(task, clip).windows())))


@torch.no_grad()
def whole_pairs(task, model, clip):
    """Return a clip's (Q, N, D): every pair of a question and a window is encoded whole."""
    texts = [task.tokenizer([question["query"]], 30) for question in clip["questions"]]
    return torch.stack([torch.cat([
        model.fusion_norm(model.fuse(model.fusion_trunk(window[None]), model.text_trunk(tokens),
                                     tokens["attention_mask"], 4, "itm")[0])[:, 0]
        for window in pixels_of(task, clip)]) for tokens in texts]).numpy()


def test_fused_features_are_those_of_whole_pairs(nlq, tmp_path):
    """Batches of windows end within a clip; questions have other lengths; itm_logits reads the same state."""
    config = nlq.config(f"{FUSED} evaluate.batch_size=4 data.limit=3")
    task, model = tasks.make(config), weights.initial_model(config).eval()
    features, manifest = extracted(config, tmp_path / "run", model)
    assert {key: manifest[key] for key in ("kind", "layer", "dtype", "dimension", "frames", "frame_rate")} == {
        "kind": "fused", "layer": "fusion_norm", "dtype": "float32", "dimension": 32, "frames": 4, "frame_rate": 7.48}
    for clip in manifest["clips"]:
        x_QND = features[clip["clip_uid"]]
        assert x_QND.shape == (3, clip["features"], 32) and clip["features"] == task.windows_of(clip)
        assert np.allclose(x_QND, whole_pairs(task, model, clip), rtol=1e-4, atol=1e-5)
        assert np.ptp(x_QND, axis=0).max() > 0.05 and np.ptp(x_QND, axis=1).max() > 0.05
    # the state of which itm_logits is made, with that of the text
    tokens, frames = task.tokenizer([clip["questions"][1]["query"]], 30), pixels_of(task, clip)[2:3]
    with torch.no_grad():
        states = model.fuse(model.fusion_trunk(frames), model.text_trunk(tokens), tokens["attention_mask"], 4)
        video_BD = model.video_pooler(model.video_transform(torch.from_numpy(x_QND[1, 2:3].copy())))
        text_BD = model.text_pooler(model.text_transform(states[1][:, 0]))
        logits = model.itm_head(torch.cat([text_BD, video_BD], dim=1))
        assert torch.allclose(logits, model.itm_logits(frames, tokens), atol=1e-4)


def test_what_no_question_changes_is_computed_once(nlq, monkeypatch):
    """A window passes once through the unfused blocks and the first fused block's attention, a question once."""
    task = tasks.make(nlq.config(f"{FUSED} evaluate.batch_size=4"))
    model, clip = opened(nlq.config(f"{MODEL} model.depth=3 model.num_fused_layers=2 init=")), task.clips()[0]
    passed = collections.Counter()

    def count(owner, method: str, name: str):
        real = getattr(owner, method)

        def counted(first, *rest):
            passed[name] += len(first["input_ids"] if isinstance(first, dict) else first)
            return real(first, *rest)
        monkeypatch.setattr(owner, method, counted)
    count(model, "fusion_trunk", "windows")
    count(model, "text_trunk", "questions")
    for number, block in enumerate(model.video.blocks):
        count(block, "attention", number)
    x_QND, _ = task.features(model, clip)
    Q, N = x_QND.shape[:2]
    assert (Q, passed) == (3, {"windows": N, "questions": Q, 0: N, 1: N, 2: Q * N})


@pytest.mark.parametrize("fused", [1, 2])
def test_reading_the_video_alone_leaves_out_the_last_text_layer(nlq, monkeypatch, fused):
    config = nlq.config(f"{MODEL} model.depth=3 model.num_fused_layers={fused} init=")
    model = opened(config)
    tokens = model.tokens(["what is it?", "where did i put the cup?"])
    with torch.no_grad():
        trunk_BSD, words_BLD = model.fusion_trunk(torch.randn(2, 4, 3, 64, 64)), model.text_trunk(tokens)
        parts = trunk_BSD, words_BLD, tokens["attention_mask"], 4
        expected = model.fuse(*parts)[0][:, :1]
        monkeypatch.setattr(model.text.layers[-1], "forward", lambda *args: pytest.fail("the last text layer ran"))
        video_B1D, text = model.fuse(*parts, "video")
        known = model.fuse(*parts, "video", model.video.blocks[model.num_unfused].attention(trunk_BSD, 4))[0]
    assert text is None and torch.allclose(video_B1D, expected, atol=1e-6) and torch.equal(known, video_B1D)


def test_words_are_the_unfused_text_encoders_last_states(nlq, tmp_path):
    """The first token's is what the dual encoder takes; padding changes nothing; long questions are cut at 30."""
    config, run = nlq.config(), Run(tmp_path / "run")
    model = weights.initial_model(config).eval()
    _, manifest = extracted(config, run.path, model)
    counts = set()
    for clip in manifest["clips"]:
        words, questions = nlq_features.stored_words(run, clip), clip["questions"]
        tokens = model.tokens([question["query"] for question in questions])
        with torch.no_grad():
            states = model.text.run_layers(model.text.embed(tokens["input_ids"]),
                                           additive_mask(tokens["attention_mask"]), 0, model.config.depth)
            first = model.text(tokens)
        for number, (own, question) in enumerate(zip(words, questions, strict=True)):
            assert own.shape == (question["tokens"], 32) and own.dtype == np.float32
            assert np.allclose(own, states[number, :len(own)], atol=1e-5)
            assert np.allclose(own[0], first[number], atol=1e-5)
        assert [len(own) for own in words] == tokens["attention_mask"].sum(1).tolist()
        counts |= {len(own) for own in words}
    assert len(counts) > 2 and max(counts) == 30
    path = nlq_features.words_file(run, clip)
    np.save(path, np.load(path)[1:])
    with pytest.raises(ValueError, match=rf"{path}: float32 of shape .*, expected \(\d+ words, dimension\); delete it"):
        nlq_features.stored_words(run, clip)


def test_features_of_clips_alone_are_mqs_before_or_after_the_projection(nlq, tmp_path):
    config = nlq.config("data.limit=3")
    model = weights.initial_model(config).eval()
    features, manifest = extracted(config, tmp_path / "run", model)
    assert (manifest["kind"], manifest["layer"]) == ("clip", "video_projection")
    mq, _ = extracted(nlq.config("data.limit=3", RECIPE), tmp_path / "mq", model)
    assert same(features, mq)
    states, manifest = extracted(nlq.config("data.limit=3 task.feature_layer=cls"), tmp_path / "cls", model)
    assert (manifest["layer"], manifest["dimension"]) == ("video_cls", 32)
    for uid, x_ND in states.items():
        with torch.no_grad():
            assert np.allclose(model.video_projection(torch.from_numpy(x_ND)), features[uid], atol=1e-5)


def test_the_manifest_lists_the_questions_of_each_clip_in_order(nlq, tmp_path):
    """A clip of two splits has the questions of both; questions without a text are left out and keep their index."""
    train, val = nlq.documents["train"], nlq.documents["val"]
    twice = dict(train["videos"][0]["clips"][0], annotations=questions_of(99)[1:])
    val["videos"].append({"video_uid": train["videos"][0]["video_uid"], "split": "val", "clips": [twice]})
    save_nlq(nlq.root, "val", val)
    config = nlq.config()
    metrics = tasks.make(config).extract(weights.initial_model(config).eval(), Run(tmp_path))
    manifest = clip_features.read_manifest(tmp_path / "features")
    listed = {clip["clip_uid"]: [(question["annotation_uid"], question["query_idx"]) for question in clip["questions"]]
              for clip in manifest["clips"]}
    number = collections.Counter(map(len, listed.values()))
    assert listed[twice["clip_uid"]] == [("first-0", 0), ("first-0", 2), ("second-0", 0), ("second-99", 0)]
    assert number == {4: 1, 3: len(listed) - 1} and metrics["questions"] == 3 * len(listed) + 1
    assert manifest["clips"][0]["questions"][1] | {"annotation_uid": ""} == {
        "annotation_uid": "", "query_idx": 2, "query": "what?", "tokens": 6}
    assert metrics["data"].keys() == {f"nlq_{split}.json" for split in ("train", "val", "test_unannotated")}


def test_clips_without_a_question_are_named(nlq, tmp_path, capsys):
    """They have features of their own, but none fused with a question."""
    clip = nlq.documents["train"]["videos"][0]["clips"][0]
    clip["annotations"] = [{"annotation_uid": "a", "language_queries": [{"query": ""}]}]
    save_nlq(nlq.root, "train", nlq.documents["train"])
    alone, manifest = extracted(nlq.config(), tmp_path / "alone")
    entry = next(entry for entry in manifest["clips"] if entry["clip_uid"] == clip["clip_uid"])
    assert entry["questions"] == nlq_features.stored_words(Run(tmp_path / "alone"), entry) == []
    assert "unasked" not in manifest
    fused, manifest = extracted(nlq.config(FUSED), tmp_path / "fused")
    assert alone.keys() - fused.keys() == set(manifest["unasked"]) == {clip["clip_uid"]}
    assert f"1 clips have no question, and no fused features, such as {clip['clip_uid']}" in capsys.readouterr().out
    for split, document in nlq.documents.items():
        for video in document["videos"]:
            for clip in video["clips"]:
                clip["annotations"] = []
        save_nlq(nlq.root, split, document)
    with pytest.raises(ValueError, match=r"nlq_\*.json: its clips have no questions .*set task.feature_kind=clip"):
        tasks.make(nlq.config(FUSED)).clips()


@pytest.mark.parametrize("kind", ["task.feature_kind=clip", FUSED])
def test_files_in_half_precision_and_of_numpy(nlq, tmp_path, kind):
    features, _ = extracted(nlq.config(f"{kind} data.limit=2"), tmp_path / "pt")
    config = nlq.config(f"{kind} data.limit=2 data.workers=1 task.feature_format=npy task.feature_dtype=float16")
    arrays, manifest = extracted(config, tmp_path / "npy")
    assert manifest["dtype"] == "float16" and same(arrays, {uid: x.astype(np.float16) for uid, x in features.items()})
    clip = manifest["clips"][0]
    words = [nlq_features.stored_words(Run(tmp_path / name), clip) for name in ("npy", "pt")]
    assert all(np.array_equal(half, full.astype(np.float16)) for half, full in zip(*words, strict=True))
    model = weights.initial_model(config)
    task = tasks.make(config)
    written = sum(path.stat().st_size - 128 for path in (tmp_path / "npy").glob("[fq]*s/*.npy"))  # without headers
    assert written == sum(task.bytes_of(model, clip) for clip in task.clips())
    model.video_projection.register_forward_hook(lambda module, inputs, output: output * 1e9)
    model.fusion_norm.register_forward_hook(lambda module, inputs, output: output * 1e9)
    with pytest.raises(ValueError, match=rf"clip {clip['clip_uid']}: .* float16 holds .*task.feature_dtype=float32"):
        extracted(config, tmp_path / "large", model)


def test_a_disk_that_is_too_small_is_found_before_the_first_window(nlq, tmp_path, monkeypatch, capsys):
    """What is written already does not count."""
    config = nlq.config(f"{FUSED} data.limit=3")
    task, model, free = tasks.make(config), weights.initial_model(config).eval(), 0
    usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda path: usage(0, 0, free))
    sizes = [task.bytes_of(model, clip) for clip in task.clips()]
    free = sum(sizes) - 1
    with pytest.raises(ConfigError, match=rf"{tmp_path}/run/features: the features of 3 clips, 9 questions need "
                       rf"{sum(sizes) / 1e9:.3f} GB more, but {free / 1e9:.3f} GB are free: make room, or set "
                       r"task.feature_dtype=float16, task.feature_kind=clip or data.limit"):
        task.extract(model, Run(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*/*.pt"))
    free += 1
    extracted(config, tmp_path / "run", model)
    assert f"3 clips, 9 questions: {sum(sizes) / 1e9:.3f} GB of features to write" in capsys.readouterr().out
    next((tmp_path / "run/features").glob("*.pt")).unlink()
    free = max(sizes)
    extracted(config, tmp_path / "run", model)


def test_windows_are_the_originals():
    """golden_mq_nlq.json: numbers of frames at 30 a second, also of a clip that ends after its video."""
    cases = json.loads((ROOT / "tests/golden/golden_mq_nlq.json").read_text())["nlq_frames"]
    for case in cases:
        start, stop, T = (case[key] for key in ("video_start_sec", "video_end_sec", "frames"))
        indices = frame_sampling.mq(int(start * 30), int(stop * 30), 1.87, 30, T, case["video_length"])
        assert indices.tolist() == case["indices"]
        assert len(indices) // T == case["features"]
    assert len(cases) > 2


def test_windows_of_a_clip_that_ends_after_its_video(nlq):
    """NLQ's are spread over what there is of it, as the original's; MQ's keep their times."""
    task, mq = tasks.make(nlq.config()), tasks.make(nlq.config("task.feature_frames=4", RECIPE))
    clip = task.clips()[0]
    video = open_video.open_video(task.videos / f"{clip['video_uid']}.mp4")
    clip |= {"start": video.seconds - 6, "stop": video.seconds + 3}
    spread_N4, kept_N4 = (windows.ClipWindows(each, clip).indices(video) for each in (task, mq))
    first, last = video.length - 60, video.length - 1
    assert spread_N4.shape == kept_N4.shape == (int(9 * 1.87 + 1 / 4), 4)
    assert first - 1 <= spread_N4.min() <= first and np.diff(spread_N4.ravel()).max() == 1
    assert last - 2 <= spread_N4.max() <= last
    assert np.diff(kept_N4.ravel())[:40].max() == 2 and (kept_N4.ravel()[-20:] == last).all()
    late = clip | {"start": video.seconds + 1}
    assert (windows.ClipWindows(task, late).indices(video) == last).all()
