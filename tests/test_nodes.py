"""Work that one rank does for all, or for its node: results, tensors and errors are the same on every rank."""
import argparse

import pytest
import torch
from test_dist import ranks

from egokit.train import distributed, nodes, training_state


def test_one_rank_of_each_node_works(tmp_path):
    """Four gloo processes, two a node; a file of weights is opened once a node and reading."""
    content = {"state_dict": {"a": torch.arange(3.0)}, "step": 5, "parser": argparse.Namespace(x=1),
               "optimizer": {"moments": torch.ones(2, 2)}}
    torch.save(content, tmp_path / "weights.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:500])
    for rank, result in enumerate(ranks("rank_nodes.py", 4, tmp_path)):
        assert result["called"] == ([rank] if rank % 2 == 0 else []) and result["same"], result
        assert result["once"] == {"rank": 0, "rows": [0] * 3, "none": None} and result["after"] == rank // 2 * 2
        assert result["opened"] == ([rank] * 3 if rank % 2 == 0 else [])
        assert result["read"] == [[0, 1, 2], 5, "<dropped argparse.Namespace>", [2, 2], [[1, 1], [1, 1]]]
        damaged, local, unpicklable, of_a_node, local_of_a_node, torn = result["errors"]
        assert torn[0] == "WeightsError" and "torn.pt is not a checkpoint that can be read" in torn[1]
        assert damaged == ["WeightsError", "a.pt is damaged"] and of_a_node == ["WeightsError", "b.pt is damaged"]
        for (kind, message), numbers in ((local, "1 2"), (local_of_a_node, "3 4")):
            assert (kind, message) == (("Local", numbers) if rank == 0 else
                                       ("RuntimeError", f"rank 0 failed for the others: Local: {numbers}"))
        assert "lambda" in unpicklable[1], unpicklable


def test_a_single_process_just_calls():
    result = object()
    assert nodes.once(lambda: result) is result and nodes.once_a_node(lambda: result) is result
    for call in (nodes.once, nodes.once_a_node):
        with pytest.raises(ZeroDivisionError):
            call(lambda: 1 / 0)


@pytest.mark.parametrize("steps", [[None, 5], [5, None], [5, 6]])
def test_ranks_that_see_other_checkpoints_end_before_one_of_them_begins(tmp_path, monkeypatch, steps):
    """A rank that finds none would begin at step 0, and wait for the others in another collective than they do."""
    monkeypatch.setattr(distributed, "gather_objects", lambda step: steps)
    trainer = argparse.Namespace(run=argparse.Namespace(checkpoints=tmp_path))
    with pytest.raises(training_state.TrainingError, match="ranks read different files; is it one folder on all nodes"):
        training_state.resume(trainer)
