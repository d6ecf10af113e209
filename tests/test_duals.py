"""Models without a fusion encoder, a user's and the peers', through every benchmark and search."""
import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from mq_features import extracted
from own_dual import Colours
from own_duals import OWN, made
from search_folder import three_videos
from tiny_peers import tiny_file, tokenizer_for

import egokit
from egokit import cli, search, tasks
from egokit.config.build import ConfigError
from egokit.data.video import open_video
from egokit.model import own_modules, sources, weights
from egokit.model.dual import Dual, FusionError
from egokit.runs.run_folder import Run
from egokit.tasks import nlq_features, windows
from egokit.train.evaluate import evaluate

__all__ = ["made"]  # a fixture


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Whoever opens a video fails."""
    def refuse(*_, **__):
        raise AssertionError("a video was opened")
    monkeypatch.setattr(open_video, "open_video", refuse)


def embeddings(task, model, sample):
    """The embedding of a test clip, by the public method alone."""
    with torch.no_grad():
        return model.encode_video(model.normalise(task.dataset("test")[0, sample]["video"])[None])


def embedded(task, model, text):
    return model.embed_text(model.tokens([text], task.config.data.eval_max_tokens))


def normalised_by(model, pixels):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("size", [1, 7])
def test_egomcq_has_cosines_and_dot_products(made, size):
    task, model = made("egomcq", f"evaluate.batch_size={size}")
    metrics, rows, _ = evaluate(model, task)
    assert rows.keys() == {"index", "dual", "dot"}
    assert {name for name in metrics if name not in ("samples", "seconds")} == {
        f"{score}_{kind}" for score in ("dual", "dot") for kind in ("inter", "intra", "verb_only")}
    with torch.no_grad():
        video_VE = torch.cat([embeddings(task, model, v) for v in range(len(task.clips))])
        for q, text in enumerate(task.texts):
            text_1E = embedded(task, model, text)
            dot = (text_1E @ video_VE[task.choices[q]].T)[0]
            cosine = dot / text_1E.norm() / video_VE[task.choices[q]].norm(dim=1)
            assert np.allclose(rows["dot"][5 * q:5 * q + 5], dot, rtol=1e-4, atol=1e-4)
            assert np.allclose(rows["dual"][5 * q:5 * q + 5], cosine, atol=1e-5)
    scores = task.score_matrix(rows)
    assert [*scores] == ["dual", "dot"] and task.decides(scores) == "dual" and task.score_of(metrics) == "dual_intra"
    for name in scores:  # from the stored rows alone
        right = scores[name].argmax(1) == task.answers
        assert metrics[f"{name}_intra"] == pytest.approx(100 * right[task.types == 2].mean())
    assert {name.rpartition("_")[0] for name in task.metrics(rows, None)} >= {"dual", "dot"}
    assert not np.allclose(rows["dual"], rows["dot"])
    first = task.predictions(rows, None)[0]
    assert first["scores"] == pytest.approx(scores["dual"][task.texts.index(first["text"])].tolist(), abs=1e-3)


def test_the_models_own_normalisation_is_taken(made, monkeypatch):
    task, model = made("egomcq", "data.limit=2")
    pixels = task.dataset("test")[0, 0]["video"]
    assert torch.allclose(model.normalise(pixels), normalised_by(model, pixels), atol=1e-5)
    seen, plain = [], Colours.embed_video
    monkeypatch.setattr(type(model), "embed_video", lambda self, frames: seen.append(frames) or plain(self, frames))
    evaluate(model, task)
    assert torch.allclose(seen[0][0], normalised_by(model, pixels), atol=1e-5)


@pytest.mark.parametrize("recipe, names", [("ek100_finetune", {"mAP", "nDCG"}), ("charades_finetune", {"mAP"})])
def test_retrieval_by_cosines(made, recipe, names):
    task, model = made(recipe, "evaluate.batch_size=2")
    metrics, rows, prompts_KE = evaluate(model, task)
    texts = task.prompts()
    with torch.no_grad():
        expected_KE = torch.cat([embedded(task, model, text) for text in texts])
    assert names <= metrics.keys() and np.allclose(prompts_KE, expected_KE, atol=1e-5)
    for v in range(len(rows["index"])):
        assert np.allclose(rows["video"][v], embeddings(task, model, v), atol=1e-5)
    assert task.score_of(metrics) in metrics


def test_features_of_moments(made, tmp_path):
    task, model = made("egomq", "data.limit=3")
    features, manifest = extracted(task.config, tmp_path / "run")
    assert (manifest["layer"], manifest["dimension"], manifest["init_sha256"]) == (
        "embedding", 24, sources.fingerprint(task.config.init))
    clip = task.clips()[1]
    with torch.no_grad():
        pixels = torch.stack(list(windows.ClipWindows(task, clip).windows()))
        expected = model.encode_video(normalised_by(model, pixels))
    assert np.allclose(features[clip["clip_uid"]], expected, atol=1e-5)


def test_features_and_queries_of_questions(made, tmp_path):
    """A query is one word, its embedding; a head trains on these."""
    task, model = made("egonlq", "data.limit=3")
    features, manifest = extracted(task.config, tmp_path / "run")
    assert {key: manifest[key] for key in ("kind", "layer", "words", "dimension")} == {
        "kind": "clip", "layer": "embedding", "words": "embedding", "dimension": 24}
    for clip in manifest["clips"]:
        assert features[clip["clip_uid"]].shape == (clip["features"], 24)
        stored = nlq_features.stored_words(Run(tmp_path / "run"), clip)
        assert [words.shape for words in stored] == [(1, 24)] * len(clip["questions"])
        for words, question in zip(stored, clip["questions"], strict=True):
            with torch.no_grad():
                assert np.allclose(words, embedded(task, model, question["query"]), atol=1e-5)


def test_what_needs_fusion_says_so_before_data_are_read(made, nothing_is_read, tmp_path):
    for recipe, overrides, action, what in (
            ("egotaskqa", "", "evaluate", "EgoTaskQA"), ("egotaskqa_head", "", "extract", "EgoTaskQA"),
            ("egonlq", "task.feature_kind=fused", "extract", "feature_kind=fused"),
            ("pretrain", "", "train", "masked words")):
        task, model = made(recipe, overrides)
        with pytest.raises(FusionError, match=f"Colours has no fusion encoder, .*{what}.* use an EgoVLPv2 checkpoint"):
            task.initial_model(action)
        with pytest.raises(ValueError, match="Colours has no fusion encoder"):
            if action == "extract":
                task.extract(model, Run(tmp_path / recipe))
            else:
                evaluate(model, task) if action == "evaluate" else task.unused(model)
        refused = "does not train" if action == "train" else f"has no fusion encoder.*{what}"
        with pytest.raises(ValueError, match=rf"own_dual.py:Colours.* {refused}"):
            egokit.submit(task.config, Run(tmp_path / f"{recipe}-job"), action)
        assert not (tmp_path / f"{recipe}-job/jobs").is_dir() or not [*(tmp_path / f"{recipe}-job").rglob("spec.json")]
    task, model = made("egonlq", "task.feature_layer=cls")
    with pytest.raises(ConfigError, match=r"task.feature_layer=cls .* Colours .*=projection"):
        task.extract(model, Run(tmp_path / "cls"))
    assert not (tmp_path / "cls/features").exists()


def test_what_only_egovlpv2_has_is_told_by_name(made):
    _, model = made("egomcq")
    for name in ("match", "itm_logits", "fusion_trunk", "config", "head", "parameters_by_role"):
        with pytest.raises(FusionError, match=rf"Colours has no fusion encoder, and no \.{name}"):
            getattr(model, name)
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match="no attribute 'anything'") as error:
        model.anything  # noqa: B018
    assert not isinstance(error.value, FusionError)


def test_a_tasks_modules_are_for_egovlpv2_alone(made):
    """A user's model may call its own parts `head` and `own`: they stay as they are."""
    task, model = made("egomcq")
    model.head, model.own = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3)
    before = model.head, model.own
    assert own_modules.attach(model, task) == [] and (model.head, model.own) == before

    class Headed(tasks.find("egomcq")):
        def head(self, model):
            return tasks.ClassHead(model.embed_dim, 4)

    with pytest.raises(ConfigError, match=r"Headed adds head to the model, .* Colours"):
        own_modules.attach(model, Headed(task.config))


