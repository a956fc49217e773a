"""What is known of a kind of base without a checkpoint: the model that a configuration makes, and its speech's pace.

Plans are made of it, before anything is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from affetto.quiet import quiet_transformers


@dataclass(frozen=True)
class Outline:
    """Of one kind of base (docs/bases.md)."""

    config_class: str
    """transformers' class of the configuration."""
    model_class: str
    """transformers' class of the model."""
    depths: tuple[str, ...]
    """Where the configuration counts the layers of each part."""
    frame_rate: float
    """Frames per second of the codec, whose own files aren't read."""
    codec: str | None = None
    """The model's child that is a codec, which the process that trains does without."""
    unread: tuple[str, ...] = ()
    """Where the configuration counts rows of embeddings that are looked up and never multiplied with."""
    tokens_per_s: float = 4.0
    """Text tokens before a second of speech, which has about 14 characters. Assumed."""
    template_tokens: int = 12
    """Those of the marks and the prompt's own words. Assumed."""
    end_frames: int = 1
    """Predicted frames behind a clip's own."""
    reads_indices: bool = False
    """Whether the network's road depends on what its indices are, such as the places of a mask, and not on shapes
    alone."""
    finish: Callable[[Any], object] | None = None
    """What loading does to a model beside filling in its weights."""

    def configuration(self, values: Mapping[str, Any]) -> Any:
        """transformers' configuration of what stands in a config.json; what it refuses with is its own."""
        import transformers

        with quiet_transformers():
            return getattr(transformers, self.config_class).from_dict(_without_dtype(values))

    def model(self, config: Any) -> Any:
        """A frozen model, without its codec, as torch's default type and modes make its weights."""
        import transformers

        with quiet_transformers():
            model = getattr(transformers, self.model_class)(config).requires_grad_(False)
        if self.codec is not None:
            delattr(model, self.codec)
        if self.finish is not None:
            self.finish(model)
        return model

    def short(self, config: Any) -> Any:
        """The configuration of a model of the same widths with one layer in each part."""
        small = copy.deepcopy(config)
        for places, value in ((self.depths, 1), (self.unread, 64)):
            for place in places:
                owner, _, name = place.rpartition(".")
                setattr(attrgetter(owner)(small) if owner else small, name, value)
        return small


def _without_dtype(values: Any) -> Any:
    """The parts of a model would be made in the precision that a configuration says they are stored in."""
    if not isinstance(values, Mapping):
        return values
    return {key: _without_dtype(value) for key, value in values.items() if key not in ("dtype", "torch_dtype")}
