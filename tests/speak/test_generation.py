"""Speaking against transformers' `generate`, teacher-forced logits and the softmax itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from affetto.adapters.bank import AdapterBank
from affetto.errors import ConfigError
from affetto.model.base import Base
from affetto.model.batch import Row, Turn, collate
from affetto.speak.generation import frame_cap, generate, weights_of
from affetto.speak.numpy_frames import NumpyFrames, NumpySampling
from affetto.speak.parallel import rows_at_once, shares_of
from affetto.speak.requests import Request, Spoken
from affetto.speak.sampling import Sampling
from native_tools import drawn_natively, required

TEXTS = ["the silver key", "a", "a much longer line about rivers"]
UNSPOKEN = [256, 257, 258]
"""In the vocabulary, but not in the codec."""


def _requests(base: Base, texts: list[str] = TEXTS, **fields: object) -> list[Request]:
    return [Request(base.prompt_ids(text, index), **({"max_frames": 7} | fields)) for index, text in enumerate(texts)]  # type: ignore[arg-type]


def _context(make_row: Callable[..., Row]) -> tuple[Turn, ...]:
    return make_row(11, frames=(3, 2)).turns


def _codes(spoken: list[Spoken]) -> list[list[list[int]]]:
    return [one.codes_TK.tolist() for one in spoken]


@torch.no_grad()
def _by_transformers(base: Base, requests: list[Request], num_frames: int) -> list[list[list[int]]]:
    """Greedy codes by `CsmForConditionalGeneration.generate` on left-padded input embeddings."""
    embeds = []
    for request in requests:
        parts: list[Tensor] = []
        for turn in (*request.context, Turn(request.text_ids, None)):
            parts.append(base.model.embed_text_tokens(torch.tensor(turn.text_ids)))
            if turn.codes_TK is not None:
                frames = np.concatenate([turn.codes_TK, np.zeros((1, 8), dtype=np.int64)])
                parts.append(base.model.backbone_model.embed_tokens(torch.from_numpy(frames)[None])[0])
        embeds.append(torch.cat(parts))
    width = max(map(len, embeds))
    padded = torch.stack([torch.nn.functional.pad(e, (0, 0, width - len(e), 0)) for e in embeds])
    mask = torch.stack([torch.arange(width) >= width - len(e) for e in embeds]).long()
    said = base.model.generate(
        inputs_embeds=padded, attention_mask=mask, do_sample=False, depth_decoder_do_sample=False,
        max_new_tokens=num_frames, suppress_tokens=UNSPOKEN, depth_decoder_suppress_tokens=UNSPOKEN,
    )  # fmt: skip
    return said.tolist()


@pytest.mark.parametrize("has_context", [False, True])
def test_greedy_codes_are_those_of_transformers(
    tiny_base: Base, make_row: Callable[..., Row], has_context: bool
) -> None:
    requests = _requests(tiny_base, temperature=0.0)
    if has_context:
        requests[1] = replace(requests[1], context=_context(make_row))
    together = _codes(generate(tiny_base, requests))
    assert together == _by_transformers(tiny_base, requests, 7)
    for request, codes in zip(requests, together, strict=True):
        assert [codes] == _by_transformers(tiny_base, [request], 7)
        assert _codes(generate(tiny_base, [request])) == [codes]
    assert all(len({tuple(frame) for frame in codes}) > 2 for codes in together), "speech that never changes"
    if has_context:
        plain = replace(requests[1], context=())
        assert _codes(generate(tiny_base, [plain])) != [together[1]]


@torch.no_grad()
def test_pitfall_06_greedy_codes_are_the_best_of_the_teacher_forced_logits(
    tiny_base: Base, make_row: Callable[..., Row]
) -> None:
    request = replace(_requests(tiny_base, temperature=0.0)[0], context=_context(make_row))
    codes = generate(tiny_base, [request])[0].codes_TK
    row = Row("spoken", (*request.context, Turn(request.text_ids, codes)))
    logits = tiny_base.network(collate([row], 8))
    assert codes[:, 0].tolist() == logits.c0_NV[:-1, :256].argmax(1).tolist()
    assert codes[:, 1:].tolist() == logits.depth_MJV[:-1, :, :256].argmax(2).tolist()


def test_the_same_seed_says_the_same_whatever_the_neighbours(tiny_base: Base) -> None:
    requests = [replace(request, seed=5 + i, temperature=1.0) for i, request in enumerate(_requests(tiny_base))]
    together = _codes(generate(tiny_base, requests))
    assert together == _codes(generate(tiny_base, requests))
    assert together == [_codes(generate(tiny_base, [request]))[0] for request in requests]
    assert together[::-1] == _codes(generate(tiny_base, requests[::-1]))
    assert together == _codes(generate(tiny_base, requests, batch_size=2))
    assert _codes(generate(tiny_base, [replace(requests[0], seed=99)])) != [together[0]]


def test_pitfall_10_sampling_settings_do_not_stick(tiny_base: Base) -> None:
    plain = _requests(tiny_base, TEXTS[:1], temperature=1.0, seed=3)[0]
    settings = [plain, replace(plain, temperature=0.0), replace(plain, temperature=2.5), replace(plain, top_k=2)]
    alone = [_codes(generate(tiny_base, [request]))[0] for request in settings]
    assert len({str(codes) for codes in alone}) == 4, "settings that change nothing prove nothing"
    assert _codes(generate(tiny_base, settings)) == alone
    again = [_codes(generate(tiny_base, [request]))[0] for request in reversed(settings)]
    assert again[::-1] == alone


def _drawn(logits_BC: Tensor, uniform_B: Tensor, arithmetic: str, book: int = 0, **fields: object) -> list[int]:
    requests = [Request((0, 1), max_frames=1, **fields)] * len(logits_BC)  # type: ignore[arg-type]
    sampling = Sampling(requests, 256, torch.device("cpu"))
    if arithmetic == "torch":
        return sampling.pick(logits_BC, uniform_B[:, None], book).tolist()
    if arithmetic == "native":
        return drawn_natively(sampling, logits_BC, uniform_B, book)
    return NumpySampling(sampling).pick(logits_BC.numpy(), uniform_B[:, None].numpy(), book).tolist()


@pytest.mark.parametrize("arithmetic", ["native", "numpy", "torch"])
@pytest.mark.parametrize(("temperature", "top_k", "book"), [(1.0, 0, 0), (0.6, 0, 7), (1.7, 5, 1), (0.6, 0, 0)])
def test_codes_are_drawn_as_the_softmax_says(temperature: float, top_k: int, book: int, arithmetic: str) -> None:
    """Chi-square over 20,000 draws of a fixed state; codes expected fewer than 5 times are one class."""
    num_draws = 20_000
    logits_C = 2.0 * torch.randn(256, generator=torch.Generator().manual_seed(1))
    uniform_B = torch.rand(num_draws, generator=torch.Generator().manual_seed(2))
    own, other = ("depth_temperature", "temperature") if book else ("temperature", "depth_temperature")
    settings = {own: temperature, other: 3.0, "top_k": top_k}
    drawn = _drawn(logits_C.expand(num_draws, -1), uniform_B, arithmetic, book, **settings)
    scores = logits_C.double() / temperature
    if top_k:
        scores[scores < scores.sort().values[-top_k]] = -torch.inf
    expected = scores.softmax(0).numpy() * num_draws
    counts = np.bincount(drawn, minlength=256)
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) >= 5
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


def test_a_cpu_speaks_as_many_rows_at_once_as_have_room(tiny_base: Base, tiny_moshi: Base) -> None:
    """Of one gate; 2 x 4 bytes for each number of each layer's keys and values, at every place of the longest row."""
    one = _requests(tiny_base, TEXTS[:1], max_frames=30)[0]
    config = tiny_base.model.backbone_model.config
    row = 8 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (len(one.text_ids) + 30)
    assert rows_at_once(tiny_base, [one, replace(one, seed=1)], 4) == 2**28 // row
    turn = Turn(one.text_ids, np.zeros((500, 8), dtype=np.int64))
    after = rows_at_once(tiny_base, [one, replace(one, context=(turn,))], 4)
    assert 8 < after < 2**28 // row / 5, "what was heard before takes room"
    assert rows_at_once(tiny_base, [one, replace(one, max_frames=2**28)], 4) == 8
    assert rows_at_once(tiny_base, [one, replace(one, gate=(1.0,))], 4) == 8
    assert rows_at_once(tiny_moshi, [one], 4) == 4
    assert rows_at_once(tiny_base, [one], 0) == 0


