"""Votes of a listening test back to numbers: opinion scores, heard emotions, preferences.

Raters and sentences are both samples: a rater is strict on everything, a sentence is hard for everybody. So intervals
resample whole raters and whole sentences at once (the pigeonhole bootstrap, Owen 2007), and the sign test of a
preference counts sentences by their majority, not votes, which depend on each other.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from affetto.errors import DataError
from affetto.files import read_json
from affetto.listening.test_page import KEY_SCHEMA, VOTES_SCHEMA
from affetto.metrics.statistics import CONFIDENCE, SEED

NUM_RESAMPLES = 4000
KINDS = ("naturalness", "emotion", "preference")


@dataclass(frozen=True)
class Vote:
    """One answer."""

    rater: str
    item: str
    kind: str
    value: str


def read_votes(paths: Sequence[Path], test: str) -> list[Vote]:
    """Votes of the page's JSON files, or of CSV files with columns rater, item, kind, value. DataError for others."""
    votes: list[Vote] = []
    for path in paths:
        votes += _read_csv(path) if path.suffix.lower() == ".csv" else _read_page(path, test)
    if not votes:
        raise DataError("there are no votes in these files")
    if unknown := sorted({vote.kind for vote in votes} - set(KINDS)):
        raise DataError(f"unknown kind of vote {unknown[0]!r}: there are {', '.join(KINDS)}")
    seen = Counter((vote.rater, vote.item, vote.kind) for vote in votes)
    if twice := [key for key, times in seen.items() if times > 1]:
        raise DataError(f"{twice[0][0]} voted twice on {twice[0][1]} ({twice[0][2]}): give each rater's votes once")
    return votes


def score_votes(key: Mapping[str, Any], votes: Sequence[Vote], target: str | None = None) -> dict[str, Any]:
    """Numbers by system: `naturalness` (mean, interval), `emotions` (counts), `recall` of `target`, and preferences."""
    if key.get("schema") != KEY_SCHEMA:
        raise DataError("this is no key of a listening test: give OUT_key.json, which `affetto listen export` wrote")
    items, pairs = key["items"], key["pairs"]
    if strange := [vote.item for vote in votes if vote.item not in items and vote.item not in pairs]:
        raise DataError(f"votes on {strange[0]!r}, which the key doesn't know: is it another test's?")
    systems: dict[str, Any] = {}
    for name in sorted({item["system"] for item in items.values()}):
        mine = [vote for vote in votes if vote.item in items and items[vote.item]["system"] == name]
        heard = [vote for vote in mine if vote.kind == "emotion"]
        systems[name] = {
            "naturalness": _mean([vote for vote in mine if vote.kind == "naturalness"], lambda vote: _number(vote)),
            "emotions": dict(sorted(Counter(vote.value for vote in heard).items())),
            "recall": _mean(heard, lambda vote: float(vote.value == target)) if target else None,
        }
    return {
        "test": key["test"],
        "num_raters": len({vote.rater for vote in votes}),
        "systems": systems,
        "preferences": _preferences(items, pairs, [vote for vote in votes if vote.kind == "preference"]),
    }


def pigeonhole_interval(
    raters: Sequence[str], items: Sequence[str], values: Sequence[float], *, seed: int = SEED
) -> tuple[float, float] | None:
    """95 % interval of the mean by resampling raters and items together; None with fewer than two of either."""
    names_R, rater_N = np.unique(raters, return_inverse=True)
    names_I, item_N = np.unique(items, return_inverse=True)
    if min(len(names_R), len(names_I)) < 2:
        return None
    rng = np.random.default_rng(seed)
    values_N = np.asarray(values, dtype=np.float64)
    means: list[float] = []
    for _ in range(NUM_RESAMPLES):
        weights_N = _counts(rng, len(names_R))[rater_N] * _counts(rng, len(names_I))[item_N]
        if weights_N.any():
            means.append(float(weights_N @ values_N / weights_N.sum()))
    low, high = np.quantile(means, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


def _counts(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    return rng.multinomial(size, np.full(size, 1 / size)).astype(np.float64)


def _mean(votes: Sequence[Vote], value: Any) -> dict[str, Any]:
    if not votes:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": "nobody voted on it"}
    values = [value(vote) for vote in votes]
    found = pigeonhole_interval([vote.rater for vote in votes], [vote.item for vote in votes], values)
    low, high = found or (None, None)
    reason = None if found else "one rater or one sentence gives no interval"
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values), "reason": reason}


def _number(vote: Vote) -> float:
    try:
        value = float(vote.value)
    except ValueError:
        value = float("nan")
    if not 1 <= value <= 5:
        raise DataError(f"{vote.rater} gave {vote.value!r} for naturalness, which goes from 1 to 5")
    return value


def _preferences(items: Mapping[str, Any], pairs: Mapping[str, Any], votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """A row per two systems: votes for either, ties, sentences won, and the sign test over sentences."""
    tally: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for vote in votes:
        sides = {side: items[pairs[vote.item][side]]["system"] for side in ("a", "b")}
        if vote.value not in ("A", "B", "none"):
            raise DataError(f"{vote.rater} gave {vote.value!r} for a preference: A, B or none")
        one, other = sorted(sides.values())
        chosen = "none" if vote.value == "none" else sides[vote.value.lower()]
        tally.setdefault((one, other), {}).setdefault(vote.item, Counter())[chosen] += 1
    rows = []
    for (one, other), by_item in sorted(tally.items()):
        total: Counter[str] = sum(by_item.values(), Counter())
        wins = sum(counts[one] > counts[other] for counts in by_item.values())
        losses = sum(counts[one] < counts[other] for counts in by_item.values())
        rows.append(
            {
                "systems": [one, other],
                "votes": {one: total[one], other: total[other], "none": total["none"]},
                "sentences": {one: wins, other: losses, "tied": len(by_item) - wins - losses},
                "p_value": float(binomtest(wins, wins + losses).pvalue) if wins + losses else None,
            }
        )
    return rows


def _read_page(path: Path, test: str) -> list[Vote]:
    try:
        document = read_json(path)
        if document["schema"] != VOTES_SCHEMA:
            raise DataError(f"{path} holds no votes ({document['schema']!r})")
        if document["test"] != test:
            raise DataError(f"{path} is of test {document['test']}, the key of {test}")
        return [
            Vote(str(document["rater"]), str(vote["item"]), str(vote["kind"]), str(vote["value"]))
            for vote in document["votes"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read as votes ({error!r})") from error


def _read_csv(path: Path) -> list[Vote]:
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
    if missing := [name for name in ("rater", "item", "kind", "value") if name not in (table.fieldnames or ())]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}")
    return [Vote(row["rater"], row["item"], row["kind"], row["value"]) for row in table]
