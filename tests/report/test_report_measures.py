"""What the page calls a metric fits what the results say of it."""

from __future__ import annotations

from affetto.evaluate.summary import METRICS
from affetto.report.measures import ASPECTS, MEASURES, SCALES, measure_of


def test_every_metric_of_the_results_has_its_name_its_aspect_and_its_own_unit() -> None:
    assert METRICS.keys() <= MEASURES.keys()
    assert {name: MEASURES[name].unit for name in METRICS} == {name: metric.unit for name, metric in METRICS.items()}
    assert {measure.unit for measure in MEASURES.values()} - {""} <= SCALES.keys()
    assert {measure.aspect for measure in MEASURES.values()} <= set(ASPECTS)


def test_a_metric_that_nobody_knows_keeps_its_own_name_and_unit() -> None:
    found = measure_of("mos_new_thing", {"unit": "score"})
    assert (found.label, found.unit, found.aspect) == ("mos new thing", "score", "Other")
