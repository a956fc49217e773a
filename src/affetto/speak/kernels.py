"""Triton kernels for one position of every row: the operations between a layer's products, and products of one row.

At batch 1 a frame is bound by reading weights, if its kernels are few and large. So a product reads each weight once,
in memory order, and includes what comes before and after it (norm, SwiGLU, adapter, residual, look-up). Several rows
go through the device's own matrix products. All sums are in float32. Tensors must be contiguous, except weights
(O, I), whose strides are given.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def project_kernel(
    x, row, norm, w, low, b, added, y, eps, w_out,
    w_in, rank, IN: tl.constexpr, OUT: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr,
    RANK: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The product y (OUT,) of one row; if GATED, SiLU of the first OUT outputs times the other OUT."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    is_out = o < OUT
    # Even a mask that is always true would prevent wide loads.
    EVEN: tl.constexpr = (IN % BLOCK_I == 0) and (OUT % BLOCK_O == 0)
    offsets = o[:, None] * w_out + i[None, :] * w_in
    is_inside = is_out[:, None] & (i < IN)[None, :]
    # Weights are loaded before waiting for the kernels in front, and then always one block ahead.
    if EVEN:
        weight = tl.load(w + offsets)
        up_weight = tl.load(w + OUT * w_out + offsets) if GATED else weight
    else:
        weight = tl.load(w + offsets, mask=is_inside, other=0.0)
        up_weight = tl.load(w + OUT * w_out + offsets, mask=is_inside, other=0.0) if GATED else weight
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if row is not None:
        x += tl.load(row) * IN
    products = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    up_products = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    squares = tl.zeros([BLOCK_I], tl.float32)
    for start in range(0, IN, BLOCK_I):
        column = start + i
        is_in = column < IN
        offsets += BLOCK_I * w_in
        next_weight = weight
        next_up_weight = up_weight
        if IN > BLOCK_I:
            if EVEN:
                has_next = start + BLOCK_I < IN
            else:
                has_next = is_out[:, None] & (column + BLOCK_I < IN)[None, :]
            next_weight = tl.load(w + offsets, mask=has_next, other=0.0)
            if GATED:
                next_up_weight = tl.load(w + OUT * w_out + offsets, mask=has_next, other=0.0)
        if EVEN:
            value = tl.load(x + column).to(tl.float32)
        else:
            value = tl.load(x + column, mask=is_in, other=0.0).to(tl.float32)
        if NORMED:
            squares += value * value
        if norm is not None:
            if EVEN:
                value *= tl.load(norm + column).to(tl.float32)
            else:
                value *= tl.load(norm + column, mask=is_in, other=0.0).to(tl.float32)
        products += weight.to(tl.float32) * value[None, :]
        if GATED:
            up_products += up_weight.to(tl.float32) * value[None, :]
        weight = next_weight
        up_weight = next_up_weight
    out = tl.sum(products, 1)
    up = tl.sum(up_products, 1)
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, 0) / IN + eps)
        out *= factor
        up *= factor
    if low is not None:
        r = tl.arange(0, RANK)
        low_r = tl.load(low + r, mask=r < rank, other=0.0)
        row_width = OUT
        if GATED:
            row_width = 2 * OUT
        offsets = r[:, None] * row_width + o[None, :]
        is_inside = (r < rank)[:, None] & is_out[None, :]
        out += tl.sum(tl.load(b + offsets, mask=is_inside, other=0.0).to(tl.float32) * low_r[:, None], 0)
        if GATED:
            up += tl.sum(tl.load(b + OUT + offsets, mask=is_inside, other=0.0).to(tl.float32) * low_r[:, None], 0)
    if GATED:
        out = out * tl.sigmoid(out) * up
    if added is not None:
        out += tl.load(added + o, mask=is_out, other=0.0).to(tl.float32)
    tl.store(y + o, out.to(y.dtype.element_ty), mask=is_out)


@triton.jit
def attend_kernel(
    qkv, keys, values, y, cos, sin, slot_at, starts, slots,
    scale, NUM_KV: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One key-value head of one row: rotate, store key and value in the slot, attend from the row's start to it."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = tl.program_id(0).to(tl.int64)
    row = n // NUM_KV
    head = n % NUM_KV
    slot = tl.load(slot_at)
    start = tl.load(starts + row)
    WIDTH: tl.constexpr = 2 * HALF
    ROWS: tl.constexpr = 16
    g = tl.arange(0, ROWS)
    h = tl.arange(0, HALF)
    d = tl.arange(0, WIDTH)
    qkv += row * (GROUP + 2) * NUM_KV * WIDTH
    angle_offset = (slot - start) * WIDTH
    cosine = tl.load(cos + angle_offset + h).to(tl.float32)
    sine = tl.load(sin + angle_offset + HALF + h).to(tl.float32)
    offsets = (head * GROUP + g)[:, None] * WIDTH + h[None, :]
    is_query = (g < GROUP)[:, None]
    first = tl.load(qkv + offsets, mask=is_query, other=0.0).to(tl.float32)
    second = tl.load(qkv + offsets + HALF, mask=is_query, other=0.0).to(tl.float32)
    dtype = keys.dtype.element_ty
    # Rounded like the cache, so that the slot's own score is like all others.
    query_1 = (first * cosine[None, :] - second * sine[None, :]).to(dtype)
    query_2 = (second * cosine[None, :] + first * sine[None, :]).to(dtype)
    offsets = (GROUP * NUM_KV + head) * WIDTH + h
    first = tl.load(qkv + offsets).to(tl.float32)
    second = tl.load(qkv + offsets + HALF).to(tl.float32)
    key_1 = (first * cosine - second * sine).to(dtype)
    key_2 = (second * cosine + first * sine).to(dtype)
    value = tl.load(qkv + ((GROUP + 1) * NUM_KV + head) * WIDTH + d)
    keys += n * WIDTH * slots
    values += n * slots * WIDTH
    tl.store(keys + h * slots + slot, key_1)
    tl.store(keys + (HALF + h) * slots + slot, key_2)
    tl.store(values + slot * WIDTH + d, value)
    score = tl.sum(query_1.to(tl.float32) * key_1.to(tl.float32)[None, :], 1)
    score += tl.sum(query_2.to(tl.float32) * key_2.to(tl.float32)[None, :], 1)
    highest = score * scale
    exp_sum = tl.full([ROWS], 1.0, tl.float32)
    total = tl.zeros([ROWS, WIDTH], tl.float32) + value.to(tl.float32)[None, :]
    for begin in range(start // BLOCK * BLOCK, slot, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        is_seen = (s >= start) & (s < slot)
        key_offsets = h[:, None] * slots + s[None, :]
        keys_1 = tl.load(keys + key_offsets, mask=is_seen[None, :], other=0.0)
        keys_2 = tl.load(keys + HALF * slots + key_offsets, mask=is_seen[None, :], other=0.0)
        scores = tl.dot(query_1, keys_1, input_precision=PRECISION)
        scores = tl.dot(query_2, keys_2, scores, input_precision=PRECISION) * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        exps = tl.exp(scores - new_highest[:, None])
        rescale = tl.exp(highest - new_highest)
        exp_sum = exp_sum * rescale + tl.sum(exps, 1)
        block_values = tl.load(values + s[:, None] * WIDTH + d[None, :], mask=is_seen[:, None], other=0.0)
        total = total * rescale[:, None] + tl.dot(exps.to(dtype), block_values, input_precision=PRECISION)
        highest = new_highest
    total = total / exp_sum[:, None]
    offsets = n * GROUP * WIDTH + g[:, None] * WIDTH + d[None, :]
    tl.store(y + offsets, total.to(y.dtype.element_ty), mask=is_query)


@triton.jit
def norm_kernel(x, weight, y, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """RMSNorm of a row."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i = tl.arange(0, BLOCK)
    offsets = tl.program_id(0) * WIDTH + i
    value = tl.load(x + offsets, mask=i < WIDTH, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    if weight is not None:
        value *= tl.load(weight + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=i < WIDTH)


@triton.jit
def swiglu_kernel(x, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """SiLU of a row's first half times its second."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0)
    gate = tl.load(x + row * 2 * WIDTH + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * WIDTH + WIDTH + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + i, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=i < WIDTH)


@triton.jit
def embed_kernel(
    codes, table, y, vocab, WIDTH: tl.constexpr, BOOKS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """Sum of a frame's rows of the table."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float32)
    for book in range(BOOKS):
        code = tl.load(codes + row * BOOKS + book) + book * vocab
        total += tl.load(table + code * WIDTH + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + i, total.to(y.dtype.element_ty), mask=i < WIDTH)


@triton.jit
def draw_kernel(
    logits, uniform, frame_at, temperature, top_k, codes, book, frames,
    CODES: tl.constexpr, BOOKS: tl.constexpr, HAS_CUT: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Draw a row's code: the first whose cumulative probability exceeds its number; at temperature 0 the likeliest."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    is_code = c < CODES
    score = tl.load(logits + row * CODES + c, mask=is_code, other=float("-inf")).to(tl.float32)
    best = tl.max(score, 0)
    greedy = tl.min(tl.where((score == best) & is_code, c, BLOCK), 0)
    own_temperature = tl.load(temperature + row)
    score = (score - best) / tl.maximum(own_temperature, 1e-6)
    if HAS_CUT:
        # A float's bits, mirrored if negative, are integers in the same order: find the k-th largest by bisection.
        bits = score.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        k = tl.load(top_k + row)
        least = tl.full([], -2147483648, tl.int64)
        limit = tl.full([], 2147483648, tl.int64)
        for _ in range(32):
            mid = (least + limit) // 2
            is_enough = tl.sum((key >= mid).to(tl.int32) * is_code.to(tl.int32), 0) >= k
            least = tl.where(is_enough, mid, least)
            limit = tl.where(is_enough, limit, mid)
        score = tl.where((key >= least) | (k <= 0), score, float("-inf"))
    share = tl.where(is_code, tl.exp(score), 0.0)
    cumulative = tl.cumsum(share, 0)
    total = tl.max(cumulative, 0)
    number = tl.load(uniform + (row * frames + tl.load(frame_at)) * BOOKS + book)
    below = (total.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    target = tl.minimum(number * total, below)
    # Rounding may make a parallel sum decrease; even then a code of probability zero must never be drawn.
    drawn = tl.min(tl.where((cumulative > target) & (share > 0), c, BLOCK), 0)
    drawn = tl.where(drawn == BLOCK, tl.max(tl.where(share > 0, c, 0), 0), drawn)
    tl.store(codes + row * BOOKS + book, tl.where(own_temperature > 0, drawn, greedy).to(tl.int64))
