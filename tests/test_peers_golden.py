"""The peers equal the originals' figures, on weights and inputs drawn from a seed."""
import functools
import json
from pathlib import Path

import pytest
import torch
from test_model_golden import close
from tiny_folders import tiny_folder
from tiny_peers import GOLDEN, fake_peers

import egokit
from egokit.data.video import frame_sampling
from egokit.data.video.transforms import normalise
from egokit.model import peers
from egokit.model.checkpoints import WeightsError
from egokit.model.peers.families import resize_time
from egokit.model.peers.peer import SLIPPED_MEAN, SLIPPED_STD

FIGURES = json.loads((GOLDEN / "golden_peers.json").read_text())
SEED = FIGURES.get("seed", "A")
CASES = sorted((name for name, case in FIGURES.items() if isinstance(case, dict) and "keys" in case),
               key=lambda name: FIGURES[name]["keys"])


@functools.lru_cache(maxsize=1)
def state(keys):
    """The seeded weights of a list of keys; a large model's are 1.7 GB, and only the last one's are kept."""
    return fake_peers.state_dict(str(GOLDEN / keys), SEED)


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Forget the last weights after this file's tests."""
    yield
    state.cache_clear()


def tokens(rows, padding=0):
    """Rows of ids, padded to the longest with a mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}


def rows_equal(ours, rows):
    for row, expected in zip(ours, rows, strict=True):
        close(row[:16], expected["first"], scale=row.abs().max())
        close(row.norm(), expected["norm"])


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_embeddings_equal_the_original(released, name):  # released: all cores
    case = FIGURES[name]
    clips, frames, size = case["clips"]
    weights = state(case["keys"])
    model = peers.build(peers.family_of(weights), weights, Path(case["keys"]), frames)
    frames_BTCHW = torch.from_numpy(fake_peers.clips(SEED, clips, frames, size))
    with torch.no_grad():
        video_BE, text_BE = model.encode_video(frames_BTCHW), model.encode_text(tokens(case["tokens"]))
        rows_equal(video_BE, case["video"])
        rows_equal(text_BE, case["text"])
        close(egokit.similarity(text_BE, video_BE), case["cosine_text_video"], scale=1.0)
        close(text_BE @ video_BE.T, case["dot_text_video"],
              scale=text_BE.norm(dim=1).max() * video_BE.norm(dim=1).max())
        if "video_of_first_2_frames" in case:
            rows_equal(model.encode_video(frames_BTCHW[:, :2]), case["video_of_first_2_frames"])


def test_every_family_has_a_case():
    kinds = {peers.family_of(line.split("\t")[0] for line in (GOLDEN / FIGURES[name]["keys"]).read_text().splitlines())
             for name in CASES}
    assert kinds == {"egovlp", "lavila", "avion"} and len(CASES) >= 8


def test_temporal_embeddings_are_resized_as_lavila_and_avion_do():
    figures = FIGURES["temporal_embedding"]
    rules = [name.split("_")[2:] for name in figures if name.startswith("lavila_avion_")]
    assert len(rules) >= 4
    for have, _, wanted in rules:
        given = torch.tensor(figures[f"given_{have}"])
        close(resize_time(given, int(wanted)), figures[f"lavila_avion_{have}_to_{wanted}"])
    more = torch.tensor(figures["egovlp_zeros_4_to_16"])  # EgoVLP's own rule is another, and so is EgoVLPv2's
    assert (resize_time(torch.tensor(figures["given_4"]), 16) - more).abs().max() > 0.1


def test_frames_and_pixels():
    """LaViLa's frames are egokit's rule for EK-100, and AVION's lie at most two away."""
    for row in FIGURES["frame_numbers"]:
        ours = frame_sampling.ek100(row["start"], row["stop"], row["frames"])
        assert ours.tolist() == row["lavila"]
        assert abs(ours - row["avion"]).max() <= 2
    figures = FIGURES["normalisation"]
    pixels = torch.tensor(figures["pixels"])[..., None, None]
    slipped = [[value / 255 for value in values] for values in (SLIPPED_MEAN, SLIPPED_STD)]
    close(normalise(pixels, *slipped), figures["lavila_avion"]["normalised"])
    close(normalise(pixels), figures["egovlp_and_lavilas_egovlp"]["normalised"])


@pytest.mark.parametrize("name", [name for name, case in FIGURES["hugging_face"].items()
                                  if isinstance(case, dict) and case["config"]["model_type"] in ("clip", "siglip")])
def test_hugging_face_folders(name, tmp_path):
    case = FIGURES["hugging_face"][name]
    model = peers.load_folder(tiny_folder(tmp_path / name, case["config"], SEED, tokenizer=False))
    clips, frames, size = case["clips"]
    frames_BTCHW = torch.from_numpy(fake_peers.clips(SEED, clips, frames, size))
    padded = {"input_ids": torch.tensor(case.get("tokens_padded_to_16", []))}
    texts = tokens(case["tokens"]) if "tokens" in case else padded
    with torch.no_grad():
        video_BE, text_BE = model.encode_video(frames_BTCHW), model.encode_text(texts)
        rows_equal(video_BE, case["video_mean_of_raw"])
        rows_equal(model.encode_video(frames_BTCHW[0][:, None]), case["frame_embeddings_first_clip"])
        rows_equal(text_BE, case["text"])
        close(egokit.similarity(text_BE, video_BE), case["cosine_text_video_mean_of_raw"], scale=1.0)
    for wrong in case.get("text_0_without_padding_which_is_wrong", []):
        assert (text_BE[0, :16] - torch.tensor(wrong["first"])).abs().max() > 0.1
        with pytest.raises(ValueError, match="pad the texts on the right to 16"):
            model.encode_text({"input_ids": texts["input_ids"][:1, :3]})


@pytest.mark.parametrize("name", [name for name, case in FIGURES["hugging_face"].items()
                                  if isinstance(case, dict) and case["config"]["model_type"] not in ("clip", "siglip")])
def test_what_is_no_plain_dual_encoder_is_refused(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIGURES["hugging_face"][name]["config"]))
    with pytest.raises(WeightsError, match=r"config\.json is of a.*(NaFlex.*fixed size|X-CLIP.*use a CLIP)"):
        peers.load_folder(tmp_path)
