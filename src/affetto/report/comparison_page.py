"""One HTML page that compares any number of systems: how they sound, what was measured, and by which judges.

Like a run's report (`run_page.py`) the page is self-contained, and the same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affetto.audio.splits import normalise_text
from affetto.evaluate.folder import NEUTRAL
from affetto.evaluate.folder_lines import MINIATURE_NOTE, evaluated
from affetto.evaluate.results import FileRow
from affetto.files import hash_file, write_text
from affetto.report import pictures
from affetto.report.canvas import Picture, system_numbers
from affetto.report.differences import DifferenceTable, make_differences
from affetto.report.grid import columns_of, make_grids, metric_of
from affetto.report.matrices import matrices
from affetto.report.measures import MEASURES, PLAIN, glossary, scale_of
from affetto.report.neutral_table import NeutralTable, join_tables, neutral_table
from affetto.report.page_templates import page_templates
from affetto.report.players import AudioCell, AudioRow, player_rows
from affetto.report.speech_picture import LEFT, RIGHT, WIDTH
from affetto.report.systems import Entry, Marks, find_entry, judge_marks, read_entries

SENTENCES = 8
"""Default number of rows of players."""
_TEMPLATES = ("comparison.html.j2", "macros.html.j2", "report.css", "report.js")
_NAME_LENGTH = 24
_ROLES = {
    "base": "the base model", "adapter": "adapter", "real": "recordings, through the codec", "files": "sound files",
}  # fmt: skip
_FOLDERS = {**_ROLES, "base": "sound files of the base", "real": "recordings"}
"""The same in a folder's own results, whose other systems are folders, too."""
_NEUTRAL = "neutral speech of the same speakers"
_NO_EMOTION = "no emotion"


def write_comparison(
    output: Path,
    entries: Sequence[Entry],
    *,
    title: str = "",
    against: str | None = None,
    sentences: int = SENTENCES,
    command: str = "",
) -> Path:
    """Write the page to `output` and return it. `against` names the system that all others are compared with.

    A sound that isn't where the results say is shown as missing, with the reason. DataError if `against` isn't a
    system's name.
    """
    environment, texts = page_templates(_TEMPLATES)
    marks = judge_marks(entries)
    reference = find_entry(entries, against) if against else None
    rows, sounds = audio_rows(entries, sentences)
    numbers = system_numbers({entry.name: entry.system["role"] for entry in entries})
    numbers |= {_plain(entry): numbers[entry.name] for entry in entries}
    for cell in (cell for row in rows for cell in row.cells):
        numbers.setdefault(cell.system, 0)
    script_hash = base64.b64encode(hashlib.sha256(texts["report.js"].encode()).digest()).decode()
    page = environment.get_template("comparison.html.j2").render(
        title=title or _title(entries),
        script=texts["report.js"],
        script_hash=script_hash,
        emotions=list(dict.fromkeys(entry.emotion for entry in entries)),
        systems=[_system(entry, marks, sounds[entry.name]) for entry in entries],
        warnings=list(_warnings(entries, marks)),
        rows=player_rows(rows, numbers),
        grids=make_grids(entries, marks),
        dots=list(_dot_plots(entries, marks, numbers)),
        differences=DifferenceTable(tuple(make_differences(entries, reference, marks))),
        neutral_speech=_neutral_speech(entries),
        matrices=list(matrices(entries, marks)),
        judges=list(_judges(entries, marks)),
        sources=_sources(entries),
        command=command,
        numbers=numbers,
        units={unit: scale_of(unit).unit for unit in _units(entries)},
        glossary=glossary([entry.system for entry in entries]),
        playhead={"left": LEFT / WIDTH, "width": (WIDTH - LEFT - RIGHT) / WIDTH},
    )
    write_text(output, page)
    return output


def compare_run(folder: Path, emotions: Sequence[str], command: str) -> Path:
    """Write `comparison.html`, with the emotions of one run side by side, into the folder of their results."""
    entries = read_entries([str(folder / f"{emotion}_results.json") for emotion in emotions])
    return write_comparison(folder / "comparison.html", entries, command=command)


