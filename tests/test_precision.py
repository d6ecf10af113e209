"""Settings of float32 products and of deterministic training: made, and put back."""
import os

import pytest
import torch
from conftest import MODEL

from egokit.model.precision import autocast, deterministic, float32_products, half_precision
from egokit.runs.run_folder import Run
from egokit.train import loop


def test_float32_products_are_exact_or_rounded_and_put_back():
    def now():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = now()
    for tf32, expected in ((True, ("high", True)), (False, ("highest", False))):
        with pytest.raises(KeyError), float32_products(torch.device("cuda"), tf32):
            assert now() == expected
            raise KeyError
        assert now() == before
    with float32_products(torch.device("cpu"), True):
        assert now() == before


def test_half_precision_is_autocasts_and_none_where_a_device_has_no_autocast():
    with autocast(torch.device("cpu"), "bf16"):
        assert half_precision(torch.device("cpu")) is torch.bfloat16 and half_precision(torch.device("meta")) is None
    assert half_precision(torch.device("cpu")) is None


def test_deterministic_settings_are_made_and_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def now():
        return (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.backends.cuda.cudnn_sdp_enabled())

    before = now()
    with deterministic(False):
        assert now() == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(KeyError), deterministic(True):
        assert now() == (True, False, False) and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise KeyError
    assert now() == before


def test_a_deterministic_training_is_the_same_on_a_cpu(resolve, tmp_path):
    """All operations of training have a deterministic form; GPUs run the same operations."""
    from egokit import tasks
    logs = []
    for wanted in ("true", "false"):
        config = resolve(overrides=f"{MODEL} train.precision=fp32 train.deterministic={wanted}")
        run = Run(tmp_path / wanted)
        loop.train(config, tasks.make(config), run, "pretrain", torch.device("cpu"))
        logs.append([event["loss"] for event in run.read_log() if event["kind"] == "step"])
    assert logs[0] == logs[1] and len(logs[0]) == 3
