"""Each Triton kernel against torch, by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from affetto.model.base import Base
from affetto.speak.engine import Engine
from affetto.speak.layers import Rotary
from affetto.speak.requests import Request
from affetto.speak.sampling import Sampling, dice
from affetto.speak.sites import Site
from affetto.speak.weights import Shape, SpeakingWeights

HAS_GPU = torch.cuda.is_available()
kernels: Any = pytest.importorskip("affetto.speak.launches", reason="Triton isn't installed", exc_type=ImportError)
pytestmark = pytest.mark.skipif(
    not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1",
    reason="there is no GPU, and TRITON_INTERPRET=1 isn't set",
)
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
EPS = 1e-5


def _random(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # infinite, which makes SiLU zero
@pytest.mark.parametrize("num_in", [96, 128, 2304])
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("rank", [0, 5])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_row_times_a_matrix(num_in: int, is_gated: bool, rank: int, is_transposed: bool) -> None:
    """Norm, look-up, adapter, SwiGLU and residual, in one."""
    num_out = 12
    table, norm_I, added = _random(7, num_in), _random(num_in, seed=1), _random(1, num_out, seed=2)
    width = num_out * (1 + is_gated)
    w_IO = _random(width, num_in, seed=3).T if is_transposed else _random(num_in, width, seed=3)
    a_GIR, b_GRO = (_random(1, num_in, rank, seed=4), _random(1, rank, width, seed=5)) if rank else (None, None)
    row = torch.tensor([3], device=DEVICE)
    found = kernels.project(
        table, Site(w_IO, a_GIR, b_GRO), EPS, norm_I, added, is_normed=True, is_gated=is_gated, row=row
    )
    x_1I = functional.rms_norm(table[3:4].double(), (num_in,), norm_I.double(), EPS)
    wanted = x_1I @ w_IO.double()
    if a_GIR is not None and b_GRO is not None:
        wanted += x_1I @ a_GIR[0].double() @ b_GRO[0].double()
    if is_gated:
        wanted = functional.silu(wanted[:, :num_out]) * wanted[:, num_out:]
    torch.testing.assert_close(found.double(), wanted + added, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("slots", [16, 80])
def test_attention_from_each_rows_start(slots: int) -> None:
    """Against a softmax over the same positions; what lies before a row's start, or behind the slot, is not seen."""
    shape = Shape(2, 3, 32, EPS, torch.rand(16, generator=torch.Generator().manual_seed(1)).to(DEVICE), 1.0)
    rotary = Rotary(shape, slots, torch.float32)
    num_rows, slot, starts = 3, slots - 3, [0, 4, slots - 3]
    qkv, keys, values = _random(num_rows, 10 * 32), _random(6, 32, slots, seed=1), _random(6, slots, 32, seed=2)
    for row, start in enumerate(starts):
        keys[2 * row : 2 * row + 2, :, :start] = torch.nan
        values[2 * row : 2 * row + 2, :start] = torch.nan
    keys[..., slot:], values[:, slot:] = torch.nan, torch.nan
    told = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    found = kernels.attend(
        qkv, keys, values, shape, rotary, torch.tensor([slot], dtype=torch.int32, device=DEVICE), told
    )
    for row, start in enumerate(starts):
        cos, sin = rotary.cos_S2H[slot - start], rotary.sin_S2H[slot - start]
        heads = qkv[row].view(10, 2, 16)
        turned = (heads[:8] * cos + heads[:8].flip(1) * sin).flatten(1)
        for head in range(2):
            n = 2 * row + head
            assert torch.allclose(keys[n, :, slot], turned[6 + head], atol=1e-5)
            assert torch.equal(values[n, slot], heads[8 + head].flatten())
            scores = turned[3 * head : 3 * head + 3] @ keys[n, :, start : slot + 1] * 32**-0.5
            wanted = scores.softmax(-1) @ values[n, start : slot + 1]
            torch.testing.assert_close(found[row].view(6, 32)[3 * head : 3 * head + 3], wanted, rtol=1e-4, atol=1e-5)