def test_search_by_a_users_model(project, resolve, tmp_path, capsys):
    folder = three_videos(project, tmp_path / "videos")
    config = resolve("toy/search", f"{OWN} task.videos={folder}")
    run, task = Run(tmp_path / "run"), tasks.make(config)
    task.extract(weights.initial_model(config).eval(), run)
    manifest = json.loads((run.path / "features/manifest.json").read_text())
    assert manifest["dimension"] == 24 and manifest["init_sha256"] == sources.fingerprint(config.init)
    searcher, text = search.open_index(config, run), "#C C opens the box " + "and so on " * 10
    hits = searcher(text, top=3)
    with torch.no_grad():
        for hit in hits:
            clip = egokit.read_clip(hit.path, *hit.scored, frames=4, resize=72, model=searcher.model)
            cosine = egokit.similarity(searcher.model.encode_text(text), searcher.model.encode_video(clip[None]))
            assert hit.cosine == pytest.approx(cosine.item(), abs=2e-3) and hit.match is None
    assert searcher.tokens(text)["letters"].shape == (1, 77)
    with pytest.raises(FusionError, match=r"Colours has no fusion encoder, which re-ranking \(rerank\) needs"):
        searcher(text, rerank=5)
    assert searcher.reranks(24) == 0 and "not re-ranked: Colours has no fusion encoder" in capsys.readouterr().out
    assert any("Colours" in note for note in searcher.notes) and not any("toy's" in note for note in searcher.notes)


