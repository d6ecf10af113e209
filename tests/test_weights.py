"""Checkpoints: strict loading of every kind of file, saving, export, and errors that name file and keys."""
import re
import subprocess
import sys

import pytest
import torch
from conftest import MODEL

import egokit
from egokit import cli
from egokit.model import checkpoints, tensor_file, weights
from egokit.model.checkpoints import WeightsError


@pytest.fixture
def model(resolve):
    return weights.initial_model(resolve(overrides=MODEL))


def test_every_key_has_a_name_on_both_sides(model):
    names = {name: weights.rename(name, "released") for name in model.state_dict()}
    assert None not in names.values() and len(set(names.values())) == len(names)
    assert all(weights.rename(released, "ours") == name for name, released in names.items())


def test_released_keys_are_all_known():
    from golden_inputs import KEYS
    for path in KEYS.values():
        keys = [line.split("\t")[0] for line in path.read_text().splitlines()]
        assert [key for key in keys if not weights.rename(key, "ours")] == ["text_model.embeddings.position_ids"]
        assert all(weights.rename(weights.rename(key, "ours"), "released") == key
                   for key in keys if "position_ids" not in key)


def test_round_trip(model, tmp_path):
    weights.save(model, tmp_path / "ours.pt", step=3)
    loaded, report = egokit.load(tmp_path / "ours.pt", report=True)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert report["missing"] == report["unexpected"] == report["misshapen"] == [] and not loaded.training
    assert loaded.config == model.config.__class__(**{**vars(model.config), "checkpointing": False})


def test_frames_are_resized(model, tmp_path):
    weights.save(model, tmp_path / "ours.pt")
    four = model.video.temporal_embed.detach()
    longer, shorter = (egokit.load(tmp_path / "ours.pt", frames=n).video.temporal_embed for n in (7, 2))
    assert torch.equal(shorter, four[:, :2]) and longer.shape[1] == 7
    assert torch.allclose(longer[:, ::2], four, atol=1e-6)
    assert torch.allclose(longer[:, 1], four[:, :2].mean(1), atol=1e-6)


def test_missing_unexpected_and_misshapen_keys_are_listed(model, tmp_path):
    state = model.state_dict()
    state["surplus.weight"] = state.pop("itm_head.bias")
    state["fusion_norm.weight"] = torch.zeros(3)
    content = {"format": checkpoints.FORMAT, "model_config": vars(model.config), "tokenizer": "", "state_dict": state}
    checkpoints.write(tmp_path / "bad.pt", content)
    with pytest.raises(WeightsError, match=r"(?s)bad\.pt.*missing \(1\): itm_head.*unexpected \(1\): surplus.*"
                                           r"fusion_norm.weight: \(3,"):
        egokit.load(tmp_path / "bad.pt")


def test_report_gives_every_key_of_a_file_that_does_not_fit(model, tmp_path):
    state = {key: value for key, value in model.state_dict().items() if "layers" not in key}
    content = {"format": checkpoints.FORMAT, "model_config": vars(model.config), "tokenizer": "", "state_dict": state}
    checkpoints.write(tmp_path / "half.pt", content)
    nothing, report = egokit.load(tmp_path / "half.pt", report=True)
    assert nothing is None and report["missing"] == sorted(key for key in model.state_dict() if "layers" in key)
    assert report["loaded"] == sorted(state) and report["unexpected"] == report["misshapen"] == []
    with pytest.raises(WeightsError, match=r"half\.pt does not fit.*report=True") as caught:
        egokit.load(tmp_path / "half.pt")
    assert caught.value.report == report


