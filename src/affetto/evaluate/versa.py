"""Writes a results document in VERSA's format: JSON lines, one flat object per file, `key` first.

If VERSA (Shi et al. 2025, arXiv:2412.17667) measures the same thing, its name is used, so that VERSA's own summaries
can read the file: `dns_overall`, `spk_similarity`, `ref_text`, and for words, with a prefix for the recogniser
(`whisper_` for Whisper models as in VERSA, `asr_` for any other), `hyp_text` and the counts `wer_delete`, `wer_insert`,
`wer_replace`, `wer_equal` and the same for `cer`, of text in affetto's spelling (VERSA: in its cleaner's). Everything
else keeps affetto's name. Missing values are left out, as in VERSA; a file that could not be scored has its `error` and
no scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from affetto.evaluate.results import FileRow, Results, System
from affetto.files import write_text

NAMES = {
    "mos_overall": "dns_overall", "speaker_similarity": "spk_similarity",
    "emotion_similarity": "emotion_similarity_other_texts",
}  # fmt: skip
"""affetto's names and VERSA's for the same score. The first holds for DNSMOS only. VERSA's `emotion_similarity` is to a
recording of the same text, so affetto's needs another name there."""
_REPLACED = ("heard", "word_edits", "num_words", "char_edits", "num_chars", "wer", "cer")
"""Values that VERSA's own counts replace."""


def write_versa(path: Path, results: Results) -> None:
    """Write the lines of every system of `results`; a file that a system has for two prompts (the base) comes once."""
    lines = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in versa_lines(results))
    write_text(path, "".join(lines))


def versa_lines(results: Results) -> Iterator[dict[str, Any]]:
    """The flat objects. `key` is the file's name in the results; with several systems, `system` is its system."""
    ids = {kind: judge["id"].lower() for kind, judge in results["judges"].items() if judge is not None}
    prefix = "whisper" if "whisper" in ids.get("words", "") else "asr"
    is_dnsmos = "dnsmos" in ids.get("quality", "")
    names = {name: theirs for name, theirs in NAMES.items() if is_dnsmos or name != "mos_overall"}
    for system in results["systems"]:
        seen = set()
        for row in system["files"]:
            if row["file"] not in seen:
                seen.add(row["file"])
                yield {**_about(row, system, len(results["systems"])), **_scores(row, names, prefix)}


def _about(row: FileRow, system: System, num_systems: int) -> dict[str, Any]:
    about = {"key": row["file"], "system": system["name"] if num_systems > 1 else None, "ref_text": row["text"]}
    return {name: value for name, value in about.items() if value is not None}


def _scores(row: FileRow, names: Mapping[str, str], prefix: str) -> dict[str, Any]:
    if row["error"] is not None:
        return {"error": row["error"]}
    values = row["values"]
    heard = values.get("heard")
    counts = {} if heard is None else {f"{prefix}_hyp_text": heard, **_edits(row["text"], str(heard), prefix)}
    known = {**values, "duration_s": row["duration_s"]}
    named = {
        names.get(name, name): value for name, value in known.items() if value is not None and name not in _REPLACED
    }
    return {**counts, **named}


def _edits(text: str | None, heard: str, prefix: str) -> dict[str, int]:
    import jiwer

    from affetto.metrics.spelling import normalise

    wanted, got = (" ".join(normalise(words or "")) for words in (text, heard))
    if not wanted:
        return {}
    found = {"wer": jiwer.process_words(wanted, got), "cer": jiwer.process_characters(wanted, got)}
    return {
        f"{prefix}_{rate}_{name}": int(count)
        for rate, edits in found.items()
        for name, count in (
            ("delete", edits.deletions), ("insert", edits.insertions), ("replace", edits.substitutions),
            ("equal", edits.hits),
        )
    }  # fmt: skip
