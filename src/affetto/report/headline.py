"""The head of the report: the run in plain words, and one verdict per aspect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from affetto.errors import counted
from affetto.report.measures import MEASURES, scale_of, write_duration, write_number
from affetto.report.tables import Value, delta_nll_verdict, show_comparison


@dataclass(frozen=True)
class AspectVerdict:
    """One aspect of the headline."""

    question: str
    verdict: str
    """`preserved`, `worse`, `undecided`, `raised`, `lowered` or `no verdict`."""
    detail: tuple[str, ...]
    """The numbers, in parts that must not be broken."""
    reason: str | None = None


def system_by_role(result: Mapping[str, Any], *roles: str) -> Mapping[str, Any] | None:
    """The first system with one of `roles`, in the order of `roles`."""
    for role in roles:
        for system in result.get("systems") or []:
            if system.get("role") == role:
                found: Mapping[str, Any] = system
                return found
    return None


def headline(result: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Sentences about what was trained and with what result; unknown facts are left out."""
    emotion = str(result.get("emotion", "the emotion"))
    sentences = [_trained(emotion, facts), _expressive(result, emotion), _words(result), _forgotten(result)]
    return [sentence for sentence in sentences if sentence]


def verdicts(result: Mapping[str, Any]) -> list[AspectVerdict]:
    """Verdicts on the adapter against the base: expressivity, words, quality, plain reading, voice and forgetting.

    Voices are compared on plain prompts, since acting changes a voice for any judge, as the real recordings' row shows.
    """
    adapter, base = system_by_role(result, "adapter", "files"), system_by_role(result, "base")
    if adapter is None:
        return []
    pair = (str(adapter["name"]), str(base["name"]) if base else "")
    emotion = result.get("emotion", "the emotion")
    aspects = [
        _compared(result, pair, f"Does it sound {emotion} when asked?", "emotional", "recall"),
        _compared(result, pair, "Are the words still right?", "emotional", "wer"),
        _compared(result, pair, "Is the sound as good?", "emotional", "mos_overall"),
        _compared(result, pair, "Does it stay plain when not asked?", "plain", "posterior"),
    ]
    if (result.get("judges") or {}).get("voice"):
        aspects.append(_compared(result, pair, "Is it the same voice then?", "plain", "speaker_similarity"))
    if retention := result.get("retention"):
        shown = delta_nll_verdict(retention)
        aspects.append(_aspect("Is general speech remembered?", MEASURES["delta_nll"].label, shown))
    else:
        reason = "retention was not measured: it needs the models, and only files were given"
        aspects.append(AspectVerdict("Is general speech remembered?", "no verdict", (), reason))
    return aspects


def _trained(emotion: str, facts: Mapping[str, Any]) -> str:
    data, base, timings = (facts.get(key) or {} for key in ("data", "base", "timings_s"))
    if not data.get("emotional_clips"):
        return ""
    kind = "general ones that the base spoke itself" if data.get("general") == "self" else "rehearsed general ones"
    beside = f" beside {data['rehearsed_clips']} {kind}" if data.get("rehearsed_clips") else ""
    on = f" on the base {base['id']}" if base.get("id") else ""
    took = f", in {write_duration(timings['total'])}" if timings.get("total") else ""
    return f"An adapter was trained on {counted(data['emotional_clips'], f'{emotion} clip')}{beside}{on}{took}."


def _expressive(result: Mapping[str, Any], emotion: str) -> str:
    adapter, base = system_by_role(result, "adapter", "files"), system_by_role(result, "base")
    recall, n = _number(adapter, "recall"), _metric(adapter, "recall").get("n")
    if not recall:
        return ""
    others = []
    if before := _number(base, "recall"):
        others.append(f"the base in {before}")
    if ceiling := _number(system_by_role(result, "real"), "recall") or _ceiling(result):
        others.append(f"real {emotion} recordings in {ceiling}")
    tail = f"; {' and '.join(others)}" if others else ""
    return f"Asked to sound {emotion}, it is heard as {emotion} in {recall} of {counted(int(n or 0), 'clip')}{tail}."


def _words(result: Mapping[str, Any]) -> str:
    wrong = _number(system_by_role(result, "adapter", "files"), "wer")
    before = _number(system_by_role(result, "base"), "wer")
    return f"Word error rate is {wrong}{f' (base {before})' if before else ''}." if wrong else ""


def _forgotten(result: Mapping[str, Any]) -> str:
    retention = result.get("retention") or {}
    change = (retention.get("delta_nll") or {}).get("value")
    if change is None:
        return ""
    scale = scale_of(MEASURES["delta_nll"].unit)
    amount = write_number(abs(change), scale)
    return f"General speech became {amount} per code {'less' if change > 0 else 'more'} likely."


def _compared(result: Mapping[str, Any], pair: tuple[str, str], question: str, prompt: str, name: str) -> AspectVerdict:
    shown = show_comparison(result, pair, prompt, name, MEASURES[name])
    if shown.text:
        return _aspect(question, MEASURES[name].label, shown, _by_chance(result, pair[1], prompt, name))
    key = "metrics" if prompt == "emotional" else "plain_metrics"
    system = system_by_role(result, "adapter", "files") or {}
    reason = ((system.get(key) or {}).get(name) or {}).get("reason")
    reason = reason or f"{MEASURES[name].label} was not compared on {prompt} prompts"
    return AspectVerdict(question, "no verdict", (), reason)


def _by_chance(result: Mapping[str, Any], base: str, prompt: str, name: str) -> tuple[str, ...]:
    """How far the base differs from itself with other seeds; empty if those weren't spoken."""
    reseeded = system_by_role(result, "reseeded")
    if reseeded is None:
        return ()
    shown = show_comparison(result, (str(reseeded["name"]), base), prompt, name, MEASURES[name])
    return ("by other seeds", "alone", shown.text, shown.interval) if shown.text else ()


def _aspect(question: str, label: str, shown: Value, by_chance: tuple[str, ...] = ()) -> AspectVerdict:
    reason = shown.reason or (None if shown.verdict else "no margin was set in advance")
    return AspectVerdict(question, shown.verdict or "no verdict", _detail(label, shown, by_chance), reason)


def _detail(label: str, shown: Value, by_chance: tuple[str, ...]) -> tuple[str, ...]:
    margin = f"margin {shown.margin}" if shown.margin else ""
    parts = (label, shown.text, shown.interval, margin, f"n={shown.n}" if shown.n else "", *by_chance)
    return tuple(part for part in parts if part)


def _metric(system: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    return ((system or {}).get("metrics") or {}).get(name) or {}


def _number(system: Mapping[str, Any] | None, name: str) -> str:
    value = _metric(system, name).get("value")
    return "" if value is None else write_number(value, scale_of(MEASURES[name].unit))


def _ceiling(result: Mapping[str, Any]) -> str:
    judge = (result.get("judges") or {}).get("emotion") or {}
    value = (judge.get("ceiling") or {}).get("value")
    return "" if value is None else write_number(value, scale_of("share"))
