"""What only makes a CPU faster: the model's equations in forms that cost less there.

None of it runs on a GPU, and readers of the model can skip this file. layers.py and video_encoder.py ask its functions;
without them results are the same but for rounding. Their worth: benchmarks/model.py and benchmarks/attention.py.

Shapes: B items, Q queries, S source tokens, D width, H heads, K = D/H.
"""
import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_KEYS = 17              # keys of time attention at up to 16 frames
TRAINED_PRODUCTS = 2**23   # multiplications that make up for what an autograd function costs, 50 microseconds
RECOMPUTED_VALUES = 2**20  # values of x_BSD recomputed at once: a clip of 4 frames at width 768 has 0.6 million


def _in_float32(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _in_float32_inference(x: Tensor) -> bool:
    """Whether this is float32 on a CPU without gradients.

    Arithmetic is what costs there, and forms without a backward pass will do.
    """
    return _in_float32(x) and not torch.is_grad_enabled()


def _in_plain_autograd() -> bool:
    """Whether no transform of torch.func, and no forward-mode derivative, is at work: our functions have no rules."""
    return torch._C._functorch.peek_interpreter_stack() is None and torch.autograd.forward_ad._current_level < 0


def linear_applies(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether `linear` can take the place of F.linear for these tensors, and is worth it."""
    # is_compiling first: the others can't be traced, and would cut a compiled block's graph at each linear layer
    return (not torch.compiler.is_compiling() and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
            and _in_float32(x) and weight.dtype == torch.float32 and x.numel() > 0 and x.shape[-1] == weight.shape[1]
            and (bias is None or (bias.dtype == torch.float32 and bias.is_contiguous())) and _in_plain_autograd()
            and (not torch.is_grad_enabled() or x.numel() * len(weight) >= TRAINED_PRODUCTS))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """Return x · weightᵀ + bias, then GELU (exact) if asked, computed by oneDNN.

    PyTorch itself uses oneDNN here in half precision only, and MKL in float32, which on an AMD CPU takes twice the
    time. Without gradients GELU costs nothing more. torch.compile has kernels of its own.
    """
    if not torch.is_grad_enabled():
        return _product(x, weight, bias, "gelu" if gelu else "none")
    gradients = _LinearGradients.apply(x, weight, bias)
    y = _LinearProduct.apply(gradients, x.detach(), weight.detach(), None if bias is None else bias.detach())
    return F.gelu(y) if gelu else y


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")


class _LinearGradients(torch.autograd.Function):
    """The backward pass of a linear layer; its forward pass keeps the inputs, and gives a placeholder for the output.

    Keeping is a node of its own, before `_LinearProduct`, because a checkpoint's recomputation ends when its last
    tensor is kept: a block's last product, a quarter of its arithmetic, is then not computed again.
    """

    @staticmethod
    def forward(context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(x, weight)
        return x.new_zeros(()).expand(*x.shape[:-1], len(weight))  # one number in memory

    @staticmethod
    def backward(context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = context.saved_tensors
        of_x, of_weight, of_bias = context.needs_input_grad
        rows = grad.reshape(-1, len(weight)).contiguous()
        # a gradient of the gradient, too, needs operations that have one
        product = F.linear if torch.is_grad_enabled() else _product
        return (product(rows, weight.T).view(x.shape) if of_x else None,
                product(rows.T, x.reshape(-1, x.shape[-1]).T) if of_weight else None,
                rows.sum(0) if of_bias else None)


class _LinearProduct(torch.autograd.Function):
    """x · weightᵀ + bias, which hands its gradient on to `_LinearGradients`."""

    @staticmethod
    def forward(context, gradients: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def backward(context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None


# Each pass through the text encoder gives its word embedding a gradient of the whole vocabulary, zero but for a few
# rows. At RoBERTa's 50,265 words the second takes 147 MiB, at the end of the backward pass, when memory is at its peak.

def embedding_applies(layer: nn.Module) -> bool:
    """Return whether `embedding` can take the place of this layer, and has gradients to sum.

    In float32 alone, as the other paths here: rows are summed in another order.
    """
    return (not torch.compiler.is_compiling() and type(layer) is nn.Embedding and layer.weight.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled() and layer.weight.requires_grad
            and layer.weight.is_leaf and _in_plain_autograd()
            and layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
            and not any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
                         layer._backward_pre_hooks)))


def embedding(layer: nn.Embedding, ids: Tensor) -> Tensor:
    """Return layer(ids), whose gradient is made dense once, after the passes of a step are summed row by row."""
    weight = layer.weight
    table = _TABLES.get(id(weight))  # the same for all passes of a step: while a graph that uses it is alive
    if table is None or table.data_ptr() != weight.data_ptr() or table.shape != weight.shape:
        table = _TABLES[id(weight)] = _DenseGradient.apply(weight)
    return _SparseLookup.apply(table, ids, layer.padding_idx)


_TABLES: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()  # a table keeps its weight alive


class _DenseGradient(torch.autograd.Function):
    """The weight itself, with a gradient that arrives as rows and goes on as a matrix."""

    @staticmethod
    def forward(context, weight: Tensor) -> Tensor:
        return weight.detach()

    @staticmethod
    def backward(context, grad: Tensor) -> Tensor:
        return grad.to_dense() if grad.is_sparse else grad


class _SparseLookup(torch.autograd.Function):
    """Rows of a table, whose gradient is a sparse tensor."""

    @staticmethod
    def forward(context, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        context.save_for_backward(ids)
        context.table, context.padding = table, padding
        return F.embedding(ids, table)

    @staticmethod
    def backward(context, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, = context.saved_tensors
        if torch.is_grad_enabled() or not _in_plain_autograd():  # sparse tensors have neither gradients nor batches
            padding = -1 if context.padding is None else context.padding
            return torch.ops.aten.embedding_dense_backward(grad, ids, len(context.table), padding, False), None, None
        if context.padding is not None:
            grad = grad.masked_fill((ids == context.padding)[..., None], 0)
        rows = grad.reshape(-1, context.table.shape[1])
        ids, shape = ids.reshape(1, -1), context.table.shape
        return torch.sparse_coo_tensor(ids, rows, shape, check_invariants=False), None, None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Return what `layers.attend` returns; the shapes are the same.

    PyTorch's fused attention is slower on a CPU in half precision than in float32, so that it is given float32. For few
    keys, two batched products take a quarter to a half of its time.
    """
    if query.dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), mask, dropout).to(query.dtype)
    if key.shape[2] <= FEW_KEYS and mask is None and not dropout:
        return ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout,
                                          attn_mask=None if mask is None else mask.to(query.dtype))


