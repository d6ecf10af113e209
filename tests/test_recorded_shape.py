"""The shape that a checkpoint records of its network is bounded and checked before a network is built."""
import time

import pytest
import torch
from conftest import MODEL

import egokit
from egokit.model import checkpoints, weights
from egokit.model.checkpoints import WeightsError


@pytest.fixture
def model(resolve):
    return weights.initial_model(resolve(overrides=MODEL))


@pytest.mark.parametrize(("key", "value"), [
    ("depth", 10**9), ("depth", 256), ("width", 10**12), ("width", 2**70), ("heads", 0), ("heads", 7), ("heads", -1),
    ("image_size", "x"), ("image_size", 33), ("projection", "mlp99999999"), ("projection", "mlp" + "9" * 5000),
    ("projection", "x"), ("projection", None), ("frames", 10**6), ("vocab_size", 10**8), ("num_fused_layers", 200),
    ("patch_size", 10**6), ("mlp_ratio", 1e308), ("mlp_ratio", float("nan")), ("dropout", 5), ("time_init", ["x"]),
    ("unknown", 3), (1, 2), ("a.b", 2), ("depth", {"a": 1}), ("", {}), ("", {"depth": []})])
def test_a_wrong_shape_is_refused_at_once(model, tmp_path, key, value):
    weights.save(model, tmp_path / "a.pt")
    content = checkpoints.read(tmp_path / "a.pt")
    content["model_config"] = {**content["model_config"], key: value} if key else value
    torch.save(content, tmp_path / "b.pt")
    began = time.process_time()
    with pytest.raises(WeightsError, match=r"b\.pt"):
        egokit.load(tmp_path / "b.pt")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors"])
def test_equal_weights_make_equal_files_that_name_no_machine(model, tmp_path, name, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a-host-of-ours")
    files = [tmp_path / "one" / name, tmp_path / "two" / name]
    for path in files:
        (weights.export if name == "a.pth" else weights.save)(model, path)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"a-host-of-ours" not in files[0].read_bytes() and b".part" not in files[0].read_bytes()


def test_no_tokenizer_that_a_checkpoint_names_is_fetched(model, tmp_path, monkeypatch):
    fetched = []

    def fetch(source, local_files_only=False, **options):
        if not local_files_only:
            fetched.append(source)
        raise OSError("there is none")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fetch)
    model.tokenizer_source = "somebody/tokenizer"
    weights.save(model, tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match=r"somebody/tokenizer.*site\.tokenizer"):
        egokit.load(tmp_path / "a.pt").encode_text(["#C C cuts"])
    assert fetched == []
    with pytest.raises(FileNotFoundError, match="somebody/other"):
        egokit.load(tmp_path / "a.pt", tokenizer="somebody/other")
    assert fetched == ["somebody/other"]


@pytest.mark.parametrize("key", ["own.training", "own.a.training", "own.keys.x", "own.", "own..x", "own.__class__",
                                 "own.a." + "b." * 1000, "own.a.weight.x", "own.head.weight.x", "head.weight.x"])
def test_a_key_that_is_no_place_in_modules_is_named(model, tmp_path, key):
    model.head, model.own["a"] = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    weights.save(model, tmp_path / "a.pt")
    content = checkpoints.read(tmp_path / "a.pt")
    content["state_dict"][key] = torch.zeros(1)
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(WeightsError, match=r"b\.pt: (own|head)\."):
        egokit.load(tmp_path / "b.pt")
