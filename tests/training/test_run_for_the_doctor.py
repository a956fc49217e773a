"""What training writes is what the doctor reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from training_helpers import TINY

from affetto.codes.prepare import Prepared
from affetto.config import Config
from affetto.doctor.diagnose import examine
from affetto.training.log import read_log
from affetto.training.loop import train


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_trained_run_is_read_whole(config_of: Callable[..., Config], prepared: Prepared, is_checked: bool) -> None:
    config = config_of(**TINY, ewc_lambda=0.0, batch_size=2)
    folder = train(config, "happy", replace(prepared, is_checked=is_checked), command="affetto train")
    [diagnosis] = examine(config.output_dir)
    assert [item.what for item in diagnosis.missing] == ["evaluation"]
    checks = {check.name: check for item in diagnosis.symptoms for check in item.checks}

    def numbers(name: str) -> list[float]:
        return [number.value for number in checks[name].numbers]

    assert numbers("few emotional clips") == [6]
    assert numbers("few emotional clips to validate on") == [2]
    left_out = checks["clips that had to be left out"]
    assert (left_out.answer, numbers(left_out.name)) == (("absent", [0, 0.0]) if is_checked else ("unknown", []))
    assert checks["one voice acts the emotion"].answer == "absent"
    log = read_log(folder / "training_log.jsonl")
    validations = [row["terms"] for row in log if row["split"] == "validation"]
    assert numbers("still learning when it ended")[0] == validations[-1]["emotion_nll"]
    first = log[0]["terms"]
    base = (first["emotion_ce_c0"] + first["emotion_ce_depth"]) / 2
    assert numbers("emotional clips hardly better predicted than by the base")[0] == pytest.approx(base)
    assert checks["validation clips unlike the training clips"].answer != "unknown"
    assert checks["validation that rises after its best"].answer != "unknown"
    protection = checks["a protection that is off"]
    assert (protection.answer, protection.change.key if protection.change else None) == ("shown", "ewc_lambda")
