from __future__ import annotations

import importlib.util
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from affetto.errors import JudgeError, MissingDependencyError
from affetto.evaluate.judge_facts import judge_facts
from affetto.judges import quality
from affetto.judges.kinds import Judges
from evaluate_fakes import RATE, silence, voice


@pytest.fixture(scope="module")
def judge() -> quality.DnsmosJudge:
    return quality.DnsmosJudge()


def _as_published(sound: np.ndarray) -> dict[str, float]:
    """The published script's loop, with its float arithmetic, for a sound short enough that it drops no window."""
    while len(sound) < int(9.01 * RATE):
        sound = np.append(sound, sound)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(quality.find_model()), options, providers=["CPUExecutionProvider"])
    scores = []
    for index in range(int(np.floor(len(sound) / RATE) - 9.01) + 1):
        window = sound[int(index * RATE) : int((index + 9.01) * RATE)]
        assert len(window) == int(9.01 * RATE)
        signal, background, overall = session.run(None, {"input_1": window[None].astype("float32")})[0][0]
        scores.append({
            "mos_signal": np.poly1d([-0.08397278, 1.22083953, 0.0052439])(signal),
            "mos_background": np.poly1d([-0.13166888, 1.60915514, -0.39604546])(background),
            "mos_overall": np.poly1d([-0.06766283, 1.11546468, 0.04602535])(overall),
        })  # fmt: skip
    return {name: float(np.mean([score[name] for score in scores])) for name in quality.NAMES}


def test_scores_are_the_published_scripts(judge: quality.DnsmosJudge) -> None:
    sound = np.concatenate([voice(140, 1.8, end_hz=200), silence(0.3), voice(180, 0.9, end_hz=120)])
    assert judge.score([sound])[0] == pytest.approx(_as_published(sound), abs=1e-5)


def test_noise_lowers_every_score_and_neighbours_change_none(judge: quality.DnsmosJudge) -> None:
    clean = np.concatenate([voice(140, 3.0, end_hz=200), silence(0.3), voice(180, 2.0, end_hz=120)])
    noisy = clean + np.random.default_rng(0).normal(0, 0.1, len(clean)).astype(np.float32)
    together = judge.score([clean, noisy])
    assert all(together[1][name] < together[0][name] for name in ("mos_overall", "mos_background"))
    assert judge.score([noisy, clean]) == [together[1], together[0]]
    assert set(together[0]) == set(quality.NAMES)


def test_a_sound_is_heard_once(judge: quality.DnsmosJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scores again, and none of another sound's."""
    one, other = voice(150, 1.0, end_hz=170), voice(150, 1.0, end_hz=171)
    first = judge.score([one, one, other])
    assert first[0] == first[1] != first[2]
    first[0]["mos_overall"] = 0.0
    heard: list[int] = []
    monkeypatch.setattr(judge, "_hear", lambda sound: heard.append(len(sound)))
    assert judge.score([other, one]) == [first[2], first[1]]
    assert not heard


@pytest.mark.parametrize(
    ("duration_s", "num_windows"), [(0.5, 7), (5.0, 1), (9.01, 1), (10.9, 1), (11.0, 2), (15.0, 6), (30.0, 21)]
)
def test_windows_come_every_second(duration_s: float, num_windows: int) -> None:
    filled = quality.fill(np.linspace(-1, 1, round(duration_s * RATE), dtype=np.float32))
    assert quality.count_windows(len(filled)) == num_windows, "0.5 s is doubled to 16 s, 5 s to 10 s"
    assert (num_windows - 1) * RATE + quality.WINDOW <= len(filled)


def test_short_sounds_are_repeated_and_not_padded() -> None:
    sound = voice(150, 0.7)
    filled = quality.fill(sound)
    assert quality.WINDOW <= len(filled) < 2 * quality.WINDOW
    np.testing.assert_array_equal(filled, np.resize(sound, len(filled)))


def test_samples_beyond_full_scale_are_clipped() -> None:
    assert np.abs(quality.fill(voice(150, 0.7) * 50)).max() == 1.0


def test_threads_are_as_many_as_before(judge: quality.DnsmosJudge) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        judge.score([voice(150, 0.51)])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_empty_sound_is_refused() -> None:
    with pytest.raises(JudgeError, match="empty"):
        quality.fill(silence(0))


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        quality.DnsmosJudge()


def test_the_results_say_what_is_known_of_it(judge: quality.DnsmosJudge) -> None:
    facts = judge_facts(Judges(quality=judge))["quality"]
    assert facts == {
        "id": "speechmos/dnsmos-p835", "tier": "bundled", "labels": None, "licence": "MIT", "sample_rate": RATE,
        "ceiling": None, "languages": ["many"], "scale": "1 to 5",
    }  # fmt: skip


def test_speechmos_itself_is_never_imported(judge: quality.DnsmosJudge) -> None:
    judge.score([voice(150, 5.0)])
    assert not {"speechmos", "librosa"} & set(sys.modules)
