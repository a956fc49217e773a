"""affetto's road through CSM against transformers' own, number by number.

    OMP_NUM_THREADS=1 python benchmarks/parity/csm.py [BASE]

BASE is a hub id, a folder or a random base (the default, `random:csm-tiny`: CSM-1B's shape with 32 codebooks, made
small). In float32. Compares prompt ids with `CsmProcessor`'s chat template, teacher-forced logits of every codebook
with `CsmForConditionalGeneration`'s forward, greedy speech with its `generate`, and Mimi's codes with one clip at a
time. Writes `benchmarks/results/parity_csm.json` and prints a table.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affetto.codes.codec import load_codec
from affetto.files import write_json
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, Turn, collate
from affetto.quiet import quiet_transformers
from affetto.speak.generation import generate
from affetto.speak.requests import Request

RESULT = Path(__file__).parents[1] / "results" / "parity_csm.json"
TEXTS = ("I found the silver key.", "", "naïve ½ 日本語 🎉 [3] {x}", "two\nlines and  spaces ")


@dataclass(frozen=True)
class Parity:
    """One comparison: how many numbers, how many differ, and by how much at most (None where they are ids)."""

    name: str
    compared: int
    differing: int
    largest: float | None = None


def main() -> None:
    """Compare, print and write."""
    from facts import run_facts

    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="random:csm-tiny")
    base = load_base(parser.parse_args().base)
    found = [item for compare in (prompts, logits, speech, coding) for item in compare(base)]
    rows = [vars(item) for item in found]
    write_json(RESULT, run_facts() | {"base": {"id": base.id, "hash": base.hash}, "parity": rows})
    for item in found:
        largest = "" if item.largest is None else f", largest difference {item.largest:.1e}"
        print(f"{item.name}: {item.differing} of {item.compared} differ{largest}")


def prompts(base: Base) -> list[Parity]:
    """Ids of single turns and of conversations with sound."""
    from transformers import CsmProcessor

    processor = CsmProcessor.from_pretrained(base.folder)
    compared = differing = 0
    for speaker in (0, 7, 4077):
        for text in TEXTS:
            theirs = _template(processor, [_turn(speaker, text)])
            ours = base.prompt_ids(text, speaker)
            compared, differing = compared + len(theirs), differing + int(list(ours) != theirs)
    frames = (2, 4, 3)
    turns = [Turn(base.prompt_ids(text, n % 2), np.ones((frames[n], base.num_codebooks), dtype=np.int64))
             for n, text in enumerate(TEXTS[:3])]  # fmt: skip
    batch = collate([Row("talk", tuple(turns))], base.num_codebooks)
    theirs = _template(processor, [_turn(n % 2, text, frames[n]) for n, text in enumerate(TEXTS[:3])])
    sound = (processor.audio_token_id, processor.audio_eos_token_id)
    ours = torch.where(batch.is_audio_BS[0], -1, batch.text_BS[0]).tolist()
    return [
        Parity("prompt ids", compared, differing),
        Parity("places of text and sound", len(theirs), _unequal(ours, [-1 if i in sound else i for i in theirs])),
    ]


def _turn(speaker: int, text: str, num_frames: int = 0) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if num_frames:
        content.append({"type": "audio", "path": np.zeros(1920 * num_frames, np.float32)})
    return {"role": str(speaker), "content": content}


def _template(processor: Any, turns: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = processor.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"][0].tolist()
    return ids


def _unequal(one: list[Any], other: list[Any]) -> int:
    return abs(len(one) - len(other)) + sum(a != b for a, b in zip(one, other, strict=False))


def _rows(base: Base) -> list[Row]:
    """Rows of unequal length, of one turn and of three."""
    rng = np.random.default_rng(0)

    def turn(text: str, num_frames: int) -> Turn:
        codes = rng.integers(0, base.network.codebook_size, (num_frames, base.num_codebooks))
        return Turn(base.prompt_ids(text, 0), codes)

    return [
        Row("one", (turn(TEXTS[0], 9),)),
        Row("three", (turn(TEXTS[0], 2), turn(TEXTS[2], 3), turn(TEXTS[0], 4))),
    ]


@torch.no_grad()
def logits(base: Base) -> list[Parity]:
    """Teacher-forced logits of codebook zero and of every other, rows padded side by side."""
    from transformers import CsmForConditionalGeneration

    with quiet_transformers():
        model = CsmForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32).eval()
    _tie(model)
    rows = _rows(base)
    batch = collate(rows, base.num_codebooks)
    ours = base.network(batch)
    labels = torch.full_like(batch.codes_BSK, -100)
    r, p = batch.frames_N2.unbind(1)
    labels[r, p] = batch.codes_BSK[r, p]
    theirs = model(inputs_embeds=base.network.embed(batch), labels=labels)
    results = [_difference("logits of codebook 0", ours.c0_NV, theirs.logits[r, p - 1])]
    for k in range(1, base.num_codebooks):
        part = ours.depth_MJV[:, k - 1], theirs.depth_decoder_logits[:, k - 1]
        results.append(_difference(f"logits of codebook {k}", *part))
    return results


def _tie(model: Any) -> None:
    """What transformers 5 forgets (its issue 48999)."""
    if model.config.tie_codebooks_embeddings:
        model.backbone_model.embed_tokens.embed_audio_tokens.weight = model.depth_decoder.model.embed_tokens.weight


def _difference(name: str, ours: Tensor, theirs: Tensor) -> Parity:
    gap = (ours - theirs).abs()
    return Parity(name, gap.numel(), int((gap > 1e-4 * (1 + theirs.abs())).sum()), float(gap.max()))


@torch.no_grad()
def speech(base: Base, num_frames: int = 6) -> list[Parity]:
    """Greedy codes, one request alone, several together, and after a conversation."""
    heard = _rows(base)[1].turns[:2]
    requests = [
        Request(base.prompt_ids(TEXTS[0], 0), num_frames, temperature=0.0),
        Request(base.prompt_ids("a", 1), num_frames, temperature=0.0),
        Request(base.prompt_ids(TEXTS[0], 0), num_frames, temperature=0.0, context=heard),
    ]
    ours = [spoken.codes_TK for spoken in generate(base, requests)]
    alone = [generate(base, [request])[0].codes_TK for request in requests]
    named = zip(("alone", "another text", "after a conversation"), requests, strict=True)
    theirs = [(name, _by_transformers(base, [request])[0]) for name, request in named]
    together = _by_transformers(base, requests)
    results = []
    for place, (name, codes) in enumerate(theirs):
        results.append(_codes(f"greedy codes, {name}", alone[place], codes))
        results.append(_codes(f"greedy codes in a batch, {name}", ours[place], together[place]))
    return results


def _codes(name: str, ours: Any, theirs: Any) -> Parity:
    assert len(ours) > 1, "nothing was said, so nothing is compared"
    wanted = np.asarray(theirs)[: len(ours)]
    return Parity(name, wanted.size, int((np.asarray(ours) != wanted).sum()))


def _by_transformers(base: Base, requests: list[Request]) -> list[list[list[int]]]:
    embeds = []
    for request in requests:
        empty = np.zeros((0, base.num_codebooks), dtype=np.int64)
        row = Row("", (*request.context, Turn(request.text_ids, empty)))
        embeds.append(base.network.embed(collate([row], base.num_codebooks))[0, :-1])
    width = max(map(len, embeds))
    padded = torch.stack([torch.nn.functional.pad(e, (0, 0, width - len(e), 0)) for e in embeds])
    mask = torch.stack([torch.arange(width) >= width - len(e) for e in embeds]).long()
    unspoken = list(range(base.network.codebook_size, base.network.vocab_size))
    frames = requests[0].max_frames
    with quiet_transformers():
        said = base.model.generate(
            inputs_embeds=padded, attention_mask=mask, do_sample=False, depth_decoder_do_sample=False,
            max_new_tokens=frames, suppress_tokens=unspoken, depth_decoder_suppress_tokens=unspoken,
        )  # fmt: skip
    codes: list[list[list[int]]] = said.tolist()
    return codes


@torch.no_grad()
def coding(base: Base) -> list[Parity]:
    """Codes of unequal clips against Mimi on each clip alone, and its sound."""
    from transformers import CsmForConditionalGeneration

    with quiet_transformers():
        mimi = CsmForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32).codec_model.eval()
    codec, rng = load_codec(base.folder), np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal(size)).astype(np.float32) for size in (5_000, 1_921, 24_000)]
    compared = differing = 0
    for sound in sounds:
        ours = codec.encode(sound)
        theirs = mimi.encode(torch.from_numpy(sound)[None, None], num_quantizers=base.num_codebooks).audio_codes[0].T
        compared, differing = compared + ours.size, differing + int((ours != theirs.numpy()).sum())
    wanted = mimi.decode(torch.from_numpy(ours.T.copy())[None]).audio_values[0, 0]
    return [
        Parity("Mimi's codes", compared, differing),
        _difference("Mimi's sound", torch.from_numpy(codec.decode(ours)), wanted),
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
