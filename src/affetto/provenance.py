"""The versions of Python and packages that computed a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {
    "affetto": ("affetto",), "torch": ("torch",), "transformers": ("transformers",), "peft": ("peft",),
    "accelerate": ("accelerate",), "numpy": ("numpy",), "scipy": ("scipy",), "soundfile": ("soundfile",),
    "soxr": ("soxr",), "pyworld": ("pyworld-prebuilt", "pyworld"), "jiwer": ("jiwer",), "speechmos": ("speechmos",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}  # fmt: skip
"""Packages that numbers depend on, each with the distributions that provide it."""


def versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                found.setdefault(package, version(distribution))
            except PackageNotFoundError:
                continue
    return found
