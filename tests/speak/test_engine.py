"""The engine against transformers' modules, the bank's layers and merged weights; its two arithmetics, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference_speaking import speak_plainly

from affetto.adapters.bank import AdapterBank
from affetto.adapters.checkpoints import merged_weights
from affetto.errors import BaseModelError
from affetto.miniature.base import make_config, make_model
from affetto.model.base import Base
from affetto.model.batch import Row, Turn, collate
from affetto.model.csm import CsmNetwork
from affetto.speak.engine import Arithmetic, Engine
from affetto.speak.generation import fingerprint, generate, weights_of
from affetto.speak.layers import Rotary
from affetto.speak.requests import Request
from affetto.speak.sites import Site
from affetto.speak.weights import Arranged, SpeakingWeights, chunked

TEXTS = ["the silver key", "a", "a much longer line about rivers", "two", "it is late"]
Codes = list[list[int]]
ARITHMETIC: tuple[Arithmetic, ...] = ("native", "numpy", "torch")


def _say(base: Base, requests: Sequence[Request], arithmetic: Arithmetic | None = None) -> list[Codes]:
    """All requests in one batch of the engine."""
    engine = Engine(weights_of(base.network), arithmetic)
    numbers = engine.join(requests)
    return _rest(engine, numbers)


def _rest(engine: Engine, numbers: Sequence[int]) -> list[Codes]:
    said: dict[int, Codes] = {number: [] for number in numbers}
    while engine.num_speaking:
        for heard in engine.step():
            if heard.codes_K is not None and heard.number in said:
                said[heard.number].append(heard.codes_K.tolist())
    return [said[number] for number in numbers]


def _plainly(base: Base, requests: Sequence[Request]) -> list[Codes]:
    return [spoken.codes_TK.tolist() for spoken in speak_plainly(base, requests)]


def _requests(base: Base, **fields: object) -> list[Request]:
    """Requests of unequal prompts, lengths, seeds and temperatures."""
    settings = [(1.0, 0.4, 0), (0.0, 0.7, 0), (0.6, None, 5), (1.4, 0.0, 0), (1.0, 2.0, 1)]
    return [
        Request(
            base.prompt_ids(text, i),
            **({"max_frames": 5 + i, "seed": 7 + i, "temperature": t, "depth_temperature": d, "top_k": k} | fields),  # type: ignore[arg-type]
        )
        for i, (text, (t, d, k)) in enumerate(zip(TEXTS, settings, strict=True))
    ]


def _bank(base: Base) -> AdapterBank:
    """Two adapters of low rank and one of full rank, all of them heard."""
    bank = AdapterBank(base.model, base.network.gates, ("both", "inputs_embeds_projector"))
    bank.add("happy", rank=3, alpha=9.0, seed=0)
    bank.add("sad", rank=2, alpha=2.0, seed=1)
    bank.add_full("angry")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, size in (("happy", 0.2), ("sad", 0.2), ("angry", 0.02)):
            for _, a_RI, b_OR, _ in bank.factors(name):
                (a_RI if b_OR is None else b_OR).normal_(std=size, generator=generator)
    return bank


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("has_context", [False, True])
def test_sampled_codes_are_those_of_the_plain_road(
    tiny_base: Base, make_row: Callable[..., Row], arithmetic: Arithmetic, has_context: bool
) -> None:
    """Batched and alone, with one seed each: the same numbers are drawn in the same order."""
    requests = _requests(tiny_base)
    if has_context:
        requests[1] = replace(requests[1], context=make_row(11, frames=(3, 2)).turns)
    plain = _plainly(tiny_base, requests)
    assert len({str(codes) for codes in plain}) == len(plain)
    assert _say(tiny_base, requests, arithmetic) == plain
    assert [_say(tiny_base, [request], arithmetic)[0] for request in requests] == plain


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize(
    "gates",
    [
        [(0.8, 0.0, 0.0)] * 5,
        [(0.0, 0.0, 1.0)] * 5,
        [(0.5, 0.4, 0.3)] * 5,
        [(), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.6, 0.4, 0.0)],
        [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (), (0.0, 0.7, 0.5), (0.0, 1.0, 0.0)],
    ],
    ids=["one", "one of full rank", "a blend", "mixed", "mixed with full rank"],
)
def test_adapters_are_those_of_the_bank(
    tiny_base: Base, gates: list[tuple[float, ...]], arithmetic: Arithmetic
) -> None:
    _bank(tiny_base)
    requests = [replace(request, gate=gate) for request, gate in zip(_requests(tiny_base), gates, strict=True)]
    said = _say(tiny_base, requests, arithmetic)
    assert said == _plainly(tiny_base, requests)
    assert said != _plainly(tiny_base, [replace(request, gate=()) for request in requests])
    assert said == [_say(tiny_base, [request], arithmetic)[0] for request in requests]


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_adapters_of_unlike_layers_and_ranks_are_those_of_the_bank(tiny_base: Base, arithmetic: Arithmetic) -> None:
    """One adapts queries and values, the other keys, up and, with another rank, values."""
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, ("both", "inputs_embeds_projector"))
    generator = torch.Generator().manual_seed(5)
    ranks = {"happy": {"q_proj": 3, "v_proj": 2}, "sad": {"k_proj": 4, "up_proj": 1, "v_proj": 5}}
    for name, rank_of in ranks.items():
        changes = {
            path: tuple(
                torch.randn(*shape, generator=generator) * 0.2
                for shape in ((rank, site.shape[1]), (site.shape[0], rank))
            )
            for path, site in bank.sites.items()
            if (rank := rank_of.get(path.rpartition(".")[2]))
        }
        bank.insert(name, changes, dict.fromkeys(changes, 1.5))  # type: ignore[arg-type]
    gates = [(1.0, 0.0), (0.4, 1.1), (), (0.0, 0.9), (1.0, 0.0)]
    requests = [replace(one, gate=gate) for one, gate in zip(_requests(tiny_base), gates, strict=True)]
    plain = _plainly(tiny_base, requests)
    assert plain != _plainly(tiny_base, [replace(one, gate=()) for one in requests])
    assert _say(tiny_base, requests, arithmetic) == plain


def test_an_adapter_speaks_like_its_merged_checkpoint(tiny_base: Base) -> None:
    plain = _requests(tiny_base, temperature=0.0)
    model = make_model(tiny_base.model.config, seed=9)
    bank = _bank(tiny_base)
    left = model.load_state_dict(dict(merged_weights(tiny_base.model, bank, "angry")), strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith("codec_model.") for name in left.missing_keys), "Mimi isn't loaded to speak"
    merged = replace(tiny_base, model=model, network=CsmNetwork(model).eval())
    assert _say(tiny_base, [replace(one, gate=(0.0, 0.0, 1.0)) for one in plain]) == _plainly(merged, plain)


def _states(
    base: Base, requests: Sequence[Request], arithmetic: Arithmetic, num_frames: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The backbone's states (T, B, D) before every frame, and the frames (T, B, K)."""
    engine = Engine(weights_of(base.network), arithmetic)
    engine.join(requests)
    states, codes = [], []
    for _ in range(num_frames):
        engine.step()
        assert engine._batch is not None
        states.append(engine._batch.states_BD.float().clone())
        codes.append(engine._batch.codes_BK)
    return torch.stack(states), torch.stack(codes)