@pytest.mark.parametrize(
    ("is_native", "threads", "rows", "number"),
    [(False, 2, 96, 2), (False, 2, 95, 1), (False, 3, 200, 3), (False, 1, 300, 1), (True, 2, 12, 2), (True, 2, 11, 1),
     (True, 3, 200, 3)],
)  # fmt: skip
def test_processors_share_many_rows_and_say_the_same(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, is_native: bool, threads: int, rows: int, number: int
) -> None:
    """Each row once, in shares of like length; progress adds up, and codes are those of one thread."""
    requests = [
        replace(_requests(tiny_base)[row % 3], seed=row, max_frames=2 + row % 5, temperature=0.0) for row in range(rows)
    ]
    if is_native:
        required()
    for place in ("engine", "parallel"):
        monkeypatch.setattr(f"affetto.speak.{place}.speaks_natively", lambda _: is_native)
    weights = weights_of(tiny_base.network)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = _codes(generate(tiny_base, requests, batch_size=rows))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    shares = shares_of(weights, requests, rows)
    assert sorted(index for share in shares for index in share) == list(range(rows))
    assert len(shares) == number
    frames = [sum(requests[index].max_frames for index in share) for share in shares]
    assert max(frames) - min(frames) < 10
    told: list[int] = []
    assert _codes(generate(tiny_base, requests, batch_size=rows, on_progress=told.append)) == alone
    assert sum(told) == rows
    assert len(shares_of(weights, [*requests, replace(requests[0], gate=(1.0,))], rows)) == 1
    assert len(shares_of(weights, requests, 95 if not is_native else 11)) == 1


