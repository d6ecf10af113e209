"""What `init` may name: its forms in a recipe, its files, hash, name and description, and what preflight says of it."""
import dataclasses
import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tiny_folders import tiny_folder
from tiny_peers import KINDS, tiny_file, tokenizer_for

import egokit
from egokit import launch
from egokit.config.build import ConfigError
from egokit.config.init_forms import split_hub
from egokit.config.own_code import split_model_file
from egokit.jobs import preflight
from egokit.model import checkpoints, sources, weights
from egokit.runs.run_folder import Run

MODEL_FILE = "import egokit\n\n\nclass Mine(egokit.Dual):\n    image_size = 64\n"


@pytest.fixture
def no_job(monkeypatch):
    monkeypatch.setattr(launch, "start_work", lambda *args: pytest.fail("a job was started"))


@pytest.fixture
def file(project):
    path = project / "mine/my_model.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(MODEL_FILE)
    return path


def test_the_forms_of_init_in_a_recipe(resolve, project, tmp_path, file):
    def init(text, site=""):
        return resolve(overrides=f"init={text}" + f" site.weights={site}" * bool(site)).init
    assert init("") == "" and init("run:02_pretrain/x") == str(project / "outputs/02_pretrain/x")
    assert init("hf:openai/clip-vit-base-patch16") == "hf:openai/clip-vit-base-patch16"
    assert init("hf:gpt2@v1.0/x") == "hf:gpt2@v1.0/x"
    (tmp_path / "a.pth").touch()
    (tmp_path / "clip").mkdir()
    assert init("a.pth", tmp_path) == str(tmp_path / "a.pth") and init("clip", tmp_path) == str(tmp_path / "clip")
    assert init("mine/my_model.py:Mine") == f"{file}:Mine", "relative to the project, as a task's file is"
    assert init("mine/my_model.py:Mine:a.pth", tmp_path) == f"{file}:Mine:{tmp_path / 'a.pth'}"
    assert init("mine/my_model.py:Mine:run:a/{run}") == f"{file}:Mine:{project / 'outputs/a/test'}"
    assert init("mine/my_model.py:Mine:hf:a/b@c") == f"{file}:Mine:hf:a/b@c"
    assert init("mine/my_model.py:Mine:vit_tiny_patch16_224") == f"{file}:Mine:vit_tiny_patch16_224", "no file's name"
    for text, message in (("mine/other.py:Mine", r"mine/other\.py is missing; write folder/file\.py:Class"),
                          ("mine/my_model.py:Mine:b.pth", r"the weights 'b\.pth' are missing, looked for"),
                          ("hf:../x", "expected hf:OWNER/NAME")):
        with pytest.raises(ConfigError, match=message):
            init(text)


def test_names_are_split_in_one_way():
    assert split_model_file("a/b.py:C") == ("a/b.py", "C", "") and split_model_file("a.py:C:w:x.py:y") == (
        "a.py", "C", "w:x.py:y")
    assert not any(map(split_model_file, ("", "a.pth", "a.py", "hf:a/b.py:C", "run:a/b.py:C", "a.py:", "a.py:C-D")))
    assert split_hub("hf:a/b") == ("a/b", "") and split_hub("hf:b@r") == ("b", "r") and split_hub("a/b") is None


def test_the_hash_of_a_file_is_what_it_was(checkpoint, project):
    digits = hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
    assert sources.fingerprint(checkpoint) == sources.fingerprint(str(checkpoint.parents[1])) == digits
    assert checkpoints.fingerprint(checkpoint) == digits and sources.fingerprint("") == ""
    assert sources.files(str(checkpoint.parents[1])) == [checkpoint]
    assert sources.origin(str(checkpoint.parents[1])) == str(checkpoint) and sources.origin("") == ""
    with pytest.raises(checkpoints.WeightsError, match="does not exist"):
        sources.fingerprint("/nowhere/x.pth")


def test_the_hash_of_a_class_is_of_its_file_and_weights(file, tmp_path):
    plain, weighted = f"{file}:Mine", f"{file}:Mine:{tmp_path / 'w.pth'}"
    assert sources.fingerprint(plain) == checkpoints.fingerprint(file)
    named = sources.fingerprint(weighted)  # the weights are not there: a name
    (tmp_path / "w.pth").write_bytes(b"1")
    first = sources.fingerprint(weighted)
    (tmp_path / "w.pth").write_bytes(b"2")
    hashes = {sources.fingerprint(plain), named, first, sources.fingerprint(weighted)}
    file.write_text(MODEL_FILE + "# edited\n")
    hashes |= {sources.fingerprint(plain), sources.fingerprint(weighted)}
    assert len(hashes) == 6 and {len(digits) for digits in hashes} == {12}
    assert sources.files(weighted) == [file, tmp_path / "w.pth"] and sources.origin(weighted) == weighted
    copy = tmp_path / "code/model/my_model.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(MODEL_FILE)
    assert sources.fingerprint(plain, tmp_path / "code") == checkpoints.fingerprint(copy)


def test_short_names(tmp_path, checkpoint):
    assert sources.name("") == "" and sources.name("/data/EgoVLPv2.pth") == "EgoVLPv2.pth"
    assert sources.name(str(checkpoint)) == sources.name(str(checkpoint.parents[1])) == "02_pretrain/random"
    assert sources.name("hf:openai/clip@main") == "openai/clip@main"
    assert sources.name("/a/b/my.py:Mine") == "my.py:Mine" and sources.name("/a/my.py:M:/w/x.pth") == "my.py:M:x.pth"