@torch.no_grad()
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_states_are_those_of_the_teacher_forced_backbone(tiny_base: Base, arithmetic: Arithmetic) -> None:
    """To 2e-5 of states that are about one; so are logits, which are a product further."""
    requests = _requests(tiny_base, max_frames=9, gate=(0.7, 0.2, 0.4))
    _bank(tiny_base)
    states_TBD, codes_TBK = _states(tiny_base, requests, arithmetic, 8)
    for b, request in enumerate(requests):
        rows = [Row("", (Turn(request.text_ids, codes_TBK[:, b].numpy()),), gate=request.gate)]
        batch = collate(rows, 8)
        with tiny_base.network.gates.set(batch.gate_BE):
            hidden = tiny_base.network.backbone(inputs_embeds=tiny_base.network.embed(batch), use_cache=False)
        places = batch.frames_N2[:8, 1] - 1
        expected_TD = hidden.last_hidden_state[0, places]
        assert expected_TD.std() > 0.3
        assert (states_TBD[:, b] - expected_TD).abs().max() < 2e-5


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_rows_that_join_and_leave_say_what_they_say_alone(tiny_base: Base, arithmetic: Arithmetic) -> None:
    """A row joins while others speak, with a longer prompt than there is room for, and others leave meanwhile."""
    _bank(tiny_base)
    gates = [(), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), ()]
    requests = [replace(request, gate=gate) for request, gate in zip(_requests(tiny_base), gates, strict=True)]
    longer = replace(requests[2], text_ids=tiny_base.prompt_ids("a very " * 12, 1), max_frames=12)
    alone = [_say(tiny_base, [request], arithmetic)[0] for request in (*requests, longer)]
    engine = Engine(weights_of(tiny_base.network), arithmetic)
    said: dict[int, Codes] = {}
    due = {0: [0, 1], 2: [2, 5], 3: [3], 9: [4]}
    everything, order = [*requests, longer], []
    for frame in range(40):
        if frame in due:
            order += due[frame]
            said |= {number: [] for number in engine.join([everything[index] for index in due[frame]])}
        for heard in engine.step():
            if heard.codes_K is not None:
                said[heard.number].append(heard.codes_K.tolist())
    assert engine.num_speaking == 0
    assert list(said.values()) == [alone[index] for index in order]
    assert engine.step() == []


