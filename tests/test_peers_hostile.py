"""Files, folders and classes of other models that a careless or hostile hand made."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import tiny_folder
from tiny_peers import tiny_file, tiny_state

import egokit
from egokit.config.build import ConfigError
from egokit.model import sources
from egokit.model.checkpoints import WeightsError

OWN = '''
import torch, egokit
class Mine(egokit.Dual):
    def __init__(self):
        super().__init__()
        self.image_size = 8
    def tokens(self, texts, longest):
        return {"ids": torch.ones(len(texts), 1)}
    def embed_text(self, tokens):
        return torch.ones(len(tokens["ids"]), 4)
    def embed_video(self, frames):
        return torch.ones(len(frames), 4)
'''


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.int8])
def test_weights_that_are_whole_numbers_are_refused(tmp_path, dtype):
    state = tiny_state("lavila_tsfb")
    for changed, count in ((state, len(state) - 1), ({"visual.norm.weight": state["visual.norm.weight"]}, 1)):
        path = tiny_file(tmp_path / "a.pth", "lavila_tsfb", state=state | {k: v.to(dtype) for k, v in changed.items()})
        with pytest.raises(WeightsError, match=rf"a\.pth has weights .*in {count} of .*not quantised"):
            egokit.load(path)
    folder = tiny_folder(tmp_path / "clip", "clip")
    save_file({k: v.to(dtype) for k, v in load_file(folder / "model.safetensors").items()},
              folder / "model.safetensors")
    with pytest.raises(WeightsError, match="not quantised"):
        egokit.load(folder)


@pytest.mark.parametrize("changes, words", [
    ({"visual.temporal_embed": torch.zeros(1, 0, 64)}, "frames: .*got 0"),
    ({"visual.blocks.999999.norm1.weight": torch.zeros(64)}, "depth: .*got 1000000")])
def test_shapes_that_cannot_be_are_said_once_with_their_key(tmp_path, changes, words):
    path = tiny_file(tmp_path / "a.pth", "lavila_tsfb", state=tiny_state("lavila_tsfb") | changes)
    for read in (egokit.load, sources.describe):
        with pytest.raises(WeightsError, match=rf"a\.pth.*no LaViLa can have the shape .*{words}") as error:
            read(path)
        assert str(error.value).count("released file") == 1 and "http" not in str(error.value)


@pytest.mark.parametrize("part, key, value, words", [
    ("vision_config", "image_size", 999_999, "3,906,125,002 positions"),
    ("text_config", "max_position_embeddings", 999_999_9, "max_position_embeddings"),
    ("text_config", "layer_norm_eps", -1.0, "layer_norm_eps is -1.0"),
    ("vision_config", "layer_norm_eps", 0.0, "layer_norm_eps is 0.0")])
def test_a_folders_config_takes_no_memory_and_no_strange_number(tmp_path, part, key, value, words):
    folder = tiny_folder(tmp_path / "clip", "clip")
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=words):
        egokit.load(folder)


def test_the_file_of_a_folder_is_the_folder(tmp_path):
    folder = tiny_folder(tmp_path / "clip", "clip")
    assert sources.find(folder / "model.safetensors") == sources.find(folder)


def test_home_and_a_file_without_its_class(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(OWN)
    tiny_file(tmp_path / "a.pth", "avion_vitb")
    assert egokit.load("~/a.pth").family == "AVION" and egokit.load("~/mine.py:Mine").family == "Mine"
    with pytest.raises(WeightsError, match=r"mine\.py' is a file of code: name its class, too, .*mine\.py:Class"):
        egokit.load(tmp_path / "mine.py")
    Path(tmp_path / "none.py").write_text("from egokit import Dual")
    with pytest.raises(ConfigError, match=r"has no model 'Mine', write class Mine\(egokit\.Dual\) there.*none"):
        egokit.load(f"{tmp_path}/none.py:Mine")


def test_an_own_models_embeddings_are_numbers(tmp_path):
    for name, call in (("embed_text", 'torch.ones(len(tokens["ids"]), 4)'),
                       ("embed_video", "torch.ones(len(frames), 4)")):
        (tmp_path / "mine.py").write_text(OWN.replace(call, f"{call} / 0"))
        with pytest.raises(ConfigError, match=rf"Mine\.{name} gives numbers that are NaN or infinite"):
            egokit.load(f"{tmp_path}/mine.py:Mine")


@pytest.mark.parametrize("frames", [True, 10**9])
def test_frames_that_cannot_be(tmp_path, frames):
    with pytest.raises(WeightsError, match=r"frames=True|frames: .*got 1000000000"):
        egokit.load(tiny_file(tmp_path / "a.pth", "lavila_tsfb"), frames=frames)


@pytest.mark.parametrize("kind", ["clip", "siglip", "lavila_egovlp", "avion_vitb"])
def test_no_clip_and_no_text_have_no_embeddings(tmp_path, kind):
    model = egokit.load(tiny_folder(tmp_path / kind, kind) if kind in ("clip", "siglip") else
                        tiny_file(tmp_path / "a.pth", kind))
    width = model.embed_dim
    assert model.encode_video(torch.zeros(0, 4, 3, 64, 64)).shape == (0, width)
    assert model.encode_text({"input_ids": torch.ones(0, 64, dtype=torch.long)}).shape == (0, width)
    with pytest.raises(ValueError, match=r"expected \(B, T, 3, 64, 64\)"):
        model.encode_video(torch.zeros(0, 4, 3, 60, 64))
