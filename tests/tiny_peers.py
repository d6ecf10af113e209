"""Files of the peers' layouts with tiny networks, and tiny tokenizers, written in a moment.

A tiny network has 2 blocks, width 64, frames of 64 px and embeddings of 16 numbers. Weights are drawn by
golden/fake_peers.py's rule.
"""
import argparse
import ast
import importlib.util
import re
import string
import sys
import types
from pathlib import Path

import torch

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("fake_peers", GOLDEN / "fake_peers.py")
fake_peers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_peers)

KINDS = ("egovlp", "lavila_tsfb", "lavila_egovlp", "lavila_tsfb_distilbert", "avion_vitb")
BLOCKS, WIDTH, SIZE, PATCH, FRAMES, EMBED, WORDS = 2, 64, 64, 16, 4, 16, 400
SIZES = {768: WIDTH, 512: WIDTH, 3072: 4 * WIDTH, 2048: 4 * WIDTH, 2304: 3 * WIDTH, 1536: 3 * WIDTH,
         197: 1 + (SIZE // PATCH) ** 2, 256: EMBED, 49408: WORDS, 30522: WORDS}


def tiny_state(kind: str, seed: str = "tiny") -> dict[str, torch.Tensor]:
    """Return the tensors of a tiny file by its keys, without 'module.'.

    Args:
        kind: one of KINDS, a list of keys in golden/.
    """
    state = {}
    for line in (GOLDEN / f"keys_{kind}.tsv").read_text().splitlines():
        key, shape, _ = line.split("\t")
        number = re.search(r"(?:blocks|resblocks|layer)\.(\d+)\.", key)
        if number and int(number[1]) >= BLOCKS:
            continue
        shape = ast.literal_eval(shape)
        if key.endswith("position_embeddings.weight"):
            shape = (512, WIDTH)  # positions, not a width
        elif key == "visual.conv1.weight":
            shape = (WIDTH, 3 * PATCH * PATCH)
        else:
            shape = tuple(SIZES.get(size, size) for size in shape)
        state[key] = torch.tensor(fake_peers.weight(seed, key, shape)).reshape(shape)
    return state


def tiny_file(path, kind: str, seed: str = "tiny", state: dict | None = None, half: bool = False) -> Path:
    """Write a tiny file of a peer's layout, with the foreign object that released ones have, and return its path.

    Args:
        state: other tensors than `tiny_state`'s.
        half: in half precision, as some of LaViLa's are.
    """
    state = tiny_state(kind, seed) if state is None else state
    state = {f"module.{key}": value.half() if half else value for key, value in state.items()}
    content = {"epoch": 5, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    if kind == "egovlp":
        module = types.ModuleType("parse_config")
        module.ConfigParser = type("ConfigParser", (), {"__module__": "parse_config"})
        before = sys.modules.get("parse_config")
        sys.modules["parse_config"] = module
        torch.save(content | {"arch": "FrozenInTime", "monitor_best": 0, "config": module.ConfigParser()}, path)
        del sys.modules["parse_config"]
        if before:
            sys.modules["parse_config"] = before
    else:
        torch.save(content | {"scaler": {}, "best_acc1": 29.7, "args": argparse.Namespace(model=kind)}, path)
    return Path(path)


def clip_tokenizer(folder, words: int = WORDS) -> str:
    """Write a tokenizer of CLIP's kind that knows letters alone, of so many ids, and return its folder."""
    from transformers import CLIPTokenizer
    characters = [character for character in string.printable if character.strip() and not character.isupper()]
    vocabulary = [*characters, *(f"{character}</w>" for character in characters)]
    vocabulary += [f"<unused{i}>" for i in range(words - 2 - len(vocabulary))] + ["<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: i for i, word in enumerate(vocabulary)}, []).save_pretrained(folder)
    return str(folder)


def bert_tokenizer(folder, words: int = WORDS) -> str:
    """Write a tokenizer of BERT's kind that knows letters alone, of so many ids, and return its folder."""
    from transformers import BertTokenizer
    characters = [character for character in string.printable if character.strip() and not character.isupper()]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters,
                  *(f"##{character}" for character in characters)]
    vocabulary += [f"[unused{i}]" for i in range(words - len(vocabulary))]
    BertTokenizer({word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return str(folder)


def tokenizer_for(kind: str, folder) -> str:
    """Write the tokenizer that a tiny file of this kind wants, and return its folder."""
    return clip_tokenizer(folder) if kind in ("lavila_tsfb", "avion_vitb") else bert_tokenizer(folder)