def test_the_speech_of_many_seeds_follows_the_first_softmax(tiny_base: Base) -> None:
    """The whole road: codebook zero of the first frame over 400 seeds, in four classes of equal probability."""
    base_request = _requests(tiny_base, TEXTS[:1], max_frames=1, temperature=1.0)[0]
    spoken = generate(tiny_base, [replace(base_request, seed=seed) for seed in range(400)], batch_size=400)
    with torch.no_grad():
        row = Row("", (Turn(base_request.text_ids, np.zeros((0, 8), dtype=np.int64)),))
        shares = tiny_base.network(collate([row], 8)).c0_NV[0, :256].double().softmax(0)
    ranked = shares.argsort(descending=True)
    classes = torch.zeros(256, dtype=torch.int64)
    classes[ranked] = (shares[ranked].cumsum(0) * 4 * 0.999999).long()
    # An end frame in the first place leaves no codes; it is far too rare here to matter.
    drawn = [int(classes[one.codes_TK[0, 0]]) for one in spoken if len(one.codes_TK)]
    assert len(drawn) >= 399
    wanted = torch.bincount(classes, weights=shares, minlength=4).numpy() * len(drawn)
    assert stats.chisquare(np.bincount(drawn, minlength=4), wanted).pvalue > 1e-3


def test_the_speech_of_many_seeds_follows_the_depth_temperature(tiny_base: Base) -> None:
    """Codebook one of the first frame behind the likeliest code zero, over 400 seeds at half the temperature."""
    asked = _requests(tiny_base, TEXTS[:1], max_frames=1, temperature=0.0)[0]
    asked = replace(asked, depth_temperature=0.5)
    spoken = generate(tiny_base, [replace(asked, seed=seed) for seed in range(400)], batch_size=400)
    first_XK = np.stack([one.codes_TK[0] for one in spoken])
    assert len(np.unique(first_XK[:, 0])) == 1
    with torch.no_grad():
        row = Row("", (Turn(asked.text_ids, first_XK[:1]),))
        logits_V = tiny_base.network(collate([row], 8)).depth_MJV[0, 0, :256].double()
    for warmth, is_it in ((0.5, True), (1.0, False)):
        shares = (logits_V / warmth).softmax(0)
        ranked = shares.argsort(descending=True)
        classes = torch.zeros(256, dtype=torch.int64)
        classes[ranked] = (shares[ranked].cumsum(0) * 4 * 0.999999).long()
        wanted = torch.bincount(classes, weights=shares, minlength=4).numpy() * 400
        drawn = np.bincount(classes[first_XK[:, 1]], minlength=4)
        assert (stats.chisquare(drawn, wanted).pvalue > 1e-3) == is_it


