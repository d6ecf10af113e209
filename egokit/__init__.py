"""egokit: EgoVLPv2 as a notebook-centric research kit.

Importing the package imports nothing heavy; the public names are loaded on first use.
"""
import importlib

__version__ = "0.1.0"

_PUBLIC = {  # name: its module
    "load": "model.weights", "similarity": "model.dual", "read_clip": "data.video.clips",
    "Dual": "model.dual", "describe": "notebook.description", "open_run": "notebook.open_run", "submit": "jobs.launch",
    "submit_training": "notebook.steps", "scored": "notebook.steps", "changed": "notebook.trial",
    "Trial": "notebook.trial", "submit_sweep": "jobs.sweep", "find_runs": "runs.run_set",
    "runs_table": "jobs.runs_table", "ConfigError": "config.build", "WeightsError": "model.checkpoints",
}
_MODULES = {  # short name: module; "look" is an earlier name of viz
    "metrics": "tasks.metrics", "losses": "tasks.losses", "prep": "prep", "doctor": "prep.doctor", "toy": "toy",
    "viz": "viz", "look": "viz", "tasks": "tasks", "launch": "jobs.launch", "evaluate": "train.evaluate",
    "transforms": "data.video.transforms", "frames": "data.video.open_video", "resolve": "config.resolve",
    "search": "search",
}
__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"egokit.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"egokit.{_MODULES[name]}")
    raise AttributeError(f"module 'egokit' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
