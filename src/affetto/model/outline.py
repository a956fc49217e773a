"""Facts about a kind of base without a checkpoint: the model that a configuration defines, and the pace of its speech.

Plans are made from them before anything is loaded.
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
    """Facts about one kind of base (docs/bases.md)."""

    config_class: str
    """transformers' class of the configuration."""
    model_class: str
    """transformers' class of the model."""
    depths: tuple[str, ...]
    """The configuration's keys for the number of layers in each part."""
    frame_rate: float
    """Frames per second of the codec, whose own files aren't read."""
    codec: str | None = None
    """The name of the model's child that is the codec, which training doesn't need."""
    unread: tuple[str, ...] = ()
    """The configuration's keys for the number of embedding rows, which are looked up and never multiplied."""
    tokens_per_s: float = 4.0
    """Text tokens per second of speech, which has about 14 characters. Assumed."""
    template_tokens: int = 12
    """Tokens of the prompt template's marks and words. Assumed."""
    end_frames: int = 1
    """Predicted frames after a clip's own."""
    reads_indices: bool = False
    """Whether the forward pass depends on the values of indices, such as a mask's, and not on shapes alone."""
    finish: Callable[[Any], object] | None = None
    """What loading does to a model besides filling in its weights."""

    def configuration(self, values: Mapping[str, Any]) -> Any:
        """transformers' configuration from the content of a config.json; raises transformers' own errors."""
        import transformers

        with quiet_transformers():
            return getattr(transformers, self.config_class).from_dict(_without_dtype(values))

    def model(self, config: Any) -> Any:
        """A frozen model, without its codec, with weights made under torch's current default type and modes."""
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
    """`values` without dtypes: otherwise the model would be made in the precision of the stored weights."""
    if not isinstance(values, Mapping):
        return values
    return {key: _without_dtype(value) for key, value in values.items() if key not in ("dtype", "torch_dtype")}
