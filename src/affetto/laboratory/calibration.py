"""How well curvatures predict forgetting: predicted against measured KL over adapters, checkpoints and intensities.

Every curvature predicts KL(base || adapted) as half of dW^T F dW, from other general clips than those it is measured
on. A curvature is calibrated if the slope of predicted over measured is 1. `forecast` uses the whole Fisher exactly
(`affetto.preserve.forecast`); the others are those that training can use as a penalty, on EWC's training clips. An
adapter that was trained with a penalty on these clips has learned to move little on them, so the forecast is on clips
that neither EWC nor rehearsal saw, and `forecast_seen`, the same on EWC's clips, shows how much that matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.errors import ConfigError, DataError
from affetto.evaluate.retention import general_test_rows, measure_retention
from affetto.files import write_json
from affetto.metrics.statistics import bootstrap_ratio
from affetto.model.batch import Row
from affetto.preserve.curvature import CURVATURES
from affetto.preserve.ewc import ewc_penalty
from affetto.preserve.forecast import Forecast, forecast
from affetto.progress import progress
from affetto.provenance import versions
from affetto.speak.arguments import require_strength
from affetto.speak.voice import Voice
from affetto.training.streams import general_clips, general_fisher, ungated_rows
from affetto.types import SPLITS

INTENSITIES = (0.25, 0.5, 0.75, 1.0)
MOST_KL = 0.05
"""Above this the quadratic approximation isn't expected to hold, and points are left out of the fit."""
FORECAST, FORECAST_SEEN = "forecast", "forecast_seen"
_RESAMPLES = 1000
_NO_GENERAL = (
    "forgetting is predicted and measured on general speech (clips without emotion, in all three splits), and the data "
    "lacks it; add LJSpeech, say, or let the base speak some with --general self"
)


@dataclass(frozen=True)
class Point:
    """One adapter at one intensity."""

    family: str
    adapter: str
    intensity: float
    kl_C: NDArray[np.float64]
    """Measured KL, summed over each held-out clip's codes; nats."""
    codes_C: NDArray[np.int64]
    predicted: Mapping[str, float]
    """KL in nats per code, by curvature."""
    forms_D: NDArray[np.float64]
    """The forecast's dW^T F dW at this intensity for each of its own clips; nats."""
    forecast_codes_D: NDArray[np.int64]

    @property
    def measured(self) -> float:
        """KL in nats per code."""
        return float(self.kl_C.sum() / self.codes_C.sum())


@dataclass(frozen=True)
class Fit:
    """predicted ≈ slope · measured, through the origin, over points with `measured` up to `MOST_KL`."""

    family: str
    curvature: str
    slope: float | None
    slope_se: float | None
    """By bootstrap over clips; for stored curvatures over the measured clips only."""
    r2: float | None
    n: int


def require_general(prepared: Prepared) -> None:
    """Raise DataError if there is no general speech for `calibrate`, before anything is trained for it."""
    if not all(prepared.select(None, split) for split in SPLITS):
        raise DataError(_NO_GENERAL)


def calibrate(config: Config, prepared: Prepared, families: Mapping[str, Sequence[Path]], command: str) -> list[Point]:
    """Measure and predict for every adapter of every family; writes `calibration.json` into the output folder."""
    points: list[Point] = []
    adapters = [(family, folder) for family, folders in families.items() for folder in folders]
    base_facts: dict[str, str] = {}
    with progress("Calibrating", len(adapters)) as bar:
        for family, folder in adapters:
            voice = Voice.of_run(config.base, config.base_precision)
            voice.load_adapter("adapter", folder)
            points += _points(config, prepared, voice, family, folder.name)
            base_facts = {"id": voice.base.id, "hash": voice.base.hash}
            bar.advance(1)
    write_json(config.output_dir / "calibration.json", document(points, base_facts, command))
    return points


