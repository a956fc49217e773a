"""Moshi against the authors' own package: the same tiny random checkpoint, converted, gives the same numbers.

    benchmarks/parity/moshi_environment.sh /tmp/moshi
    python benchmarks/parity/moshi_parity.py --python /tmp/moshi/bin/python

`moshi_reference.py` runs there and writes checkpoint and reference; here the checkpoint goes through `affetto convert`
and affetto's loader. Writes benchmarks/results/moshi_parity.json; fails where a difference is above the tolerance.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from facts import run_facts  # noqa: E402

from affetto.files import write_json  # noqa: E402
from affetto.model.base import Base, load_base  # noqa: E402
from affetto.model.batch import Row, Streams, Turn, collate  # noqa: E402
from affetto.model.conversion.moshi import convert  # noqa: E402
from affetto.speak.dialogue import continue_dialogue  # noqa: E402

RESULT = HERE.parent / "results" / "moshi_parity.json"
TOLERANCE = 1e-4
_SHIPPED = (
    "reference.safetensors",
    "model.safetensors",
    "config.json",
    "mimi.json",
    "tokenizer-e351c8d8-checkpoint125.safetensors",
)


def main() -> None:
    """Make the reference, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment that moshi_environment.sh made")
    parser.add_argument("--keep", type=Path, help="copy checkpoint and reference there (tests/model/moshi_reference)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subprocess.run([chosen.python, str(HERE / "moshi_reference.py"), str(work)], check=True)
        convert(work / "checkpoint", work / "converted")
        found = compare(work / "reference.safetensors", work / "converted")
        if chosen.keep:
            chosen.keep.mkdir(parents=True, exist_ok=True)
            for name in _SHIPPED:
                path = work / name if (work / name).is_file() else work / "checkpoint" / name
                shutil.copyfile(path, chosen.keep / name)
    with torch.inference_mode():
        facts = run_facts() | {"command": "python benchmarks/parity/moshi_parity.py --python ENVIRONMENT/bin/python"}
        write_json(RESULT, facts | {"tolerance": TOLERANCE, "differences": found})
    print(json.dumps(found, indent=2))
    if wrong := [name for name, item in found.items() if not item["is_equal"]]:
        raise SystemExit(f"differs from the moshi package: {', '.join(wrong)}")


@torch.no_grad()
def compare(reference: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What differs from the reference, and by how much, by the name of what was compared."""
    from transformers import MoshiForConditionalGeneration

    base, model = load_base(str(folder)), MoshiForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    theirs = load_file(reference)
    with safe_open(reference, framework="pt") as file:
        facts = file.metadata()
    found = logits(theirs, model.eval()) | network(theirs, base) | mimi(theirs, model.audio_encoder)
    found["greedy dialogue, text and codes"] = dialogue(theirs, base)
    texts = json.loads(facts["texts"])
    same = [base.tokenizer(text)["input_ids"] == theirs[f"text/{n}"].tolist() for n, text in enumerate(texts)]
    found["tokens of texts"] = {"compared": len(texts), "is_equal": all(same)}
    return found


def logits(theirs: dict[str, Tensor], model: Any) -> dict[str, dict[str, Any]]:
    """Teacher-forced text and audio logits of transformers' model, laid out step by step by hand."""
    codes_BKT, num = theirs["codes"], model.num_codebooks
    steps_BKT = delayed(codes_BKT, num, model.config.audio_vocab_size, model.config.vocab_size)
    heard, said = steps_BKT[:, :, :-1], steps_BKT[:, :, 1:]
    out = model(input_ids=heard[:, 0], moshi_audio_codes=heard[:, 1 : 1 + num], user_audio_codes=heard[:, 1 + num :])
    batch, _, frames = codes_BKT.shape
    depth = model.depth_decoder(
        input_ids=said[:, :num].transpose(1, 2).reshape(-1, num),
        last_hidden_state=out.last_hidden_state.reshape(batch * frames, 1, -1), use_cache=False,
    ).logits  # fmt: skip
    audio_BKTV = depth.view(batch, frames, num, -1).transpose(1, 2)
    found = {"text logits": difference(out.logits, theirs["text_logits"])}
    for k in range(num):
        late = 0 if k == 0 else 1
        mine, reference = audio_BKTV[:, k, late:], theirs["logits"][:, k, : frames - late]
        found[f"audio logits of codebook {k}"] = difference(mine, reference)
    return found


def network(theirs: dict[str, Tensor], base: Base) -> dict[str, dict[str, Any]]:
    """The same logits through affetto's network, from rows; the last frame of a row is heard and not predicted."""
    num, frames, codes_BKT = base.num_codebooks, theirs["codes"].shape[2] - 1, theirs["codes"].numpy()
    rows = []
    for number, codes_CT in enumerate(codes_BKT):
        streams = Streams(codes_CT[0], np.ones(frames + 1), codes_CT[1 + num :].T)
        rows.append(Row(str(number), (Turn((), codes_CT[1 : 1 + num].T, streams),)))
    said = base.network(collate(rows, num))
    text, audio = theirs["text_logits"][:, :frames], theirs["logits"][..., :frames, :].transpose(1, 2)
    return {
        "network: text logits": difference(said.text_NW, text.flatten(0, 1)),
        "network: first codes' logits": difference(said.c0_NV, audio[:, :, 0].flatten(0, 1)),
        "network: acoustic codes' logits": difference(said.depth_MJV, audio[:, :, 1:].flatten(0, 1)),
    }


def dialogue(theirs: dict[str, Tensor], base: Base) -> dict[str, Any]:
    """What affetto says greedily to the user whom the package's `LMGen` heard, token by token."""
    same = []
    for user_KT, spoken_CT in zip(theirs["user"], theirs["spoken"], strict=True):
        text_T, codes_TK = continue_dialogue(base, user_KT.T.numpy(), temperature=0, text_temperature=0)
        same.append(np.array_equal(text_T, spoken_CT[0]) and np.array_equal(codes_TK.T, spoken_CT[1:]))
    return {"compared": theirs["spoken"].numel(), "is_equal": all(same)}


def delayed(codes_BKT: Tensor, num_codebooks: int, audio_start: int, text_start: int) -> Tensor:
    """The package's layout of a sequence, (B, 1 + 2K, T + 1): a first step of start tokens, acoustic codes one late."""
    batch, streams, frames = codes_BKT.shape
    steps = torch.full((batch, streams, frames + 1), audio_start)
    steps[:, 0] = text_start
    for stream in range(streams):
        late = int(stream > 0 and (stream - 1) % num_codebooks > 0)
        steps[:, stream, 1 + late :] = codes_BKT[:, stream, : frames - late]
    return steps


def mimi(theirs: dict[str, Tensor], codec: Any) -> dict[str, dict[str, Any]]:
    """Codes and sound of the codec."""
    codes = codec.encode(theirs["samples"], num_quantizers=theirs["mimi_codes"].shape[1]).audio_codes
    same = bool(torch.equal(codes, theirs["mimi_codes"]))
    sound = codec.decode(theirs["mimi_codes"]).audio_values
    return {
        "Mimi's codes": {"compared": codes.numel(), "is_equal": same},
        "Mimi's sound": difference(sound, theirs["mimi_sound"]),
    }


def difference(mine: Tensor, reference: Tensor) -> dict[str, Any]:
    """Largest difference, beside the spread of what is compared."""
    largest = float((mine - reference).abs().max())
    return {
        "compared": reference.numel(),
        "largest_difference": largest,
        "standard_deviation": float(reference.std()),
        "is_equal": largest <= TOLERANCE,
    }


if __name__ == "__main__":
    main()
