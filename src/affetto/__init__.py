"""affetto: teach a speech language model to speak with emotion without forgetting anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affetto.speak.voice import Voice

    __version__: str

__all__ = ["Voice", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on demand, so that `affetto --help` needn't wait for torch or the packages' metadata.
    if name == "Voice":
        from affetto.speak.voice import Voice

        return Voice
    if name == "__version__":
        from importlib.metadata import version

        return version("affetto")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
