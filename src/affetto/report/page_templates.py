"""The pages' templates, as the package ships them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from affetto.errors import counted
from affetto.report.canvas import look

if TYPE_CHECKING:
    from jinja2 import Environment


def page_templates(names: Sequence[str]) -> tuple[Environment, dict[str, str]]:
    """An environment that knows the named templates, escapes what it is given and stands no gap; and their texts."""
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
