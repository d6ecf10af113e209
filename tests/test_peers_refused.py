"""Peers' files that are cut, incomplete or of another kind, and tokenizers that are missing or others': all named."""
import json

import huggingface_hub.constants
import pytest
import torch
from tiny_folders import CONFIGS, tiny_folder
from tiny_peers import GOLDEN, KINDS, bert_tokenizer, clip_tokenizer, tiny_file, tiny_state

import egokit
from egokit.config.build import ConfigError
from egokit.model import peers
from egokit.model.checkpoints import WeightsError
from egokit.model.peers import tokenizers

LAST = {"egovlp": "video_model.blocks.1.norm3.weight", "lavila_tsfb": "visual.blocks.1.timeattn.proj.bias",
        "lavila_egovlp": "textual.transformer.layer.1.ffn.lin2.weight", "lavila_tsfb_distilbert": "text_projection",
        "avion_vitb": "visual.transformer.resblocks.1.attn.Wqkv.weight"}


@pytest.fixture
def offline(monkeypatch):
    """No hub can be reached, and asking for it takes no time."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tokenizers.load.cache_clear()


def altered(folder, kind, **changes):
    """A file of a kind; None takes a tensor away."""
    state = {key: value for key, value in (tiny_state(kind) | changes).items() if value is not None}
    return tiny_file(folder / f"{kind}.pth", kind, state=state)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_do_not_fit_are_named_as_the_file_names_them(tmp_path, kind):
    key = LAST[kind]
    value = tiny_state(kind)[key]
    for changes, words in (({key: None}, f"missing (1): {key}\n"), ({key: value[:1]}, f"misshapen (1): {key}: (1"),
                           ({f"{key}_2": value}, f"unexpected (1): {key}_2\n")):
        with pytest.raises(WeightsError) as error:
            egokit.load(altered(tmp_path, kind, **changes))
        assert words in f"{error.value}\n" and f"{kind}.pth" in str(error.value)


def test_every_key_is_missed(tmp_path):
    """No tensor of a file is left unused but the training's temperature, and none has a default."""
    for kind in ("lavila_tsfb", "avion_vitb", "egovlp"):
        state = tiny_state(kind)
        for key in state:
            if key != "logit_scale":
                rest = {other: value for other, value in state.items() if other != key}
                family = peers.family_of(state)
                with pytest.raises(WeightsError) as error:
                    peers.build(family, rest, tmp_path / "a.pth")
                assert key in error.value.report["missing"], key


@pytest.mark.parametrize("extra, words", [
    ("fc_cls.weight", "a classifier.*give a dual encoder"), ("text_decoder.h.0.weight", "narrator.*dual encoders"),
    ("visual.blocks.0.alpha_timeattn", "gates on its time attention.*without alpha_timeattn")])
def test_files_of_other_kinds_with_a_video_encoder(tmp_path, extra, words):
    for kind in ("lavila_tsfb", "avion_vitb"):
        with pytest.raises(WeightsError, match=rf"{kind}\.pth is .*{words}"):
            egokit.load(altered(tmp_path, kind, **{extra: torch.zeros(2)}))
    only = {key: value for key, value in tiny_state("avion_vitb").items() if key.startswith("visual.")}
    if extra == "fc_cls.weight":
        with pytest.raises(WeightsError, match="a classifier"):
            egokit.load(tiny_file(tmp_path / "cls.pth", "avion_vitb", state=only | {extra: torch.zeros(2)}))


def test_a_masked_autoencoder(tmp_path):
    state = {"encoder.patch_embed.proj.weight": torch.zeros(2), "encoder.blocks.0.norm1.weight": torch.zeros(2),
             "mask_token": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"mae\.pth is a masked autoencoder.*give a dual encoder"):
        egokit.load(tiny_file(tmp_path / "mae.pth", "avion_vitb", state=state))


def test_a_cut_file_and_weights_that_are_not_numbers(tmp_path):
    whole = altered(tmp_path, "lavila_tsfb").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(WeightsError, match=r"cut\.pth is not a checkpoint that can be read.*download complete"):
        egokit.load(tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"lavila_tsfb\.pth has weights that are NaN or infinite.*image_projection"):
        egokit.load(altered(tmp_path, "lavila_tsfb", image_projection=torch.full((64, 16), float("nan"))))


@pytest.mark.parametrize("key, shape", [
    ("visual.norm.weight", (100,)), ("visual.norm.weight", (0,)), ("visual.temporal_embed", (1, 0, 64)),
    ("visual.blocks.300.norm1.weight", (64,)), (f"visual.blocks.{'9' * 40}.norm1.weight", (64,)),
    ("visual.pos_embed", (1, 0, 64)), ("visual.patch_embed.proj.weight", (64, 3, 0, 0)), ("ln_final.weight", ()),
    ("visual.temporal_embed", (4,)), ("token_embedding.weight", (0, 64)), ("image_projection", (0, 0))])
def test_shapes_that_no_network_has(tmp_path, key, shape):
    with pytest.raises(WeightsError, match=r"lavila_tsfb\.pth.*(no LaViLa can have|does not fit it)"):
        egokit.load(altered(tmp_path, "lavila_tsfb", **{key: torch.zeros(shape)}))


