"""Triton kernels for one position of every row: what stands between a layer's products, and products of a single row.

At batch 1 a frame is bound by reading weights, if there are few and large kernels: a product reads each weight once, in
the order in which it lies, and does what comes before and after it (norm, SwiGLU, adapter, residual, look-up) on the
way. Rows in greater number go through the device's own matrix products. All sums are in float32. Kernels take
contiguous tensors but for weights (O, I), whose strides count.
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
    """y (OUT,) of one row; GATED: SiLU of the first OUT outputs times the OUT others."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    is_out = o < OUT
    # A mask that is always true would still keep loads from being wide.
    EVEN: tl.constexpr = (IN % BLOCK_I == 0) and (OUT % BLOCK_O == 0)
    place = o[:, None] * w_out + i[None, :] * w_in
    is_there = is_out[:, None] & (i < IN)[None, :]
    # Weights are asked for before the kernels in front are waited for, and always a step ahead.
    if EVEN:
        weight = tl.load(w + place)
        second = tl.load(w + OUT * w_out + place) if GATED else weight
    else:
        weight = tl.load(w + place, mask=is_there, other=0.0)
        second = tl.load(w + OUT * w_out + place, mask=is_there, other=0.0) if GATED else weight
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if row is not None:
        x += tl.load(row) * IN
    total = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    other = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    square = tl.zeros([BLOCK_I], tl.float32)
    for start in range(0, IN, BLOCK_I):
        column = start + i
        is_in = column < IN
        place += BLOCK_I * w_in
        next_weight = weight
        next_second = second
        if IN > BLOCK_I:
            if EVEN:
                is_more = start + BLOCK_I < IN
            else:
                is_more = is_out[:, None] & (column + BLOCK_I < IN)[None, :]
            next_weight = tl.load(w + place, mask=is_more, other=0.0)
            if GATED:
                next_second = tl.load(w + OUT * w_out + place, mask=is_more, other=0.0)
        if EVEN:
            value = tl.load(x + column).to(tl.float32)
        else:
            value = tl.load(x + column, mask=is_in, other=0.0).to(tl.float32)
        if NORMED:
            square += value * value
        if norm is not None:
            if EVEN:
                value *= tl.load(norm + column).to(tl.float32)
            else:
                value *= tl.load(norm + column, mask=is_in, other=0.0).to(tl.float32)
        total += weight.to(tl.float32) * value[None, :]
        if GATED:
            other += second.to(tl.float32) * value[None, :]
        weight = next_weight
        second = next_second
    found = tl.sum(total, 1)
    gated = tl.sum(other, 1)
    if NORMED:
        factor = tl.rsqrt(tl.sum(square, 0) / IN + eps)
        found *= factor
        gated *= factor
    if low is not None:
        r = tl.arange(0, RANK)
        share = tl.load(low + r, mask=r < rank, other=0.0)
        width = OUT
        if GATED:
            width = 2 * OUT
        place = r[:, None] * width + o[None, :]
        is_there = (r < rank)[:, None] & is_out[None, :]
        found += tl.sum(tl.load(b + place, mask=is_there, other=0.0).to(tl.float32) * share[:, None], 0)
        if GATED:
            gated += tl.sum(tl.load(b + OUT + place, mask=is_there, other=0.0).to(tl.float32) * share[:, None], 0)
    if GATED:
        found = found * tl.sigmoid(found) * gated
    if added is not None:
        found += tl.load(added + o, mask=is_out, other=0.0).to(tl.float32)
    tl.store(y + o, found.to(y.dtype.element_ty), mask=is_out)


