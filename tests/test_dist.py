"""Real gloo processes: gathering, moving rows, and gradients of W ranks and of one."""
import contextlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from egokit.tasks import losses
from egokit.train.parts import Part

HERE = Path(__file__).parent


def ranks(script, world, folder, *arguments):
    """Run a script of this folder on each rank; return the JSON of each one's last line."""
    # the checkout of these tests, not an installed one; packages may come by PYTHONPATH
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    environment = dict(os.environ, PYTHONPATH=path)
    commands = [[sys.executable, str(HERE / script), *map(str, (rank, world, folder, *arguments))]
                for rank in range(world)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
                 for command in commands]
    out = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr[-3000:]
        out.append(json.loads(stdout.splitlines()[-1]))
    return out


def test_gathering_drawing_and_moving_rows(tmp_path):
    """Real ranks with uneven shares. Only rows that move travel; the draws are those of one process, to the bit."""
    random = torch.Generator().manual_seed(4)
    similarity, positives = torch.randn(14, 14, generator=random), torch.randn(14, 14, generator=random) > 1
    positives.fill_diagonal_(True)
    torch.save((similarity, positives), tmp_path / "matrices.pt")
    parts = Part.whole(similarity), Part.whole(positives)
    of_one = [[index.tolist() for index in losses.draw_pairs(*parts, 0.3, 5, step)] for step in range(20)]
    for world in (2, 4):
        results = ranks("rank_gather.py", world, tmp_path)
        draws = zip(*(result.pop("draws") for result in results), strict=True)  # by step, then by rank
        assert [[[*itertools.chain(*index)] for index in zip(*of_ranks, strict=True)] for of_ranks in draws] == of_one
        for result in results:
            assert result == {"gather": True, "gradient": True, "rows": True, "rows_gradient": True, "sent": True,
                              "stay": True, "texts": True, "objects": list(range(world)), "means": True,
                              "buffers": True}


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_on_parts_are_those_of_the_whole_matrix(tmp_path, world):
    """Value and gradients of every loss, on uneven shares, in micro-batches and under DDP, in double precision.

    Nothing made on the way is larger than two parts; NaN on one rank is NaN on all.
    """
    for result in ranks("rank_parts.py", world, tmp_path):
        assert result.pop("largest") <= 2 and result.pop("nan") == [True, True] and result.pop("same bits")
        assert len(result) == 22 and max(result.values()) < 1e-12, result


def gradients(folder, project, world, recipe, micro_batches, *overrides):
    """Return {micro_batch: {"terms", "gradients"}} of a recipe's first step on W ranks."""
    ranks("rank_gradient.py", world, folder, project, recipe, ",".join(map(str, micro_batches)), *overrides)
    return torch.load(folder / "results.pt")


def assert_same(got, expected, what, double=False):
    """Compare terms and every parameter's gradient: to 1e-5, or in double precision to 1e-12."""
    bound, rounding, dtype = (1e-12, 1e-14, torch.float64) if double else (1e-5, 1e-7, torch.float32)
    assert got["terms"] == pytest.approx(expected["terms"], rel=bound), what
    assert got["gradients"].keys() == expected["gradients"].keys()
    # a key's bias has no gradient in exact arithmetic; its rounding error is compared with the largest gradient
    floor = rounding * max(value.norm().item() for value in expected["gradients"].values())
    for name, value in expected["gradients"].items():
        assert value.dtype == dtype
        assert (got["gradients"][name] - value).norm() <= bound * value.norm() + floor, (what, name)


@pytest.mark.slow
def test_gradient_of_ranks_equals_one_process(project, tmp_path):
    """Compare 1, 2 and 4 gloo ranks on one uneven global batch, without dropout.

    The loss is EgoNCE, MLM and ITM with mined negatives.
    """
    results = {world: gradients(tmp_path / str(world), project, world, "toy/pretrain", [0])[0] for world in (1, 2, 4)}
    for world in (2, 4):
        assert_same(results[world], results[1], world, double=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["toy/pretrain", "toy/ek100_finetune", "toy/charades_finetune",
                                    "toy/ek100_finetune task.retrieval_loss=symmetric_multi_similarity"])
def test_gradient_of_micro_batches_equals_the_batches(project, tmp_path, recipe):
    """Gradient caching is exact on 1 and 2 ranks, for pre-training on 4, too; rank_parts.py has all losses there.

    Their shares (6 and 5; 3, 3, 3 and 2) make equally many micro-batches or not.
    """
    recipe, *overrides = recipe.split()
    of_one = gradients(tmp_path / "1", project, 1, recipe, [0, 1, 3], *overrides)
    of_two = gradients(tmp_path / "2", project, 2, recipe, [1, 3, 5, 6], *overrides)
    of_four = gradients(tmp_path / "4", project, 4, recipe, [1, 2], *overrides) if recipe == "toy/pretrain" else {}
    for world, results in ((1, of_one), (2, of_two), (4, of_four)):
        for micro_batch, got in results.items():
            assert_same(got, of_one[0], (world, micro_batch), double=True)


@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_that_fails_aborts_its_nccl_group(tmp_path, monkeypatch, fails):
    """It does not destroy the group, which would wait, and its error is raised.

    NCCL is replaced by stand-ins.
    """
    from egokit.train import distributed
    calls = []

    class World:
        abort = staticmethod(lambda: calls.append("abort"))

    monkeypatch.setattr(distributed.dist, "TCPStore", lambda *args, **options: type("Store", (), {"port": 1}))
    monkeypatch.setattr(distributed.dist, "init_process_group",
                        lambda backend, **options: calls.append((backend, options["device_id"])))
    monkeypatch.setattr(distributed.dist, "new_group", lambda **options: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: calls.append("destroy"))
    monkeypatch.setattr(distributed.dist, "group", World)
    monkeypatch.setattr(World, "WORLD", World, raising=False)
    device = torch.device("cuda", 1)
    ends = pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext()
    with ends, distributed.joined(0, 2, tmp_path / "meeting", local=True, device=device):
        assert (tmp_path / "meeting").exists()
        if fails:
            raise ZeroDivisionError
    assert calls == [("nccl", device), "abort" if fails else "destroy"] and not (tmp_path / "meeting").exists()


def test_gradients_are_sent_in_buckets():
    from egokit.train import distributed
    grads = [torch.zeros(size, dtype=torch.float64 if index == 4 else torch.float32)
             for index, size in enumerate((3, 99, 5, 20, 7, 2))]
    sizes = [[len(grad) for grad in bucket] for bucket in distributed.buckets(grads, 100)]
    assert sizes == [[3], [99], [5, 20], [7], [2]]
    assert [len(bucket) for bucket in distributed.buckets(grads, 0)] == [1] * 6 and [*distributed.buckets([], 9)] == []
