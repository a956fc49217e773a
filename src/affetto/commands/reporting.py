"""The command line's verbs about what was measured: pages, and the form of results."""

from __future__ import annotations

import typer

app = typer.Typer()


@app.command()
def schema() -> None:
    """Print the JSON Schema of the results that an evaluation writes (docs/results.md)."""
    from affetto.evaluate.results_schema import results_schema
    from affetto.files import to_json

    typer.echo(to_json(results_schema()))