def require_no_expressive_base(config: Config) -> None:
    """Raise ConfigError if the laboratory's adapters would build on an expressive base."""
    if config.expressive_base:
        raise ConfigError(
            "adapters trained on the base itself are compared: leave expressive_base off for this command"
        )


def predict_forgetting(
    config: Config, prepared: Prepared, folder: Path, intensities: Sequence[float] = INTENSITIES
) -> list[dict[str, Any]]:
    """Predict how much the LoRA adapter in `folder`, affetto's or any other, makes the base forget: rows by intensity.

    Each row has `intensity`, `kl` in nats per code, and `low` and `high` by bootstrap over clips, or None and a
    `reason`. The adapter's recommended intensity is always included. ConfigError for one that isn't finite and at
    least 0.
    """
    for intensity in intensities:
        require_strength(intensity)
    voice = Voice.of_run(config.base, config.base_precision)
    voice.load_adapter("adapter", folder)
    rows = _unseen(config, prepared, voice)
    with progress("Predicting", len(rows)) as bar:
        prediction = forecast(voice.base, rows, 1, bar.advance)
    clips = [row.clip_id for row in rows]
    predictions = []
    for intensity in sorted({*intensities, voice.recommended_intensity("adapter")}):
        estimate = bootstrap_ratio(0.5 * intensity**2 * prediction.forms_CE[:, 0], prediction.codes_C, clips)
        predictions.append(
            {
                "intensity": intensity, "kl": estimate.value, "low": estimate.low, "high": estimate.high,
                "reason": estimate.reason,
            }
        )  # fmt: skip
    return predictions


def _points(config: Config, prepared: Prepared, voice: Voice, family: str, name: str) -> list[Point]:
    assert voice.bank is not None
    factors = [factor for factor in voice.bank.factors("adapter") if factor[1].shape[0]]
    _, fisher_clips, _ = general_clips(config, prepared)
    seen = ungated_rows(voice.base, fisher_clips, prepared)
    held_out = general_test_rows(voice.base, prepared, config.evaluation_clips, config.seed)
    if not (seen and held_out):
        raise DataError(_NO_GENERAL)
    unseen = _unseen(config, prepared, voice)
    stored = {}
    for kind in CURVATURES:
        chosen = config.model_copy(update={"ewc_curvature": kind, "ewc_lambda": 1.0})
        curvature = general_fisher(chosen, voice.base, [site for site, *_ in factors], seen)
        assert curvature is not None
        with torch.no_grad():
            stored[kind] = float(ewc_penalty(curvature, factors))
    stored[FORECAST_SEEN] = forecast(voice.base, seen, 1).kl(0, 1.0)
    prediction = forecast(voice.base, unseen, 1)
    return [_point(voice, held_out, prediction, stored, family, name, intensity) for intensity in INTENSITIES]


def _unseen(config: Config, prepared: Prepared, voice: Voice) -> list[Row]:
    """General validation clips, which the adapter wasn't trained on, as many as a Fisher takes. DataError if none."""
    clips = spread(prepared.select(None, "validation"), prepared.num_frames(), config.fisher_clips, "forecast")
    if not clips:
        raise DataError(_NO_GENERAL)
    return ungated_rows(voice.base, clips, prepared)


def _point(
    voice: Voice, held_out: Sequence[Row], prediction: Forecast, stored: Mapping[str, float], family: str, name: str,
    intensity: float,
) -> Point:  # fmt: skip
    measured = measure_retention(voice.base, held_out, (intensity,))
    predicted = {kind: intensity**2 * value for kind, value in stored.items()}
    return Point(
        family, name, intensity, measured.kl_N, measured.codes_N,
        {FORECAST: prediction.kl(0, intensity), **predicted}, intensity**2 * prediction.forms_CE[:, 0],
        prediction.codes_C,
    )  # fmt: skip


