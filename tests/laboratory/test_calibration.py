"""Calibration on made-up points with a known line, and on a tiny run that was really trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affetto.laboratory.calibration import (
    FORECAST,
    FORECAST_SEEN,
    Point,
    document,
    fit,
    fit_table,
    fits,
)
from affetto.preserve.curvature import CURVATURES
from affetto.report.calibration_picture import calibration_picture
from affetto.report.run_page import write_report


def made_up(slope: float, noise: float = 0.0, count: int = 12, top: float = 0.04) -> list[Point]:
    """Points whose predictions are `slope` times the measured KL, on 40 clips of 10 codes."""
    rng = np.random.default_rng(0)
    points = []
    for number in range(count):
        kl = top * (number + 1) / count
        kl_C = 10 * kl * rng.gamma(20, 1 / 20, 40)
        measured = float(kl_C.sum() / 400)
        told = measured * slope * float(np.exp(noise * rng.standard_normal()))
        points.append(
            Point(
                "ab"[number % 2], f"step-{number}", 1.0, kl_C, np.full(40, 10),
                dict.fromkeys((FORECAST, FORECAST_SEEN, *CURVATURES), told),
                2 * told * 10 * rng.gamma(20, 1 / 20, 30), np.full(30, 10),
            )
        )  # fmt: skip
    return points


@pytest.mark.parametrize("slope", [0.5, 1.0, 1.7])
def test_fit_finds_the_line(slope: float) -> None:
    line = fit(made_up(slope), "all", "kfac")
    assert line.slope == pytest.approx(slope)
    assert line.r2 == pytest.approx(1.0)
    assert line.n == 12
    # 40 clips with a spread of 1 / sqrt(20) each: the measured side alone is uncertain by 3.5 %, less over 12 points.
    assert line.slope_se is not None
    assert 0 < line.slope_se < 0.1 * slope
    told = fit(made_up(slope), "all", FORECAST)
    assert told.slope_se is not None
    assert told.slope_se > line.slope_se, "the forecast's own clips are resampled too"


def test_the_forecasts_standard_error_is_that_of_a_mean_over_its_clips() -> None:
    """Nothing else varies here: every measured clip is alike, and each forecast clip is off by the same share."""
    shares_D = np.random.default_rng(1).gamma(4, 1 / 4, 50)
    shares_D /= shares_D.mean()
    points = [
        Point(
            "a", f"step-{number}", 1.0, np.full(40, 10 * kl), np.full(40, 10), {FORECAST: 0.8 * kl},
            2 * 0.8 * kl * 10 * shares_D, np.full(50, 10),
        )
        for number, kl in enumerate((0.01, 0.02, 0.04))
    ]  # fmt: skip
    line = fit(points, "all", FORECAST)
    assert line.slope == pytest.approx(0.8)
    assert line.slope_se == pytest.approx(0.8 * shares_D.std() / 50**0.5, rel=0.1)


def test_noise_lowers_r2_and_far_points_stay_out() -> None:
    noisy = fit(made_up(1.0, noise=0.5), "all", "full")
    assert noisy.r2 is not None
    assert noisy.r2 < 0.9
    scattered = made_up(1.0, noise=0.5)
    measured_P = np.array([point.measured for point in scattered])
    told_P = np.array([point.predicted["full"] for point in scattered])
    assert noisy.slope == pytest.approx(np.linalg.lstsq(measured_P[:, None], told_P)[0][0]), "predicted over measured"
    points = made_up(1.0, top=0.2)
    assert fit(points, "all", "full").n == sum(point.measured <= 0.05 for point in points) < 12
    assert fit(points[-2:], "all", "full").slope is None


def test_families_stand_apart_and_together() -> None:
    lines = fits(made_up(1.0))
    assert [line.family for line in lines if line.curvature == "full"] == ["a", "b", "all"]
    assert {line.curvature for line in lines} == {FORECAST, FORECAST_SEEN, *CURVATURES}
    assert fit_table(lines).row_count == len(lines)


def test_picture_has_a_panel_for_every_curvature() -> None:
    drawn = calibration_picture(document(made_up(0.5), {}, "test")).standalone()
    assert drawn.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "var(" not in drawn
    for kind in (FORECAST, FORECAST_SEEN, *CURVATURES):
        assert f">{kind}  slope 0.50<" in drawn


def test_a_calibration_stands_in_the_report(tmp_path: Path) -> None:
    found = document(made_up(0.5), {"hash": "h"}, "affetto calibrate")
    pages = [
        write_report(
            tmp_path / f"{name}.html", [], title="t", audio=[], training_log=None, facts={}, calibration=value
        ).read_text(encoding="utf-8")
        for name, value in (("with", found), ("without", None))
    ]
    assert "Can forgetting be predicted?" in pages[0]
    assert pages[0].count(">kfac<") >= 3, "a row per family and over all"
    assert "0.50 ± " in pages[0]
    assert "foretold" not in pages[1]
