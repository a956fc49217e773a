"""The compiled engine: odd widths, prompts in groups and shared, and what happens where it can't be compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from affetto.adapters.bank import AdapterBank
from affetto.miniature.base import make_config, make_model
from affetto.model.base import Base, load_base
from affetto.model.csm import CsmNetwork
from affetto.speak import native_frames
from affetto.speak.engine import Arithmetic, Engine
from affetto.speak.generation import weights_of
from affetto.speak.requests import Request
from affetto.speak.weights import SpeakingWeights
from native_tools import required


def _say(base: Base, requests: Sequence[Request], arithmetic: Arithmetic) -> list[list[list[int]]]:
    engine = Engine(weights_of(base.network), arithmetic)
    said: dict[int, list[list[int]]] = {number: [] for number in engine.join(requests)}
    while engine.num_speaking:
        for heard in engine.step():
            if heard.codes_K is not None:
                said[heard.number].append(heard.codes_K.tolist())
    return list(said.values())


def _requests(base: Base, texts: Sequence[str], **fields: object) -> list[Request]:
    return [
        Request(base.prompt_ids(text, 0), seed=seed, max_frames=4, **fields)  # type: ignore[arg-type]
        for seed, text in enumerate(texts)
    ]


def _of_size(tiny_base: Base, backbone: tuple[int, int, int, int], depth: tuple[int, int, int, int]) -> Base:
    """(width, hidden, key-value heads, size of a head) of either stack; three query heads a key's."""
    config = make_config(96, 2, 64, 2)
    for part, (width, hidden, num_kv, head_dim) in ((config, backbone), (config.depth_decoder_config, depth)):
        part.hidden_size, part.intermediate_size, part.head_dim = width, hidden, head_dim
        part.num_key_value_heads, part.num_attention_heads = num_kv, 3 * num_kv
    config.depth_decoder_config.backbone_hidden_size = backbone[0]
    model = make_model(config, seed=3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)
    return replace(tiny_base, model=model, network=CsmNetwork(model).eval())


@pytest.mark.parametrize(
    ("backbone", "depth"),
    [((33, 70, 1, 6), (26, 37, 2, 10)), ((40, 24, 2, 8), (72, 16, 1, 32)), ((130, 200, 3, 20), (48, 90, 1, 4))],
)
@pytest.mark.parametrize("num_rows", [1, 2, 5, 13])
def test_widths_that_fill_no_vector(
    tiny_base: Base, backbone: tuple[int, int, int, int], depth: tuple[int, int, int, int], num_rows: int
) -> None:
    required()
    base = _of_size(tiny_base, backbone, depth)
    requests = _requests(base, ["ab" * row + "c" for row in range(num_rows)], temperature=1.0, top_k=40)
    said = _say(base, requests, "native")
    assert said == _say(base, requests, "numpy")
    assert len({str(one) for one in said}) == num_rows


def test_prompts_in_groups_are_those_in_one(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a group ends in the middle of a gate's rows, and where one prompt is longer than a group."""
    required()
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("both", "inputs_embeds_projector"))
    for name in ("happy", "sad"):
        bank.add(name, rank=3, alpha=9.0, seed=len(name))
        for _, _, b_OR, _ in bank.factors(name):
            assert b_OR is not None
            b_OR.data.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    texts = ["one", "twenty two and more", "three", "four hundred and forty", "five", "six"]
    requests = [
        replace(request, gate=((1.0, 0.0), (0.0, 0.7))[row % 2])
        for row, request in enumerate(_requests(tiny_base, texts))
    ]
    plain = _say(tiny_base, requests, "numpy")
    for most in (1, 30, 1000):
        monkeypatch.setattr(native_frames, "_POSITIONS_AT_ONCE", most)
        assert _say(tiny_base, requests, "native") == plain


def test_what_a_row_becomes_does_not_depend_on_its_company_to_the_last_bit() -> None:
    """In C: the miniature's states frame by frame, alone, among others, and when some of these have left."""
    required()
    base = load_base("miniature")
    texts = [
        "a",
        "the silver key",
        "a much longer line about rivers and the stones in them",
        "old stones",
        "five",
        "six more",
    ]
    requests = [
        Request(base.prompt_ids(text, seed % 2), seed=seed, max_frames=6 + seed % 3)
        for seed, text in enumerate(texts * 4)
    ]

    def states(rows: Sequence[Request]) -> dict[int, list[bytes]]:
        engine = Engine(weights_of(base.network), "native")
        names = dict(zip(engine.join(rows), (row.seed for row in rows), strict=True))
        found: dict[int, list[bytes]] = {name: [] for name in names.values()}
        while engine.num_speaking:
            engine.step()
            if (batch := engine._batch) is not None:
                for row, states_D in zip(batch.rows, batch.states_BD, strict=True):
                    found[names[row.number]].append(states_D.numpy().tobytes())
        return found

    together = states(requests)
    for rows in (requests[:1], requests[1:2], requests[2:5], requests[5:12], requests[12:]):
        for name, mine in states(rows).items():
            common = min(len(mine), len(together[name]))
            assert common >= 5
            assert mine[:common] == together[name][:common]


@pytest.mark.parametrize("arithmetic", ["native", "numpy", "torch"])
def test_takes_of_a_sentence_read_it_once(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, arithmetic: Arithmetic
) -> None:
    if arithmetic == "native":
        required()
    sentences = _requests(tiny_base, ["the silver key", "a river"])
    takes = [replace(sentences[number % 2], seed=number) for number in range(6)]
    alone = [_say(tiny_base, [take], arithmetic)[0] for take in takes]
    read: list[Request] = []
    from affetto.speak import engine

    known = engine.embed_prompt
    monkeypatch.setattr(
        engine, "embed_prompt", lambda weights, request: read.append(request) or known(weights, request)
    )
    assert _say(tiny_base, takes, arithmetic) == alone
    assert len(read) == 2
    assert len({str(one) for one in alone}) == 6


def test_a_base_may_move_while_it_speaks(tiny_base: Base) -> None:
    """Its parameters get other memory then; what is being spoken goes on in the old."""
    required()
    requests = _requests(tiny_base, ["the silver key", "a river"])
    plain = _say(tiny_base, requests, "native")
    engine = Engine(weights_of(tiny_base.network), "native")
    said: dict[int, list[list[int]]] = {number: [] for number in engine.join(requests)}
    while engine.num_speaking:
        for heard in engine.step():
            if heard.codes_K is not None:
                said[heard.number].append(heard.codes_K.tolist())
        for parameter in tiny_base.model.parameters():
            parameter.data = torch.full_like(parameter.data, torch.nan)
    assert list(said.values()) == plain


def test_who_has_read_nothing_cannot_join(tiny_base: Base) -> None:
    with pytest.raises(AssertionError, match="has read nothing"):
        Engine(weights_of(tiny_base.network)).join([Request((), max_frames=3)])


def test_large_bases_and_other_precisions_are_not_for_it(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    required()
    weights = SpeakingWeights(tiny_base.network)
    assert native_frames.speaks_natively(weights)
    assert Engine(weights).arithmetic == "native"
    monkeypatch.setattr(native_frames, "MOST_MATRIX_BYTES", weights.largest_bytes - 1)
    assert not native_frames.speaks_natively(weights)
    assert Engine(weights).arithmetic == "numpy"
    assert not native_frames.speaks_natively(SpeakingWeights(CsmNetwork(tiny_base.model.bfloat16()).eval()))
