"""The verbs about listening tests with people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from affetto.commands.options import ConfigFile, Output, pairs_of, settings_of
from affetto.errors import ConfigError

app = typer.Typer(help="Listening tests with people: export one, score the votes.", no_args_is_help=True)


@app.command()
def export(
    emotion: Annotated[str, typer.Option("--emotion", "-e", help="The emotion that listeners should hear.")],
    out: Annotated[Path, typer.Option(help="New folder for the test; the key goes beside it.")] = Path("listening"),
    system: Annotated[
        list[str] | None,
        typer.Option("--system", help="NAME=FOLDER of sounds; repeat. Default: base and adapter of the evaluation."),
    ] = None,
    sentences: Annotated[int, typer.Option(min=1, help="Number of sentences.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of sentences, their order and names.")] = 0,
    config: ConfigFile = None, output: Output = None,
) -> None:  # fmt: skip
    """Write a blinded test of naturalness, emotion and preference: test.html, and webmushra.yaml beside it."""
    from affetto.listening.test_page import export_test

    settings, _ = settings_of(config, [emotion], output_dir=output)
    samples = settings.output_dir / "evaluation" / "test_samples"
    folders = {name: Path(folder) for name, folder in (pairs_of(system, "--system", "NAME=FOLDER") or {}).items()}
    folders = folders or {"base": samples / f"{emotion}_base", emotion: samples / emotion}
    if missing := [folder for folder in folders.values() if not folder.is_dir()]:
        remedy = "see --system" if system else f"affetto evaluate --emotion {emotion}, or name others with --system"
        raise ConfigError(f"there is no folder {missing[0]}: {remedy}")
    key = export_test(folders, out, settings.emotions, num_sentences=sentences, seed=seed)
    typer.echo(f"{out / 'test.html'} is for the listeners; keep {key} to yourself")


@app.command()
def score(
    votes: Annotated[list[Path], typer.Argument(help="The listeners' answers: .json files, or webMUSHRA's lss.csv.")],
    key: Annotated[Path, typer.Option("--key", help="The key that export wrote.", exists=True, dir_okay=False)],
    target: Annotated[
        str | None, typer.Option("--emotion", "-e", help="The emotion that listeners should have heard.")
    ] = None,
) -> None:
    """Print mean opinion scores, heard emotions and preferences, with intervals, as JSON."""
    from affetto.files import to_json
    from affetto.listening.votes import read_key, read_votes, score_votes

    content = read_key(key)
    typer.echo(to_json(score_votes(content, read_votes(votes, content["test"]), target)))