def test_batches_are_refilled(tiny_base: Base) -> None:
    requests = _requests(tiny_base) * 3
    together = [spoken.codes_TK.tolist() for spoken in generate(tiny_base, requests, batch_size=4)]
    assert together == _plainly(tiny_base, _requests(tiny_base)) * 3


def test_frames_are_told_as_they_come(tiny_base: Base) -> None:
    told: list[tuple[int, list[int]]] = []
    requests = [replace(request, max_frames=3 + index) for index, request in enumerate(_requests(tiny_base))]
    spoken = generate(tiny_base, requests, on_frame=lambda index, codes_K: told.append((index, codes_K.tolist())))
    for index, one in enumerate(spoken):
        assert [codes for place, codes in told if place == index] == one.codes_TK.tolist()
    assert [place for place, _ in told[:5]] != [0, 0, 0, 1, 1], "frame by frame, not row by row"


def test_a_request_without_frames_says_nothing(tiny_base: Base) -> None:
    first, second = _requests(tiny_base)[:2]
    done: list[int] = []
    spoken = generate(tiny_base, [replace(first, max_frames=0), second], on_progress=done.append)
    assert (spoken[0].codes_TK.shape, spoken[0].hit_cap) == ((0, 8), True)
    assert len(spoken[1].codes_TK) > 0
    assert sum(done) == 2


def test_changed_weights_are_noticed(tiny_base: Base) -> None:
    requests = _requests(tiny_base, temperature=0.0)
    before, known = _say(tiny_base, requests), weights_of(tiny_base.network)
    assert weights_of(tiny_base.network) is known
    with torch.no_grad():
        tiny_base.model.backbone_model.layers[0].mlp.down_proj.weight.mul_(-1.0)
    after = _say(tiny_base, requests)
    assert after != before
    assert after == _plainly(tiny_base, requests)
    seen = fingerprint(tiny_base.network)
    _bank(tiny_base)
    assert fingerprint(tiny_base.network) != seen


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_a_base_like_csm_1b_in_small(arithmetic: Arithmetic) -> None:
    """32 codebooks, Llama 3's rotary scaling in both parts, other head counts."""
    config = make_config(hidden_size=96, num_layers=2, depth_size=64, depth_layers=2)
    scaled = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "high_freq_factor": 0.5,
        "low_freq_factor": 0.125, "original_max_position_embeddings": 1024,
    }  # fmt: skip
    config.rope_parameters = scaled
    config.depth_decoder_config.rope_parameters = {**scaled, "original_max_position_embeddings": 16}
    config.num_codebooks = config.depth_decoder_config.num_codebooks = 32
    config.depth_decoder_config.max_position_embeddings = 33
    config.head_dim = config.depth_decoder_config.head_dim = 16
    config.num_attention_heads, config.num_key_value_heads = 6, 3
    model: torch.nn.Module = make_model(config, seed=3).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and not name.startswith("codec_model."):
                weight.mul_(5.0)
    base = SimpleNamespace(model=model, network=CsmNetwork(model).eval(), device=torch.device("cpu"), num_codebooks=32)
    requests = [
        Request((0, *range(5, 8 + 3 * i), 1), max_frames=4, seed=i, temperature=0.0 if i == 1 else 1.0)
        for i in range(3)
    ]
    said = _say(base, requests, arithmetic)  # type: ignore[arg-type]
    assert said == _plainly(base, requests)  # type: ignore[arg-type]
    assert len(said[0][0]) == 32


def test_bfloat16_stays_near_float32(tiny_base: Base) -> None:
    """bfloat16 keeps eight bits: after two layers states differ by some hundredths of their size."""
    requests = [replace(request, max_frames=9) for request in _requests(tiny_base)]
    exact_TBD, _ = _states(tiny_base, requests, "torch", 1)
    tiny_base.model.to(torch.bfloat16)
    rough_TBD, _ = _states(tiny_base, requests, "torch", 1)
    assert weights_of(tiny_base.network).dtype == torch.bfloat16
    error = (rough_TBD - exact_TBD).norm() / exact_TBD.norm()
    assert 1e-4 < error < 0.05
    assert all(len(codes) > 0 for codes in _say(tiny_base, requests))


