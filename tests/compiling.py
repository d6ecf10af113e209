"""What tests of train.compile share: a recorder of the compiled functions and a count of their graphs."""
import collections

import pytest
import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list

from egokit.train import compiled, step


def recorder(patch: pytest.MonkeyPatch, backend: str, fixed_shapes: bool = False) -> list[compiled.CompiledBlocks]:
    """Let training compile by a backend; return the list that its CompiledBlocks are put into."""
    made = []

    def compile_blocks(model):
        torch._dynamo.utils.counters.clear()
        made.append(compiled.compile_blocks(model, backend, fixed_shapes))
    patch.setattr(step, "compile_blocks", compile_blocks)
    return made


def graphs(blocks: compiled.CompiledBlocks) -> dict[str, dict[tuple, int]]:
    """Return {kind: {(gradients, fixed shapes): number of graphs}}; a kind is written as "Block(other, arguments)"."""
    out = collections.defaultdict(dict)
    for (kind, fixed), function in blocks.functions.items():
        entries = _debug_get_cache_entry_list(function._torchdynamo_orig_callable.__code__)
        name = f"{kind.block.__name__}{kind.given}{'' if all(kind.trained) else ' partly frozen'}"
        out[name][kind.gradients, fixed] = len(entries)
    return dict(out)


def breaks() -> dict:
    return dict(torch._dynamo.utils.counters["graph_break"])
