"""Files in the released format with seeded weights, and the inputs that golden/ is for."""
import importlib.util
import json
import sys
import types
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


def taskqa_head(seed, answers, width=768):
    """Return the tensors of a released EgoTaskQA head."""
    shapes = {"projector_1.weight": (answers, width), "projector_1.bias": (answers,),
              "projector_2.weight": (answers, answers), "projector_2.bias": (answers,)}
    return {key: torch.from_numpy(weight(seed, key, shape)) for key, shape in shapes.items()}


def taskqa_release(path, state):
    """Write a file in the layout of EgoTaskQA_finetune_direct.tar, with objects of foreign classes and code to run.

    Args:
        state: tensors by released names, without 'module.'.
    """
    frames = torch.nn.functional.interpolate(state["video_model.temporal_embed"][None], (16, state[
        "video_model.temporal_embed"].shape[-1]), mode="bilinear", align_corners=True)[0]
    state = {f"module.{key}": value for key, value in (state | {"video_model.temporal_embed": frames}).items()}
    foreign = types.ModuleType("transformers_schedule")
    foreign.Schedule = type("Schedule", (), {"__module__": foreign.__name__, "__reduce__": lambda self: (
        foreign.Schedule, (1e-4,))})
    foreign.Schedule.__init__ = lambda self, *rate: None
    sys.modules[foreign.__name__] = foreign
    torch.save({"model_state_dict": state, "global_step": 3024, "loss": torch.tensor(3.2, requires_grad=True),
                "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}},
                                         "param_groups": [{"lr": 2e-4, "params": [0]}]},
                "scheduler_state_dict": {"last_epoch": 3024, "lr_lambdas": [foreign.Schedule()]}}, path)
    del sys.modules[foreign.__name__]
    return path


def inputs(figures):
    """Return the frames, the tokens of the texts, and those of the texts with masked words."""
    frames = torch.from_numpy(draw(figures["seed"], "input.video", (3, figures["frames"], 3, 224, 224)))
    mask = torch.tensor(figures["attention_mask"])
    text, masked = ({"input_ids": torch.tensor(figures[key]), "attention_mask": mask}
                    for key in ("input_ids", "mlm_ids"))
    return frames, text, masked
