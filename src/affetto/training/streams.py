"""A run's data: emotional, rehearsed and held-out rows, and the Fisher and the teacher's answers on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from affetto.audio.splits import assert_disjoint
from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.config import EXPRESSIVE, Config
from affetto.errors import ConfigError, DataError, counted, did_you_mean
from affetto.files import cache_root, hash_bytes, hash_text, made_alone
from affetto.model.base import Base
from affetto.model.batch import Row
from affetto.model.rows import PLAIN_TEMPLATE, make_rows
from affetto.preserve.curvature import CONTROLS, CURVATURES, Curvature, Factor
from affetto.preserve.curvature.memory import Shapes, curvature_bytes
from affetto.preserve.ewc import mean_codes, natural_weight
from affetto.preserve.fisher import estimate_fisher
from affetto.preserve.rehearsal import rehearsal_buffer
from affetto.preserve.self_speech import CORPUS as SELF
from affetto.preserve.teacher import TeacherCache, row_hash, teacher_cache
from affetto.progress import progress, say
from affetto.training.runtime import free_bytes
from affetto.training.step import LossWeights
from affetto.types import SPLITS, Clip

_MUCH_GB = 2.0
"""A curvature larger than this is warned of beforehand."""


@dataclass(frozen=True)
class Streams:
    """The rows of a run, each under the gate of its adapter."""

    emotional: list[Row]
    rehearsal: list[Row]
    fisher: list[Row]
    validation_emotional: list[Row]
    validation_general: list[Row]
    speakers: dict[str, int]
    """The base's speaker number by the data's name."""
    trained_speakers: list[str]
    """The speakers of the emotional clips."""

    @property
    def hash(self) -> str:
        """Hash of all rows in their order, and of how strongly the emotional ones are acted."""
        parts = (self.emotional, self.rehearsal, self.fisher, self.validation_emotional, self.validation_general)
        acted = (f"{max(row.gate):g}" for row in (*self.emotional, *self.validation_emotional))
        return hash_text(*(hash_text(*map(row_hash, part)) for part in parts), *acted)


def build_streams(
    config: Config, emotion: str, prepared: Prepared, base: Base, gate: tuple[float, ...] = (1.0,)
) -> Streams:
    """Choose the clips of a run and make their rows under `gate`, scaled down for clips that are acted more weakly.

    DataError says what the data lacks.
    """
    emotional, held = _emotional_clips(config, emotion, prepared)
    buffer, fisher, held_general = general_clips(config, prepared)

    shortened: set[str] = set()

    def rows(clips: Sequence[Clip], template: str = PLAIN_TEMPLATE) -> list[Row]:
        found = gated_rows(base, clips, prepared, template, gate)
        shortened.update(clip.id for clip, row in zip(clips, found, strict=True) if len(row.turns) <= len(clip.context))
        return found

    streams = Streams(
        emotional=rows(emotional, config.prompt_template),
        rehearsal=rows(buffer),
        fisher=rows(fisher),
        validation_emotional=rows(held, config.prompt_template),
        validation_general=rows(held_general),
        speakers=dict(prepared.speakers),
        trained_speakers=sorted({clip.speaker for clip in emotional}),
    )
    strongest = max(clip.gate for clip in emotional)
    if strongest < 1.0:
        say(
            f"{emotion} has no clip above intensity {strongest:g}: speaking more strongly goes beyond its training data"
        )
    if shortened:
        say(
            f"{counted(len(shortened), 'conversation exceeds', 'conversations exceed')} the base's window of "
            f"{base.window} positions: the oldest turns are left out"
        )
    return streams


def held_out_rows(
    config: Config, emotion: str, prepared: Prepared, base: Base, gate: tuple[float, ...] = (1.0,)
) -> tuple[list[Row], list[Row]]:
    """The emotional and the general validation rows, by which the best adapter is chosen, under `gate`."""
    emotional = _held_out(config, _labels(config, emotion), prepared)
    return (
        gated_rows(base, emotional, prepared, config.prompt_template, gate),
        gated_rows(base, _held_out(config, [None], prepared), prepared, PLAIN_TEMPLATE, gate),
    )


def gated_rows(
    base: Base, clips: Sequence[Clip], prepared: Prepared, template: str = PLAIN_TEMPLATE,
    gate: tuple[float, ...] = (1.0,),
) -> list[Row]:  # fmt: skip
    """Rows of `clips` as an adapter trains on them: under `gate` times the intensity that each is acted at.

    General speech has the full gate, since there even the adapter at full strength must change nothing.
    """
    rows = ungated_rows(base, clips, prepared, template)
    return [replace(row, gate=gate).at(clip.gate) for row, clip in zip(rows, clips, strict=True)]


def ungated_rows(base: Base, clips: Sequence[Clip], prepared: Prepared, template: str = PLAIN_TEMPLATE) -> list[Row]:
    """Rows of `clips` as the base reads them, adapters off."""
    by_id = {clip.id: clip for clip in prepared.clips}
    return make_rows(
        base, clips, prepared.codes, prepared.speakers, template=template, by_id=by_id, beside_of=prepared.beside
    )


def _emotional_clips(config: Config, emotion: str, prepared: Prepared) -> tuple[list[Clip], list[Clip]]:
    """An emotion's training clips, and the validation clips by which the best adapter is chosen."""
    clips = [clip for name in _labels(config, emotion) for clip in prepared.select(name, "train")]
    if not clips:
        found = sorted({*prepared.labels, *(clip.emotion or "general" for clip in prepared.clips)})
        hint = did_you_mean(emotion, prepared.labels)
        raise DataError(f"no training clip is labelled {emotion!r}{hint}; the data has {', '.join(found)}")
    held = _held_out(config, _labels(config, emotion), prepared)
    if not held:
        raise DataError(
            f"no validation clip is labelled {emotion!r}, so the best adapter can't be chosen; "
            "add clips with other texts, or mark some of them with split validation"
        )
    return clips, held


