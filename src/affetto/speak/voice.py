"""One base, many emotions, any strength, any blend: the library's speaking interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.checkpoints import load_adapter
from affetto.audio.sound import write_sound
from affetto.codes.codec import load_codec
from affetto.errors import AdapterError, ConfigError
from affetto.model.base import Base, load_base
from affetto.model.csm import CsmNetwork
from affetto.model.light import load_for_speaking
from affetto.model.rows import PLAIN_TEMPLATE
from affetto.speak.engine import Engine
from affetto.speak.generation import Request, Spoken, frame_cap, generate, weights_of
from affetto.types import SPEAKING_TEMPERATURE, Codec


class Voice:
    """A base and its loaded adapters.

    voice = Voice.load("miniature")
    voice.load_adapter("happy", Path("emotion_models/happy/best"))
    samples, rate = voice.speak("I found the silver key", emotion="happy", intensity=0.8)
    """

    def __init__(self, base: Base, bank: AdapterBank | None = None) -> None:
        self.base = base
        self.bank = bank
        self._templates: dict[str, str] = {}
        self._intensities: dict[str, float] = {}

    @classmethod
    def load(
        cls,
        base: str = "miniature",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        only_speaks: bool = False,
    ) -> Voice:
        """Load a base by name, folder or hub id. With `only_speaks` it loads faster and gives no logits."""
        load = load_for_speaking if only_speaks else load_base
        return cls(load(base, device=device, dtype=dtype))

    @property
    def emotions(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(self.bank.names) if self.bank else ()

    def recommended_intensity(self, name: str) -> float:
        """At which a loaded adapter speaks unless told otherwise."""
        return self._intensities[name]

    def load_adapter(self, name: str, folder: Path, *, allow_other_base: bool = False) -> None:
        """Load the adapter, or fully fine-tuned checkpoint, in `folder` under `name`.

        See `affetto.adapters.peft_files` for what is refused.
        """
        if self.bank is None:
            # Adapters may change different layers, so the bank covers all; one without adapters costs nothing.
            self.bank = AdapterBank(self.base.model, self.base.network.gates, all_targets(self.base.model))
        adapter = load_adapter(self.bank, name, folder, self.base.hash, allow_other_base)
        self._templates[name] = str(adapter.facts.get("prompt_template", PLAIN_TEMPLATE))
        self._intensities[name] = adapter.recommended_intensity

    def request(
        self,
        text: str,
        emotion: str | Mapping[str, float] | None = None,
        *,
        intensity: float | None = None,
        speaker: int = 0,
        seed: int = 0,
        temperature: float = SPEAKING_TEMPERATURE,
        cued: bool = True,
    ) -> Request:
        """The request for `text`. `emotion` is a name or a blend {name: share}; `intensity` scales it.

        Without `intensity` each adapter speaks at the intensity that its training recommends. `cued=False` leaves the
        prompt plain with the adapter on, which shows what leaks.
        """
        shares = {emotion: 1.0} if isinstance(emotion, str) else dict(emotion or {})
        if unknown := [name for name in shares if name not in self.emotions]:
            raise AdapterError(
                f"no adapter is loaded for {', '.join(unknown)}; loaded: {', '.join(self.emotions) or 'none'}"
            )
        strengths = {
            name: share * (self._intensities.get(name, 1.0) if intensity is None else intensity)
            for name, share in shares.items()
        }
        gate = tuple(self.bank.gate(strengths).tolist()) if self.bank else ()
        template = PLAIN_TEMPLATE
        if cued and any(strengths.values()) and not self.base.has_text_stream:
            template = self._templates.get(max(strengths, key=lambda name: strengths[name]), PLAIN_TEMPLATE)
        ids = self.base.prompt_ids(template.replace("{text}", text), speaker)
        cap = frame_cap(text, self.base.frame_rate)
        return Request(ids, cap, gate, seed=seed, temperature=temperature)

    def speak(
        self, text: str, emotion: str | Mapping[str, float] | None = None, *, intensity: float | None = None,
        speaker: int = 0, seed: int = 0, temperature: float = SPEAKING_TEMPERATURE,
    ) -> tuple[NDArray[np.float32], int]:  # fmt: skip
        """Speak; returns (mono samples, sample rate). No emotion is the base."""
        request = self.request(text, emotion, intensity=intensity, speaker=speaker, seed=seed, temperature=temperature)
        return self.decode(self.generate([request])[0]), self.codec.sample_rate

    def stream(
        self, text: str, emotion: str | Mapping[str, float] | None = None, *, intensity: float | None = None,
        speaker: int = 0, seed: int = 0, temperature: float = SPEAKING_TEMPERATURE,
    ) -> Iterator[NDArray[np.float32]]:  # fmt: skip
        """What `speak` gives, in pieces while it is spoken: mono samples, a frame (80 ms) each.

        Mimi gives each frame at once and keeps its state (`affetto.codes.sound_stream`); Moshi itself is a frame late.
        The miniature's codec is a frame late too and decodes all that was said so far for every piece: it keeps up with
        real time for about six seconds.
        """
        request = self.request(text, emotion, intensity=intensity, speaker=speaker, seed=seed, temperature=temperature)
        frames, sound = self._frames(request), self.codec.open_stream()
        for codes_K in frames:
            if len(samples := sound.push(codes_K[None])):
                yield samples
        if len(samples := sound.finish()):
            yield samples

    def _frames(self, request: Request) -> Iterator[NDArray[np.int64]]:
        """Codes (K,) of each frame, as soon as it is known."""
        network = self.base.network
        if isinstance(network, CsmNetwork):
            engine = Engine(weights_of(network))
            engine.join([request])
            while engine.num_speaking:
                yield from (heard.codes_K for heard in engine.step() if heard.codes_K is not None)
        elif self.base.has_text_stream:
            from affetto.speak.dialogue import stream_words

            yield from stream_words(self.base, request)
        else:
            raise ConfigError(f"{self.base.id} says all codes of a text at once: speak whole texts with it")

    def generate(self, requests: Sequence[Request], on_progress: Callable[[int], object] | None = None) -> list[Spoken]:
        """Codes of many requests, batched. Requests made before an adapter was loaded don't use it."""
        padded = [replace(request, gate=self._padded(request.gate)) for request in requests]
        return generate(self.base, padded, on_progress=on_progress)

    def _padded(self, gate: tuple[float, ...]) -> tuple[float, ...]:
        return gate + (0.0,) * (len(self.emotions) - len(gate))

    def decode(self, spoken: Spoken) -> NDArray[np.float32]:
        """Samples of what was said."""
        return self.codec.decode(spoken.codes_TK)

    @cached_property
    def codec(self) -> Codec:
        """The base's codec, loaded when first needed."""
        return load_codec(self.base.folder)


def speak_to_file(
    text: str,
    blend: Mapping[str, float],
    out: Path,
    *,
    base: str = "miniature",
    models: Path = Path("emotion_models"),
    intensity: float | None = None,
    speaker: int = 0,
    seed: int = 0,
    temperature: float = SPEAKING_TEMPERATURE,
) -> None:
    """`affetto speak`: load what the blend needs from `models/<emotion>/best`, speak, write `out`."""
    voice = Voice.load(base, only_speaks=True)
    for name in blend:
        folder = models / name / "best"
        if not folder.is_dir():
            raise AdapterError(
                f"there is no adapter {folder}. Train it: affetto train --emotion {name}; or point --models elsewhere"
            )
        voice.load_adapter(name, folder)
    samples, rate = voice.speak(text, blend, intensity=intensity, speaker=speaker, seed=seed, temperature=temperature)
    write_sound(out, samples, rate)
