"""Files in the released format with seeded weights, and the inputs that golden/ is for."""
import importlib.util
import json
from pathlib import Path

import torch

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("fake_release", GOLDEN / "fake_release.py")
_release = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_release)
draw, weight = _release.draw, _release.weight

KEYS = {"large": GOLDEN / "keys_mlp4096_4f.tsv", "small": GOLDEN / "keys_linear256_16f.tsv"}


def golden(name):
    """Return the figures of a file in golden/."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def release(folder, kind, seed="A"):
    """Return a file in the released format, which is written once a folder."""
    path = Path(folder) / f"{kind}_{seed}.pth"
    if not path.exists():
        _release.save(str(KEYS[kind]), seed, str(path))
    return path


def release_state(kind, seed="A"):
    """Return the tensors of that file, without 'module.' in their names."""
    return _release.state_dict(str(KEYS[kind]), seed)


def inputs(figures):
    """Return the frames, the tokens of the texts, and those of the texts with masked words."""
    frames = torch.from_numpy(draw(figures["seed"], "input.video", (3, figures["frames"], 3, 224, 224)))
    mask = torch.tensor(figures["attention_mask"])
    text, masked = ({"input_ids": torch.tensor(figures[key]), "attention_mask": mask}
                    for key in ("input_ids", "mlm_ids"))
    return frames, text, masked
