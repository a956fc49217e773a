"""Dia: what it reads, says and learns, against transformers' own classes; its codec; and what isn't accepted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import DiaForConditionalGeneration, DiaProcessor

from affetto.adapters.bank import AdapterBank
from affetto.adapters.checkpoints import save_checkpoint
from affetto.adapters.peft_files import insert_adapter, read_adapter, save_adapter
from affetto.codes import codec as codecs
from affetto.codes.codec import codec_frame_rate, codec_hash, load_codec
from affetto.errors import AdapterError, BaseModelError, ConfigError, DataError
from affetto.model.base import Base, load_base
from affetto.model.batch import Logits, Row, Turn, collate
from affetto.model.dia import DiaNetwork
from affetto.model.losses import code_losses, cross_entropy
from affetto.model.rows import make_rows
from affetto.model.rows_at_once import frames_at_once
from affetto.preserve.curvature import CURVATURES
from affetto.preserve.distillation import distillation_kl
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.forecast import forecast
from affetto.speak.generation import generate
from affetto.speak.requests import Request, Spoken
from affetto.speak.voice import Voice
from affetto.types import Clip
from banks import trained_bank
from dia_checkpoint import BOOKS, BOS, CODES, DELAYS, END, HOP, PAD, RATE, dia_row, write_dia

TOKENS = {"delay_pattern": DELAYS, "eos_token_id": END, "pad_token_id": PAD, "bos_token_id": BOS}
BEHIND = max(DELAYS) + 1
"""Steps that transformers needs beside one for each frame: the end, and the last codebook's delay."""
FACTS = {"base": {"id": "tiny", "hash": None}}


@pytest.fixture(scope="module")
def dia_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_dia(tmp_path_factory.mktemp("dia") / "base")


@pytest.fixture
def dia(dia_folder: Path) -> Base:
    """Freshly loaded: tests may put adapters into it."""
    return load_base(str(dia_folder))


