"""Models in folders of the Hugging Face hub's layout, and in its cache: written, read, refused; without a network."""
import copy
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import huggingface_hub
import pytest
import torch
import yaml
from class_heads import WIDTH, WORDS, equal
from conftest import MODEL, ROOT

import egokit
from egokit.model import checkpoints, hub, sources, weights
from egokit.model.class_head import ClassHead
from egokit.model.egovlp import EgoVLP
from egokit.runs.run_folder import Run

WeightsError = checkpoints.WeightsError


@pytest.fixture(scope="module")
def model(project):
    from egokit.config.resolve import resolve
    return weights.initial_model(resolve("toy/pretrain", "tiny", f"seed=3 {MODEL}")).eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "mine"
    assert model.save_pretrained(folder) is None
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def cached(cache, folder, name="someone/mine", revision="0123456789abcdef0123456789abcdef01234567", branch="main"):
    """Lay a folder out as huggingface_hub does in its cache."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / revision)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / branch).write_text(revision)
    return place / "snapshots" / revision


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_comes_back_whole_with_its_tokenizer(model, saved):
    assert {path.name for path in saved.iterdir()} > {"config.json", "model.safetensors", "README.md", "tokenizer.json"}
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "egokit" and config["egokit"]["tokenizer"] == "", "no folder of this machine"
    for loaded in (EgoVLP.from_pretrained(saved), egokit.load(saved), egokit.load(str(saved))):
        assert equal(loaded, model) and loaded.tokenizer_source == str(saved) and not loaded.training
    assert torch.equal(loaded.encode_text("#C C opens the box"), model.encode_text("#C C opens the box"))
    assert egokit.load(saved, frames=9).config.frames == 9
    assert EgoVLP.from_pretrained(str(saved), frames=2).config.frames == 2
    assert sources.describe(saved).image_size == model.image_size and sources.describe(saved).fuses
    assert str(model.tokenizer_source) not in (saved / "README.md").read_text()


def test_a_name_of_a_tokenizer_stays_a_name(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "tokenizer_source", "roberta-base")
    model.save_pretrained(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert egokit.load(tmp_path / "a").tokenizer_source == "roberta-base"


def test_a_head_goes_with_the_model(model, tmp_path):
    other = copy.deepcopy(model)
    other.head = ClassHead(WIDTH, WORDS, hidden=4).eval()
    other.save_pretrained(tmp_path / "head")
    loaded = egokit.load(tmp_path / "head")
    assert list(loaded.head.classes) == WORDS and equal(loaded, other)
    assert "4 classes" in (tmp_path / "head/README.md").read_text()


def test_the_card_has_the_runs_metrics_and_recipe_and_no_folder(model, tmp_path):
    run = Run(tmp_path / "home/03_ek100/mine")
    run.checkpoints.mkdir(parents=True)
    weights.save(model, run.checkpoints / "best.pt")
    run.write_metrics("finetune", {"finished": True, "mAP": 45.678, "action": "train", "task": "ek100", "frames": 16,
                                   "expected": 9668, "toy": False, "seconds": 77.0, "init": "/home/me/x.pth",
                                   "recipe": {"optim.lr": 3e-5, "task.split": "direct", "task.x": "/home/me/secret"}})
    run.write_metrics("chance", {"mAP": 5.0})
    egokit.load(run.path).save_pretrained(tmp_path / "a")  # a model remembers its run
    model.save_pretrained(tmp_path / "b", run=run.path)
    for folder in ("a", "b"):
        text = (tmp_path / folder / "README.md").read_text()
        head = yaml.safe_load(text.split("---")[1])
        assert head["library_name"] == "egokit" and "license" not in head
        assert "| mAP | 45.68 |" in text and "optim.lr: 3e-05" in text and "9668 samples" in text
        assert "/home/me" not in text and "chance" not in text and "| seconds" not in text
    (tmp_path / "a/README.md").write_text("my own card")
    egokit.load(run.path).save_pretrained(tmp_path / "a")
    assert (tmp_path / "a/README.md").read_text() == "my own card"


def test_the_hubs_cache_is_read_without_a_network(model, saved, cache, tmp_path):
    first = cached(cache, saved)
    loaded = egokit.load("hf:someone/mine")
    assert equal(loaded, model) and loaded.tokenizer_source == str(first)
    assert equal(EgoVLP.from_pretrained("someone/mine"), model)
    assert sources.fingerprint("hf:someone/mine") == sources.fingerprint(saved)
    assert sources.origin("hf:someone/mine") == "hf:someone/mine" and sources.name("hf:someone/mine") == "someone/mine"
    egokit.load(saved, frames=9).save_pretrained(tmp_path / "nine")
    cached(cache, tmp_path / "nine", revision="f" * 40, branch="v2")
    assert egokit.load("hf:someone/mine@v2").config.frames == 9 and egokit.load("hf:someone/mine").config.frames == 4
    assert egokit.load(f"hf:someone/mine@{'f' * 40}").config.frames == 9
    assert EgoVLP.from_pretrained("someone/mine", revision="v2").config.frames == 9
    elsewhere = tmp_path / "elsewhere"
    cached(elsewhere, saved, "other/one")
    assert equal(EgoVLP.from_pretrained("other/one", cache_dir=elsewhere), model)
    assert sources.fingerprint("hf:someone/mine@v2") != sources.fingerprint("hf:someone/mine")


def test_the_cache_is_found_by_hf_home_in_a_process_of_its_own(saved, tmp_path):
    cached(tmp_path / "hub", saved)
    code = "import egokit; print(egokit.load('hf:someone/mine').config.frames)"
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr


def test_what_is_not_in_the_cache_is_an_error_that_says_where_it_was_looked_for(saved, cache):
    with pytest.raises(WeightsError, match=r"hf:nobody/nothing is not in the cache .*cache.*go online once.*HF_HOME"):
        egokit.load("hf:nobody/nothing")
    cached(cache, saved)
    with pytest.raises(WeightsError, match=r"hf:someone/mine at revision 'v7' is not in the cache"):
        egokit.load("hf:someone/mine@v7")
    part = cached(cache, saved, "someone/part")
    (part / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"someone/part is in the cache .* without \*\.safetensors"):
        egokit.load("hf:someone/part")
    for name in ("hf:../../etc", "hf:", "hf:a/b/c", "hf:a b", "hf:a--b/c", "hf:/etc", "hf:.hidden"):
        with pytest.raises(egokit.ConfigError, match="expected hf:OWNER/NAME"):
            egokit.load(name)
    with pytest.raises(WeightsError, match="expected hf:OWNER/NAME"):
        EgoVLP.from_pretrained("../outside")


def test_a_network_that_fails_is_one_line(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def fails(name, local_files_only=False, **options):
        raise OSError("no route to host\nsecond line")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(WeightsError, match=r"could not be fetched, OSError: no route to host\)") as raised:
        egokit.load("hf:nobody/nothing")
    assert "\n" not in str(raised.value)


def test_a_fetch_takes_no_pickle_and_no_code(saved, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked, real = [], huggingface_hub.snapshot_download

    def download(name, local_files_only=False, allow_patterns=None, **options):
        if local_files_only:
            return real(name, local_files_only=True, **options)
        asked.append(allow_patterns)
        return str(cached(cache, saved, name))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    egokit.load("hf:someone/mine")
    egokit.load("hf:someone/mine")
    assert len(asked) == 1, "what the cache has is not asked for again"
    taken = lambda file: any(fnmatch(file, pattern) for pattern in asked[0])  # noqa: E731
    assert taken("config.json") and taken("model-00001-of-00002.safetensors")
    assert not any(map(taken, ("pytorch_model.bin", "modeling_x.py", "model.pt", "x.pkl", "flax_model.msgpack")))


def test_push_uploads_what_is_saved(model, tmp_path, monkeypatch):
    pushed = {}

    def create_repo(api, repo_id, **options):
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(api, *, repo_id, folder_path, **options):
        pushed["files"] = {path.name for path in folder_path.iterdir()}
        pushed["card"], pushed["repo"] = (folder_path / "README.md").read_text(), repo_id
        return "https://example.org/commit/1"
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    assert model.push_to_hub("me/mine") == "https://example.org/commit/1"
    assert pushed["files"] >= {"config.json", "model.safetensors", "README.md"} and pushed["repo"] == "me/mine"
    assert 'egokit.load("hf:me/mine")' in pushed["card"]
    pushed.clear()
    model.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="me/other")
    assert pushed["repo"] == "me/other" and "# me/other" in pushed["card"]


DAMAGE = {
    "not JSON": ("{", r"config\.json: not JSON.*expected what transformers or egokit"),
    "a list": ("[]", r"config\.json.*expected an object"),
    "no kind": ("{}", r"'model_type' is missing"),
    "no record": ('{"model_type": "egokit"}', r"'egokit' is missing"),
    "wrong shape": ({"model_config": 3}, r"'egokit\.model_config' is 3"),
    "a later format": ({"format": "egokit-9"}, r"its format is egokit-9"),
    "enormous": ("[" * (2 << 20), r"expected 1,048,576 at most"),
    "another model": ({"model_config": {"width": 64, "heads": 2}}, "records another model than model.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_config_is_refused(folder, name):
    content, message = DAMAGE[name]
    if isinstance(content, dict):
        config = json.loads((folder / "config.json").read_text())
        content = json.dumps(config | {"egokit": config["egokit"] | content})
    (folder / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=message) as raised:
        egokit.load(folder)
    assert str(folder) in str(raised.value) and len(str(raised.value)) < 700


def test_pickles_and_code_beside_a_model_are_neither_read_nor_executed(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling_evil.Evil"},
                                                           "trust_remote_code": True}))
    egokit.load(folder).encode_text("a")
    assert not (tmp_path / "executed").exists()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pickles alone \(pytorch_model\.bin\).*not read"):
        egokit.load(folder)
    with pytest.raises(WeightsError, match="pickles alone"):
        sources.describe(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"holds no \*\.safetensors"):
        sources.fingerprint(folder)


def test_a_cut_file_and_strange_keys_are_refused(folder):
    path, content = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a checkpoint that can be read"):
        egokit.load(folder)
    from safetensors.torch import load, save_file
    state = load(content)
    save_file(dict(list(state.items())[1:]) | {"stranger": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match=r"missing \(1\).*\n.*unexpected \(1\): stranger"):
        egokit.load(folder)
    save_file(state, path)  # another program's, without our record: config.json says what it is
    assert egokit.load(folder).config.width == 32


def test_every_file_that_makes_numbers_changes_the_hash(folder):
    before = sources.fingerprint(folder)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert sources.fingerprint(folder) != before, name
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("other")
    assert sources.fingerprint(folder) == before and len(before) == 12
    assert {path.name for path in sources.files(folder)} >= {"config.json", "tokenizer.json", "model.safetensors"}


def test_force_download_and_another_family_are_said(saved, monkeypatch):
    with pytest.raises(WeightsError, match="force_download"):
        EgoVLP.from_pretrained(saved, force_download=True)
    monkeypatch.setattr(weights, "load", lambda *args, **options: torch.nn.Linear(1, 1))
    with pytest.raises(WeightsError, match=r"holds a Linear, not EgoVLP: egokit\.load takes it"):
        EgoVLP.from_pretrained(saved)
    assert hub.is_folder(saved)
