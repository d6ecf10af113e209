"""One small object a benchmark. A task says what its samples, loss, rows and metrics are; loops live elsewhere."""
from __future__ import annotations

import importlib

NAMES = {"egoclip": "EgoClip", "egomcq": "EgoMCQ", "ek100": "EK100", "charades": "CharadesEgo", "mq": "EgoMQ", "search": "Search"}


def make(config, name: str | None = None):
    """The task object of config.task (or `name`)."""
    name = name or config.task
    return getattr(importlib.import_module(f"egokit.tasks.{name}"), NAMES[name])(config)