@pytest.mark.parametrize("kind", [pytest.param("large", marks=[pytest.mark.slow, pytest.mark.golden]), "small"])
def test_export_writes_the_released_layout(released, tmp_path, kind):
    """Keys under 'module.', shapes, dtypes and bits of weights are the released file's."""
    from golden_inputs import KEYS, release_state
    model, report = egokit.load(released(kind), report=True)
    assert (model.config.projection, model.config.frames) == {"large": ("mlp4096", 4), "small": ("linear256", 16)}[kind]
    assert {name: len(keys) for name, keys in report.items()} \
        == {"loaded": {"large": 557, "small": 551}[kind], "missing": 0, "unexpected": 0, "misshapen": 0}
    weights.export(model, tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    lines = [line.split("\t") for line in KEYS[kind].read_text().splitlines()]
    assert {key.removeprefix("module."): (str(tuple(value.shape)), str(value.dtype)) for key, value in state.items()} \
        == {key: (shape, f"torch.{dtype.removeprefix('torch.')}") for key, shape, dtype in lines}
    assert all(key.startswith("module.") and torch.equal(state[key], value)
               for key, value in ((f"module.{key}", value) for key, value in release_state(kind).items()))


@pytest.mark.parametrize("name", ["ours.safetensors", "ours.pt", "released.pth", "bare.pth", "legacy.pth",
                                  "released.safetensors"])
def test_every_kind_of_file_gives_the_same_model(model, tmp_path, name):
    from safetensors.torch import save_file
    path = tmp_path / name
    names = {key: weights.rename(key, "released") for key in model.state_dict()}
    released = {names[key]: value.detach().clone() for key, value in model.state_dict().items()}
    shape = {"config": {"egokit": {"model_config": vars(model.config), "tokenizer": ""}}}
    if name.startswith("ours"):
        weights.save(model, path)
    elif name == "released.pth":
        weights.export(model, path)
    elif name == "released.safetensors":  # without a record of its shape: only the base model's heads can be told
        save_file(released, path)
        with pytest.raises(WeightsError, match="width 32 and no record of its number of heads"):
            egokit.load(path)
        return
    else:
        torch.save({"state_dict": released, **shape}, path, _use_new_zipfile_serialization=name == "bare.pth")
    loaded = egokit.load(path)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert loaded.config.heads == model.config.heads and path.stat().st_mode & 0o044


def released_state(model):
    return {f"module.{weights.rename(key, 'released')}": value.detach().clone()
            for key, value in model.state_dict().items()}


def recorded(model, state):
    return {"state_dict": state, "config": {"egokit": {"model_config": vars(model.config), "tokenizer": ""}}}


def test_strictness_has_no_holes(released, model, tmp_path):
    """Missing layers, two names for one weight, and damaged records are errors or reported."""
    from golden_inputs import release_state
    state = release_state("small")
    kept = {key: value for key, value in state.items() if ".11." not in key and "pos_embed" not in key}
    torch.save(kept, tmp_path / "short.pth")
    nothing, report = egokit.load(tmp_path / "short.pth", report=True)
    assert nothing is None
    assert {"video.position_embed", "text.layers.11.fc1.bias"} <= set(report["missing"])
    torch.save({"layer1.weight": torch.zeros(2), "layer2.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth is not an EgoVLPv2 checkpoint, .*: its keys begin with layer1"):
        egokit.load(tmp_path / "other.pth")
    own = released_state(model)
    second = {key.removeprefix("module."): value + 1 for key, value in own.items()}
    torch.save(recorded(model, {**own, **second}), tmp_path / "twice.pth")
    assert len(egokit.load(tmp_path / "twice.pth", report=True)[1]["unexpected"]) == len(own)
    for content in ({0: torch.zeros(1)}, {"format": checkpoints.FORMAT, "state_dict": own},
                    {**recorded(model, own), "config": {"egokit": "x"}}):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(WeightsError, match=r"odd\.pth"):
            egokit.load(tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"frames=2\.5: expected a whole number"):
        egokit.load(tmp_path / "odd.pth", frames=2.5)


def test_every_weight_has_memory_of_its_own(model, tmp_path):
    """Weights that a file ties, expands or cuts from one storage can be trained and converted."""
    own = released_state(model)
    word, decoder = "module.text_model.embeddings.word_embeddings.weight", "module.mlm_score.decoder.weight"
    bias = "module.txt_proj.1.bias"
    own[decoder] = own[word]
    own[bias] = torch.zeros(1).expand(len(own[bias]))
    torch.save(recorded(model, own), tmp_path / "tied.pth")
    loaded = egokit.load(tmp_path / "tied.pth")
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded.text.word_embed.weight.grad = torch.ones_like(loaded.text.word_embed.weight)
    loaded.text_projection[1].bias.grad = torch.ones_like(loaded.text_projection[1].bias)
    optimizer.step()
    assert torch.equal(loaded.word_head.decoder.weight, own[word])
    cli.main(["convert", str(tmp_path / "tied.pth"), str(tmp_path / "untied.safetensors")])
    with torch.device("meta"):  # or cuda, as notebooks like to set it
        assert egokit.load(tmp_path / "untied.safetensors").device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(model, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in released_state(model).items()}
    torch.save(recorded(model, state), tmp_path / "a.pth")
    loaded = egokit.load(tmp_path / "a.pth")
    assert all(torch.equal(value, model.state_dict()[key].to(dtype).float())
               for key, value in loaded.state_dict().items())


def test_an_optimizer_stays_in_its_file(model, tmp_path):
    weights.save(model, tmp_path / "step.pt", optimizer={"moments": torch.zeros(1000)})
    content = checkpoints.read(tmp_path / "step.pt", everything=False)
    assert isinstance(content["optimizer"]["moments"], tensor_file.Stored)
    assert torch.is_tensor(content["state_dict"]["itm_head.bias"])
    assert torch.equal(checkpoints.read(tmp_path / "step.pt")["optimizer"]["moments"], torch.zeros(1000))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loading_peaks_at_the_size_of_the_file(released, tmp_path, suffix):
    path = released("small")
    if suffix == ".safetensors":
        path = tmp_path / "small.safetensors"
        weights.save(egokit.load(released("small")), path)
    code = ("import re, sys, torch, egokit, egokit.model.weights\n"  # VmHWM, as ru_maxrss begins with the parent's
            "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
            "before = peak(); model = egokit.load(sys.argv[1]); print(peak() - before)")
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    grown = int(done.stdout)
    assert 0.9 <= grown / path.stat().st_size <= 1.3


def test_a_file_that_changes_later_changes_nothing(model, tmp_path):
    weights.save(model, tmp_path / "a.pt")
    loaded = egokit.load(tmp_path / "a.pt")
    with open(tmp_path / "a.pt", "r+b") as file:
        file.truncate(10)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_convert_and_export_from_the_shell(model, tmp_path, capsys):
    weights.save(model, tmp_path / "a.pt")
    source = str(tmp_path / "a.pt")
    cli.main(["convert", source, str(tmp_path / "b.safetensors")])
    cli.main(["export", str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth"), "--frames", "9"])
    assert "projection linear16, 4 frames" in capsys.readouterr().out
    assert egokit.load(tmp_path / "c.pth").config.frames == 9
    for arguments, message in ((["convert", source, str(tmp_path / "b.safetensors")], "exists.*--force"),
                               (["export", source, str(tmp_path / "c.onnx")], "expected a name that ends in"),
                               (["convert", str(tmp_path / "none"), str(tmp_path / "d.pt")], "does not exist")):
        with pytest.raises(SystemExit) as exit_info:
            cli.main(arguments)
        assert exit_info.value.code == 2 and re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "d.pt").exists()


def wrapped_names(key: str) -> dict[str, str]:
    """Return a released key, as what wraps a model or a part of it writes it."""
    first, _, rest = key.partition(".")
    return {"ddp": f"module.{key}", "compile": f"_orig_mod.{key}", "compiled ddp": f"_orig_mod.module.{key}",
            "ddp of compiled": f"module._orig_mod.{key}", "twice": f"module._orig_mod.module._orig_mod.{key}",
            "an encoder": f"{first}._orig_mod.{rest}" if rest else key,
            "blocks": re.sub(r"(blocks|layer)\.(\d+)\.", r"\1.\2._orig_mod.", key),
            "checkpointed blocks": re.sub(r"(blocks|layer)\.(\d+)\.", r"\1.\2._checkpoint_wrapped_module.", key),
            "all": "_orig_mod.module." + re.sub(r"(blocks|layer)\.(\d+)\.", r"_orig_mod.\1.\2.module._orig_mod.", key)}


@pytest.mark.parametrize("wrapper", wrapped_names("a.b"))
@pytest.mark.parametrize("names", ["released", "ours"])
def test_names_of_wrappers_are_stripped_wherever_they_stand(model, tmp_path, wrapper, names):
    state = {wrapped_names(weights.rename(key, "released") if names == "released" else key)[wrapper]: value
             for key, value in model.state_dict().items()}
    shape = {"config": {"egokit": {"model_config": vars(model.config), "tokenizer": ""}}}
    torch.save({"state_dict": state, **shape}, tmp_path / "wrapped.pth")
    loaded, report = egokit.load(tmp_path / "wrapped.pth", report=True)
    assert len(report["loaded"]) == len(state) and not report["missing"] and not report["unexpected"]
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_two_keys_are_never_merged_into_one(model, tmp_path):
    state = {key.removeprefix("module."): value for key, value in released_state(model).items()}
    key = next(key for key in state if "blocks" in key)
    for other in (f"module.{key}", f"_orig_mod.{key}", key.replace("blocks.", "_orig_mod.blocks."),
                  weights.rename(key, "ours")):
        content = {"format": checkpoints.FORMAT, "model_config": vars(model.config), "tokenizer": "",
                   "state_dict": state | {other: state[key] + 1}}
        torch.save(content, tmp_path / "twice.pth")
        with pytest.raises(WeightsError, match=r"unexpected \(1\): .*a second one for"):
            egokit.load(tmp_path / "twice.pth")


def test_modules_of_a_tasks_own_keep_their_names(model, tmp_path):
    own = {"own.a.module.weight": torch.ones(2), "own.head._orig_mod.bias": torch.full((2,), -torch.inf)}
    state = {f"module._orig_mod.{key}": value for key, value in (model.state_dict() | own).items()}
    torch.save({"format": checkpoints.FORMAT, "model_config": vars(model.config), "tokenizer": "",
                "state_dict": state}, tmp_path / "own.pt")
    loaded = egokit.load(tmp_path / "own.pt").state_dict()
    assert loaded["own.a.module.weight"].sum() == 2
    assert loaded["head.bias"].isinf().all(), "earlier versions had a task's head among its own modules"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(model, tmp_path, value, dtype):
    state = {key: tensor.to(dtype) for key, tensor in released_state(model).items()}
    key = next(key for key in state if key.endswith("norm1.weight"))
    state[key].view(-1)[-1] = value
    torch.save({"state_dict": state, "config": {"egokit": {"model_config": vars(model.config), "tokenizer": ""}}},
               tmp_path / "diverged.pth")
    with pytest.raises(WeightsError, match=rf"diverged\.pth .*NaN or infinite, in 1 of {len(state)} tensors: .*norm"):
        egokit.load(tmp_path / "diverged.pth")


def test_large_weights_whose_sum_is_infinite_are_loaded(model, tmp_path):
    state = released_state(model)
    key = next(key for key in state if key.endswith("norm1.weight"))
    state[key][:] = 3e38
    torch.save({"state_dict": state, "config": {"egokit": {"model_config": vars(model.config), "tokenizer": ""}}},
               tmp_path / "large.pth")
    name = weights.rename(key.removeprefix("module."), "ours")
    assert egokit.load(tmp_path / "large.pth").state_dict()[name].max() > 2e38


def test_what_was_read_is_saved_as_plain_tensors(tmp_path):
    """A resumed training saves what it has read: the next one reads that, too."""
    content = {"state_dict": {"a": torch.ones(3)}, "optimizer": {"exp_avg": torch.zeros(3)}}
    for number in range(3):
        torch.save(content, tmp_path / f"{number}.pt")
        content = checkpoints.read(tmp_path / f"{number}.pt")
        assert content["optimizer"]["exp_avg"].equal(torch.zeros(3)) and not vars(content["optimizer"]["exp_avg"])
    assert checkpoints.read(tmp_path / "2.pt", everything=False)["state_dict"]["a"].equal(torch.ones(3))