def audio_rows(entries: Sequence[Entry], most: int) -> tuple[list[AudioRow], dict[str, str]]:
    """Rows by text (by file name if texts aren't known), those that most systems spoke first; and for each system how
    many of its sounds exist, or why none."""
    texts: dict[str, list[tuple[Entry, FileRow]]] = {}
    availability = {}
    for entry in entries:
        existing = {row["file"] for row in entry.system["files"] if entry.path(row).is_file()}
        availability[entry.name] = _availability(entry, len(existing))
        for row in entry.system["files"] if existing else ():
            key = normalise_text(row["text"]) if row["text"] else f"file:{Path(row['file']).stem}"
            texts.setdefault(key, []).append((entry, row))
    ranked = sorted(texts.values(), key=lambda spoken: -len({entry.name for entry, _ in spoken}))
    return [_audio_row(spoken) for spoken in ranked[: max(0, most)]], availability


def _audio_row(spoken: Sequence[tuple[Entry, FileRow]]) -> AudioRow:
    cells: dict[str, AudioCell] = {}
    order: dict[str, tuple[int, str]] = {}
    first_base: dict[str, str] = {}
    for entry, row in spoken:
        is_plain, path = row["prompt"] == "plain", entry.path(row)
        if is_plain and entry.system["role"] != "adapter":  # the base's plain rows are its emotional ones
            continue
        name = _plain(entry) if is_plain else entry.name
        if entry.system["role"] == "base" and path.is_file():
            # The same base of several emotions gets one player, without any one emotion's posterior.
            first = first_base.setdefault(hash_file(path), name)
            if first != name:
                values = {key: value for key, value in cells[first].values.items() if key != "posterior"}
                cells[first] = replace(cells[first], system=first.rpartition(": ")[2], values=values)
                continue
        cells.setdefault(name, AudioCell(name, path, row["values"]))
        order.setdefault(name, (entry.number, name))
    rows = [row for _, row in spoken]
    speakers, seeds = ({row[key] for row in rows} for key in ("speaker", "seed"))
    return AudioRow(
        text=str(rows[0]["text"] or Path(rows[0]["file"]).stem),
        prompt="emotional",
        speaker=str(rows[0]["speaker"] or "") if len(speakers) == 1 else "",
        seed=rows[0]["seed"] if len(seeds) == 1 else None,
        cells=tuple(cells[name] for name in sorted(cells, key=lambda name: order[name])),
    )


def _availability(entry: Entry, num_existing: int) -> str:
    num_files = len({row["file"] for row in entry.system["files"]})
    if num_existing == num_files:
        return "all here"
    if num_existing:
        return f"{num_existing} of {num_files} here"
    if entry.system["role"] == "real":
        return "not kept as files"
    return f"none in {entry.folder}: say where with --audio"


def _dot_plots(
    entries: Sequence[Entry], marks: Marks, numbers: Mapping[str, int]
) -> Iterator[tuple[str, Picture, list[str]]]:
    """(label, picture, notes below it) of each plotted measure."""
    columns = list(columns_of(entries, marks))
    for column in columns:
        if column.measure.is_plotted and column.aspect != PLAIN:
            own = [other for other in columns if (other.metric, other.mark) == (column.metric, column.mark)]
            dots = []
            for entry in entries:
                for each in own:
                    metric = metric_of(entry, each, marks)
                    if metric["value"] is not None:
                        ends, reason = (metric["low"], metric["high"]), metric["reason"]
                        number, is_plain = numbers[entry.name], each.aspect == PLAIN
                        dots.append(pictures.Dot(entry.name, number, metric["value"], *ends, is_plain, reason))
            if dots:
                label = f"{column.measure.label}{f', judge {column.mark}' if column.mark else ''}"
                name = f"dots-{column.metric}-{column.mark}"
                scale = scale_of(column.measure.unit)
                drawn = pictures.dot_plot(label, dots, scale, name=name, name_length=_NAME_LENGTH)
                yield label, drawn, pictures.without_interval(dots)


def _neutral_speech(entries: Sequence[Entry]) -> NeutralTable:
    """The results' comparisons of prosody with neutral speech, with the page's names of the systems."""
    names: dict[Path, dict[str, str]] = {}
    for entry in entries:
        names.setdefault(entry.source, {})[entry.system["name"]] = entry.name
    results = {entry.source: entry.results for entry in entries}
    return join_tables([neutral_table(results[source], own) for source, own in names.items()])


