"""Divided attention's kernels for a GPU, in Triton; divided_attention.py starts them and says what they are for.

A program works on a tile: as many whole groups of one clip and head as fit a block of rows, or one larger group in
several blocks. A pair of rows of different groups is masked, so that four frames of eight positions fill a block for
the tensor cores. CLS asks every token of the clip: each tile gives its part of the sum, and a second, small kernel adds
the parts up. Nothing is added atomically, so that results are the same to the bit in each run.

Arguments: `tokens` S, `heads` H, `width` K; `groups` of `size` patches, whose first patches are `group_step` tokens
apart, and the patches of one `step`; TILES tiles of PACK groups, each in BLOCKS blocks of BLOCK rows; CHANNELS, K
rounded up; PRECISION of products of float32.

Source: Dao, "FlashAttention-2" (arXiv 2307.08691), for the sums over blocks and the backward pass.
"""
import triton
import triton.language as tl


@triton.jit
def _tile(tile, start, groups, size, group_step, step, PACK: tl.constexpr, BLOCK: tl.constexpr):
    """Return token, group within the tile and validity of the rows `start` to start + BLOCK - 1 of a tile.

    Rows are ordered member by member, and within a member group by group: neighbours in memory where PACK > 1.
    """
    row = start + tl.arange(0, BLOCK)
    member, group = row // PACK, row % PACK
    valid = (member < size) & (tile * PACK + group < groups)
    return 1 + (tile * PACK + group) * group_step + member * step, group, valid


@triton.jit
def _rows(base, token, stride, valid, channel, width):
    """Load rows of tokens, (BLOCK, channels); 0 where there is none."""
    return tl.load(base + token[:, None] * stride + channel[None, :],
                   mask=valid[:, None] & (channel < width)[None, :], other=0.0)


