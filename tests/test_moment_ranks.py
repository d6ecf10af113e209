"""Heads on stored features: any number of ranks, micro-batches and batch sizes give one gradient and one result."""
import json

import pytest
import torch
from moment_site import make_mq, make_nlq
from rank_moments import measure
from test_dist import assert_same, ranks

HEADS = ("mq", "nlq", "span")
ALONE, SPREAD = "train.micro_batch=0 evaluate.batch_size=8", "train.micro_batch={} evaluate.batch_size=1"


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Recipe and overrides for each kind of head, on small sites without dropout."""
    root = tmp_path_factory.mktemp("sites")
    vectors = make_mq(root / "mq", (9, 5), positions=(30, 70), seed=1)
    run = make_nlq(root / "nlq", (4, 3), positions=(48, 70))
    small = "task.dropout=0 task.dim=16 task.levels=4"
    nlq = f"site.root={root / 'nlq'} task.features={run} {small}"
    return {"mq": ("toy/egomq", f"site.root={root / 'mq'} task.features={vectors} task.stored_rate=1.875 {small}"),
            "nlq": ("toy/egonlq", nlq),
            "span": ("toy/egonlq", f"{nlq} task.head=span task.span_dropout=0 task.positions=64")}


@pytest.fixture(scope="module")
def of_three(cases, tmp_path_factory):
    """What three ranks give, (head, train.micro_batch) -> results; one start of processes serves all."""
    folder = tmp_path_factory.mktemp("three")
    each = [(head, micro_batch) for head in HEADS for micro_batch in (0, 1)]
    asked = [(cases[head][0], f"{cases[head][1]} {SPREAD.format(micro_batch)}") for head, micro_batch in each]
    ranks("rank_moments.py", 3, folder, json.dumps(asked))
    return dict(zip(each, torch.load(folder / "results.pt"), strict=True))


@pytest.mark.parametrize("head", HEADS)
def test_ranks_micro_batches_and_batch_sizes_change_nothing(cases, of_three, tmp_path, head):
    """Shares are uneven (7; 3, 2 and 2), and a batch is as long as its longest clip."""
    recipe, overrides = cases[head]
    first = measure(recipe, f"{overrides} {ALONE}", tmp_path)
    assert first["terms"].keys() == ({"span", "highlight"} if head == "span" else {"class", "offset"})
    assert min(first["terms"].values()) > 0
    others = {"micro-batches": measure(recipe, f"{overrides} {SPREAD.format(2)}", tmp_path),
              "ranks": of_three[head, 0], "ranks, micro-batches": of_three[head, 1]}
    for what, other in others.items():
        assert_same(other, first, what)
        assert other["buffers"].keys() == first["buffers"].keys()
        for name, value in first["buffers"].items():
            assert torch.allclose(other["buffers"][name], value, rtol=1e-6), (what, name)
        assert other["metrics"] == pytest.approx(first["metrics"], abs=1e-4), what
        for name, value in first["rows"].items():
            got = other["rows"][name].double()
            assert torch.allclose(got, value.double(), 1e-4, 1e-4, equal_nan=True), (what, name)