def general_clips(config: Config, prepared: Prepared) -> tuple[list[Clip], list[Clip], list[Clip]]:
    """Clips to rehearse, clips for the Fisher (other ones if there are enough), and clips to measure forgetting on."""
    frames, general = prepared.num_frames(), prepared.select(None, "train")
    assert config.general == "data" or all(clip.corpus == SELF for clip in general), "not the base's own speech"
    if (config.ewc_lambda > 0 or config.replay_ratio > 0) and not general:
        raise DataError(
            "preservation needs general speech (clips without emotion), and the data has none: add general clips "
            "(LJSpeech, say), or let the base speak some itself with --general self"
        )
    if config.forgetting_budget is not None and not prepared.select(None, "validation"):
        raise DataError(
            "forgetting_budget is measured on held-out general speech, and the data has none; "
            "add general clips with other texts, or mark some of them with split validation"
        )
    buffer = rehearsal_buffer(general, frames, config.rehearsal_buffer_size, config.seed)
    rehearsed = {clip.id for clip in buffer}
    rest = [clip for clip in general if clip.id not in rehearsed]
    # The start of the buffer is evenly spread, too, so it can make up for what the rest lacks.
    fisher = [*spread(rest, frames, config.fisher_clips, f"fisher/{config.seed}"), *buffer][: config.fisher_clips]
    held = [clip for clip in prepared.clips if clip.split in SPLITS[1:]]
    for by in ("id", "text"):
        assert_disjoint({"rehearsal and Fisher clips": [*buffer, *fisher], "validation and test clips": held}, by)
    return buffer, fisher, _held_out(config, [None], prepared)


def _labels(config: Config, emotion: str) -> list[str]:
    """The labels that an adapter learns from: its own emotion's, or all for the expressive base."""
    return list(config.emotions) if emotion == EXPRESSIVE else [emotion]


def _held_out(config: Config, emotions: Sequence[str | None], prepared: Prepared) -> list[Clip]:
    clips = [clip for emotion in emotions for clip in prepared.select(emotion, "validation")]
    return spread(clips, prepared.num_frames(), config.validation_clips, "validation")