def test_rotary_turns_are_those_of_transformers(tiny_base: Base) -> None:
    weights = weights_of(tiny_base.network)
    rotary = Rotary(weights.backbone_shape, 40, torch.float32)
    cos, sin = tiny_base.network.backbone.rotary_emb(torch.zeros(1, 1), torch.arange(40)[None])
    half = cos.shape[-1] // 2
    assert torch.equal(rotary.cos_S2H.flatten(1), cos[0])
    assert torch.equal(rotary.sin_S2H[:, 1], sin[0, :, half:])
    assert torch.equal(rotary.sin_S2H[:, 0], -sin[0, :, :half])


@pytest.mark.parametrize(
    ("gates", "chunks"),
    [("aaaa", "a"), ("aabb", "ab"), ("aab", "aab"), ("aaaabb", "aab"), ("aaabbbaaa", "aba"), ("abc", "abc")],
)
def test_rows_stand_in_the_fewest_chunks_of_one_gate(gates: str, chunks: str) -> None:
    as_gates = {letter: (float(ord(letter)),) for letter in "abc"}
    found = chunked([as_gates[letter] for letter in gates])
    assert found == tuple(as_gates[letter] for letter in chunks)
    assert np.repeat(list("".join(chunks)), len(gates) // len(found)).tolist() == list(gates)


def test_what_the_engine_cannot_do_is_refused(tiny_base: Base) -> None:
    tiny_base.model.config.hidden_act = "gelu"
    with pytest.raises(BaseModelError, match="gelu"):
        SpeakingWeights(tiny_base.network)
    tiny_base.model.config.hidden_act = "silu"
    layer = tiny_base.model.backbone_model.layers[0].mlp
    layer.down_proj = torch.nn.Linear(layer.down_proj.in_features, layer.down_proj.out_features)
    with pytest.raises(BaseModelError, match="biases"):
        SpeakingWeights(tiny_base.network)


def test_weights_shared_with_the_base_are_there_once(tiny_base: Base) -> None:
    """As on a GPU: the same speech, the same parameters, no second copy, and a base that can still be trained."""
    requests = _requests(tiny_base)
    before = {name: weight.clone() for name, weight in tiny_base.model.named_parameters()}
    plain = _say(tiny_base, requests)
    gates = [(0.8, 0.0, 0.0)] * len(requests)

    def said(gated: Sequence[Request]) -> list[Codes]:
        engine = Engine(SpeakingWeights(tiny_base.network, is_shared=True), "torch")
        return _rest(engine, engine.join(gated))

    assert said(requests) == plain
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_base.model.named_parameters())
    attention = tiny_base.model.backbone_model.layers[0].self_attn
    whole = SpeakingWeights(tiny_base.network, is_shared=True).arranged([()]).backbone[0].qkv.w
    assert whole.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    place = attention.q_proj.weight.data_ptr()
    _bank(tiny_base)
    gated = [replace(request, gate=gate) for request, gate in zip(requests, gates, strict=True)]
    assert said(gated) == _plainly(tiny_base, gated)
    assert attention.q_proj.layer.weight.data_ptr() == place, "what lies side by side stays there"
    attention.q_proj.layer.weight.requires_grad_()
    states = tiny_base.network.backbone(inputs_embeds=torch.randn(1, 3, attention.q_proj.layer.in_features))
    states.last_hidden_state.sum().backward()
    assert attention.q_proj.layer.weight.grad is not None


def test_adapters_that_wait_on_the_host_are_taken_from_there(tiny_base: Base) -> None:
    """Layers without memory stand for those on a GPU: what is made of a factor elsewhere fails."""
    tiny_base.model.to("meta")
    bank = AdapterBank(tiny_base.model, tiny_base.network.gates, on_host=True)
    bank.add("happy", 4, 8.0, 0)
    bank.insert("sad", {path: (torch.zeros(site.shape), None) for path, site in bank.sites.items()}, {})
    factors = [*bank.parameters("happy").values(), *bank.parameters("sad").values()]
    assert {factor.device.type for factor in factors} == {"cpu"}
    weights = SpeakingWeights(tiny_base.network)
    for gates in ([(1.0, 0.0)], [(1.0, 0.0), (0.3, 0.5), (0.0, 1.0)]):
        layers = weights.arranged(gates).backbone
        made = [tensor for layer in layers for site in (layer.qkv, layer.down) for tensor in (site.w, site.a_GIR)]
        assert {tensor.device.type for tensor in made if tensor is not None} == {"meta"}


