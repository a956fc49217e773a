"""The teacher's answers, computed once: the base's log-probabilities on fixed clips.

They are stored in float16, as normalised log-probabilities: those of likely codes are near zero, where float16 is
precise, so the KL against the cache differs from the live one by parts in ten thousand (a test checks that). For the
depth codebooks a fixed draw of frames per clip is kept; the cross-entropy's frames are drawn anew at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from affetto.errors import CacheError
from affetto.files import hash_bytes, hash_text, made_alone, write_atomically
from affetto.model.batch import Row, collate, turn_bytes
from affetto.model.rows_at_once import rows_at_once
from affetto.preserve.answer_file import AnswerFile, Kind
from affetto.progress import progress

VERSION = "1"
_PARTS = ("c0", "depth", "frames", "text")
"""What is stored of a clip: see `ask_teacher`."""


@dataclass(frozen=True)
class TeacherClip:
    """The base's answers on one clip of T predicted frames."""

    c0_TV: Tensor
    depth_frames: NDArray[np.int64]
    """Which frames, ascending."""
    depth_FJV: Tensor
    text_TW: Tensor | None = None
    """For the text beside the frames, where the base has one."""


class TeacherCache:
    """The answers on a fixed list of rows, read clip by clip; its key covers base, rows and the draw of frames."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        try:
            file: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CacheError(f"{path} can't be read ({error}); delete it") from error
        if (file.metadata() or {}).get("key") != key:
            raise CacheError(f"{path} was made with another base, other clips or another template; delete it")
        self._file, self._names = file, frozenset(file.keys())

    def __getitem__(self, clip_id: str) -> TeacherClip:
        if f"{clip_id}/frames" not in self._names:
            raise CacheError(f"the teacher cache {self.path} has no clip {clip_id!r}")
        frames = self._file.get_tensor(f"{clip_id}/frames").numpy()
        text = f"{clip_id}/text"
        return TeacherClip(
            self._file.get_tensor(f"{clip_id}/c0"), frames, self._file.get_tensor(f"{clip_id}/depth"),
            self._file.get_tensor(text) if text in self._names else None,
        )  # fmt: skip


def teacher_key(base_hash: str, rows: Sequence[Row], depth_share: float, seed: int) -> str:
    """Hash of everything that decides the answers."""
    return hash_text("teacher", VERSION, base_hash, str(depth_share), str(seed), *(row_hash(row) for row in rows))


def row_hash(row: Row) -> str:
    """Hash of a row's id, prompt and codes, and of the text beside them."""
    return hash_bytes(row.clip_id.encode(), *turn_bytes(row.turns))


def fixed_frames(row: Row, share: float, seed: int) -> NDArray[np.int64]:
    """The teacher's draw of depth frames for a clip, always the same."""
    rng = np.random.default_rng(int(hash_text("teacher-frames", str(seed), row.clip_id)[:15], 16))
    return np.sort(rng.permutation(row.num_frames)[: _num_kept(row.num_frames, share)])


def teacher_cache(
    folder: Path,
    network: Any,
    base_hash: str,
    rows: Sequence[Row],
    *,
    depth_share: float,
    seed: int = 0,
    rows_per_batch: int = 16,
) -> TeacherCache:
    """Answers on `rows`, read from `folder` or computed with all gates at zero and written there.

    They are written batch by batch, so memory doesn't grow with the number of rows. If several processes need the same
    answers, one computes them and the others wait.
    """
    assert rows, "there is nothing to ask about"
    key = teacher_key(base_hash, rows, depth_share, seed)
    path = folder / f"{key[:24]}.safetensors"

    def write(temporary: Path) -> None:
        at_once = rows_at_once(network, rows, rows_per_batch)
        with progress("Asking the teacher", len(rows)) as bar, ExitStack() as stack:
            file = None
            for start in range(0, len(rows), at_once):
                part = rows[start : start + at_once]
                answers = ask_teacher(network, part, [fixed_frames(row, depth_share, seed) for row in part])
                if file is None:
                    kinds = _kinds(answers, part[0].clip_id, rows, depth_share)
                    file = stack.enter_context(AnswerFile(temporary, kinds, {"key": key}))
                file.write(answers)
                bar.advance(len(part))

    return TeacherCache(made_alone(path, lambda path: write_atomically(path, write)), key)


def _kinds(answers: Mapping[str, Tensor], known: str, rows: Sequence[Row], share: float) -> dict[str, Kind]:
    """Types and shapes of the answers on all `rows`: those on the clip `known`, with each row's number of frames."""
    parts = {part: answers[f"{known}/{part}"] for part in _PARTS if f"{known}/{part}" in answers}
    found = {}
    for row in rows:
        kept = _num_kept(row.num_frames, share)
        for part, tensor in parts.items():
            length = kept if part in ("frames", "depth") else row.num_frames
            found[f"{row.clip_id}/{part}"] = (tensor.dtype, (length, *tensor.shape[1:]))
    return found


def cache_bytes(
    num_frames: Sequence[int], num_codebooks: int, vocab_size: int, depth_share: float, text_size: int = 0
) -> int:
    """Bytes of the answers on clips of `num_frames` predicted frames each, without the file's header.

    Two bytes per log-probability: `vocab_size` of them for codebook zero of every frame and for every other codebook of
    the kept frames, whose indices take eight bytes each; and `text_size` per frame where text runs beside the frames.
    """
    kept = sum(_num_kept(frames, depth_share) for frames in num_frames)
    codes = 2 * vocab_size * (sum(num_frames) + kept * (num_codebooks - 1)) + 8 * kept
    return codes + 2 * text_size * sum(num_frames)


def _num_kept(num_frames: int, share: float) -> int:
    """Frames of a clip whose depth logits are kept."""
    return max(1, round(share * num_frames))


@torch.no_grad()
def ask_teacher(network: Any, rows: Sequence[Row], frames: Sequence[NDArray[np.int64]]) -> dict[str, Tensor]:
    """Log-probabilities of the base on `rows`, by `clip/c0`, `clip/depth` and `clip/frames`; `clip/text` of Moshi."""
    plain = [Row(row.clip_id, row.turns) for row in rows]
    batch = collate(plain, network.num_codebooks, frames).to(next(network.parameters()).device)
    logits = network(batch)
    c0_NV, depth_MJV = halved(logits.c0_NV), halved(logits.depth_MJV)
    answers = {}
    n = m = 0
    for row, chosen in zip(rows, frames, strict=True):
        answers[f"{row.clip_id}/c0"] = c0_NV[n : n + row.num_frames].clone()
        answers[f"{row.clip_id}/depth"] = depth_MJV[m : m + len(chosen)].clone()
        if logits.text_NW is not None:
            answers[f"{row.clip_id}/text"] = halved(logits.text_NW[n : n + row.num_frames])
        answers[f"{row.clip_id}/frames"] = torch.from_numpy(np.asarray(chosen, dtype=np.int64))
        n, m = n + row.num_frames, m + len(chosen)
    return answers


def halved(logits: Tensor) -> Tensor:
    """Log-probabilities in float16. An impossible code stays finite: 0 · -inf would be NaN in the KL."""
    return logits.log_softmax(dim=-1).clamp(min=torch.finfo(torch.float16).min).half().cpu()