def test_a_weight_that_is_there_twice(tmp_path):
    state = tiny_state("avion_vitb")
    key = "visual.transformer.resblocks.0.attn.Wqkv.weight"
    state["visual.transformer.resblocks.0.attn.in_proj_weight"] = state[key]
    with pytest.raises(WeightsError, match=r"unexpected \(1\): .*in_proj_weight \(a second one\)"):
        egokit.load(tiny_file(tmp_path / "a.pth", "avion_vitb", state=state))


def test_another_image_size_is_said(tmp_path):
    model = egokit.load(altered(tmp_path, "lavila_tsfb"))
    with pytest.raises(ValueError, match=r"expected \(B, T, 3, 64, 64\)"):
        model.encode_video(torch.zeros(1, 4, 3, 224, 224))


def test_a_tokenizer_that_is_missing_is_named_with_its_place_and_a_fix(tmp_path, offline):
    for kind, name, key in (("lavila_tsfb", "openai/clip-vit-base-patch16", "clip"),
                            ("egovlp", "distilbert-base-uncased", "bert")):
        path, family = altered(tmp_path, kind), kind.partition("_")[0]
        model = egokit.load(path)  # videos need none
        assert model.encode_video(torch.zeros(1, 4, 3, 64, 64)).shape == (1, 16)
        with pytest.raises(WeightsError, match=rf"(?i){family} reads texts by .*'{name}'.*cache of the hub.*set "
                                               rf"site\.{key}_tokenizer.*go online once"):
            model.encode_text("hello")
        model = egokit.load(path, tokenizer=str(tmp_path / "nowhere"))
        with pytest.raises(WeightsError, match=rf"no folder .*nowhere; set site\.{key}_tokenizer"):
            model.encode_text("hello")
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(WeightsError, match=r"'.*empty' could not be loaded, looked for in this folder"):
            egokit.load(path, tokenizer=str(tmp_path / "empty")).encode_text("hello")


def test_another_models_tokenizer_is_refused(tmp_path):
    for kind, make, words in (("lavila_tsfb", bert_tokenizer, 400), ("lavila_tsfb", clip_tokenizer, 300),
                              ("egovlp", clip_tokenizer, 500)):
        source = make(tmp_path / f"{make.__name__}{words}", words)
        with pytest.raises(WeightsError, match=r"tokenizer '.*_tokenizer\d+' is not that of (LaViLa|EgoVLP).*give"):
            egokit.load(altered(tmp_path, kind), tokenizer=source).encode_text("hello")


def test_tokenizers_are_expected_at_submission(tmp_path, offline):
    tokenizers.expect(clip_tokenizer(tmp_path / "here"), "site.clip_tokenizer")
    (tmp_path / "empty").mkdir()
    for source, words in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no tokenizer"),
                          ("some/name", "could not be loaded")):
        with pytest.raises(ConfigError, match=rf"site\.bert_tokenizer is .*{words}.*give a folder"):
            tokenizers.expect(str(source), "site.bert_tokenizer")


def test_texts_are_cut_before_their_end(tmp_path):
    source = clip_tokenizer(tmp_path / "tokenizer")
    model = egokit.load(altered(tmp_path, "avion_vitb"), tokenizer=source)
    for wish, length in ((30, 30), (500, 77)):
        ids = model.tokens(["word " * 100, "A b"], wish)["input_ids"]
        assert ids.shape == (2, length) and ids[0, -1] == 399 and ids[1, 3] == 399 and not ids[1, 4:].any()
    assert model.tokens(["a B"], 77)["input_ids"].tolist() == model.tokens(["A   b"], 77)["input_ids"].tolist()


def test_clips_own_ids():
    """The ids of the original's tokenizer, by an excerpt of its vocabulary that is enough for these texts."""
    from transformers import CLIPTokenizer
    figures = json.loads((GOLDEN / "golden_peers.json").read_text())["clip_tokens"]
    excerpt = json.loads((GOLDEN / "clip_vocabulary_excerpt.json").read_text())
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that GPT-2's table shows as themselves
    others = [byte for byte in range(256) if byte not in printed]
    characters = [*map(chr, printed), *(chr(256 + i) for i in range(len(others)))]
    vocabulary = characters + [f"{character}</w>" for character in characters] + [f"<{i}>" for i in range(512, 49406)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    for place, left, right in excerpt["merges"]:
        vocabulary[512 + place] = left + right
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(vocabulary)},
                              [(left, right) for _, left, right in excerpt["merges"]])
    repaired, longer = {3, 12}, {10}  # LaViLa repairs the first by ftfy, and cuts the second without an end
    compared = 0
    for i, text in enumerate(figures["texts"]):
        if i in repaired or text not in excerpt["texts"]:
            continue
        tokens = tokenizers.padded(tokenizer, [text], 77, torch.device("cpu"), 49408, "LaViLa", end=49407)
        expected = figures["avion_where_different"][str(i)] if i in longer else figures["lavila"][i]
        assert tokens["input_ids"][0].tolist() == expected, text
        compared += 1
    assert compared >= 10


