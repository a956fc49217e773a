"""Options that several verbs share, and their conversion to settings."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affetto.errors import ConfigError

if TYPE_CHECKING:
    from affetto.config import Config

BUDGET_NOT_MET = 3
"""Exit status of a run that succeeded but forgot more than its budget."""
FILES_FAILED = 4
"""Exit status of an evaluation that succeeded but could not score some files."""

Emotion = Annotated[
    list[str] | None,
    typer.Option(
        "--emotion", "-e",
        help="An emotion of the configuration; repeat for several. Default: each in turn; `all`: together in one run.",
    ),
]  # fmt: skip
EachEmotion = Annotated[
    list[str] | None,
    typer.Option("--emotion", "-e", help="An emotion of the configuration; repeat for several. Default: each."),
]
"""For verbs that don't train, where `all` means the same as the default."""
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file with the run's settings.", exists=True, dir_okay=False)
]
BaseName = Annotated[
    str | None, typer.Option("--base", help="Base model: miniature, a folder, or a hub id such as sesame/csm-1b.")
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Manifest (.jsonl), folder of clips, table, or hf:ID_OR_PATH (docs/data.md); repeat for several. "
        "Default: the miniature's clips.",
    ),
]
General = Annotated[
    str | None,
    typer.Option(
        "--general",
        help="General speech: data (the data's clips without emotion) or self (spoken by the base). Default: data.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for emotion_models/, evaluation_results/ and samples. Default: `.`."),
]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 always takes the likeliest code. Default: 0.6.")]
DepthTemperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="For all codebooks but the first. Default: two thirds of --temperature; with Moshi and Dia the same.",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad-clips", help="Leave out bad clips instead of stopping.")]
SkipDatasets = Annotated[
    bool,
    typer.Option("--skip-datasets", help="Don't read or check the data again: use what was prepared before."),
]
Judge = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        help="KIND=ID_OR_FOLDER, KIND being emotion, words, quality, voice, dimensions or embedding; `none` turns one "
        "off. Repeat for several.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]


def settings_of(
    config: Path | None, emotion: list[str] | None, *, with_base: bool = False, **overrides: Any
) -> tuple[Config, list[str]]:
    """The configuration with the command line's values, and the emotions that `emotion` names.

    None and `all` mean every emotion. With `with_base`, `base` (the expressive base) may be named too. ConfigError for
    wrong keys and values, and for an emotion that isn't configured.
    """
    from affetto.config import EVERY, EXPRESSIVE, load_config
    from affetto.errors import did_you_mean

    values = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    settings = load_config(config, told_as="command line", **values)
    wanted = list(dict.fromkeys(settings.emotions if emotion in (None, [], [EVERY]) else emotion or ()))
    valid = (*settings.emotions, EXPRESSIVE) if with_base else settings.emotions
    if unknown := [name for name in wanted if name not in valid]:
        if unknown[0] == EXPRESSIVE:
            raise ConfigError(
                "base is the expressive base over all emotions, so there is no one emotion to judge it by. "
                "Train emotions on it (expressive_base: true) and evaluate those"
            )
        if unknown[0] == EVERY:
            raise ConfigError("--emotion all means every emotion: leave out either it or the other --emotion")
        raise ConfigError(
            f"unknown emotion {unknown[0]!r}{did_you_mean(unknown[0], settings.emotions)}; configured: "
            f"{', '.join(settings.emotions)}. Add it to `emotions` in the configuration"
        )
    return settings, wanted


def are_named(emotion: list[str] | None) -> bool:
    """Whether the user named emotions. If not, all configured ones are meant, and the data may lack some."""
    return bool(emotion) and not is_together(emotion)


def is_together(emotion: list[str] | None) -> bool:
    """Whether all emotions are to be trained in one run (`--emotion all`)."""
    from affetto.config import EVERY

    return emotion == [EVERY]


def pairs_of(values: list[str] | None, option: str, form: str = "KIND=ID_OR_FOLDER") -> dict[str, str] | None:
    """Options such as `KIND=VALUE` as a dictionary; None if there are none. ConfigError for an option that isn't of
    that `form`, and for two values of one key."""
    if not values:
        return None
    pairs: dict[str, str] = {}
    for item in values:
        key, sign, value = item.partition("=")
        if not (key and sign and value):
            raise ConfigError(f"{option} {item}: write it as {form}")
        if pairs.setdefault(key, value) != value:
            raise ConfigError(f"{option} {key}={pairs[key]} and {option} {item} contradict each other: leave one out")
    return pairs


def refuse(options: Mapping[str, object], why: str) -> None:
    """ConfigError if any of `options` is given (not None), since it would be ignored; `why` introduces their names."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ConfigError(f"{why}: leave out {', '.join(given)}")


def require_suffix(path: Path, option: str, kind: str, *suffixes: str) -> None:
    """ConfigError if the file to write has another suffix: a file of that name may hold something else."""
    if not path.name:
        raise ConfigError(f"{option} is empty: {kind}; name a file that ends in {suffixes[0]}")
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {path}: {kind}; name it {path.with_suffix(suffixes[0])}")


def command_line() -> str:
    """The command as the user gave it, for the record, without --resume, which doesn't change the results."""
    from affetto.files import as_text

    return as_text(shlex.join(["affetto", *(word for word in sys.argv[1:] if word != "--resume")]))


def fastest_device() -> str:
    """`cuda` if there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def earlier_turn(said: str, speaker: int) -> tuple[Path, int]:
    """(file, speaker) of `FILE` or `NUMBER:FILE`."""
    number, mark, path = said.partition(":")
    return (Path(path), int(number)) if mark and number.isdecimal() else (Path(said), speaker)