def _system(entry: Entry, marks: Marks, sounds: str) -> dict[str, Any]:
    is_emotional = entry.system["role"] != "base" and not _is_neutral(entry)
    own = {kind: marks[kind].get(fingerprint, "") for kind, fingerprint in entry.fingerprint.items()}
    return {
        "name": entry.name, "what": _what(entry), "asked": entry.emotion if is_emotional else _NO_EMOTION,
        "sounds": sounds, "source": entry.source.name,
        "num_files": entry.system["num_files"], "num_failed": entry.system["num_failed"],
        "marks": [(kind, mark) for kind, mark in own.items() if mark],
        "failures": [(row["file"], row["error"]) for row in entry.system["files"] if row["error"]],
    }  # fmt: skip


def _what(entry: Entry) -> str:
    """A description of the system."""
    role, strength = entry.system["role"], entry.system["intensity"]
    if _is_neutral(entry):
        return _NEUTRAL
    if role == "adapter" and strength is not None:
        return f"{_ROLES[role]} at intensity {strength:g}"
    return (_FOLDERS if "folder" in entry.system else _ROLES)[role]


def _is_neutral(entry: Entry) -> bool:
    """Whether it is a folder of neutral speech that another one was compared with."""
    own = entry.system["name"]
    return entry.system["role"] == "files" and own == NEUTRAL and own != evaluated(entry.results)["name"]


def _warnings(entries: Sequence[Entry], marks: Marks) -> Iterator[str]:
    for kind, own in marks.items():
        if own:
            judged = "; ".join(
                f"{mark} is {fingerprint.split(' ')[0]} and judged "
                f"{', '.join(entry.name for entry in entries if entry.fingerprint.get(kind) == fingerprint)}"
                for fingerprint, mark in own.items()
            )
            yield (
                f"The {kind} judges differ: {judged}. Each judge's numbers have columns and pictures of their own and "
                "are not compared with the others'."
            )
    # The miniature's judges are made for runs on the miniature, so only other files get the warning.
    foreign = [entry for entry in entries if entry.system["role"] == "files"]
    kinds = [kind for kind in marks if any(_tier(entry, kind) == "miniature" for entry in foreign)]
    if kinds:
        yield f"The {' and '.join(kinds)} judges of {', '.join(entry.name for entry in foreign)}: {MINIATURE_NOTE}."
    versions = dict.fromkeys(entry.results["versions"].get("affetto", "unknown") for entry in entries)
    if len(versions) > 1:
        yield f"These were scored by different versions of affetto ({', '.join(versions)}): score them again with one."


def _tier(entry: Entry, kind: str) -> str | None:
    judge = entry.results["judges"].get(kind)
    return judge["tier"] if judge else None


def _judges(entries: Sequence[Entry], marks: Marks) -> Iterator[dict[str, Any]]:
    """Every judge once, with the systems that it judged."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        for kind, judge in entry.results["judges"].items():
            if judge is not None:
                fingerprint = entry.fingerprint[kind]
                mark = marks[kind].get(fingerprint, "")
                seen.setdefault((kind, fingerprint), {"kind": kind, "mark": mark, "judge": judge, "systems": []})
                seen[kind, fingerprint]["systems"].append(entry.name)
    yield from sorted(seen.values(), key=lambda item: (list(marks).index(item["kind"]), item["mark"]))


def _sources(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    by_path = {entry.source: entry.results for entry in entries}
    return [
        {"file": path.name, "command": results["command"], "versions": results["versions"]}
        for path, results in by_path.items()
    ]


def _units(entries: Sequence[Entry]) -> set[str]:
    tables = [entry.system[key] or {} for entry in entries for key in ("metrics", "plain_metrics")]
    return {measure.unit for measure in MEASURES.values()} | {m["unit"] for table in tables for m in table.values()}


def _title(entries: Sequence[Entry]) -> str:
    names = [entry.name for entry in entries]
    if len(names) <= 3:
        return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
    return f"{len(names)} systems compared"


def _plain(entry: Entry) -> str:
    return f"{entry.name}, plain prompt"
