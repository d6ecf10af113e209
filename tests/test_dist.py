"""Real gloo processes: gathering, moving rows, and the gradient of W ranks against one process."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def ranks(script, world, folder, *arguments):
    """Run a script of this folder once a rank; returns what each printed as JSON on its last line."""
    processes = [subprocess.Popen([sys.executable, str(HERE / script), str(rank), str(world), str(folder), *map(str, arguments)],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(world)]
    out = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr[-3000:]
        out.append(json.loads(stdout.splitlines()[-1]))
    return out


@pytest.mark.parametrize("world", [2, 3])
def test_gathering_and_moving_rows(tmp_path, world):
    for result in ranks("rank_gather.py", world, tmp_path):
        assert result == {"gather": True, "gradient": True, "rows": True, "rows_gradient": True, "objects": list(range(world))}


@pytest.mark.slow
def test_gradient_of_ranks_equals_one_process(project, tmp_path):
    """EgoNCE, MLM and ITM with mined negatives on one uneven global batch: 1, 2 and 4 gloo ranks, dropout off."""
    results = {world: ranks("rank_gradient.py", world, tmp_path / str(world), project)[0] for world in (1, 2, 4)}
    one = {name: torch.tensor(value, dtype=torch.float64) for name, value in results[1]["gradients"].items()}
    # a key's bias has no gradient in exact arithmetic, only rounding: compared with the largest
    floor = 1e-7 * max(value.norm().item() for value in one.values())
    for world in (2, 4):
        assert results[world]["terms"] == pytest.approx(results[1]["terms"], rel=1e-5)
        for name, expected in one.items():
            got = torch.tensor(results[world]["gradients"][name], dtype=torch.float64)
            assert (got - expected).norm() <= 1e-5 * expected.norm() + floor, (world, name)