def fit(points: Sequence[Point], family: str, curvature: str, *, seed: int = 0) -> Fit:
    """The fitted line of one curvature over the points of one family (`all` is every family)."""
    chosen = [point for point in points if family in ("all", point.family) and 0 < point.measured <= MOST_KL]
    if len(chosen) < 3:
        return Fit(family, curvature, None, None, None, len(chosen))
    measured_P = np.asarray([point.measured for point in chosen])
    predicted_P = np.asarray([point.predicted[curvature] for point in chosen])
    slope = _slope(predicted_P, measured_P)
    spread = float(((predicted_P - predicted_P.mean()) ** 2).sum())
    r2 = 1 - float(((predicted_P - slope * measured_P) ** 2).sum()) / spread if spread else None
    rng, slopes = np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        m_C = _counts(rng, len(chosen[0].codes_C))
        resampled_P = np.asarray([(point.kl_C @ m_C) / (point.codes_C @ m_C) for point in chosen])
        forecast_P = predicted_P
        if curvature == FORECAST:
            d_D = _counts(rng, len(chosen[0].forecast_codes_D))
            forecast_P = np.asarray([0.5 * (p.forms_D @ d_D) / (p.forecast_codes_D @ d_D) for p in chosen])
        slopes.append(_slope(forecast_P, resampled_P))
    return Fit(family, curvature, slope, float(np.std(slopes, ddof=1)), r2, len(chosen))


def fits(points: Sequence[Point]) -> list[Fit]:
    """The lines of every curvature, for each family and for all together."""
    families = list(dict.fromkeys(point.family for point in points))
    names = [*families, *(["all"] if len(families) > 1 else [])]
    return [fit(points, family, kind) for kind in (FORECAST, FORECAST_SEEN, *CURVATURES) for family in names]


def document(points: Sequence[Point], base: Mapping[str, str], command: str) -> dict[str, Any]:
    """CALIBRATION of docs/results.md."""
    return {
        "schema": "affetto.calibration/1",
        "command": command,
        "versions": versions(),
        "base": dict(base),
        "most_kl": MOST_KL,
        "points": [
            {
                "family": point.family, "adapter": point.adapter, "intensity": point.intensity,
                "measured_kl": point.measured, "num_clips": len(point.codes_C), "predicted_kl": dict(point.predicted),
            }
            for point in points
        ],
        "fits": [dict(line.__dict__) for line in fits(points)],
    }  # fmt: skip


def fit_table(lines: Sequence[Fit]) -> Table:
    """Slopes with standard errors and R², one row per curvature and family."""
    table = Table(title=f"predicted over measured KL, up to {MOST_KL:g} nats per code", title_justify="left")
    for name in ("curvature", "adapters", "slope", "R²", "points"):
        table.add_column(name, justify="left" if name in ("curvature", "adapters") else "right")
    for line in lines:
        slope = "–" if line.slope is None else f"{line.slope:.2f} ± {line.slope_se:.2f}"
        r2 = "–" if line.r2 is None else f"{line.r2:.2f}"
        table.add_row(line.curvature, line.family, slope, r2, str(line.n))
    return table


def forecast_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The predictions of `predict_forgetting`."""
    table = Table(title="predicted forgetting: KL(base || adapted), nats per code", title_justify="left")
    for name in ("intensity", "KL", "95 % interval"):
        table.add_column(name, justify="right")
    for row in rows:
        beyond = " (too large for the quadratic approximation)" if row["kl"] > MOST_KL else ""
        ends = f"{row['low']:.3g} to {row['high']:.3g}" if row["low"] is not None else row["reason"]
        table.add_row(f"{row['intensity']:g}", f"{row['kl']:.4g}{beyond}", ends)
    return table


def _slope(predicted_P: NDArray[np.float64], measured_P: NDArray[np.float64]) -> float:
    return float(predicted_P @ measured_P / (measured_P @ measured_P))


def _counts(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    return rng.multinomial(size, np.full(size, 1 / size))