@pytest.mark.parametrize("arithmetic", ["native", "numpy", "torch"])
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24, 1.0])
def test_the_ends_of_the_dice_draw_nothing_impossible(uniform: float, num_rows: int, arithmetic: str) -> None:
    logits_BC = torch.full((num_rows, 256), -torch.inf)
    logits_BC[:, [3, 200]] = torch.tensor([1.0, 2.0])
    drawn = _drawn(logits_BC, torch.full((num_rows,), uniform), arithmetic, temperature=1.0)
    assert drawn == [3 if uniform == 0 else 200] * num_rows


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_in_c_what_is_not_finite_draws_a_code_that_there_is_not(wrong: float, temperature: float) -> None:
    """By which the engine knows it (`require_codes`)."""
    logits_BC = torch.full((3, 256), -torch.inf)
    logits_BC[:, 3], logits_BC[1, 200] = 1.0, wrong
    assert _drawn(logits_BC, torch.full((3,), 0.5), "native", temperature=temperature) == [3, 256, 3]


def test_numbers_well_below_one_need_no_holding_back() -> None:
    logits_BC = torch.randn(500, 256, generator=torch.Generator().manual_seed(3))
    uniform_B1 = torch.linspace(0, 1 - 2**-20, 500)[:, None].numpy()
    sampling = Sampling([Request((0, 1), max_frames=1, temperature=1.0)] * 500, 256, torch.device("cpu"))
    held, free = (NumpySampling(sampling, may).pick(logits_BC.numpy(), uniform_B1, 0).tolist() for may in (True, False))
    assert held == free
    assert max(free) <= 255


