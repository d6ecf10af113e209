"""One rank of test_dist.py: uneven rows, gathered and moved, with their gradients."""
import json
import sys
from pathlib import Path

import torch

from egokit.train import distributed

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
counts = [2 + r for r in range(world)]
total = sum(counts)
everything = torch.randn(total, 3, generator=torch.Generator().manual_seed(1))
index = torch.randperm(total, generator=torch.Generator().manual_seed(2))
index[0] = index[-1]  # a row may be wanted twice
weight = torch.randn(total, 3, generator=torch.Generator().manual_seed(3))
start = sum(counts[:rank])
mine = slice(start, start + counts[rank])

with distributed.joined(rank, world, folder / "meeting", local=True):
    x = everything[mine].clone().requires_grad_(True)
    gathered = distributed.gather(x)
    (gathered * weight).sum().backward()
    result = {"gather": torch.equal(gathered, everything), "gradient": torch.allclose(x.grad, world * weight[mine])}

    x = everything[mine].clone().requires_grad_(True)
    rows = distributed.gather_rows(x, index, counts)
    (rows * weight[mine]).sum().backward()
    expected = torch.zeros_like(everything).index_add_(0, index, weight)
    result |= {"rows": torch.equal(rows, everything[index][mine]),
               "rows_gradient": torch.allclose(x.grad, expected[mine]),
               "objects": distributed.gather_objects(rank)}

    means = []
    for bucket_bytes in (0, 60, 10**6):  # one by one, as on CPUs; in buckets, as on GPUs
        layer = torch.nn.Linear(3, 4).requires_grad_(True)
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, float(rank))
        distributed.average_gradients(layer, bucket_bytes)
        means += [parameter.grad.unique().tolist() for parameter in layer.parameters()]
    result["means"] = means == [[(world - 1) / 2]] * 6
print(json.dumps(result))
