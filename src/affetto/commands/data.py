"""The verbs about clips: import, check, transcribe and stats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affetto.commands.options import ConfigFile, fastest_device, pairs_of, require_suffix, settings_of
from affetto.errors import ConfigError, DataError, counted

if TYPE_CHECKING:
    from affetto.audio.overview import Examined
    from affetto.evaluate.clip_doubts import Hearing
    from affetto.types import Clip, Problem

app = typer.Typer(help="Work on clips before training: import, check, transcribe, count.", no_args_is_help=True)

SCHEMA = "affetto.data-check/1"
_MANIFEST = "a manifest has one JSON object per line"

Sources = Annotated[
    list[Path],
    typer.Argument(
        help="Manifests (.jsonl), tables (.csv, .tsv, .json), folders in a published layout, plain folders, "
        "hf:ID_OR_PATH?audio=COLUMN&text=COLUMN&emotion=COLUMN, or `miniature` (affetto's own clips)."
    ),
]
BySpeaker = Annotated[bool, typer.Option("--split-by-speaker", help="No speaker in more than one split.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad-clips", help="Exit with 0 even if some clips can't be read.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.")]


@app.command("import")
def import_(sources: Sources, out: Out = Path("manifest.jsonl"), skip_bad_clips: SkipBad = False) -> None:
    """Write one manifest of clips from published layouts, tables or data sets; no sound file is moved.

    Sounds that are stored inside a data set's rows are written to a folder beside the manifest.
    """
    from affetto.audio.checks import problem_table
    from affetto.audio.overview import import_clips
    from affetto.progress import console
    from affetto.types import EMOTIONS

    require_suffix(out, "--out", _MANIFEST, ".jsonl")
    if _is_read(out, sources):
        raise ConfigError(f"--out {out} is one of the sources, and its bad rows would be lost; name another manifest")
    clips, problems = import_clips(_with_miniature(sources), out, EMOTIONS)
    if problems:
        console.print(problem_table(problems))
    lost = _lost(problems)
    doubts = f", {len(problems) - len(lost)} kept despite the table" if len(lost) < len(problems) else ""
    typer.echo(f"{out}: {counted(len(clips), 'clip')}, {len(lost)} left out{doubts}")
    if lost and not skip_bad_clips:
        raise typer.Exit(1)


@app.command()
def check(
    sources: Sources,
    by_speaker: BySpeaker = False,
    judge: Annotated[
        list[str] | None,
        typer.Option("--judge", help="words=ID_OR_FOLDER checks texts, emotion=… checks labels; repeat for both."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables (docs/data.md).")] = False,
    config: ConfigFile = None,
) -> None:
    """Open every clip and list everything that is wrong or doubtful at once.

    With --config the emotions are the configured ones, and its split_by_speaker counts as --split-by-speaker.

    Exit status 1 if a clip can't be used, or if splits that came with the clips share texts, sounds or (with
    --split-by-speaker) speakers. Doubts don't change the status.
    """
    from affetto.audio.checks import problem_table
    from affetto.audio.overview import examine, statistics, statistics_table
    from affetto.files import to_json
    from affetto.progress import show

    choices = pairs_of(judge, "--judge") or {}
    if unknown := sorted(choices.keys() - {"words", "emotion"}):
        raise ConfigError(f"--judge {unknown[0]}: clips are checked by a words judge or an emotion judge")
    settings, emotions = settings_of(config, None)
    by_speaker = by_speaker or settings.split_by_speaker
    examined = examine(_with_miniature(sources), emotions, by_speaker=by_speaker, workers=os.cpu_count() or 1)
    hearings = _hearings(examined, choices)
    doubts = [*examined.doubts, *(doubt for hearing in hearings.values() if hearing for doubt in hearing.doubts)]
    is_bad = bool(examined.problems or examined.leaks)
    if as_json:
        typer.echo(to_json(_document(examined, hearings, doubts, by_speaker)))
        raise typer.Exit(int(is_bad))
    if listed := [*examined.problems, *examined.leaks, *doubts]:
        show(problem_table(listed, "problems and doubts"))
    show(statistics_table(statistics(examined.clips)))
    for kind, hearing in hearings.items():
        typer.echo(_hearing_line(kind, hearing))
    typer.echo(_machine_texts_line(examined))
    bad = len({problem.where for problem in examined.problems})
    good = counted(len(examined.clips), "clip is", "clips are")
    leaks = counted(len(examined.leaks), "leak")
    typer.echo(f"{good} good, {bad} {'is' if bad == 1 else 'are'} not, {leaks}, {counted(len(doubts), 'doubt')}")
    raise typer.Exit(int(is_bad))


@app.command()
def transcribe(
    sources: Sources,
    words: Annotated[str, typer.Option("--words", help="Recogniser: a hub id (Whisper, CTC), a folder, or miniature.")],
    out: Out = Path("manifest.jsonl"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda. Default: the GPU if there is one.")] = "",
    skip_bad_clips: SkipBad = False,
) -> None:
    """Transcribe clips that have no text; existing texts stay as they are.

    Each new text is marked with `transcribed_by` in the manifest. Run it again to continue after an interruption.

    Exit status 1 if a clip was left out or got no text. Doubts don't change the status.
    """
    from affetto.audio.checks import problem_table
    from affetto.audio.corpora import load_clips
    from affetto.audio.manifest import write_manifest
    from affetto.audio.overview import sounds_beside
    from affetto.evaluate.transcription import journal_of, transcribe
    from affetto.judges.choice import load_judge
    from affetto.progress import console
    from affetto.types import EMOTIONS

    require_suffix(out, "--out", _MANIFEST, ".jsonl")
    clips, problems = load_clips(_with_miniature(sources), emotions=EMOTIONS, sounds=sounds_beside(out))
    if _lost(problems) and _is_read(out, sources):
        console.print(problem_table(problems))
        raise DataError(
            f"{out} has rows that can't be read (table above) and would be lost; mend them, or name another --out"
        )
    done = transcribe(clips, load_judge("words", words, device or fastest_device()), journal_of(out))
    write_manifest(out, done.clips)
    journal_of(out).unlink(missing_ok=True)
    problems = [*problems, *done.problems]
    if problems:
        console.print(problem_table(problems))
    given = sum(clip.text is not None and clip.text.strip() != "" for clip in clips)
    resumed = f" ({done.num_resumed} heard by an earlier run)" if done.num_resumed else ""
    written, there = counted(done.num_written, "text"), f"{given} {'was' if given == 1 else 'were'} there"
    typer.echo(f"{out}: {written} written{resumed}, {there}, {len(done.problems)} not written")
    if _lost(problems) and not skip_bad_clips:
        raise typer.Exit(1)


def _is_read(out: Path, sources: Sequence[Path]) -> bool:
    """Whether one of the sources is `out`, or a folder of which `out` is the table."""
    from affetto.files import expanded, is_same_file

    path = out.resolve()
    is_table = path.name in ("manifest.jsonl", "metadata.jsonl")
    return out.exists() and any(
        is_same_file(source, out) or (is_table and source.resolve() in path.parents)
        for source in map(expanded, sources)
    )


@app.command()
def stats(
    sources: Sources,
    by_speaker: BySpeaker = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--page", help="Also write an HTML page with pictures of durations, speakers, pitch and level."),
    ] = None,
    measured: Annotated[
        int, typer.Option(min=1, help="Clips of each emotion to measure pitch and level on, for the page.")
    ] = 60,
) -> None:
    """Count clips, minutes, speakers, texts and splits by emotion; nothing is checked."""
    from affetto.audio.corpora import load_clips
    from affetto.audio.overview import placed, statistics, statistics_table
    from affetto.files import to_json
    from affetto.progress import show
    from affetto.types import EMOTIONS

    if page is not None:
        require_suffix(page, "--page", "the page is HTML", ".html", ".htm")
    clips, problems = load_clips(_with_miniature(sources), emotions=EMOTIONS)
    _say_left_out(clips, problems, sources)
    clips = placed(clips, by_speaker=by_speaker)
    rows = statistics(clips)
    if as_json:
        typer.echo(to_json(rows))
    else:
        show(statistics_table(rows))
    if page is not None:
        from affetto.report.data_page import write_data_page

        title = ", ".join(dict.fromkeys(clip.corpus for clip in clips))
        write_data_page(clips, page, title=title, measured=measured)
        typer.echo(page, err=as_json)


def _say_left_out(clips: Sequence[Clip], problems: Sequence[Problem], sources: Sequence[Path]) -> None:
    """Say how many rows or files were left out, by kind of problem. DataError if no clip is left."""
    from affetto.progress import say

    lost = _lost(problems)
    kinds = Counter(problem.kind for problem in lost).most_common()
    number = len({problem.where for problem in lost})
    message = f"{counted(number, 'row or file is', 'rows or files are')} left out"
    message += f" ({', '.join(f'{count} {kind}' for kind, count in kinds)}): affetto data check says what to mend"
    if not clips:
        raise DataError(f"there is no clip to count in {', '.join(map(str, sources))}: {message}")
    if lost:
        say(message, style="yellow")


def _with_miniature(sources: Sequence[Path]) -> list[Path]:
    """`sources` as paths, with `miniature` replaced by the manifests of its clips (rendered if needed) unless there is
    a folder of that name."""
    from affetto.files import expanded

    paths: list[Path] = []
    for source in sources:
        if str(source) == "miniature" and not source.exists():
            from affetto.miniature.data import ACTED, miniature_sources

            paths += miniature_sources(ACTED)
        else:
            paths.append(expanded(source))
    return paths


def _lost(problems: Sequence[Problem]) -> list[Problem]:
    """The problems that exclude a clip."""
    return [problem for problem in problems if not problem.costs_no_clip]


def _hearings(examined: Examined, choices: dict[str, str]) -> dict[str, Hearing | None]:
    """The chosen judges' findings by kind; None without a judge."""
    hearings: dict[str, Hearing | None] = {"words": None, "emotion": None}
    if choices.get("words", "none") != "none":
        from affetto.evaluate.clip_doubts import doubt_texts
        from affetto.judges.choice import load_judge

        hearings["words"] = doubt_texts(examined.clips, load_judge("words", choices["words"], fastest_device()))
    if choices.get("emotion", "none") != "none":
        from affetto.evaluate.clip_doubts import doubt_labels
        from affetto.judges.choice import load_judge

        hearings["emotion"] = doubt_labels(examined.clips, load_judge("emotion", choices["emotion"], fastest_device()))
    return hearings