def test_limits_of_temperature_and_top_k(tiny_base: Base) -> None:
    request = _requests(tiny_base, TEXTS[:1], seed=4)[0]
    greedy = _codes(generate(tiny_base, [replace(request, temperature=0.0)]))
    assert _codes(generate(tiny_base, [replace(request, temperature=1e-5)])) == greedy
    assert _codes(generate(tiny_base, [replace(request, temperature=1.0, top_k=1)])) == greedy
    every = _codes(generate(tiny_base, [replace(request, temperature=1.0, top_k=256)]))
    assert every == _codes(generate(tiny_base, [replace(request, temperature=1.0)]))
    assert every != greedy
    hot = generate(tiny_base, [replace(request, temperature=1e6, max_frames=30)])[0].codes_TK
    assert len(np.unique(hot)) > 80, "at a boundless temperature all codes are alike"
    assert hot.max() < 256


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"depth_temperature": -0.1}, "depth_temperature must be 0"),
        ({"depth_temperature": float("nan")}, "depth_temperature must be 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"gate": (float("nan"),)}, "intensities must be finite"),
        ({"gate": (1.0, -1.0)}, "intensities must be finite numbers, 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request((0, 1), max_frames=3, **fields)  # type: ignore[arg-type]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, int]], None]:
    """Let the row whose seed is S end at frame `ends[S]`: all codes but the last are zero there."""

    def script(ends: dict[int, int]) -> None:
        def frame(frames: NumpyFrames) -> Tensor:
            rows = frames.batch.rows
            codes = torch.full((len(rows), 8), 9)
            for b, row in enumerate(rows):
                if ends.get(row.request.seed) == row.num_frames and not row.is_done:
                    codes[b, :-1] = 0
            return codes

        monkeypatch.setattr(NumpyFrames, "frame", frame)
        monkeypatch.setattr("affetto.speak.engine.speaks_natively", lambda _: False)

    return script


def test_the_end_frame_stops_and_is_trimmed(tiny_base: Base, scripted: Callable[[dict[int, int]], None]) -> None:
    """As transformers stops: on all codebooks but the last. Rows end for themselves; nothing after the end is kept."""
    scripted({0: 3, 1: 0, 2: 5})
    requests = [replace(request, seed=i, max_frames=20) for i, request in enumerate(_requests(tiny_base))]
    spoken = generate(tiny_base, requests)
    assert [len(one.codes_TK) for one in spoken] == [3, 0, 5]
    assert [one.hit_cap for one in spoken] == [False] * 3
    assert all((one.codes_TK == 9).all() for one in spoken)
    assert all(one.codes_TK.shape[1] == 8 and one.codes_TK.dtype == np.int64 for one in spoken)


@pytest.mark.parametrize(("end", "length", "hit_cap"), [(3, 3, False), (4, 4, True), (5, 4, True), (99, 4, True)])
@pytest.mark.parametrize("has_neighbour", [False, True])
def test_the_frame_cap_ends_and_is_told(
    tiny_base: Base,
    scripted: Callable[[dict[int, int]], None],
    end: int,
    length: int,
    hit_cap: bool,
    has_neighbour: bool,
) -> None:
    """A longer neighbour lets the batch run on; what is said of the row stays the same."""
    scripted({0: end, 1: 8})
    requests = [replace(_requests(tiny_base)[0], seed=0, max_frames=4)]
    if has_neighbour:
        requests.append(replace(requests[0], seed=1, max_frames=12))
    spoken = generate(tiny_base, requests)[0]
    assert (len(spoken.codes_TK), spoken.hit_cap) == (length, hit_cap)


def test_stopping_does_without_what_comes_after(
    tiny_base: Base, scripted: Callable[[dict[int, int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted({0: 2})
    hear, calls = NumpyFrames.hear, []
    monkeypatch.setattr(NumpyFrames, "hear", lambda *told: calls.append(1) or hear(*told))
    generate(tiny_base, [replace(_requests(tiny_base)[0], seed=0, max_frames=50)])
    assert len(calls) == 2


def test_an_end_that_the_model_itself_finds(tiny_base: Base) -> None:
    """With heads that always say zero the first frame is the end."""
    with torch.no_grad():
        tiny_base.model.lm_head.weight.zero_()
        tiny_base.model.depth_decoder.codebooks_head.weight.zero_()
    spoken = generate(tiny_base, _requests(tiny_base, temperature=0.0))
    assert [len(one.codes_TK) for one in spoken] == [0, 0, 0]
    assert not any(one.hit_cap for one in spoken)


def test_intensity_zero_is_the_base_bit_for_bit(tiny_base: Base) -> None:
    requests = _requests(tiny_base, temperature=1.0, seed=1)
    before = _codes(generate(tiny_base, requests))
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates)
    bank.add("happy", rank=4, alpha=16.0, seed=0)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors("happy"):
            b_OR.normal_(std=0.1)
    assert _codes(generate(tiny_base, [replace(request, gate=(0.0,)) for request in requests])) == before
    assert _codes(generate(tiny_base, requests)) == before
    # Requests without a gate may sit beside one that has one.
    mixed = [requests[0], replace(requests[1], gate=(1.0,)), requests[2]]
    after = _codes(generate(tiny_base, mixed))
    assert [after[0], after[2]] == [before[0], before[2]]
    assert after[1] != before[1]
    assert after[1] == _codes(generate(tiny_base, [mixed[1]]))[0]


def test_train_mode_and_checkpointing_do_not_reach_the_voice(tiny_base: Base) -> None:
    requests = _requests(tiny_base, temperature=0.0)
    before = _codes(generate(tiny_base, requests))
    tiny_base.network.enable_checkpointing()
    tiny_base.network.train()
    assert _codes(generate(tiny_base, requests)) == before
    assert tiny_base.network.training, "the mode is as it was"


def test_progress_counts_requests(tiny_base: Base) -> None:
    told: list[int] = []
    generate(tiny_base, _requests(tiny_base, max_frames=1), batch_size=2, on_progress=told.append)
    assert told == [2, 1]
    assert generate(tiny_base, []) == []


def test_frame_cap_grows_with_the_text() -> None:
    assert frame_cap("", 12.5) == 19
    assert frame_cap("x" * 100, 12.5) == 244
    assert all(a <= b for a, b in pairwise(frame_cap("x" * n, 12.5) for n in range(50)))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_rows_is_refused(tiny_base: Base, batch_size: int) -> None:
    """It waited for ever."""
    with pytest.raises(ConfigError, match="batch_size must be 1 or more"):
        generate(tiny_base, [Request(tiny_base.prompt_ids("a key", 0), 3)], batch_size=batch_size)
