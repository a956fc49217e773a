"""The verb that converts checkpoints of another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A folder, or a hub id such as kyutai/moshiko-pytorch-bf16[@REVISION]."),
    ],
    target: Annotated[Path, typer.Argument(help="New folder; as large as the checkpoint (16 GB for Moshi 7B).")],
) -> None:
    """Convert a checkpoint of the moshi package to transformers' format, which --base and transformers read."""
    from affetto.model.conversion.moshi import convert_named

    typer.echo(convert_named(checkpoint, target))