@pytest.fixture(scope="module")
def theirs(dia_folder: Path) -> DiaForConditionalGeneration:
    return DiaForConditionalGeneration.from_pretrained(dia_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(dia_folder: Path) -> DiaProcessor:
    return DiaProcessor.from_pretrained(dia_folder)


def processed(
    processor: DiaProcessor, texts: Sequence[str], sound: NDArray[np.float32] | None = None, **options: Any
) -> Any:
    """What transformers' processor makes of texts, and of the sound that belongs to the only one of them."""
    sounds = None if sound is None else [sound]
    options |= {"sampling_rate": RATE, "return_tensors": "pt"}
    with pytest.warns(UserWarning, match="max_length"):
        return processor(text=list(texts), audio=sounds, **TOKENS, **options)


def tone(num_samples: int, pitch: float = 220.0) -> NDArray[np.float32]:
    times = np.arange(num_samples) / RATE
    return np.asarray(0.4 * np.sin(2 * np.pi * pitch * times * (1 + times)), dtype=np.float32)


def straightened(delayed_LK: NDArray[np.integer]) -> NDArray[np.int64]:
    """Frames (T, K) of what stands behind BOS in the decoder's steps, up to the end; code by code."""
    frames = []
    for t in range(1, len(delayed_LK) - max(DELAYS)):
        frame = [int(delayed_LK[t + delay, k]) for k, delay in enumerate(DELAYS)]
        if frame[0] == END:
            break
        frames.append(frame)
    return np.asarray(frames, dtype=np.int64).reshape(-1, BOOKS)


@pytest.mark.parametrize("text", ["I found the silver key", "Hé (laughs) — no!", "[S2] twice"])
def test_pitfall_07_prompts_are_the_processors_ids(dia: Base, processor: DiaProcessor, text: str) -> None:
    for speaker, tag in enumerate(("[S1]", "[S2]", "[S1]")):
        theirs = processed(processor, [f"{tag} {text}"])["input_ids"][0].tolist()
        assert list(dia.prompt_ids(text, speaker)) == theirs
    assert dia.prompt_ids("a", 0) == (1, 32, 97)


@pytest.mark.parametrize("num_samples", [100, HOP, HOP + 1, 9_000])
def test_codes_and_sound_are_the_processors(dia_folder: Path, processor: DiaProcessor, num_samples: int) -> None:
    codec, sound = load_codec(dia_folder), tone(num_samples)
    codes_TK = codec.encode(sound)
    told = processed(processor, ["[S1] a"], sound, generation=False)["decoder_input_ids"][0].numpy()
    np.testing.assert_array_equal(codes_TK, straightened(told))
    assert codes_TK.shape == (-(-num_samples // HOP), BOOKS)
    with torch.no_grad():
        wanted = processor.audio_tokenizer.decode(audio_codes=torch.tensor(codes_TK.T)[None]).audio_values[0].numpy()
    np.testing.assert_array_equal(codec.decode(codes_TK), wanted)
    assert codec.decode(codes_TK).shape == (len(codes_TK) * HOP,)


def test_the_codecs_facts(dia: Base, dia_folder: Path) -> None:
    codec = load_codec(dia_folder)
    assert len(np.unique(codec.encode(tone(9_000)))) > 10, "the fixture's codes should vary"
    assert codec.encode(tone(0)).shape == (1, BOOKS)
    assert (codec.name, codec.sample_rate, codec.num_codebooks, codec.codebook_size) == ("dac", RATE, BOOKS, CODES)
    assert dia.frame_rate == codec.frame_rate == codec_frame_rate(dia_folder) == RATE / HOP


@torch.no_grad()
def test_logits_and_targets_are_transformers(dia: Base, theirs: Any, processor: DiaProcessor) -> None:
    """Pitfall 6: every label that the processor gives, end of every codebook included, is predicted where it says."""
    sound, text = tone(6_000), "the silver key"
    inputs = processed(processor, [f"[S1] {text}"], sound, generation=False, output_labels=True)
    labels_KL = inputs.pop("labels")
    wanted_KLV = theirs(**inputs).logits
    turn = Turn(dia.prompt_ids(text, 0), load_codec(dia.folder).encode(sound), end_code=dia.network.end_code)
    batch = collate([Row("a", (turn,))], BOOKS)
    found = dia.network(batch)
    for k in range(BOOKS):
        is_label_L = labels_KL[k] != -100
        mine_NV = found.c0_NV if k == 0 else found.depth_MJV[:, k - 1]
        torch.testing.assert_close(mine_NV, wanted_KLV[k][is_label_L], rtol=1e-4, atol=1e-4)
        targets_N = batch.c0_targets_N if k == 0 else batch.depth_targets_MJ[:, k - 1]
        assert targets_N.tolist() == labels_KL[k][is_label_L].tolist()
        assert targets_N[-1] == END
    assert found.c0_NV.std() > 0.5, "no test may pass on a dead model"
    mean = sum(term.total for term in code_losses(found, batch)) / sum(term.count for term in code_losses(found, batch))
    wanted = theirs.loss_function(logits=wanted_KLV, labels=labels_KL, vocab_size=dia.network.vocab_size)
    torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pitfall_09_a_padded_rows_logits_are_the_unpadded_rows(dia: Base) -> None:
    rows = [dia_row(0, frames=(6,), text="[S1] a long text"), dia_row(1, frames=(3, 9)), dia_row(2, frames=(1,))]
    together = dia.network(collate(rows, BOOKS))
    alone = [dia.network(collate([row], BOOKS)) for row in rows]
    torch.testing.assert_close(together.c0_NV, torch.cat([one.c0_NV for one in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.depth_MJV, torch.cat([one.depth_MJV for one in alone]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_other_codebooks_of_chosen_frames(dia: Base) -> None:
    rows = [dia_row(0, frames=(6,)), dia_row(1, frames=(4,))]
    chosen = [np.array([1, 6]), np.array([0, 3])]
    some = dia.network(collate(rows, BOOKS, chosen))
    every = dia.network(collate(rows, BOOKS))
    torch.testing.assert_close(some.depth_MJV, every.depth_MJV[[1, 6, 7, 10]])


@torch.no_grad()
def test_earlier_turns_run_on_into_the_last_one(dia: Base, theirs: Any) -> None:
    """Their texts make one script, their sounds one sound without an end between; the loss is on the last alone."""
    row = dia_row(3, frames=(5, 7))
    codes_TK = np.concatenate([np.asarray(turn.codes_TK) for turn in row.turns])
    sound = np.concatenate([np.full((1, BOOKS), BOS), codes_TK, np.full((1, BOOKS), END)])
    delayed_LK = np.full((len(sound) + max(DELAYS), BOOKS), PAD)
    for place in range(len(delayed_LK)):
        for k, delay in enumerate(DELAYS):
            if place - delay < len(sound):
                delayed_LK[place, k] = sound[max(0, place - delay), k]
    ids = torch.tensor([[token for turn in row.turns for token in turn.text_ids]])
    wanted_KLV = theirs(input_ids=ids, decoder_input_ids=torch.tensor(delayed_LK)[None]).logits
    found = dia.network(collate([row], BOOKS))
    for k, delay in enumerate(DELAYS):
        mine_NV = found.c0_NV if k == 0 else found.depth_MJV[:, k - 1]
        torch.testing.assert_close(mine_NV, wanted_KLV[k, 5 + delay : 13 + delay], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_whoever_speaks_first_is_the_first_speaker(dia: Base) -> None:
    first, second = dia_row(4, text="[S1] hello"), dia_row(4, text="[S1] hello")
    ids = tuple(2 if token == 1 else token for token in second.turns[0].text_ids)
    swapped = Row("b", (Turn(ids, second.turns[0].codes_TK, end_code=END),))
    assert ids[0] == 2
    assert torch.equal(dia.network(collate([swapped], BOOKS)).c0_NV, dia.network(collate([first], BOOKS)).c0_NV)


def test_rows_end_with_the_end_and_fit_the_window(dia: Base) -> None:
    clip = Clip("a", Path("a.wav"), "hello", None, "anna", "made-up")
    codes_TK = np.zeros((9, BOOKS), dtype=np.int64)
    (row,) = make_rows(dia, [clip], lambda _: codes_TK, {"anna": 0})
    batch = collate([row], BOOKS)
    assert batch.c0_targets_N.tolist() == [0] * 9 + [END], "zero is a legal code"
    assert dia.window == 256 - 5 - 1
    long_TK = np.zeros((dia.window, BOOKS), dtype=np.int64)
    with pytest.raises(BaseModelError, match="reads 4 codebooks and its codec has 9"):
        make_rows(dia, [clip], lambda _: np.zeros((9, 9), dtype=np.int64), {"anna": 0})
    with pytest.raises(DataError, match=r"a takes \d+ positions"):
        make_rows(dia, [clip], lambda _: long_TK, {"anna": 0})


def greedy(dia: Base, texts: Sequence[str], max_frames: int, context: tuple[Turn, ...] = ()) -> list[Spoken]:
    requests = [Request(dia.prompt_ids(text, 0), max_frames, temperature=0, context=context) for text in texts]
    return generate(dia, requests)


@pytest.mark.parametrize(("guidance", "top_k"), [(None, None), (3.0, None), (2.0, 8)])
def test_greedy_speech_is_transformers_generate(
    dia: Base, theirs: Any, processor: DiaProcessor, guidance: float | None, top_k: int | None
) -> None:
    texts = ("hello", "I found the silver key", "no")
    dia.network.guidance, dia.network.guidance_top_k = guidance or 1.0, top_k or 0  # type: ignore[assignment]
    lengths: list[int] = []
    told: set[bytes] = set()
    for parts in [[text] for text in texts], [list(texts)]:
        for part in parts:
            inputs = processed(processor, [f"[S1] {text}" for text in part])
            said = theirs.generate(
                **inputs, do_sample=False, max_new_tokens=30 + BEHIND, guidance_scale=guidance, top_k=top_k
            )
            mine = greedy(dia, part, max_frames=30)
            for spoken, delayed_LK in zip(mine, said.numpy(), strict=True):
                np.testing.assert_array_equal(spoken.codes_TK, straightened(delayed_LK))
                assert spoken.hit_cap == (len(spoken.codes_TK) == 30)
                lengths.append(len(spoken.codes_TK))
            told |= {spoken.codes_TK.tobytes() for spoken in mine}
    assert len(told) == len(texts), "the texts should matter, the neighbours not"
    assert max(lengths) > 3
    assert guidance or min(lengths) < 30, "some end by themselves"


def test_earlier_turns_are_heard_when_speaking(dia: Base, theirs: Any, processor: DiaProcessor) -> None:
    """transformers' voice cloning: the prompt's text before the text, its sound before the speech."""
    sound = tone(4_000)
    codes_TK = load_codec(dia.folder).encode(sound)
    earlier = Turn(dia.prompt_ids("hello", 0), codes_TK)
    inputs = processed(processor, ["[S1] hello[S1] a key"], sound, generation=True)
    said = theirs.generate(**inputs, do_sample=False, max_new_tokens=20 + BEHIND)[0].numpy()
    (spoken,) = greedy(dia, ["a key"], 20, (earlier,))
    whole = straightened(said)
    np.testing.assert_array_equal(whole[: len(codes_TK)], codes_TK)
    np.testing.assert_array_equal(spoken.codes_TK, whole[len(codes_TK) :])
    assert len(spoken.codes_TK) > 1
    (plain,) = greedy(dia, ["a key"], 20)
    assert not np.array_equal(plain.codes_TK[:5], spoken.codes_TK[:5])


def test_a_row_says_the_same_whatever_its_neighbours(dia: Base) -> None:
    requests = [
        Request(dia.prompt_ids(text, 0), cap, seed=seed, temperature=1.3, top_k=20)
        for text, cap, seed in (("hello", 90, 1), ("a longer text than the others", 12, 2), ("key", 4, 3))
    ]
    together = generate(dia, requests)
    for request, spoken in zip(requests, together, strict=True):
        (alone,) = generate(dia, [request])
        np.testing.assert_array_equal(alone.codes_TK, spoken.codes_TK)
        assert alone.hit_cap == spoken.hit_cap == (len(spoken.codes_TK) == request.max_frames)
        assert spoken.codes_TK.max() < CODES
    (other,) = generate(dia, [Request(requests[0].text_ids, 90, seed=5, temperature=1.3, top_k=20)])
    assert not np.array_equal(other.codes_TK, together[0].codes_TK)


def test_a_temperature_below_one_is_one_as_in_transformers(dia: Base) -> None:
    ids = dia.prompt_ids("hello", 0)
    cold, one, warm = generate(dia, [Request(ids, 12, seed=1, temperature=warmth) for warmth in (0.6, 1.0, 2.0)])
    np.testing.assert_array_equal(cold.codes_TK, one.codes_TK)
    assert not np.array_equal(one.codes_TK, warm.codes_TK)
    with pytest.raises(ConfigError, match="frame by frame"):
        next(Voice(dia).stream("hello"))


def test_speech_stays_inside_the_window(dia: Base) -> None:
    with torch.no_grad():
        heads_KVD = dia.network.heads.weight.view(BOOKS, -1, 48)  # type: ignore[union-attr,operator]
        heads_KVD[0, END] = 0
    said = generate(dia, [Request(dia.prompt_ids("hello", 0), 10_000), Request(dia.prompt_ids("hello", 0), 0)])
    assert len(said[0].codes_TK) <= dia.window
    assert said[1].codes_TK.shape == (0, BOOKS)


@torch.no_grad()
def test_peft_alone_loads_what_is_saved(dia: Base, dia_folder: Path, tmp_path: Path) -> None:
    """Logits of the bank, of transformers' class with PEFT's adapter, and of s·B·A added by hand."""
    bank = trained_bank(dia)
    places = {(site.split(".")[1], site.rpartition(".")[2]) for site in bank.sites}
    assert places == {(part, leaf) for part in ("encoder", "decoder") for leaf in
                      ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")}  # fmt: skip
    assert len(bank.sites) == 2 * 6 + 2 * 10
    save_adapter(tmp_path / "best", bank, "happy", "tiny", FACTS)
    adapted = PeftModel.from_pretrained(DiaForConditionalGeneration.from_pretrained(dia_folder), tmp_path / "best")
    dense = DiaForConditionalGeneration.from_pretrained(dia_folder)
    weights = dict(dense.named_parameters())
    for site, a_RI, b_OR, scale in bank.factors("happy"):
        assert b_OR is not None
        weights[f"{site}.weight"].add_(scale * b_OR @ a_RI)
    rows = [dia_row(0, frames=(3, 9)), dia_row(1, frames=(5,))]
    gated = [Row(row.clip_id, row.turns, (1.0,)) for row in rows]
    mine, plain = dia.network(collate(gated, BOOKS)), dia.network(collate(rows, BOOKS))
    for model in (adapted.eval().base_model.model, dense.eval()):
        assert_same(mine, DiaNetwork(model)(collate(rows, BOOKS)))
    assert (mine.c0_NV - plain.c0_NV).abs().max() > 1e-2
    assert (mine.depth_MJV - plain.depth_MJV).abs().max() > 1e-2
    other = load_base(str(dia_folder))
    again = AdapterBank(other.model, other.network.gates)
    insert_adapter(again, "happy", read_adapter(tmp_path / "best"), other.hash)
    assert_same(mine, other.network(collate(gated, BOOKS)), tolerance=0.0)


def assert_same(one: Logits, other: Logits, tolerance: float = 1e-4) -> None:
    for name in ("c0_NV", "depth_MJV"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_gates_are_row_by_row_and_zero_is_the_base(dia: Base) -> None:
    rows = [dia_row(0), dia_row(1, frames=(4,))]
    before = dia.network(collate(rows, BOOKS))
    trained_bank(dia)
    off, on = (
        dia.network(collate([Row(row.clip_id, row.turns, gate) for row, gate in zip(rows, gates, strict=True)], BOOKS))
        for gates in (((0.0,), (0.0,)), ((0.0,), (1.0,)))
    )
    assert_same(before, off, tolerance=1e-5)
    torch.testing.assert_close(on.c0_NV[:7], off.c0_NV[:7], rtol=1e-5, atol=1e-5)
    assert (on.c0_NV[7:] - off.c0_NV[7:]).abs().max() > 1e-2


@torch.no_grad()
def test_a_fully_tuned_dia_is_a_checkpoint_of_its_own(dia: Base, dia_folder: Path, tmp_path: Path) -> None:
    """transformers and affetto load it, with its codec, and it says what the bank says."""
    bank = AdapterBank(dia.model, dia.network.gates)
    bank.add_full("happy")
    for _, change_OI, _, _ in bank.factors("happy"):
        change_OI.normal_(std=0.02)
    save_checkpoint(tmp_path / "best", bank, "happy", dia.model, dia_folder, FACTS)
    row = dia_row(4, frames=(8,))
    mine = dia.network(collate([Row(row.clip_id, row.turns, (1.0,))], BOOKS))
    tuned = load_base(str(tmp_path / "best"))
    assert_same(mine, tuned.network(collate([row], BOOKS)))
    assert_same(mine, DiaNetwork(DiaForConditionalGeneration.from_pretrained(tmp_path / "best").eval())(
        collate([row], BOOKS)
    ))  # fmt: skip
    assert codec_hash(tuned.folder) == codec_hash(dia_folder)


@torch.no_grad()
def test_in_bfloat16_it_says_nearly_the_same(dia: Base, dia_folder: Path) -> None:
    half = load_base(str(dia_folder), dtype=torch.bfloat16)
    batch = collate([dia_row(0), dia_row(1, frames=(3, 5))], BOOKS)
    whole, rough = dia.network(batch), half.network(batch)
    assert rough.c0_NV.dtype == rough.depth_MJV.dtype == torch.float32
    assert 0 < (whole.depth_MJV - rough.depth_MJV).abs().mean() < 0.2 * whole.depth_MJV.std()
    (spoken,) = generate(half, [Request(half.prompt_ids("hello", 0), 8)])
    assert spoken.codes_TK.shape[1] == BOOKS


def test_an_adapter_changes_the_speech(dia: Base) -> None:
    trained_bank(dia)
    dia.network.guidance = 2.0  # type: ignore[assignment]
    ids = dia.prompt_ids("I found the silver key", 0)
    off, on = generate(dia, [Request(ids, 30, gate, temperature=0) for gate in ((0.0,), (3.0,))])
    assert not np.array_equal(off.codes_TK[:4], on.codes_TK[:4])


def test_pitfall_15_checkpointing_changes_no_gradient(dia: Base) -> None:
    bank = trained_bank(dia)
    rows = [dia_row(0, gate=(1.0,)), dia_row(1, frames=(3, 4), gate=(0.5,))]
    found = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            dia.network.enable_checkpointing()
        dia.network.train()
        for parameter in bank.parameters("happy").values():
            parameter.grad = None
        said = dia.network(collate(rows, BOOKS))
        (said.c0_NV.square().sum() + said.depth_MJV.square().sum()).backward()
        found.append({name: parameter.grad.clone() for name, parameter in bank.parameters("happy").items()})  # type: ignore[union-attr]
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)
    (spoken,) = generate(dia, [Request(dia.prompt_ids("a", 0), 5, (0.0,), temperature=0)])
    assert dia.network.training
    assert len(spoken.codes_TK) <= 5


def test_pitfall_17_the_fisher_is_that_of_an_explicit_loop_whatever_the_batches(dia: Base) -> None:
    """With the data's labels: per clip the gradient of all its codes, squared; encoder and attention to it included."""
    bank = AdapterBank(dia.model, dia.network.gates)
    rows = [dia_row(0, frames=(4,), text="[S1] longer text"), dia_row(1, frames=(6,)), dia_row(2, frames=(2, 3))]
    found = [
        estimate_fisher(dia.network, bank.sites, rows, CURVATURES["diagonal"](), kind="empirical", rows_per_batch=size)
        for size in (1, 3)
    ]
    weights = {site: layer.layer.weight.requires_grad_(True) for site, layer in bank.sites.items()}
    expected = {site: torch.zeros_like(weight) for site, weight in weights.items()}
    for row in rows:
        batch = collate([row], BOOKS)
        said = dia.network(batch)
        loss = cross_entropy(said.c0_NV, batch.c0_targets_N).total
        loss = loss + cross_entropy(said.depth_MJV, batch.depth_targets_MJ).total
        for site, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            expected[site] += gradient.square()
    for curvature in found:
        assert curvature.num_codes == (5 + 7 + 4) * BOOKS
        for site, sums in curvature.tensors["sums"].items():
            assert expected[site].max() > 0
            torch.testing.assert_close(sums, expected[site], rtol=1e-3, atol=1e-5)


def test_kfac_does_not_see_padding(dia: Base) -> None:
    bank = AdapterBank(dia.model, dia.network.gates)
    rows = [dia_row(0, frames=(4,), text="[S1] longer text"), dia_row(1, frames=(7,)), dia_row(2, frames=(2, 3))]
    alone, together = (
        estimate_fisher(dia.network, bank.sites, rows, CURVATURES["kfac"](), kind="empirical", rows_per_batch=size)
        for size in (1, 3)
    )
    for kind, by_site in alone.tensors.items():
        for site, value in by_site.items():
            if site.endswith("1.self_attention.q_proj") and kind != "gradients":
                # Its first position has only itself to look at: whether its gradient is 0 or 1e-9 is rounding.
                continue
            nearly = 1e-4 * float(value.abs().max())
            torch.testing.assert_close(value, together.tensors[kind][site], rtol=2e-3, atol=nearly)


def test_forgetting_is_predicted(dia: Base) -> None:
    """`affetto predict-forgetting`: the form is the measured KL at a small intensity."""
    trained_bank(dia)
    rows = [dia_row(0, frames=(4,)), dia_row(1, frames=(6,)), dia_row(2, frames=(3, 5))]
    predicted = forecast(dia, rows, 1).kl(0, 0.01)
    with torch.no_grad():
        plain, changed = (
            dia.network(collate([Row(row.clip_id, row.turns, (gate,)) for row in rows], BOOKS)) for gate in (0.0, 0.01)
        )
    terms = [distillation_kl(one, other) for one, other in
             ((plain.c0_NV, changed.c0_NV), (plain.depth_MJV, changed.depth_MJV))]  # fmt: skip
    measured = sum(float(term.total) for term in terms) / sum(term.count for term in terms)
    assert measured > 1e-5
    assert predicted == pytest.approx(measured, rel=0.1)


def test_rows_are_shown_few_at_once_where_they_are_large(dia: Base) -> None:
    assert frames_at_once(dia.network, 100, 16) == 16
    assert frames_at_once(dia.network, 10**5, 16) < 16
    assert frames_at_once(dia.network, 10**4, 16, with_gradient=True) <= frames_at_once(dia.network, 10**4, 16)


def test_there_is_no_depth_decoder(dia: Base) -> None:
    with pytest.raises(AdapterError, match="no depth decoder"):
        AdapterBank(dia.model, dia.network.gates, part="depth")
    with pytest.raises(AdapterError, match=r"no linear layer.*'fc1'.*there are"):
        AdapterBank(dia.model, dia.network.gates, ("fc1",))


def copied(dia_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dia_folder, tmp_path / "copy"))


def test_damaged_checkpoints_are_told(dia_folder: Path, tmp_path: Path) -> None:
    folder = copied(dia_folder, tmp_path)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    lost = "model.decoder.layers.1.cross_attention.q_proj.weight"
    save_file({name: value for name, value in state.items() if name != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match=f"model.safetensors lacks 1 tensor: {lost}"):
        load_base(str(folder))
    save_file({f"talker.{name}": value for name, value in state.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="checkpoint of another kind"):
        load_base(str(folder))
    weights.write_bytes((dia_folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(BaseModelError, match="cut off"):
        load_base(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "bark"}))
    with pytest.raises(BaseModelError, match="'bark' is not supported; supported: csm, moshi, dia"):
        load_base(str(folder))


def test_a_missing_codec_is_told(dia_folder: Path, tmp_path: Path) -> None:
    folder = copied(dia_folder, tmp_path)
    told = json.loads((folder / "processor_config.json").read_text())
    codec = told.pop("audio_tokenizer")
    (folder / "processor_config.json").write_text(json.dumps(told))
    with pytest.raises(BaseModelError, match=r"'dia'.*processor_config\.json or audio_tokenizer_config\.json"):
        load_base(str(folder))
    # As transformers 4 saves it; a path may be inside the checkpoint's folder.
    (folder / "audio_tokenizer_config.json").write_text(json.dumps(codec | {"audio_tokenizer_name_or_path": "dac"}))
    shutil.copytree(f"{dia_folder}-dac", folder / "dac")
    np.testing.assert_array_equal(load_codec(folder).encode(tone(3_000)), load_codec(dia_folder).encode(tone(3_000)))
    assert codec_hash(folder) == codec_hash(dia_folder)
    (folder / "audio_tokenizer_config.json").write_text("[]")
    with pytest.raises(BaseModelError, match="names a codec"):
        load_codec(folder)
    (folder / "audio_tokenizer_config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"audio_tokenizer_config\.json can't be read"):
        load_codec(folder)


def test_a_codec_on_the_hub_is_fetched(dia_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = copied(dia_folder, tmp_path), []
    told = json.loads((folder / "processor_config.json").read_text())
    told["audio_tokenizer"]["audio_tokenizer_name_or_path"] = "descript/dac_44khz"
    (folder / "processor_config.json").write_text(json.dumps(told))

    def fetch(name: str) -> Path:
        asked.append(name)
        return Path(f"{dia_folder}-dac")

    monkeypatch.setattr(codecs, "fetch", fetch)
    assert load_codec(folder).name == "dac"
    assert set(asked) == {"descript/dac_44khz"}


def test_loading_a_codec_is_silent(dia_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert load_codec(dia_folder).name == "dac"
    assert capfd.readouterr() == ("", "")


def test_a_damaged_codec_is_told(dia_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(f"{dia_folder}-dac", tmp_path / "dac"))
    assert load_codec(folder).name == "dac"
    state = load_file(folder / "model.safetensors")
    lost = next(iter(state))
    save_file({name: value for name, value in state.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=rf"lacks 1 tensor: {lost}"):
        load_codec(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "encodec"}))
    with pytest.raises(BaseModelError, match="encodec"):
        load_codec(folder)


@pytest.mark.parametrize(
    "name",
    ["model.encoder.layers.0.mlp.down_proj.weight", "logits_dense.weight",
     "model.decoder.layers.1.cross_attention.v_proj.weight"],
)  # fmt: skip
def test_a_dia_whose_weights_are_not_numbers_says_so(dia_folder: Path, name: str) -> None:
    base = load_base(str(dia_folder))
    base.model.get_parameter(name).data.view(-1)[0] = torch.nan
    for guidance in (1.0, 3.0):
        base.network.guidance, base.network.guidance_top_k = guidance, 8
        with pytest.raises(BaseModelError, match=r"NaN or infinite.*fetch the checkpoint again"):
            generate(base, [Request(base.prompt_ids("hello", 0), 8)])