def _sites(arranged: Arranged) -> list[Site]:
    layers = (*arranged.backbone, *arranged.depth)
    return [arranged.projector, *(site for one in layers for site in (one.qkv, one.out, one.gate_up, one.down))]


@pytest.mark.parametrize(("room", "kept"), [(0, 1), (1, 1), (2, 2), (9, 3)])
def test_merged_weights_are_kept_as_far_as_there_is_room(
    tiny_base: Base, monkeypatch: pytest.MonkeyPatch, room: int, kept: int
) -> None:
    """A large base in float32 isn't there once more for every gate; plain and mixed rows take little and stay."""
    _bank(tiny_base)
    weights = SpeakingWeights(tiny_base.network)
    ways = [(0.5, 0.0, 0.0)], [(1.0, 0.0, 0.0)], [(0.0, 1.0, 0.0)]
    own = sum(
        merged.w.nbytes
        for merged, plain in zip(_sites(weights.arranged(ways[0])), _sites(weights.arranged([()])), strict=True)
        if merged.w is not plain.w
    )
    monkeypatch.setattr("affetto.speak.weights.MOST_MERGED_BYTES", room * own)
    for gates in ways:
        weights.arranged(gates)
    alive = [place for place, gates in enumerate(ways) if tuple(gates) in weights._arranged]
    assert alive == list(range(3 - kept, 3))
    assert ((),) in weights._arranged


def test_an_engine_that_is_done_keeps_nothing(tiny_base: Base) -> None:
    engine = Engine(weights_of(tiny_base.network))
    engine.join(_requests(tiny_base, max_frames=2))
    while engine.num_speaking:
        engine.step()
    assert engine.step() == []
    engine.join(_requests(tiny_base))
    engine.step()
    engine.close()
    assert engine.num_speaking == 0
    numbers = engine.join(_requests(tiny_base))
    assert _rest(engine, numbers) == _say(tiny_base, _requests(tiny_base))


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize(
    "name",
    ["backbone_model.layers.0.self_attn.k_proj.weight", "backbone_model.norm.weight", "lm_head.weight",
     "depth_decoder.model.layers.1.mlp.down_proj.weight", "depth_decoder.model.inputs_embeds_projector.weight",
     "depth_decoder.codebooks_head.weight"],
)  # fmt: skip
def test_weights_that_are_not_numbers_are_told_before_the_first_frame(
    tiny_base: Base, name: str, arithmetic: Arithmetic
) -> None:
    weight = tiny_base.model.get_parameter(name)
    weight.data.view(-1)[-1] = torch.nan
    weight.data.view(-1)[weight.numel() // 2] = torch.nan
    if name == "lm_head.weight":
        weight.data[3] = torch.inf
    engine = Engine(weights_of(tiny_base.network), arithmetic, base="the folder")
    engine.join(_requests(tiny_base))
    with pytest.raises(BaseModelError, match=r"the folder: .*NaN or infinite.*copy or fetch the checkpoint again"):
        engine.step()
    assert engine.num_speaking == 0


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize(
    "name",
    ["backbone_model.layers.0.self_attn.q_proj.weight", "backbone_model.layers.0.self_attn.k_proj.weight",
     "depth_decoder.model.layers.0.self_attn.q_proj.weight", "lm_head.weight"],
)  # fmt: skip
def test_a_matrix_that_is_all_nan_is_told(tiny_base: Base, name: str, arithmetic: Arithmetic) -> None:
    """torch's attention on a CPU hides it in the prompt, as it does what sees nothing."""
    tiny_base.model.get_parameter(name).data.fill_(torch.nan)
    engine = Engine(weights_of(tiny_base.network), arithmetic, base="the folder")
    numbers = engine.join([replace(one, max_frames=5) for one in _requests(tiny_base)])
    with pytest.raises(BaseModelError, match=r"the folder: .*NaN or infinite.*copy or fetch the checkpoint again"):
        _rest(engine, numbers)
    assert engine.num_speaking == 0


def test_the_check_is_made_once_for_rows_that_join(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames in between don't wait for it; C sees all of its logits itself."""
    from affetto.speak import engine as module

    asked: list[int] = []
    monkeypatch.setattr(module, "require_numbers", lambda parts, *_: asked.append(len(parts)))
    for arithmetic in ARITHMETIC:
        _say(tiny_base, _requests(tiny_base), arithmetic)
    assert asked == [tiny_base.num_codebooks] * (len(ARITHMETIC) - 1)
