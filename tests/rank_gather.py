"""One rank of test_dist.py: uneven rows, gathered, drawn and moved, with their gradients."""
import json
import sys
from pathlib import Path

import torch

from egokit.tasks import losses
from egokit.train import distributed, moving
from egokit.train.parts import Part

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
total = 14
counts = {2: [5, 9], 4: [2, 3, 4, 5]}[world]
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

    sent = []  # elements that this rank hands to the others
    exchange = distributed.exchange

    def counted(x, give, take):
        assert give[rank] == take[rank] == 0 and len(x) == sum(give)
        sent.append(x.numel())
        return exchange(x, give, take)

    distributed.exchange = counted
    x = everything[mine].clone().requires_grad_(True)
    rows = moving.gather_rows(x, index[mine], counts)
    (rows * weight[mine]).sum().backward()
    expected = torch.zeros_like(everything).index_add_(0, index, weight)
    wanted_by_others = sum(int(start <= i < mine.stop) for place, i in enumerate(index.tolist())
                           if not start <= place < mine.stop)
    wants_of_others = sum(int(not start <= i < mine.stop) for i in index[mine].tolist())
    result |= {"rows": torch.equal(rows, everything[index][mine]),
               "rows_gradient": torch.allclose(x.grad, expected[mine]),
               "sent": sent == [3 * wanted_by_others, 3 * wants_of_others],
               "objects": distributed.gather_objects(rank)}

    # two tensors by one exchange of wanted rows: one that nobody moves, and texts, which have no gradients
    own, text = moving.plan_moves(counts, torch.arange(start, mine.stop), index[mine])
    ids = torch.arange(2 * total).reshape(total, 2)
    result |= {"stay": torch.equal(moving.move_rows(x.detach(), own), everything[mine]) and sent[2:] == [0],
               "texts": torch.equal(moving.move_rows(ids[mine], text), ids[index[mine]])}

    parts = [Part(matrix[mine], matrix.T[mine], start, world) for matrix in torch.load(folder / "matrices.pt")]
    result["draws"] = [[x.tolist() for x in losses.draw_pairs(*parts, 0.3, 5, step)] for step in range(20)]

    means = []
    for bucket_bytes in (0, 60, 10**6):  # one by one, as on CPUs; in buckets, as on GPUs
        layer = torch.nn.Linear(3, 4).requires_grad_(True)
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, float(rank))
        distributed.average_gradients(layer, bucket_bytes)
        means += [parameter.grad.unique().tolist() for parameter in layer.parameters()]
    result["means"] = means == [[(world - 1) / 2]] * 6

    norm = torch.nn.BatchNorm1d(3)
    norm(everything[mine])
    distributed.broadcast_in_place(norm.buffers())
    of_rank_0 = torch.nn.BatchNorm1d(3)
    of_rank_0(everything[:counts[0]])
    result["buffers"] = all(map(torch.equal, norm.buffers(), of_rank_0.buffers()))
print(json.dumps(result))