@triton.jit
def forward(qkv, out, lse, parts, tokens, heads, width, groups, size, group_step, step, scale, PACK: tl.constexpr,
            BLOCKS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr):
    """Attend within the groups of a tile, and give the tile's part of what CLS reads."""
    head, tile, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dim, stride = heads * width, 3 * heads * width
    channel = tl.arange(0, CHANNELS)
    query, out = qkv + clip * tokens * stride + head * width, out + clip * tokens * dim + head * width
    key, value = query + dim, query + 2 * dim
    lse = lse + (clip * heads + head) * tokens
    cls_query = tl.load(query + channel, mask=channel < width, other=0.0).to(tl.float32)
    cls_key = tl.load(key + channel, mask=channel < width, other=0.0).to(tl.float32)
    cls_value = tl.load(value + channel, mask=channel < width, other=0.0).to(tl.float32)

    for i in range(BLOCKS):
        token, group, valid = _tile(tile, i * BLOCK, groups, size, group_step, step, PACK, BLOCK)
        q = _rows(query, token, stride, valid, channel, width)
        top = tl.sum(q.to(tl.float32) * cls_key[None, :], 1) * scale  # the largest score so far: that of CLS
        total = tl.full((BLOCK,), 1.0, tl.float32)
        read = tl.zeros((BLOCK, CHANNELS), tl.float32) + cls_value[None, :]
        for j in range(BLOCKS):
            from_token, from_group, from_valid = _tile(tile, j * BLOCK, groups, size, group_step, step, PACK, BLOCK)
            k = _rows(key, from_token, stride, from_valid, channel, width)
            v = _rows(value, from_token, stride, from_valid, channel, width)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            score = tl.where((group[:, None] == from_group[None, :]) & from_valid[None, :], score, float("-inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            weight, rescaled = tl.exp(score - higher[:, None]), tl.exp(top - higher)
            total = total * rescaled + tl.sum(weight, 1)
            read = read * rescaled[:, None] + tl.dot(weight.to(v.dtype), v, input_precision=PRECISION)
            top = higher
        tl.store(out + token[:, None] * dim + channel[None, :], (read / total[:, None]).to(out.dtype.element_ty),
                 mask=valid[:, None] & (channel < width)[None, :])
        tl.store(lse + token, top + tl.log(total), mask=valid)

    cls_top = tl.full((1,), float("-inf"), tl.float32)
    cls_total, cls_read = tl.zeros((1,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for j in range(BLOCKS):
        token, group, valid = _tile(tile, j * BLOCK, groups, size, group_step, step, PACK, BLOCK)
        k = _rows(key, token, stride, valid, channel, width).to(tl.float32)
        v = _rows(value, token, stride, valid, channel, width).to(tl.float32)
        score = tl.where(valid, tl.sum(k * cls_query[None, :], 1) * scale, float("-inf"))
        higher = tl.maximum(cls_top, tl.max(score, 0))  # finite, as a tile's first row is a token
        weight, rescaled = tl.exp(score - higher), tl.exp(cls_top - higher)
        cls_total = cls_total * rescaled + tl.sum(weight, 0)
        cls_read = cls_read * rescaled + tl.sum(weight[:, None] * v, 0)
        cls_top = higher
    parts = parts + ((clip * heads + head) * tl.num_programs(1) + tile) * (CHANNELS + 2)
    tl.store(parts + tl.arange(0, 1), cls_top)
    tl.store(parts + 1 + tl.arange(0, 1), cls_total)
    tl.store(parts + 2 + channel, cls_read)


@triton.jit
def forward_cls(qkv, out, lse, parts, tokens, heads, width, scale, TILES: tl.constexpr, PARTS: tl.constexpr,
                CHANNELS: tl.constexpr):
    """Add up what CLS reads in all tiles and in itself."""
    head, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dim, channel = heads * width, tl.arange(0, CHANNELS)
    query = qkv + clip * tokens * 3 * dim + head * width
    q = tl.load(query + channel, mask=channel < width, other=0.0).to(tl.float32)
    k = tl.load(query + dim + channel, mask=channel < width, other=0.0).to(tl.float32)
    read = tl.load(query + 2 * dim + channel, mask=channel < width, other=0.0).to(tl.float32)
    top = tl.zeros((1,), tl.float32) + tl.sum(q * k, 0) * scale
    total = tl.full((1,), 1.0, tl.float32)
    parts = parts + (clip * heads + head) * TILES * (CHANNELS + 2)
    for start in range(0, TILES, PARTS):
        tile = start + tl.arange(0, PARTS)
        part = parts + tile * (CHANNELS + 2)
        part_top = tl.load(part, mask=tile < TILES, other=float("-inf"))
        part_total = tl.load(part + 1, mask=tile < TILES, other=0.0)
        part_read = tl.load(part[:, None] + 2 + channel[None, :], mask=(tile < TILES)[:, None], other=0.0)
        higher = tl.maximum(top, tl.max(part_top, 0))
        weight, rescaled = tl.exp(part_top - higher), tl.exp(top - higher)
        total = total * rescaled + tl.sum(weight * part_total, 0)
        read = read * rescaled + tl.sum(weight[:, None] * part_read, 0)
        top = higher
    tl.store(out + clip * tokens * dim + head * width + channel, (read / total).to(out.dtype.element_ty),
             mask=channel < width)
    tl.store(lse + (clip * heads + head) * tokens + tl.arange(0, 1), top + tl.log(total))


@triton.jit
def backward(qkv, out, lse, grad_out, grad_qkv, parts, rows, tokens, heads, width, groups, size, group_step, step,
             scale, PACK: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
             PRECISION: tl.constexpr):
    """Give the gradients of a tile's queries, keys and values, and the tile's part of those of CLS.

    `rows` has room for four numbers a token: the sum of output times gradient, what the token's query gives CLS (the
    score's gradient), and what CLS gives the token's key (the weight and the score's gradient).
    """
    head, tile, clip = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    dim, stride = heads * width, 3 * heads * width
    channel = tl.arange(0, CHANNELS)
    inside = channel < width
    query, grad_query = qkv + clip * tokens * stride + head * width, grad_qkv + clip * tokens * stride + head * width
    key, value, grad_key, grad_value = query + dim, query + 2 * dim, grad_query + dim, grad_query + 2 * dim
    out, grad_out = out + clip * tokens * dim + head * width, grad_out + clip * tokens * dim + head * width
    lse, rows = lse + (clip * heads + head) * tokens, rows + (clip * heads + head) * 4 * tokens
    cls_q = tl.load(query + channel, mask=inside, other=0.0).to(tl.float32)
    cls_do = tl.load(grad_out + channel, mask=inside, other=0.0).to(tl.float32)
    cls_k = tl.load(key + channel, mask=inside, other=0.0).to(tl.float32)

    # all pairs with CLS
    cls_v = tl.load(value + channel, mask=inside, other=0.0).to(tl.float32)
    cls_lse = tl.load(lse)
    cls_delta = tl.sum(cls_do * tl.load(out + channel, mask=inside, other=0.0).to(tl.float32), 0)
    cls_dq, cls_dk, cls_dv = (tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32),
                              tl.zeros((CHANNELS,), tl.float32))
    for i in range(BLOCKS):
        token, group, valid = _tile(tile, i * BLOCK, groups, size, group_step, step, PACK, BLOCK)
        do = _rows(grad_out, token, dim, valid, channel, width).to(tl.float32)
        delta = tl.sum(do * _rows(out, token, dim, valid, channel, width).to(tl.float32), 1)
        q = _rows(query, token, stride, valid, channel, width).to(tl.float32)
        own_lse = tl.load(lse + token, mask=valid, other=0.0)
        weight = tl.where(valid, tl.exp(tl.sum(q * cls_k[None, :], 1) * scale - own_lse), 0.0)
        grad = weight * (tl.sum(do * cls_v[None, :], 1) - delta)
        cls_dk += tl.sum(grad[:, None] * q, 0)
        cls_dv += tl.sum(weight[:, None] * do, 0)
        tl.store(rows + token, delta, mask=valid)
        tl.store(rows + tokens + token, grad, mask=valid)
        k = _rows(key, token, stride, valid, channel, width).to(tl.float32)
        v = _rows(value, token, stride, valid, channel, width).to(tl.float32)
        weight = tl.where(valid, tl.exp(tl.sum(k * cls_q[None, :], 1) * scale - cls_lse), 0.0)
        grad = weight * (tl.sum(v * cls_do[None, :], 1) - cls_delta)
        cls_dq += tl.sum(grad[:, None] * k, 0)
        tl.store(rows + 2 * tokens + token, weight, mask=valid)
        tl.store(rows + 3 * tokens + token, grad, mask=valid)
    parts = parts + ((clip * heads + head) * tl.num_programs(1) + tile) * 3 * CHANNELS
    tl.store(parts + channel, cls_dq)
    tl.store(parts + CHANNELS + channel, cls_dk)
    tl.store(parts + 2 * CHANNELS + channel, cls_dv)
    tl.debug_barrier()  # other threads of this program read `rows`

    for j in range(BLOCKS):  # keys and values, from all queries
        token, group, valid = _tile(tile, j * BLOCK, groups, size, group_step, step, PACK, BLOCK)
        k = _rows(key, token, stride, valid, channel, width)
        v = _rows(value, token, stride, valid, channel, width)
        dv = tl.load(rows + 2 * tokens + token, mask=valid, other=0.0)[:, None] * cls_do[None, :]
        dk = tl.load(rows + 3 * tokens + token, mask=valid, other=0.0)[:, None] * cls_q[None, :]
        for i in range(BLOCKS):
            from_token, from_group, from_valid = _tile(tile, i * BLOCK, groups, size, group_step, step, PACK, BLOCK)
            q = _rows(query, from_token, stride, from_valid, channel, width)
            do = _rows(grad_out, from_token, dim, from_valid, channel, width)
            own_lse = tl.load(lse + from_token, mask=from_valid, other=0.0)
            delta = tl.load(rows + from_token, mask=from_valid, other=0.0)
            score = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
            seen = (group[:, None] == from_group[None, :]) & valid[:, None] & from_valid[None, :]
            weights = tl.where(seen, tl.exp(score - own_lse[None, :]), 0.0)
            grads = weights * (tl.dot(v, tl.trans(do), input_precision=PRECISION) - delta[None, :])
            dv += tl.dot(weights.to(do.dtype), do, input_precision=PRECISION)
            dk += tl.dot(grads.to(q.dtype), q, input_precision=PRECISION)
        at, mask = token[:, None] * stride + channel[None, :], valid[:, None] & inside[None, :]
        tl.store(grad_key + at, (dk * scale).to(grad_qkv.dtype.element_ty), mask=mask)
        tl.store(grad_value + at, dv.to(grad_qkv.dtype.element_ty), mask=mask)

    for i in range(BLOCKS):  # queries, from all keys
        token, group, valid = _tile(tile, i * BLOCK, groups, size, group_step, step, PACK, BLOCK)
        q = _rows(query, token, stride, valid, channel, width)
        do = _rows(grad_out, token, dim, valid, channel, width)
        own_lse = tl.load(lse + token, mask=valid, other=0.0)
        delta = tl.load(rows + token, mask=valid, other=0.0)
        dq = tl.load(rows + tokens + token, mask=valid, other=0.0)[:, None] * cls_k[None, :]
        for j in range(BLOCKS):
            from_token, from_group, from_valid = _tile(tile, j * BLOCK, groups, size, group_step, step, PACK, BLOCK)
            k = _rows(key, from_token, stride, from_valid, channel, width)
            v = _rows(value, from_token, stride, from_valid, channel, width)
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            seen = (group[:, None] == from_group[None, :]) & from_valid[None, :]
            weights = tl.where(seen, tl.exp(score - own_lse[:, None]), 0.0)
            grads = weights * (tl.dot(do, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq += tl.dot(grads.to(k.dtype), k, input_precision=PRECISION)
        tl.store(grad_query + token[:, None] * stride + channel[None, :],
                 (dq * scale).to(grad_qkv.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit
def backward_cls(qkv, out, lse, grad_out, grad_qkv, parts, rows, tokens, heads, width, scale, TILES: tl.constexpr,
                 PARTS: tl.constexpr, CHANNELS: tl.constexpr):
    """Add up the gradients of CLS over all tiles, and those of CLS asking itself."""
    head, clip = tl.program_id(0), tl.program_id(1).to(tl.int64)
    dim, channel = heads * width, tl.arange(0, CHANNELS)
    inside = channel < width
    query, grad_query = qkv + clip * tokens * 3 * dim + head * width, grad_qkv + clip * tokens * 3 * dim + head * width
    own = clip * tokens * dim + head * width + channel
    q = tl.load(query + channel, mask=inside, other=0.0).to(tl.float32)
    k = tl.load(query + dim + channel, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(query + 2 * dim + channel, mask=inside, other=0.0).to(tl.float32)
    do = tl.load(grad_out + own, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(out + own, mask=inside, other=0.0).to(tl.float32)
    weight = tl.exp(tl.sum(q * k, 0) * scale - tl.load(lse + (clip * heads + head) * tokens))
    grad = weight * (tl.sum(do * v, 0) - tl.sum(do * o, 0))
    dq, dk, dv = grad * k, grad * q, weight * do
    parts = parts + (clip * heads + head) * TILES * 3 * CHANNELS
    for start in range(0, TILES, PARTS):
        tile = start + tl.arange(0, PARTS)
        part, there = parts + tile[:, None] * 3 * CHANNELS + channel[None, :], (tile < TILES)[:, None]
        dq += tl.sum(tl.load(part, mask=there, other=0.0), 0)
        dk += tl.sum(tl.load(part + CHANNELS, mask=there, other=0.0), 0)
        dv += tl.sum(tl.load(part + 2 * CHANNELS, mask=there, other=0.0), 0)
    tl.store(grad_query + channel, (dq * scale).to(grad_qkv.dtype.element_ty), mask=inside)
    tl.store(grad_query + dim + channel, (dk * scale).to(grad_qkv.dtype.element_ty), mask=inside)
    tl.store(grad_query + 2 * dim + channel, dv.to(grad_qkv.dtype.element_ty), mask=inside)