# Cross-attention between the hundreds of tokens of a video and the few of a text: projecting the long side costs S·D·D.
# By q · (W s + b) = (Wᵀ q) · s + q · b the projection moves to the short side, which costs S·D·H·Q: less for fewer than
# K text tokens.

def cross_attention_applies(x_BQD: Tensor, source_BSD: Tensor, key_value: tuple[nn.Linear, ...], heads: int,
                            mask_B11S: Tensor | None, training: bool) -> bool:
    """Return whether `cross_attention` gives what the plain equations do, at less cost.

    Separate layers for keys and values are the text encoder's, which asks with few queries; a joint one is the video
    encoder's, which reads few keys. Self-attention never qualifies: it has a mask and as many keys as queries, or more.
    """
    queries, keys, head_width = x_BQD.shape[1], source_BSD.shape[1], x_BQD.shape[-1] // heads
    if not _in_float32_inference(x_BQD):
        return False
    if len(key_value) == 2:
        return mask_B11S is None and not training and queries < head_width
    return mask_B11S is not None and keys < min(head_width, queries)


def cross_attention(x_BQD: Tensor, source_BSD: Tensor, query: nn.Linear, key_value: tuple[nn.Linear, ...],
                    proj: nn.Linear, heads: int, mask_B11S: Tensor | None) -> Tensor:
    """Return what `layers.multi_head_attention` does, without projecting the long side.

    It uses the layers' weights directly: they must be plain linear layers, without hooks or adapters.
    """
    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    if len(key_value) == 2:
        read_BHQK = _few_queries(split(query(x_BQD)), source_BSD, *key_value)
        return proj(read_BHQK.transpose(1, 2).flatten(2))
    key_BHSK, value_BHSK = (split(y) for y in key_value[0](source_BSD).chunk(2, dim=-1))
    return _few_keys(x_BQD, query, key_BHSK, value_BHSK, mask_B11S, proj)


def _few_queries(query_BHQK: Tensor, source_BSD: Tensor, key: nn.Linear, value: nn.Linear) -> Tensor:
    """attend(query, key(source), value(source)), (B, H, Q, K).

    q · b is one number a query, which softmax cancels.
    """
    H, K = query_BHQK.shape[1], query_BHQK.shape[3]
    moved = (query_BHQK @ key.weight.unflatten(0, (H, K))).flatten(1, 2)                               # (B, H*Q, D)
    read = F.scaled_dot_product_attention(moved[:, None], source_BSD[:, None], source_BSD[:, None], scale=K ** -0.5)
    return read[:, 0].unflatten(1, (H, -1)) @ value.weight.unflatten(0, (H, K)).mT + value.bias.unflatten(0, (H, 1, K))


def _few_keys(x_BQD: Tensor, query: nn.Linear, key_BHSK: Tensor, value_BHSK: Tensor, mask_B11S: Tensor,
              proj: nn.Linear) -> Tensor:
    """proj(attend(query(x), key, value, mask)), (B, Q, D)."""
    H, S, K = key_BHSK.shape[1:]
    moved = (key_BHSK @ query.weight.unflatten(0, (H, K))).flatten(1, 2)                               # (B, H*S, D)
    offset = (key_BHSK @ query.bias.unflatten(0, (H, K, 1))).mT * K ** -0.5 + mask_B11S                # (B, H, 1, S)
    weights = ((x_BQD @ moved.mT).unflatten(-1, (H, S)) * K ** -0.5 + offset.transpose(1, 2)).softmax(-1)
    projected = (value_BHSK @ proj.weight.mT.unflatten(0, (H, K))).flatten(1, 2)                       # (B, H*S, D)
    return weights.flatten(2) @ projected + proj.bias


def recompute_in_parts(function: Callable[..., Tensor], x_BSD: Tensor, *others: Tensor) -> Tensor:
    """Return function(x, *others), which recomputes itself; on a CPU by a few clips at a time.

    The full-size model then goes clip by clip: it takes hardly longer, and the other clips need no memory meanwhile.
    """
    if x_BSD.device.type != "cpu":
        return function(x_BSD, *others)
    clips = max(1, RECOMPUTED_VALUES // x_BSD.shape[1:].numel())
    outputs = [function(*part) for part in zip(*(y.split(clips) for y in (x_BSD, *others)), strict=True)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