_CHECKED = {"words": "texts", "emotion": "labels"}
_MEASURE = {"words": "median character error rate", "emotion": "mean recall"}


def _hearing_line(kind: str, hearing: Hearing | None) -> str:
    if hearing is None:
        return f"{_CHECKED[kind]} not checked by ear: no --judge {kind}=ID_OR_FOLDER"
    measure = "" if hearing.measure is None else f", {_MEASURE[kind]} {hearing.measure:.2f}"
    reason = f"; {hearing.reason}" if hearing.reason else ""
    heard, doubts = counted(hearing.num_clips, "clip"), counted(len(hearing.doubts), "doubt")
    return f"{_CHECKED[kind]}: {hearing.judge} heard {heard}{measure}, {doubts}{reason}"


def _machine_texts_line(examined: Examined) -> str:
    from affetto.audio.overview import machine_texts

    counts = machine_texts(examined.clips)
    if not counts:
        num_texts = sum(clip.text is not None for clip in examined.clips)
        return f"none of {counted(num_texts, 'text')} was written by machine: no clip has transcribed_by"
    by_model = ", ".join(f"{count} by {model}" for model, count in counts.items())
    return f"{counted(sum(counts.values()), 'text was', 'texts were')} written by machine: {by_model}"


def _document(
    examined: Examined, hearings: dict[str, Hearing | None], doubts: list[Any], by_speaker: bool
) -> dict[str, Any]:
    """The document of `affetto data check --json`."""
    from affetto.audio.overview import machine_texts, statistics

    def rows(problems: Any) -> list[dict[str, str]]:
        return [{"where": item.where, "kind": item.kind, "message": item.message} for item in problems]

    return {
        "schema": SCHEMA,
        "good": len(examined.clips),
        "problems": rows(examined.problems),
        "leaks": rows(examined.leaks),
        "doubts": rows(doubts),
        "by_speaker": by_speaker,
        "machine_texts": machine_texts(examined.clips),
        "judges": {
            kind: {"reason": f"not checked: no --judge {kind}=ID_OR_FOLDER"} if hearing is None else hearing.to_json()
            for kind, hearing in hearings.items()
        },
        "statistics": statistics(examined.clips),
    }
