"""CSM with 32 codebooks and random weights against transformers, as `benchmarks/parity/csm.py` compares them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affetto.codes.codec import load_codec
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, Turn, collate
from affetto.quiet import quiet_transformers
from affetto.speak.generation import generate
from affetto.speak.requests import Request

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "parity"
TALKS = {
    "two turns": ((0, "I found the silver key.", 5_000), (1, "Where was it?", 0)),
    "three turns": ((1, "a", 1_921), (0, "naïve ½ 日本語", 24_000), (1, "Yes", 0)),
}
"""Speaker, text, and the samples that are heard of each turn; 1,920 are a frame."""


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "csm", raising=False)
    return importlib.import_module("csm")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFFETTO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_base("random:csm-tiny")


@pytest.mark.parametrize("what", ["prompts", "logits", "speech", "coding"])
def test_everything_is_as_transformers_has_it(parity: Any, base: Base, what: str) -> None:
    found = getattr(parity, what)(base)
    assert [item.name for item in found if item.differing] == []
    assert all(item.compared > 0 for item in found)
    assert len(found) == {"prompts": 2, "logits": 32, "speech": 6, "coding": 2}[what]
    assert all(item.largest < 1e-4 for item in found if item.largest is not None)


def test_the_comparisons_can_fail(parity: Any, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one weight moved on our side alone, logits and speech differ; the fixture speaks and varies."""
    speaking = parity.speech(base)
    assert all(item.compared == 6 * 32 for item in speaking)
    with torch.no_grad():
        weight = base.network.depth.codebooks_head.weight
        kept = weight[20].clone()
        weight[20].neg_()
        differing = {item.name for item in parity.logits(base) if item.differing}
        weight[20].copy_(kept)
    assert differing == {"logits of codebook 21"}
    monkeypatch.setattr(parity, "generate", lambda *_: [type("Said", (), {"codes_TK": np.ones((6, 32))})] * 3)
    assert all(item.differing for item in parity.speech(base))


def _sound(num_samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(num_samples).standard_normal(num_samples)).astype(np.float32)


def _our_rows(base: Base, names: tuple[str, ...]) -> list[Row]:
    codec, nothing = load_codec(base.folder), np.zeros((0, base.num_codebooks), dtype=np.int64)
    coded = {count: codec.encode(_sound(count)) if count else nothing for name in names for *_, count in TALKS[name]}
    assert all(len(np.unique(codes)) > 20 for codes in coded.values() if len(codes)), "the codec hears nothing"
    return [
        Row(name, tuple(Turn(base.prompt_ids(text, who), coded[count]) for who, text, count in TALKS[name]))
        for name in names
    ]


def _their_inputs(base: Base, names: tuple[str, ...]) -> Any:
    from transformers import CsmProcessor

    def content(text: str, count: int) -> list[dict[str, Any]]:
        heard = [{"type": "audio", "path": _sound(count)}] if count else []
        return [{"type": "text", "text": text}, *heard]

    talks = [[{"role": str(who), "content": content(*rest)} for who, *rest in TALKS[name]] for name in names]
    return CsmProcessor.from_pretrained(base.folder).apply_chat_template(talks, tokenize=True, return_dict=True)


@pytest.mark.parametrize("names", [("two turns",), ("three turns",), ("two turns", "three turns")])
@torch.no_grad()
def test_a_conversations_sound_is_heard_as_transformers_hears_it(
    parity: Any, base: Base, names: tuple[str, ...]
) -> None:
    """Sound in, on both sides: theirs goes through their processor, padded on the left, and the model's own Mimi."""
    from transformers import CsmForConditionalGeneration

    with quiet_transformers():
        model = CsmForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32).eval()
    parity._tie(model)
    rows, inputs = _our_rows(base, names), _their_inputs(base, names)
    assert {"input_values", "input_values_cutoffs"} <= inputs.keys()
    is_read_BS = inputs["attention_mask"].bool()
    assert bool(is_read_BS.all()) == (len(names) == 1), "rows of unlike length are padded"

    theirs, batch = model(**inputs, output_hidden_states=True), collate(rows, base.num_codebooks)
    for row, ours_SD, theirs_SD, is_read_S in zip(
        rows, base.network.embed(batch), theirs.hidden_states[0], is_read_BS, strict=True
    ):
        # Our last position is the end of the turn that is to be spoken.
        # A frame is the sum of all codebooks' embeddings, which we add up in another order.
        torch.testing.assert_close(ours_SD[: row.num_positions - 1], theirs_SD[is_read_S], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(base.network(batch).c0_NV, theirs.logits[:, -1], rtol=1e-4, atol=1e-4)

    unspoken = list(range(base.network.codebook_size, base.network.vocab_size))
    said = model.generate(
        **inputs, do_sample=False, depth_decoder_do_sample=False, max_new_tokens=6, suppress_tokens=unspoken,
        depth_decoder_suppress_tokens=unspoken,
    )  # fmt: skip
    requests = [Request(row.turns[-1].text_ids, 6, temperature=0.0, context=row.turns[:-1]) for row in rows]
    spoken = [one.codes_TK.tolist() for one in generate(base, requests)]
    assert spoken == said.tolist()
    deaf = generate(base, [Request(row.turns[-1].text_ids, 6, temperature=0.0) for row in rows])
    assert all(one.codes_TK.tolist() != codes for one, codes in zip(deaf, spoken, strict=True))