def test_an_egovlpv2_checkpoint_is_described_without_its_tensors(checkpoint, monkeypatch):
    monkeypatch.setattr(checkpoints, "_read_state", lambda *args: pytest.fail("tensors were read"))
    described = sources.describe(checkpoint)
    assert described == sources.Described("egovlpv2", 64, 8, {}, "tokenizer", True) or described.frames == 4
    assert (described.family, described.image_size, described.fuses) == ("egovlpv2", 64, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peers_file_is_described_and_loaded_by_its_family(resolve, tmp_path, monkeypatch, kind, no_job):
    path, tokenizer = tiny_file(tmp_path / "x.pth", kind), tokenizer_for(kind, tmp_path / "tokenizer")
    described = sources.describe(path)
    assert (described.image_size, described.frames, described.fuses) == (64, 4, False)
    assert described.family == kind.partition("_")[0] and described.recommended["model.image_size"] == 64
    model = egokit.load(path, tokenizer=tokenizer)
    assert model.image_size == 64 and model.encode_text("a").shape[1] == model.embed_dim
    same, keys = egokit.load(path, report=True)
    assert type(same) is type(model) and keys["loaded"] and not keys["missing"]
    with pytest.raises(checkpoints.WeightsError, match="no EgoVLPv2 model, but answers=, head= are for those alone"):
        egokit.load(path, answers=["a"], head="x")

    def config(overrides="", task="toy/egomcq"):
        return resolve(task, f"init={path} site.{described.tokenizer_key}={tokenizer} "
                             f"site.tokenizer=/nowhere {overrides}")
    assert weights.initial_model(config(), 16).frames == 16, "RoBERTa's tokenizer is not asked for"
    preflight.expect_ready(config(), "evaluate")
    with pytest.raises(ConfigError, match=rf"another family \({sources.WRITTEN[described.family]}\).*does not train"):
        egokit.submit(config(task="toy/ek100_finetune"), Run(tmp_path / "nb/run"), "train")
    with pytest.raises(ConfigError, match=r"takes frames of 64 px.* is 224: set model\.image_size=64"):
        egokit.submit(config("model.image_size=224"), Run(tmp_path / "nb/run"), "evaluate")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(checkpoints.WeightsError, match=rf"no folder /nowhere/t; set site\.{described.tokenizer_key}"):
        egokit.submit(config(f"site.{described.tokenizer_key}=/nowhere/t"), Run(tmp_path / "nb/run"), "evaluate")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_folder_of_the_hub_is_described_and_evaluated(resolve, tmp_path, monkeypatch, family, no_job):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tiny_folder(tmp_path / f"models--some--{family}/snapshots" / ("0" * 40), family, parts=2)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs/main").write_text("0" * 40)
    init = f"hf:some/{family}"
    for name in (init, folder):
        described = sources.describe(name)
        assert (described.family, described.image_size, described.frames, described.fuses) == (family, 64, None, False)
        assert described.recommended["data.eval_resize"] == 64 and sources.files(name)[0].name == "config.json"
    assert sources.fingerprint(init) == sources.fingerprint(folder)
    config = resolve("toy/egomcq", f"init={init} site.tokenizer=/nowhere")
    preflight.expect_ready(config, "evaluate")
    model = weights.initial_model(config, 4)
    assert model.encode_text(["a", "#C C opens the box"]).shape == (2, model.embed_dim)
    with pytest.raises(ConfigError, match=rf"another family \({sources.WRITTEN[family]}\).*does not train"):
        egokit.submit(resolve("toy/ek100_finetune", f"init={init}"), Run(tmp_path / "nb/run"), "train")
    for path in folder.glob("*"):
        if not path.name.startswith(("config", "model")):
            path.unlink()
    with pytest.raises(ConfigError, match=rf"holds no tokenizer, by which init '{init}' reads texts"):
        preflight.expect_ready(config, "evaluate")


def test_what_is_of_no_known_family_says_so_when_it_is_described(tmp_path):
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "x.pth")
    for function in (sources.describe, egokit.load):
        with pytest.raises(checkpoints.WeightsError, match=r"x\.pth is not .*fc\.weight"):
            function(tmp_path / "x.pth")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "hub/model.safetensors").touch()
    for function in (sources.describe, egokit.load):
        with pytest.raises(checkpoints.WeightsError, match=r"hub.*bert"):
            function(tmp_path / "hub")


def test_a_peer_is_neither_converted_nor_exported(tmp_path, capsys):
    from egokit import cli
    path = tiny_file(tmp_path / "x.pth", "avion_vitb")
    for command, out in (("convert", "y.safetensors"), ("export", "y.pth")):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, str(path), str(tmp_path / out)])
        assert ended.value.code == 2 and not Path(tmp_path / out).exists()
        assert "hold EgoVLPv2 models, and this is a AVION" in capsys.readouterr().err


def test_a_site_without_a_tokenizer_key_is_not_asked(checkpoint, resolve):
    """A fresh model, and an EgoVLPv2 checkpoint, want RoBERTa's tokenizer, as before."""
    config = resolve(overrides=f"init={checkpoint}")
    without = dataclasses.replace(config, site=dataclasses.replace(config.site, tokenizer="/nowhere"))
    with pytest.raises(ConfigError, match=r"site\.tokenizer of site 'tiny' is '/nowhere'"):
        preflight.expect_ready(without, "train")
