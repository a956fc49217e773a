"""Whether the voice judge can tell speakers apart: each recording is compared with every speaker's other recordings.

A recording's likeness to a speaker is the mean cosine to that speaker's other texts (`similarity.likeness`). The
recording is identified correctly if its own speaker has the highest. Verification's equal error rate uses the same
likenesses as trials: one for each recording and speaker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from affetto.errors import counted
from affetto.evaluate.results import to_metric
from affetto.evaluate.similarity import Embedded, group_by, likeness
from affetto.metrics import statistics
from affetto.metrics.verification import equal_error_rate


def tell_voices(embedded: Sequence[Embedded]) -> dict[str, Any]:
    """One corpus's numbers: share of recordings identified correctly, and cosines to their own and to other speakers.

    Recordings without a known speaker are left out; with fewer than two speakers who say two texts every number is null
    with that reason. With fewer than `statistics.MIN_PAIRS` recordings `told` is null.
    """
    known = [file for file in embedded if file.row["speaker"] is not None]
    speakers = sorted({str(file.row["speaker"]) for file in known})
    likeness_NS = _likenesses(known, speakers)
    own_N = np.array([speakers.index(str(file.row["speaker"])) for file in known], dtype=int)
    rows = np.flatnonzero(np.isfinite(likeness_NS).all(axis=1)) if len(speakers) > 1 else np.empty(0, dtype=int)
    if not len(rows):
        reason = "fewer than two speakers say two texts, so voices can't be told apart"
        nothing = {"value": None, "low": None, "high": None, "n": 0, "reason": reason}
        names = {"named": "share", "own": "cosine", "others": "cosine", "equal_error_rate": "share"}
        return {
            "num_speakers": len(speakers), "chance": None, "told": None, "reason": reason,
            **{name: {**nothing, "unit": unit} for name, unit in names.items()},
        }  # fmt: skip
    likeness_NS, own_N = likeness_NS[rows], own_N[rows]
    is_own_NS = np.arange(len(speakers))[None] == own_N[:, None]
    own, others = likeness_NS[is_own_NS], likeness_NS[~is_own_NS]
    clusters = [speakers[index] for index in own_N]
    named = statistics.share((likeness_NS.argmax(axis=1) == own_N).tolist(), clusters)
    chance = 1 / len(speakers)
    answer, why_not = above_chance(named, chance)
    mean_others = others.reshape(len(rows), -1).mean(axis=1)
    return {
        "num_speakers": len(speakers), "chance": chance, "told": answer, "reason": why_not,
        "named": to_metric(named, "share"),
        "own": to_metric(statistics.bootstrap_mean(own, clusters), "cosine"),
        "others": to_metric(statistics.bootstrap_mean(mean_others, clusters), "cosine"),
        "equal_error_rate": to_metric(
            statistics.Estimate(
                equal_error_rate(own, others), None, None, likeness_NS.size,
                "trials share recordings, so they have no interval",
            ),
            "share",
        ),
    }  # fmt: skip


def above_chance(share: statistics.Estimate, chance: float) -> tuple[Literal["yes", "no"] | None, str | None]:
    """(whether the whole interval of `share` lies above `chance`, why not).

    With fewer than `statistics.MIN_PAIRS` recordings it isn't decided.
    """
    if share.low is None:
        return None, share.reason
    if share.n < statistics.MIN_PAIRS:
        recordings = counted(share.n, "recording is", "recordings are")
        return None, f"{recordings} too few for a verdict (at least {statistics.MIN_PAIRS})"
    if share.low <= chance:
        return "no", f"the interval doesn't lie above chance ({chance:.0%})"
    return "yes", None


def _likenesses(known: Sequence[Embedded], speakers: Sequence[str]) -> NDArray[np.float64]:
    """(N, S): likeness of each recording to each speaker; NaN if the speaker says no other text."""
    groups = group_by(known, lambda file: str(file.row["speaker"]))
    likenesses = [[likeness(file, groups[speaker]) for speaker in speakers] for file in known]
    return np.array(likenesses, dtype=float).reshape(len(known), len(speakers))
