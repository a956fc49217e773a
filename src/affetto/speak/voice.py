"""One base, many emotions, any strength, any blend: the library's speaking interface."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import soxr
import torch
from numpy.typing import ArrayLike, NDArray

from affetto.adapters.bank import AdapterBank, all_targets
from affetto.adapters.checkpoints import load_adapter
from affetto.codes.codec import load_codec
from affetto.codes.decoding import decode_each
from affetto.errors import AdapterError, ConfigError
from affetto.model.base import DTYPES, MINIATURE, Base, load_base
from affetto.model.batch import Turn
from affetto.model.csm import CsmNetwork
from affetto.model.light import load_for_speaking, speaks_only
from affetto.model.rows import PLAIN_TEMPLATE
from affetto.progress import say
from affetto.speak.arguments import (
    blend_of,
    mono_sound,
    require_device,
    require_dtype,
    require_intensity,
    require_rate,
    require_seed,
    require_speaker,
    require_temperature,
    require_words,
    turns_of,
)
from affetto.speak.characters import Signs
from affetto.speak.generation import cut_off, frames_that_fit, generate_best
from affetto.speak.requests import Request, Spoken
from affetto.speak.streaming import Piece, can_stream, stream
from affetto.types import SPEAKING_TAKES, SPEAKING_TEMPERATURE, Codec


class Voice:
    """A base and its loaded adapters.

    voice = Voice.load("miniature")
    voice.load_adapter("happy", Path("emotion_models/happy/best"))
    samples, rate = voice.speak("I found the silver key", emotion="happy", intensity=0.8)

    Of a given `bank` only the weights are known, so its adapters speak at intensity 1 and with plain prompts.
    """

    def __init__(self, base: Base, bank: AdapterBank | None = None) -> None:
        self.base = base
        self.bank = bank
        self._templates: dict[str, str] = {}
        self._intensities: dict[str, float] = {}
        self._speakers: dict[str, dict[str, int]] = {}
        self._signs = Signs(base)
        self._warned: set[str] = set()

    @classmethod
    def load(
        cls,
        base: str | Path = "miniature",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        only_speaks: bool = False,
    ) -> Voice:
        """Load a base by name, folder or hub id. With `only_speaks` it loads faster but gives no logits, and on a GPU
        its adapters wait in the host's memory.

        `device` is cpu or cuda (cuda:1 is the second GPU), `dtype` float32, bfloat16 or float16; ConfigError for
        anything else, or for a GPU that isn't there.
        """
        require_device(device)
        require_dtype(dtype)
        load = load_for_speaking if only_speaks else load_base
        return cls(load(str(base), device=device, dtype=dtype))

    @classmethod
    def of_run(cls, base: str, precision: str) -> Voice:
        """The base of a run, loaded to be evaluated: on `usual_device`, and on a GPU in the run's `base_precision`.

        A base that is trained in four bits speaks in bfloat16; a CPU always computes in float32.
        """
        device = usual_device(base)
        if device == "cpu":
            return cls.load(base)
        # Free what training held on the GPU before the base is loaded a second time.
        gc.collect()
        torch.cuda.empty_cache()
        return cls.load(base, device=device, dtype=DTYPES[precision])

    @property
    def emotions(self) -> tuple[str, ...]:
        """Names of the loaded adapters."""
        return tuple(self.bank.names) if self.bank else ()

    def recommended_intensity(self, name: str) -> float:
        """The intensity that a loaded adapter speaks at by default. AdapterError for one that isn't loaded."""
        self._require_loaded([name])
        return self._intensities.get(name, 1.0)

    def strengths(self, emotion: str | Mapping[str, float] | None, intensity: float | None = None) -> dict[str, float]:
        """The intensity of each adapter: its share of `intensity`, or of what its training recommends.

        `emotion` is as for `request`; so are the errors.
        """
        shares = blend_of(emotion)
        require_intensity(intensity, shares)
        self._require_loaded(list(shares))
        return {
            name: share * (self.recommended_intensity(name) if intensity is None else float(intensity))
            for name, share in shares.items()
        }

    def _require_loaded(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self.emotions]:
            raise AdapterError(
                f"no adapter is loaded for {', '.join(unknown)}; loaded: {', '.join(self.emotions) or 'none'}"
            )

    def load_adapter(self, name: str, folder: str | Path, *, allow_other_base: bool = False) -> None:
        """Load the adapter or fully fine-tuned checkpoint in `folder` as `name`, which is what the emotion is called.

        It stays as long as the voice, so a name is given once. AdapterError for a name that is taken or can't be
        written in a blend, and for what doesn't fit the base or isn't s·B·A (`affetto.adapters.peft_files`).
        """
        if self.bank is None:
            # Adapters may change different layers, so the bank covers all; a layer without adapters costs nothing.
            self.bank = AdapterBank(
                self.base.model, self.base.network.gates, all_targets(self.base.model), on_host=speaks_only(self.base)
            )
        adapter = load_adapter(self.bank, name, Path(folder), self.base.hash, allow_other_base)
        self._templates[name] = str(adapter.facts.get("prompt_template", PLAIN_TEMPLATE))
        self._intensities[name] = adapter.recommended_intensity
        self._speakers[name] = dict(adapter.facts.get("speakers") or {})

    def request(
        self, text: str, emotion: str | Mapping[str, float] | None = None, *, intensity: float | None = None,
        speaker: SupportsIndex = 0, seed: SupportsIndex = 0, temperature: float = SPEAKING_TEMPERATURE,
        depth_temperature: float | None = None, cued: bool = True, context: Sequence[Turn] = (), takes: int = 1,
    ) -> Request:  # fmt: skip
        """The request for `text`. `emotion` is a name or a blend, happy=0.6,sad=0.4 or {name: share} (`blend_of`), and
        `intensity` scales it.

        Without `intensity` each adapter speaks at the intensity that its training recommends. `cued=False` keeps the
        prompt plain although the adapter is on, which shows what leaks. `context` are earlier turns (`turn`), oldest
        first; the oldest are left out if the base's window has no room for them. A text that is too long is cut off or
        refused, see `frames_that_fit`. `depth_temperature` is for all codebooks but the first; None is the base's share
        of `temperature` (`Network.depth_temperature_share`). Of several `takes` the one most like the others is kept
        (`affetto.speak.takes`); greedy decoding has only one.

        ConfigError for an invalid argument, for a text of which nothing can be spoken, and for an intensity without an
        emotion; AdapterError for an emotion that isn't loaded. A warning, once, for a text that can only be spoken in
        part, and for a speaker without clips.
        """
        if depth_temperature is None:
            depth_temperature = require_temperature(temperature) * self.base.network.depth_temperature_share
        takes = takes if temperature or depth_temperature else 1
        strengths = self.strengths(emotion, intensity)
        seed, speaker = require_seed(seed), require_speaker(speaker, self._known_speakers())
        self._check_text(text)
        if self.knows_speaker(speaker) is False:
            self._warn_once(f"no clip was of a speaker {speaker}: whose voice this becomes is chance")
        gate = tuple(self.bank.gate(strengths).tolist()) if self.bank else ()
        template = PLAIN_TEMPLATE
        if cued and any(strengths.values()) and not self.base.has_text_stream:
            template = self._templates.get(max(strengths, key=lambda name: strengths[name]), PLAIN_TEMPLATE)
        ids = self.base.prompt_ids(template.replace("{text}", text), speaker)
        cap = frames_that_fit(self.base, text, len(ids))
        fitting = turns_of(context)
        while fitting and sum(turn.num_positions for turn in fitting) + len(ids) + cap > self.base.window:
            fitting.pop(0)
        if len(fitting) < len(context):
            say(f"the base's window has room for {len(fitting)} of {len(context)} earlier turns: the last ones")
        return Request(ids, cap, gate, seed, temperature, depth_temperature, context=tuple(fitting), takes=takes)

    def _check_text(self, text: str) -> None:
        """ConfigError if nothing of `text` can be spoken; a warning if some of it can't."""
        require_words(text)
        if unknown := self.unknown_signs(text):
            signs = ", ".join(map(repr, unknown))
            if not any(sign.isalnum() and sign not in unknown for sign in text):
                raise ConfigError(f"nothing in {text!r} can be spoken: {self.base.id} has no tokens for {signs}")
            self._warn_once(f"{self.base.id} has no tokens for {signs}: they aren't spoken")

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            say(line, style="yellow")

    def turn(self, text: str, samples: ArrayLike, sample_rate: int, speaker: SupportsIndex = 0) -> Turn:
        """An earlier turn for `context`: what `speaker` said and how it sounded, samples as `mono_sound` takes them.

        A base of many voices continues in the voice that it hears. ConfigError for Moshi, which doesn't support turns
        yet, and for a text or speaker that `request` would refuse; DataError for samples that aren't a mono sound.
        """
        if self.base.has_text_stream:
            raise ConfigError(f"{self.base.id} can't be given earlier turns to speak after")
        speaker = require_speaker(speaker, self._known_speakers())
        self._check_text(text)
        require_rate(sample_rate)
        sound = mono_sound(samples)
        if sample_rate != self.codec.sample_rate:
            sound = soxr.resample(sound, sample_rate, self.codec.sample_rate, quality="HQ")
        codes_TK = self.codec.encode(sound)[:, : self.base.num_codebooks]
        return Turn(self.base.prompt_ids(text, speaker), codes_TK, end_code=self.base.network.end_code)

    def speak(
        self, text: str, emotion: str | Mapping[str, float] | None = None, *, intensity: float | None = None,
        speaker: SupportsIndex = 0, seed: SupportsIndex = 0, temperature: float = SPEAKING_TEMPERATURE,
        depth_temperature: float | None = None, context: Sequence[Turn] = (), takes: int | None = None,
    ) -> tuple[NDArray[np.float32], int]:  # fmt: skip
        """Speak; returns (mono samples, sample rate). Without an emotion the base speaks; see `request`.

        By default it is said `SPEAKING_TAKES` times, with some bases once (`num_takes`). A warning if nothing was said,
        or if the speech was cut off.
        """
        request = self.request(
            text, emotion, intensity=intensity, speaker=speaker, seed=seed, temperature=temperature,
            depth_temperature=depth_temperature, context=context,
            takes=self.num_takes(SPEAKING_TAKES) if takes is None else takes,
        )  # fmt: skip
        spoken = self.generate([request])[0]
        if not len(spoken.codes_TK):
            say("nothing was said: the base ended before its first frame; try another seed", style="yellow")
        elif spoken.hit_cap:
            say(cut_off(self.base, text, spoken), style="yellow")
        return self.decode(spoken), self.codec.sample_rate

    def stream(
        self, text: str, emotion: str | Mapping[str, float] | None = None, *, intensity: float | None = None,
        speaker: SupportsIndex = 0, seed: SupportsIndex = 0, temperature: float = SPEAKING_TEMPERATURE,
        depth_temperature: float | None = None, context: Sequence[Turn] = (),
    ) -> Iterator[NDArray[np.float32]]:  # fmt: skip
        """The speech of `speak` with one take, in pieces while it is generated: mono samples, a frame (80 ms) each.

        What `request` refuses is refused by the call itself, before the first piece is taken. Mimi decodes each
        frame at once and keeps its state (`affetto.codes.sound_stream`); Moshi itself is a frame late. So is the
        miniature's codec, which for every piece decodes all that was said so far: it keeps up with real time for about
        six seconds.
        """
        request = self.request(
            text, emotion, intensity=intensity, speaker=speaker, seed=seed, temperature=temperature,
            depth_temperature=depth_temperature, context=context,
        )  # fmt: skip
        return (piece.samples_N for piece in self.stream_together([request]) if len(piece.samples_N))

    def stream_together(self, requests: Sequence[Request], *, batch_size: int = 32) -> Iterator[Piece]:
        """`stream` for many requests (made by `request`), `batch_size` at a time; pieces are numbered by request.

        Frames are drawn in one batch and, by Mimi, decoded in one. ConfigError if the base can't speak frame by frame.
        """
        if any(request.takes > 1 for request in requests):
            raise ConfigError("which take is kept isn't known until all are said: stream one take")
        if not can_stream(self.base):
            raise ConfigError(f"{self.base.id} doesn't speak frame by frame, so it can't stream: speak whole texts")
        return stream(self.base, self._padded(requests), self.codec.open_streams(), batch_size=batch_size)

    def generate(self, requests: Sequence[Request], on_progress: Callable[[int], object] | None = None) -> list[Spoken]:
        """Codes for many requests, in batches. Requests made before an adapter was loaded don't use it; AdapterError
        for requests of a voice with more adapters."""
        return generate_best(self.base, self.codec, self._padded(requests), on_progress=on_progress)

    def num_takes(self, wanted: int) -> int:
        """`wanted` takes of a CSM, whose rows cost little in a batch; else one, since Moshi's take a gigabyte each."""
        return wanted if isinstance(self.base.network, CsmNetwork) else 1

    def _padded(self, requests: Sequence[Request]) -> list[Request]:
        num = len(self.emotions)
        if foreign := next((request for request in requests if len(request.gate) > num), None):
            raise AdapterError(
                f"a request has intensities for {len(foreign.gate)} adapters, and {num} are loaded here: it is another "
                "voice's. Make it with this one's `request`"
            )
        return [replace(request, gate=request.gate + (0.0,) * (num - len(request.gate))) for request in requests]

    def decode(self, spoken: Spoken) -> NDArray[np.float32]:
        """The sound of what was said, as mono samples."""
        return self.codec.decode(spoken.codes_TK)

    def decode_each(self, spoken: Sequence[Spoken]) -> Iterator[NDArray[np.float32]]:
        """`decode` for each, in order; faster than one by one."""
        return decode_each(self.codec, [said.codes_TK for said in spoken])

    def unknown_signs(self, text: str) -> list[str]:
        """Letters and digits of `text` that the base's tokenizer has no token for: it can't say them."""
        return self._signs.unknown(text)

    def knows_speaker(self, speaker: int) -> bool | None:
        """Whether a loaded adapter had clips of `speaker`, or the miniature has that voice; None if that is unknown."""
        known = self._known_speakers()
        return speaker in known if known else None

    def _known_speakers(self) -> dict[int, str]:
        known = {number: name for speakers in self._speakers.values() for name, number in speakers.items()}
        if not known and self.base.id == MINIATURE:
            from affetto.miniature.corpus import VOICES

            known = {number: str(number) for number in range(len(VOICES))}
        return known

    @cached_property
    def codec(self) -> Codec:
        """The base's codec, loaded when first needed."""
        return load_codec(self.base.folder, use_gpu=self.base.device.type == "cuda", speaks_only=True)


def usual_device(base: str) -> str:
    """The GPU if there is one; the CPU for the miniature, which is done there before a GPU is ready."""
    return "cuda" if base != MINIATURE and torch.cuda.is_available() else "cpu"
