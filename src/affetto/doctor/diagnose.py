"""`affetto doctor`: diagnoses a run's symptoms from its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affetto.doctor.clips import data_trouble
from affetto.doctor.evidence import Evidence, find_runs, read_evidence
from affetto.doctor.expression import weak_expression
from affetto.doctor.findings import Diagnosis
from affetto.doctor.forgetting import lost_capabilities
from affetto.doctor.stability import instability
from affetto.files import expanded


def examine(folder: Path, emotions: Sequence[str] | None = None) -> list[Diagnosis]:
    """Diagnose every run of `folder` (a run's output folder or one `emotion_models/<emotion>`), or those of `emotions`.

    Raises `DataError` if there is none, or none of its files can be read.
    """
    return [diagnose(read_evidence(run)) for run in find_runs(expanded(folder), emotions)]


def diagnose(evidence: Evidence) -> Diagnosis:
    """The guide's three symptoms, in its order, and data trouble."""
    weak = weak_expression(evidence)
    return Diagnosis(
        emotion=evidence.emotion,
        folder=str(evidence.folder),
        symptoms=(
            weak,
            lost_capabilities(evidence, is_weak=weak.answer == "shown"),
            instability(evidence),
            data_trouble(evidence),
        ),
        missing=evidence.missing,
    )
