"""The tiny checkpoint that Kyutai's own `moshi` package wrote and loaded, and what that package said of it.

`benchmarks/parity/moshi_parity.py --keep tests/model/moshi_reference` makes the files. Its SentencePiece model is left
out (it is larger than all the rest): one with the same special tokens is made here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from transformers.utils.import_utils import is_protobuf_available

from affetto.model.batch import Row, Streams, Turn

REFERENCE = Path(__file__).parent / "model" / "moshi_reference"
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,!?'"
WORDS = ("▁the", "▁key", "▁silver", "▁hello", "▁is", "ing")
TEXT_CARD = 306


def write_authors_checkpoint(folder: Path) -> Path:
    """The reference's checkpoint with a text model."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in REFERENCE.iterdir():
        if path.name != "reference.safetensors":
            shutil.copyfile(path, folder / path.name)
    (folder / "tokenizer_spm_32k_3.model").write_bytes(text_model())
    return folder


def text_model() -> bytes:
    """A SentencePiece unigram model with byte fallback: <unk> <s> </s> <pad>, 256 bytes, words and letters."""
    assert is_protobuf_available(), "transformers' test extra"
    from transformers.utils import sentencepiece_model_pb2_new as pb2

    model = pb2.ModelProto()
    specials = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<pad>", 3)]
    pieces = [*specials, *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    pieces += [(piece, 1) for piece in (*WORDS, *LETTERS)]
    for place, (piece, kind) in enumerate(pieces):
        score = -1.0 - 0.01 * place - (5.0 if len(piece) == 1 else 0.0) if kind == 1 else 0.0
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = 1
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.unk_id, model.trainer_spec.bos_id = 0, 1
    model.trainer_spec.eos_id, model.trainer_spec.pad_id = 2, 3
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    assert len(pieces) <= TEXT_CARD
    return bytes(model.SerializeToString())


def moshi_row(seed: int, *, frames: int = 6, gate: tuple[float, ...] = (), codebooks: int = 4, card: int = 32) -> Row:
    """A row of random codes, with words here and there; of its frames all but the last are predicted."""
    rng = np.random.default_rng(seed)
    text_T = np.where(rng.random(frames) < 0.4, rng.integers(260, TEXT_CARD - 10, frames), 3)
    streams = Streams(text_T, np.where(text_T == 3, 0.5, 1.0), rng.integers(0, card, (frames, codebooks)))
    return Row(f"clip-{seed}", (Turn((), rng.integers(0, card, (frames, codebooks)), streams),), gate)