@triton.jit
def attend_kernel(
    qkv, keys, values, y, cos, sin, slot_at, starts, slots,
    scale, NUM_KV: tl.constexpr, GROUP: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One key-value head of one row: turn, remember key and value in the slot, attend from the row's start to there."""
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
    turn = (slot - start) * WIDTH
    cosine = tl.load(cos + turn + h).to(tl.float32)
    sine = tl.load(sin + turn + HALF + h).to(tl.float32)
    place = (head * GROUP + g)[:, None] * WIDTH + h[None, :]
    is_query = (g < GROUP)[:, None]
    first = tl.load(qkv + place, mask=is_query, other=0.0).to(tl.float32)
    second = tl.load(qkv + place + HALF, mask=is_query, other=0.0).to(tl.float32)
    kind = keys.dtype.element_ty
    # Rounded as the cache is, which makes the slot's own score like all others.
    query_1 = (first * cosine[None, :] - second * sine[None, :]).to(kind)
    query_2 = (second * cosine[None, :] + first * sine[None, :]).to(kind)
    place = (GROUP * NUM_KV + head) * WIDTH + h
    first = tl.load(qkv + place).to(tl.float32)
    second = tl.load(qkv + place + HALF).to(tl.float32)
    key_1 = (first * cosine - second * sine).to(kind)
    key_2 = (second * cosine + first * sine).to(kind)
    value = tl.load(qkv + ((GROUP + 1) * NUM_KV + head) * WIDTH + d)
    keys += n * WIDTH * slots
    values += n * slots * WIDTH
    tl.store(keys + h * slots + slot, key_1)
    tl.store(keys + (HALF + h) * slots + slot, key_2)
    tl.store(values + slot * WIDTH + d, value)
    score = tl.sum(query_1.to(tl.float32) * key_1.to(tl.float32)[None, :], 1)
    score += tl.sum(query_2.to(tl.float32) * key_2.to(tl.float32)[None, :], 1)
    most = score * scale
    weight = tl.full([ROWS], 1.0, tl.float32)
    total = tl.zeros([ROWS, WIDTH], tl.float32) + value.to(tl.float32)[None, :]
    for begin in range(start // BLOCK * BLOCK, slot, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        is_seen = (s >= start) & (s < slot)
        there = h[:, None] * slots + s[None, :]
        part_1 = tl.load(keys + there, mask=is_seen[None, :], other=0.0)
        part_2 = tl.load(keys + HALF * slots + there, mask=is_seen[None, :], other=0.0)
        scores = tl.dot(query_1, part_1, input_precision=PRECISION)
        scores = tl.dot(query_2, part_2, scores, input_precision=PRECISION) * scale
        scores = tl.where(is_seen[None, :], scores, float("-inf"))
        now = tl.maximum(most, tl.max(scores, 1))
        shares = tl.exp(scores - now[:, None])
        fading = tl.exp(most - now)
        weight = weight * fading + tl.sum(shares, 1)
        part = tl.load(values + s[:, None] * WIDTH + d[None, :], mask=is_seen[:, None], other=0.0)
        total = total * fading[:, None] + tl.dot(shares.to(kind), part, input_precision=PRECISION)
        most = now
    total = total / weight[:, None]
    place = n * GROUP * WIDTH + g[:, None] * WIDTH + d[None, :]
    tl.store(y + place, total.to(y.dtype.element_ty), mask=is_query)


@triton.jit
def norm_kernel(x, weight, y, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """RMSNorm of a row."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    i = tl.arange(0, BLOCK)
    place = tl.program_id(0) * WIDTH + i
    value = tl.load(x + place, mask=i < WIDTH, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    if weight is not None:
        value *= tl.load(weight + i, mask=i < WIDTH, other=0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=i < WIDTH)


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
    """One code of a row: where the cumulative distribution passes its number; at temperature 0 the most likely."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    is_code = c < CODES
    score = tl.load(logits + row * CODES + c, mask=is_code, other=float("-inf")).to(tl.float32)
    most = tl.max(score, 0)
    likely = tl.min(tl.where((score == most) & is_code, c, BLOCK), 0)
    warmth = tl.load(temperature + row)
    score = (score - most) / tl.maximum(warmth, 1e-6)
    if HAS_CUT:
        # A float's bits, the negative ones mirrored, are integers in the same order: find the k-th largest by halving.
        bits = score.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        wanted = tl.load(top_k + row)
        least = tl.full([], -2147483648, tl.int64)
        limit = tl.full([], 2147483648, tl.int64)
        for _ in range(32):
            middle = (least + limit) // 2
            is_enough = tl.sum((key >= middle).to(tl.int32) * is_code.to(tl.int32), 0) >= wanted
            least = tl.where(is_enough, middle, least)
            limit = tl.where(is_enough, limit, middle)
        score = tl.where((key >= least) | (wanted <= 0), score, float("-inf"))
    share = tl.where(is_code, tl.exp(score), 0.0)
    heap = tl.cumsum(share, 0)
    total = tl.max(heap, 0)
    number = tl.load(uniform + (row * frames + tl.load(frame_at)) * BOOKS + book)
    below = (total.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    target = tl.minimum(number * total, below)
    # A sum over a tree may fall by a rounding; a code of probability zero must never be drawn all the same.
    drawn = tl.min(tl.where((heap > target) & (share > 0), c, BLOCK), 0)
    drawn = tl.where(drawn == BLOCK, tl.max(tl.where(share > 0, c, 0), 0), drawn)
    tl.store(codes + row * BOOKS + book, tl.where(warmth > 0, drawn, likely).to(tl.int64))
