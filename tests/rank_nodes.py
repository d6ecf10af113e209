"""One rank of test_nodes.py: work that one rank does for all or for its node, two ranks a node."""
import collections
import json
import sys
from pathlib import Path

import torch

from egokit.model import checkpoints, tensor_file
from egokit.model.checkpoints import WeightsError
from egokit.train import distributed, nodes

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
distributed.processes = lambda: f"node{rank // 2}"  # as if each two ranks had a machine of their own
calls, received = [], []


class Local(Exception):
    """An error that can't be unpickled with one argument."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def content():
    calls.append(rank)
    step = torch.tensor(7.5)
    return {"step": step, "again": [step], "names": collections.OrderedDict(a=(1, "x")), "empty": torch.zeros(0, 3),
            "state": {f"{dtype}": torch.arange(6).reshape(2, 3).to(dtype).t()
                      for dtype in (torch.float32, torch.bfloat16, torch.bool, torch.int64)}}


def raised(call, function):
    try:
        call(function)
    except Exception as error:
        return [type(error).__name__, str(error)]


def fails(where, error):
    def function():
        if rank == where:
            raise error
        return {"whole": torch.ones(3)}
    return function


with distributed.joined(rank, world, folder / "meeting", local=False):
    got, expected = nodes.once_a_node(content), content()
    calls.pop()
    result = {"called": calls, "same": list(got) == list(expected) and got["names"] == expected["names"]
              and type(got["names"]) is collections.OrderedDict and got["again"][0] is got["step"]
              and torch.equal(got["step"], expected["step"]) and got["empty"].shape == (0, 3)
              and all(torch.equal(got["state"][key], value) and got["state"][key].dtype == value.dtype
                      for key, value in expected["state"].items())}
    result["once"] = nodes.once(lambda: {"rank": rank, "rows": [rank] * 3, "none": None})
    result["errors"] = [raised(nodes.once, fails(0, WeightsError("a.pt is damaged"))),
                        raised(nodes.once, fails(0, Local(1, 2))),
                        raised(nodes.once, lambda: (lambda: 0)),  # can't be pickled
                        raised(nodes.once_a_node, fails(2, WeightsError("b.pt is damaged"))),
                        raised(nodes.once_a_node, fails(0, Local(3, 4)))]
    opened, open_lazily = [], tensor_file.open_lazily
    tensor_file.open_lazily = lambda file: opened.append(rank) or open_lazily(file)
    with checkpoints.read_by(nodes.once_a_node):
        read = checkpoints.read(folder / "weights.pt", everything=False)
        whole = checkpoints.read(folder / "weights.pt")
        result["errors"].append(raised(checkpoints.read, folder / "torn.pt"))
    moments = [list(read["optimizer"]["moments"].size), whole["optimizer"]["moments"].tolist()]
    result |= {"opened": opened,
               "read": [read["state_dict"]["a"].tolist(), read["step"], str(read["parser"]), *moments]}
    result["after"] = nodes.once_a_node(lambda: rank)
print(json.dumps(result))
