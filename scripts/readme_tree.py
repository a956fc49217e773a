"""Print the README's tree: every folder with its docstring's first sentence. A test holds the README to it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def tree() -> str:
    """The README's tree block."""
    lines = ["```", "src/affetto/"]
    package = ROOT / "src" / "affetto"
    folders = sorted({path.parent for path in package.rglob("*.py")}, key=_order)
    for folder in folders:
        depth = len(folder.relative_to(package).parts)
        if folder != package:
            about = _first_sentence(folder / "__init__.py")
            lines.append("  " * depth + f"{folder.name}/".ljust(18 - 2 * depth) + about)
    return "\n".join([*lines, "```"])


_STAGES = (
    "", "commands", "audio", "codes", "native", "model", "adapters", "preserve", "training", "planning", "speak",
    "judges", "metrics", "evaluate", "report", "listening", "doctor", "laboratory", "miniature",
)  # fmt: skip


def _order(folder: Path) -> tuple[int, str]:
    relative = folder.relative_to(ROOT / "src" / "affetto")
    top = relative.parts[0] if relative.parts else ""
    return _STAGES.index(top), relative.as_posix()


def _first_sentence(path: Path) -> str:
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    sentence = text.split(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 110 else sentence[:107].rsplit(" ", 1)[0] + " …"


if __name__ == "__main__":
    print(tree())
