"""Loads the pages' templates from the package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from affetto.errors import counted
from affetto.report.canvas import look

if TYPE_CHECKING:
    from jinja2 import Environment


def page_templates(names: Sequence[str]) -> tuple[Environment, dict[str, str]]:
    """An environment with the named templates, which escapes values and refuses undefined ones; and their texts."""
    import jinja2

    folder = resources.files("affetto.report") / "templates"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["look"] = look
    environment.filters["counted"] = counted
    return environment, texts