# Hugging Face folders

def test_a_folder_is_a_model_in_one_file_or_in_parts(tmp_path):
    frames = torch.randn(3, 5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for family in CONFIGS:
        whole = egokit.load(tiny_folder(tmp_path / family, family))
        parts = egokit.load(tiny_folder(tmp_path / f"{family}_parts", family, parts=3))
        with torch.no_grad():
            video_BE = whole.encode_video(frames)
            assert torch.equal(video_BE, parts.encode_video(frames))
            assert torch.allclose(video_BE[1], whole.encode_video(frames[1][:, None]).mean(0), atol=1e-5)
            text_BE = whole.encode_text(["#C C Cuts", "#c c cuts", "runs"])
        assert torch.equal(text_BE[0], text_BE[1]) and text_BE.shape[1] == video_BE.shape[1] == whole.embed_dim
        assert whole.frames is None and whole.image_size == 64 and not whole.fuses
        tokens = whole.tokens(["#C C Cuts", "runs " * 40], 77)
        assert tokens["input_ids"].shape == (2, 64) and ("attention_mask" in tokens) == (family == "clip")
        shape = peers.shape_of_folder(tmp_path / family)
        assert (shape.family, shape.image_size, shape.mean) == (family, 64, whole.mean)


def test_normalisation_is_the_folders_own(tmp_path):
    folder = tiny_folder(tmp_path / "a", "clip")
    assert peers.load_folder(folder).mean[0] == 0.48145466  # CLIP's, without LaViLa's slip
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 0.5, 0.25]}')
    model = peers.load_folder(folder)
    pixel = model.normalise(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)).flatten().tolist()
    assert pixel == pytest.approx([0.1, 0.0, -0.4], abs=1e-6)


@pytest.mark.parametrize("name, content, words", [
    ("config.json", '{"model_type": "bert"}', "'bert'; expected 'clip' or 'siglip'"),
    ("config.json", '{"model_type": "clip", "text_config": 7}', "'text_config' is 7"),
    ("config.json", '{"model_type": "clip", "vision_config": {"hidden_size": -1}}', "'vision_config.hidden_size'"),
    ("config.json", '{"model_type": "clip", "vision_config": {"num_hidden_layers": 100000}}', "num_hidden_layers"),
    ("config.json", '{"model_type": "clip", "vision_config": {"hidden_act": "os.system"}}', "expected one of quick_"),
    ("config.json", '{"model_type": "clip", "vision_config": {"hidden_size": 33}}', "no CLIP can have this shape"),
    ("preprocessor_config.json", '{"image_mean": [1, 2]}', "expected three"),
    ("preprocessor_config.json", '{"image_std": [0, 1, 1]}', "0 or less"),
    ("model.safetensors", "cut", "is not a checkpoint that can be read"),
])
def test_damaged_folders(tmp_path, name, content, words):
    folder = tiny_folder(tmp_path / "folder", "clip")
    (folder / name).write_text(content)
    with pytest.raises(WeightsError, match=words) as error:
        peers.load_folder(folder)
    assert "folder" in str(error.value)


def test_a_folder_is_loaded_whole_or_not_at_all_and_without_pickles(tmp_path):
    from safetensors.torch import load_file, save_file
    folder = tiny_folder(tmp_path / "folder", "siglip")
    path = folder / "model.safetensors"
    state = load_file(path)
    key = "vision_model.head.probe"
    for wrong, words in (({**state, "extra": torch.zeros(1)}, r"unexpected \(1\): extra"),
                         ({other: value for other, value in state.items() if other != key}, rf"missing \(1\): {key}"),
                         (state | {key: torch.full_like(state[key], float("inf"))}, "NaN or infinite")):
        save_file(wrong, path)
        with pytest.raises(WeightsError, match=words):
            peers.load_folder(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"no model\.safetensors.*may hold code"):
        peers.load_folder(folder)
    index = folder / "model.safetensors.index.json"
    for name in ("../other.safetensors", "/etc/passwd", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WeightsError, match=r"index\.json.*expected text that can name a file"):
            peers.load_folder(folder)


def test_a_folders_code_and_kernels_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {**CONFIGS["clip"], "auto_map": {"AutoModel": "evil.Model"}, "attn_implementation": "someone/kernel",
              "_attn_implementation": "someone/kernel", "quantization_config": {"quant_method": "evil"}}
    config["text_config"] = config["text_config"] | {"attn_implementation": "someone/kernel"}
    folder = tiny_folder(tmp_path / "folder", "clip")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("open('made', 'w')\nclass Model: pass\n")
    model = peers.load_folder(folder)
    assert model.inner.config._attn_implementation == "sdpa" and not (tmp_path / "made").exists()


def test_siglips_first_tokenizer_wants_packages(tmp_path, offline):
    folder = tiny_folder(tmp_path / "folder", "siglip", tokenizer=False)
    (folder / "spiece.model").write_bytes(b"x")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    with pytest.raises(WeightsError, match=r"SigLIP reads texts by a tokenizer of its own.*sentencepiece and protobuf"):
        peers.load_folder(folder).encode_text("hello")
