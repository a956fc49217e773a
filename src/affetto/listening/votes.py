"""Scores the votes of a listening test: opinion scores, heard emotions, preferences.

Raters and sentences are both samples: a rater may be strict on everything, a sentence hard for everybody. So intervals
resample whole raters and whole sentences at once (`metrics.statistics.pigeonhole_mean`), and the sign test of a
preference counts sentences by their majority, not votes, which depend on each other.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from affetto.errors import DataError
from affetto.files import read_json, why_unreadable
from affetto.listening.test_page import KEY_SCHEMA, VOTES_SCHEMA
from affetto.listening.webmushra import COLUMNS as WEBMUSHRA_COLUMNS
from affetto.listening.webmushra import read_answers
from affetto.metrics.statistics import Estimate, pigeonhole_mean

COLUMNS = ("rater", "item", "kind", "value")
"""Columns of a table of votes that isn't webMUSHRA's."""
KINDS = ("naturalness", "emotion", "preference")
_KEY_PARTS = {"test": str, "choices": list, "items": dict, "pairs": dict}
_ANOTHER_KEY = "give OUT_key.json, which `affetto listen export` wrote"
_OTHER_VOTES = f"give the .json that a listener's page saved, webMUSHRA's lss.csv, or a CSV of {','.join(COLUMNS)}"


@dataclass(frozen=True)
class Vote:
    """One answer."""

    rater: str
    item: str
    kind: str
    value: str


def read_key(path: Path) -> dict[str, Any]:
    """The key of a test, as `test_page.export_test` wrote it. Raises DataError for any other file."""
    try:
        key = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as a key ({why_unreadable(error)}): {_ANOTHER_KEY}") from error
    if not isinstance(key, dict) or key.get("schema") != KEY_SCHEMA:
        raise DataError(f"{path} isn't the key of a listening test: {_ANOTHER_KEY}")
    if missing := [name for name, kind in _KEY_PARTS.items() if not isinstance(key.get(name), kind)]:
        raise DataError(f"{path} is damaged, it lacks {', '.join(missing)}: {_ANOTHER_KEY}")
    items, pairs = key["items"], key["pairs"]
    have_system = all(isinstance(item, dict) and isinstance(item.get("system"), str) for item in items.values())
    have_items = all(isinstance(pair, dict) and {pair.get("a"), pair.get("b")} <= set(items) for pair in pairs.values())
    if not (have_system and have_items):
        raise DataError(f"{path} is damaged, an item lacks its system or a pair its items: {_ANOTHER_KEY}")
    return key


def read_votes(paths: Sequence[Path], test: str) -> list[Vote]:
    """Votes on `test` from the page's JSON files, webMUSHRA's `lss.csv`, or tables with the columns `COLUMNS` (CSV,
    UTF-8). Raises DataError for other files, another test's, unknown kinds, and a rater's second vote on one item."""
    votes: list[Vote] = []
    for path in paths:
        votes += _read_csv(path, test) if path.suffix.lower() == ".csv" else _read_page(path, test)
    if not votes:
        raise DataError("there are no votes in these files")
    if unknown := sorted({vote.kind for vote in votes} - set(KINDS)):
        raise DataError(f"unknown kind of vote {unknown[0]!r}: there are {', '.join(KINDS)}")
    seen = Counter((vote.rater, vote.item, vote.kind) for vote in votes)
    if twice := [key for key, times in seen.items() if times > 1]:
        raise DataError(f"{twice[0][0]} voted twice on {twice[0][1]} ({twice[0][2]}): give each rater's votes once")
    return votes


def score_votes(key: Mapping[str, Any], votes: Sequence[Vote], target: str | None = None) -> dict[str, Any]:
    """Numbers by system: `naturalness` (mean, interval), `emotions` (counts), `recall` of `target`, and preferences.

    `key` comes from `read_key`. Raises DataError if a vote doesn't match it, or `target` wasn't one of the choices.
    """
    if key.get("schema") != KEY_SCHEMA:
        raise DataError(f"this isn't the key of a listening test: {_ANOTHER_KEY}")
    if target is not None and target not in key["choices"]:
        raise DataError(f"{target!r} wasn't a choice in this test; the choices were {', '.join(key['choices'])}")
    items, pairs = key["items"], key["pairs"]
    if strange := [vote for vote in votes if vote.item not in (pairs if vote.kind == "preference" else items)]:
        raise DataError(
            f"votes on {strange[0].item!r} ({strange[0].kind}), which the key doesn't know: another test's?"
        )
    if strange := [vote for vote in votes if vote.kind == "emotion" and vote.value not in key["choices"]]:
        choices = ", ".join(key["choices"])
        raise DataError(f"{strange[0].rater} heard {strange[0].value!r}; the choices were {choices}")
    systems: dict[str, Any] = {}
    for name in sorted({item["system"] for item in items.values()}):
        mine = [vote for vote in votes if vote.item in items and items[vote.item]["system"] == name]
        heard = [vote for vote in mine if vote.kind == "emotion"]
        systems[name] = {
            "naturalness": _mean([vote for vote in mine if vote.kind == "naturalness"], _number),
            "emotions": dict(sorted(Counter(vote.value for vote in heard).items())),
            "recall": _mean(heard, lambda vote: float(vote.value == target), is_share=True) if target else None,
        }
    return {
        "test": key["test"],
        "num_raters": len({vote.rater for vote in votes}),
        "systems": systems,
        "preferences": _preferences(items, pairs, [vote for vote in votes if vote.kind == "preference"]),
    }


def _mean(votes: Sequence[Vote], value: Callable[[Vote], float], is_share: bool = False) -> dict[str, Any]:
    if not votes:
        return asdict(Estimate(None, None, None, 0, "there are no votes on it"))
    raters, items = [vote.rater for vote in votes], [vote.item for vote in votes]
    return asdict(pigeonhole_mean([value(vote) for vote in votes], raters, items, is_share=is_share))


def _number(vote: Vote) -> float:
    try:
        value = float(vote.value)
    except ValueError:
        value = float("nan")
    if not 1 <= value <= 5:
        raise DataError(f"{vote.rater} gave {vote.value!r} for naturalness, which goes from 1 to 5")
    return value


def _preferences(items: Mapping[str, Any], pairs: Mapping[str, Any], votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """A row per pair of systems: votes for either, ties, sentences won, and the sign test over sentences."""
    tally: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for vote in votes:
        sides = {side: items[pairs[vote.item][side]]["system"] for side in ("a", "b")}
        if vote.value not in ("A", "B", "none"):
            raise DataError(f"{vote.rater} gave {vote.value!r} for a preference: A, B or none")
        first, second = sorted(sides.values())
        chosen = "none" if vote.value == "none" else sides[vote.value.lower()]
        tally.setdefault((first, second), {}).setdefault(vote.item, Counter())[chosen] += 1
    rows = []
    for (first, second), by_item in sorted(tally.items()):
        total: Counter[str] = sum(by_item.values(), Counter())
        wins = sum(counts[first] > counts[second] for counts in by_item.values())
        losses = sum(counts[first] < counts[second] for counts in by_item.values())
        rows.append(
            {
                "systems": [first, second],
                "votes": {first: total[first], second: total[second], "none": total["none"]},
                "sentences": {first: wins, second: losses, "tied": len(by_item) - wins - losses},
                "p_value": float(binomtest(wins, wins + losses).pvalue) if wins + losses else None,
            }
        )
    return rows


def _read_page(path: Path, test: str) -> list[Vote]:
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as votes ({why_unreadable(error)}): {_OTHER_VOTES}") from error
    if not isinstance(document, dict) or document.get("schema") != VOTES_SCHEMA:
        raise DataError(f"{path} holds no votes: {_OTHER_VOTES}")
    if document.get("test") != test:
        raise DataError(f"{path} is of test {document.get('test')}, the key of {test}")
    votes = document.get("votes")
    if "rater" not in document or not isinstance(votes, list):
        raise DataError(f"{path} is damaged, it lacks its rater or votes: {_OTHER_VOTES}")
    parts = ("item", "kind", "value")
    for number, vote in enumerate(votes, 1):
        if not isinstance(vote, dict) or not all(part in vote for part in parts):
            raise DataError(f"{path} is damaged, vote {number} lacks one of {', '.join(parts)}: {_OTHER_VOTES}")
    return [Vote(str(document["rater"]), *(str(vote[part]) for part in parts)) for vote in votes]


def _read_csv(path: Path, test: str) -> list[Vote]:
    try:
        content = path.read_text(encoding="utf-8-sig")
        # In many countries spreadsheets save CSV with semicolons.
        delimiter = max(",;\t", key=content.partition("\n")[0].count)
        table = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter)
        columns, rows = table.fieldnames or (), list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as votes ({why_unreadable(error)}): {_OTHER_VOTES}") from error
    is_webmushra = "trial_id" in columns
    if missing := [name for name in (WEBMUSHRA_COLUMNS if is_webmushra else COLUMNS) if name not in columns]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: {_OTHER_VOTES}")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(f"{path}: row {number} under the header has more or fewer cells than the header")
    if is_webmushra:
        return [Vote(*answer) for answer in read_answers(rows, test, path)]
    return [Vote(*(row[name] for name in COLUMNS)) for row in rows]