def loss_weights(config: Config, streams: Streams, base: Base) -> LossWeights:
    """The configuration's weights, EWC's in natural units.

    With a budget the temperature is 1, as it is the plain KL on rehearsed clips that the budget bounds.
    """
    codes = mean_codes(streams.fisher, base.num_codebooks) if streams.fisher else 1.0
    temperature = config.temperature if config.forgetting_budget is None else 1.0
    return LossWeights(
        replay=config.replay_ratio, alpha=config.distillation_alpha, temperature=temperature,
        first_codebook=config.first_codebook_weight, ewc=natural_weight(config.ewc_lambda, codes),
        distill_on=config.distill_on, is_self_speech=config.general == "self",
    )  # fmt: skip


def general_fisher(
    config: Config, base: Base, sites: Sequence[str], rows: Sequence[Row], fresh: Iterable[Factor] = ()
) -> Curvature | None:
    """The Fisher on `rows`, estimated once per base and clips; None if the penalty is off.

    `fresh` are the factors of the untrained adapter, which the controls (EWC on A and B) need.
    """
    if config.ewc_lambda == 0:
        return None
    curvature: type[Curvature] = CURVATURES.get(config.ewc_curvature) or CONTROLS[config.ewc_curvature]
    key = hash_text(
        "fisher-2", base.answers_hash, curvature.name, config.fisher_kind, ",".join(sites), *map(row_hash, rows)
    )
    empty: Callable[[], Curvature] = curvature
    if config.ewc_curvature in CONTROLS:
        anchors = {site: (a_RI.detach().clone(), scale) for site, a_RI, _, scale in fresh}
        assert anchors, "EWC on A and B needs a fresh adapter"
        empty = partial(CONTROLS[config.ewc_curvature], anchors)
        parts = (part for a_RI, scale in anchors.values() for part in (a_RI.numpy(force=True).tobytes(), b"%r" % scale))
        key = hash_text(key, hash_bytes(*parts))
    path = cache_root() / "fisher" / f"{key[:24]}.safetensors"
    _check_size(config, {site: base.model.get_submodule(site).shape for site in sites}, len(rows), base.device)

    def estimate(path: Path) -> None:
        modules = {site: base.model.get_submodule(site) for site in sites}
        with progress("Estimating the Fisher", len(rows)) as bar:
            estimate_fisher(
                base.network, modules, rows, empty(), kind=config.fisher_kind, on_progress=bar.advance
            ).save(path, key)

    return curvature.load(made_alone(path, estimate), key, base.device)


def _check_size(config: Config, shapes: Shapes, num_clips: int, device: torch.device) -> None:
    """Warn of a curvature that takes gigabytes, and say what the others take. ConfigError if it doesn't fit."""
    sizes = {name: curvature_bytes(name, shapes, num_clips, config.adapter_r) / 1e9 for name in CURVATURES}
    mine = sizes.get(config.ewc_curvature, 0.0)
    if mine > _MUCH_GB:
        others = ", ".join(f"{name} {size:.1f}" for name, size in sorted(sizes.items(), key=lambda item: item[1]))
        told = f"ewc_curvature: {config.ewc_curvature} takes {mine:.1f} GB on these layers; in GB: {others}"
        free = free_bytes(device) / 1e9
        if mine > free:
            raise ConfigError(f"{told}. Only {free:.1f} GB are free here: choose one that fits, such as rank1")
        say(told, style="yellow")


def teacher_answers(config: Config, base: Base, streams: Streams, weights: LossWeights) -> TeacherCache | None:
    """The base's answers on the streams that are distilled; None if no stream is."""
    parts = {"emotion": streams.emotional, "rehearsal": streams.rehearsal}
    rows = [row for stream, part in parts.items() if weights.taught[stream] for row in part]
    if not rows:
        return None
    return teacher_cache(
        cache_root() / "teacher", base.network, base.answers_hash, rows, depth_share=config.teacher_share
    )