def test_norm_swiglu_and_a_frames_embedding() -> None:
    x, weight = _random(3, 40), _random(40, seed=1)
    torch.testing.assert_close(kernels.norm(x, EPS, weight), functional.rms_norm(x, (40,), weight, EPS))
    torch.testing.assert_close(kernels.norm(x, EPS, None), functional.rms_norm(x, (40,), None, EPS))
    gate, up = x.chunk(2, dim=1)
    torch.testing.assert_close(kernels.swiglu(x), functional.silu(gate) * up)
    codes = torch.tensor([[0, 4], [3, 2]], device=DEVICE)
    table = _random(10, 24)
    torch.testing.assert_close(
        kernels.embed(codes, table, 5), table[codes + torch.tensor([0, 5], device=DEVICE)].sum(1)
    )


def test_draws_are_those_of_the_sampling() -> None:
    """The same numbers give the same codes, with every temperature and cut."""
    settings = [(1.0, 0), (0.0, 0), (0.6, 5), (1.4, 40), (1.0, 1), (0.01, 0)]
    requests = [Request((1,), 3, temperature=3.0, depth_temperature=t, top_k=k) for t, k in settings]
    sampling = Sampling(requests, 50, DEVICE)
    uniform_BTK = torch.stack([dice(seed, 3, 2) for seed in range(len(requests))]).to(DEVICE)
    uniform_BTK[0, 1, 1], uniform_BTK[2, 1, 1] = 1 - 2**-24, 0.0
    frame = torch.tensor([1], dtype=torch.int32, device=DEVICE)
    for seed in range(4):
        logits = 3 * _random(len(requests), 50, seed=seed)
        codes = torch.full((len(requests), 2), -1, device=DEVICE)
        kernels.draw(logits, codes, 1, uniform_BTK, frame, sampling.warmths[1].temperature_B, sampling.top_k_B)
        assert codes[:, 0].eq(-1).all()
        assert codes[:, 1].tolist() == sampling.pick(logits, uniform_BTK[:, 1, 1:], 1).tolist()
    uncut = Sampling([Request((1,), 3, temperature=1.0)] * len(requests), 50, DEVICE)
    kernels.draw(logits, codes, 0, uniform_BTK, frame, uncut.warmths[0].temperature_B, None)
    assert codes[:, 0].tolist() == uncut.pick(logits, uniform_BTK[:, 1, :1], 0).tolist()


def test_a_code_of_no_probability_is_never_drawn() -> None:
    logits = torch.full((2, 40), -torch.inf, device=DEVICE)
    logits[0, 7] = logits[1, 39] = logits[1, 2] = 0.0
    codes = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
    frame, warmth = torch.zeros(1, dtype=torch.int32, device=DEVICE), torch.ones(2, device=DEVICE)
    for number, wanted in ((0.0, [7, 2]), (0.4999, [7, 2]), (0.5001, [7, 39]), (1 - 2**-24, [7, 39])):
        uniform = torch.full((2, 1, 1), number, device=DEVICE)
        kernels.draw(logits, codes, 0, uniform, frame, warmth, None)
        assert codes[:, 0].tolist() == wanted


@pytest.mark.parametrize("num_rows", [1, 3])
def test_the_engine_says_what_it_says_in_torch(tiny_base: Base, num_rows: int) -> None:
    """Weights that are shared with the base, as on a GPU, and rows that start at different places."""
    tiny_base.model.to(DEVICE)
    requests = [
        Request(tiny_base.prompt_ids("the key" * (1 + seed), seed), 2 + seed, (), seed, 0.9, (2.0, 0.4, None)[seed])
        for seed in range(num_rows)
    ]
    said = []
    for weights, arithmetic in (
        (SpeakingWeights(tiny_base.network, is_shared=False), "torch"),
        (SpeakingWeights(tiny_base.network, is_shared=True), "triton"),
        (SpeakingWeights(tiny_base.network, is_shared=True), "torch"),
    ):
        engine = Engine(weights, arithmetic)  # type: ignore[arg-type]
        engine.join(requests)
        frames = []
        while engine.num_speaking:
            frames += [
                (heard.number, None if heard.codes_K is None else heard.codes_K.tolist()) for heard in engine.step()
            ]
        said.append(frames)
    assert said[0] == said[1] == said[2]
