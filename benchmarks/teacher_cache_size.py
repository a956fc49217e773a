"""How much disk the teacher's answers take per hour of speech: on the miniature's clips, and at CSM-1B's sizes.

    OMP_NUM_THREADS=1 python benchmarks/teacher_cache_size.py

Writes `benchmarks/results/teacher_cache_size.json`. The miniature's cache is of its own general test clips (rendered
where they aren't there yet). CSM-1B's are real cache files too, a minute each, of random logits: their size comes from
the 32 codebooks of 2051 codes and not from the numbers in them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import run_facts, take_no_options

from affetto.codes.prepare import prepare
from affetto.files import write_json
from affetto.miniature.data import miniature_sources
from affetto.model.base import MINIATURE, find_base, load_base
from affetto.model.batch import Batch, Logits, Row, Turn
from affetto.model.rows import make_rows
from affetto.preserve.teacher import cache_bytes, teacher_cache
from affetto.types import EMOTIONS

RESULT = Path(__file__).parent / "results" / "teacher_cache_size.json"
FRAME_RATE = 12.5
CSM_CODEBOOKS, CSM_VOCABULARY = 32, 2051
CSM_SHARE = 1 / 16
"""Of the frames, whose depth logits CSM-1B's own training used."""
CSM_CLIPS_S = {"clips of 10 s": (10.0,) * 6, "clips of 1 to 3 s": tuple(np.linspace(1.0, 3.0, 30))}
MOST_GB_PER_HOUR = 0.6


class RandomNetwork(torch.nn.Module):
    """Answers every frame with random logits of CSM-1B's shape."""

    num_codebooks = CSM_CODEBOOKS

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> Logits:
        """Logits of all frames, and of the frames with depth logits."""
        c0_NV = torch.randn(len(batch.frames_N2), CSM_VOCABULARY)
        return Logits(c0_NV, torch.randn(len(batch.depth_M), CSM_CODEBOOKS - 1, CSM_VOCABULARY))


def main() -> None:
    """Write the caches, print and write their sizes."""
    take_no_options(__doc__)
    figures = {
        "miniature": [_miniature(share) for share in (1.0, CSM_SHARE)],
        "csm_1b": {name: _csm(durations_s, CSM_SHARE) for name, durations_s in CSM_CLIPS_S.items()},
        "most_gb_per_hour": MOST_GB_PER_HOUR,
    }
    write_json(RESULT, run_facts() | figures)
    print(RESULT.read_text(encoding="utf-8"))
    assert all(point["gb_per_hour"] <= MOST_GB_PER_HOUR for point in figures["csm_1b"].values())


def _miniature(share: float) -> dict[str, Any]:
    base = load_base(MINIATURE)
    prepared = prepare(miniature_sources([]), find_base(MINIATURE), emotions=EMOTIONS)
    rows = make_rows(base, prepared.select(None, "test"), prepared.codes, prepared.speakers)
    return _measured(base.network, base.hash, rows, share, base.num_codebooks, base.network.vocab_size)


def _csm(durations_s: Sequence[float], share: float) -> dict[str, Any]:
    rows = []
    for number, duration_s in enumerate(durations_s):
        codes_TK = np.zeros((round(duration_s * FRAME_RATE), CSM_CODEBOOKS), dtype=np.int64)
        rows.append(Row(f"clip-{number}", (Turn((0, 1), codes_TK),)))
    return _measured(RandomNetwork(), "random", rows, share, CSM_CODEBOOKS, CSM_VOCABULARY)


def _measured(
    network: Any, base_hash: str, rows: Sequence[Row], share: float, num_codebooks: int, vocab_size: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        cache = teacher_cache(Path(folder), network, base_hash, rows, depth_share=share)
        size = cache.path.stat().st_size
        kept = sum(len(cache[row.clip_id].depth_frames) for row in rows)
    lengths = [row.num_frames for row in rows]
    # The end-of-audio frame is predicted, and stored, but it is no speech.
    speech_s = (sum(lengths) - len(rows)) / FRAME_RATE
    foretold = cache_bytes(lengths, num_codebooks, vocab_size, share)
    return {
        "num_clips": len(rows),
        "speech_s": round(speech_s, 2),
        "num_codebooks": num_codebooks,
        "vocab_size": vocab_size,
        "share_of_frames": share,
        "kept_share_of_frames": round(kept / sum(lengths), 4),
        "file_bytes": size,
        "foretold_bytes": foretold,
        "gb_per_hour": round(size / speech_s * 3600 / 1e9, 4),
    }


if __name__ == "__main__":
    main()