@pytest.mark.parametrize("kind", ["egovlp", "lavila_tsfb", "avion_vitb"])
def test_peers_go_the_same_way(resolve, tmp_path, kind):
    """Each of the peers' files through EgoMCQ, EK-100 and the features of moments."""
    file, folder = tiny_file(tmp_path / f"{kind}.pth", kind), tokenizer_for(kind, tmp_path / "words")
    key = "bert_tokenizer" if kind == "egovlp" else "clip_tokenizer"
    start = f"init={file} site.{key}={folder} data.limit=0 data.eval_frames=4"
    for recipe, name in (("egomcq", "dot_inter"), ("ek100_finetune", "nDCG"), ("charades_finetune", "mAP")):
        config = resolve(f"toy/{recipe}", start)
        metrics, rows, _ = evaluate(weights.initial_model(config), tasks.make(config))
        assert 0 <= metrics[name] <= 100
        assert all(np.isfinite(value).all() and np.ptp(value) > 0 for value in rows.values())
    features, manifest = extracted(resolve("toy/egomq", f"{start} data.limit=2"), tmp_path / "run")
    assert (manifest["layer"], manifest["dimension"]) == ("embedding", 16) and len(features) == 2


def test_the_base_asks_for_what_is_missing():
    class Half(Dual):
        def __init__(self):
            super().__init__()
            self.image_size = 8

    model = Half()
    for call, name in ((lambda: model.encode_text("a"), "tokens"),
                       (lambda: model.encode_video(torch.randn(1, 2, 3, 8, 8)), "embed_video")):
        with pytest.raises(NotImplementedError, match=f"Half has no method {name}"):
            call()
    assert model.family == "Half" and model.device.type == "cpu" and not model.fuses


def test_the_public_methods_check_and_work_in_parts(monkeypatch):
    model, sizes = Colours(), []
    plain = Colours.embed_video
    monkeypatch.setattr(Colours, "embed_video", lambda self, frames: sizes.append(len(frames)) or plain(self, frames))
    frames = torch.randn(5, 4, 3, 64, 64)
    with torch.no_grad():
        whole = torch.cat([plain(model, frames[i:i + 1]) for i in range(5)])
        assert torch.allclose(model.encode_video(frames), whole, atol=1e-5) and sizes == [2, 2, 1]
        assert model.embed_dim == 24 and model.encode_video(torch.randn(1, 40, 3, 64, 64)).shape == (1, 24)
        tokens = model.tokens(["ab", "c"], 77)
        assert torch.equal(model.encode_text(tokens), model.encode_text(["ab", "c"]))
    for given, message in ((frames[0], "add the batch axis"), (frames[..., :32], r"expected \(B, T, 3, 64, 64\)"),
                           (torch.zeros(1, 0, 3, 64, 64), "the model takes at least one"),
                           (frames.byte(), "model.normalise")):
        with pytest.raises(ValueError, match=message):
            model.encode_video(given)
    for given, message in ((None, "one string or several"), ([], "one string or several"), ({}, "same number of texts"),
                           ({"letters": torch.zeros(2, 3), "more": torch.zeros(3)}, "same number of texts")):
        with pytest.raises(ValueError, match=message):
            model.encode_text(given)


def test_the_command_refuses_to_re_rank_before_it_indexes(project, tmp_path, capsys):
    folder = three_videos(project, tmp_path / "videos")
    with pytest.raises(SystemExit):
        cli.main(["search", str(folder), "#C C opens the box", "--site", "tiny", "--rerank", "5", "--run", "refused",
                  "--checkpoint", f"{ROOT}/tests/own_dual.py:Colours"])
    told = capsys.readouterr().err
    assert "has no fusion encoder, which re-ranking (--rerank) needs" in told and "own_dual.py:Colours" in told
    assert not (project / "outputs/07_search_your_videos/refused/jobs").exists()
