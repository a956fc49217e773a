"""Which versions of what computed a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of Python, affetto and the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("affetto", "torch", "transformers", "peft", "accelerate", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
