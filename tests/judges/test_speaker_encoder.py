from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affetto.audio.sound import read_sound
from affetto.judges.choice import choose_judges, load_judge
from affetto.judges.speaker_encoder import (
    FRAMES,
    HOP,
    LEVEL_DB,
    MIN_COVERAGE,
    SHORTEST_S,
    STEP,
    BundledVoiceJudge,
    mel_spectra,
    window_starts,
    without_pauses,
)
from affetto.metrics.verification import equal_error_rate
from evaluate_fakes import RATE, SOUNDS, silence, voice

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def judge() -> BundledVoiceJudge:
    return BundledVoiceJudge()


def test_vectors_are_those_of_the_package_that_the_weights_are_from(judge: BundledVoiceJudge) -> None:
    """Its ten largest numbers of the same samples, by resemblyzer 0.1.4's `embed_utterance`."""
    theirs = {
        77: 0.22996, 248: 0.22254, 42: 0.196, 159: 0.19344, 235: 0.1917, 51: 0.17991, 125: 0.17858, 168: 0.16415,
        213: 0.16247, 236: 0.16067,
    }  # fmt: skip
    sound = np.concatenate([voice(150, 1.3, end_hz=190), voice(110, 1.9, end_hz=90)])
    sound *= np.float32(10 ** (LEVEL_DB / 20) / np.sqrt(np.mean(np.float64(sound) ** 2)))
    ours = judge.embed([sound])[0]
    assert ours is not None
    assert list(np.argsort(ours)[::-1][:10]) == list(theirs)
    np.testing.assert_allclose(ours[list(theirs)], list(theirs.values()), atol=5e-4)  # weights in float16
    assert np.linalg.norm(ours) == pytest.approx(1)


def test_bands_hold_the_power_of_a_tone() -> None:
    """And it is loudest in the band of its own pitch."""
    seconds = np.arange(RATE) / RATE
    loud, soft = (mel_spectra((level * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)) for level in (0.2, 0.1))
    assert loud.shape == (1 + RATE // HOP, 40)
    np.testing.assert_allclose(loud[10:-10], 4 * soft[10:-10], rtol=1e-3, atol=1e-9)
    step = 45.24546 / 41  # 8 kHz in Slaney's mel, whose first kilohertz is linear at 200 / 3 Hz, over 40 bands
    assert int(loud[50].argmax()) == int(np.abs(np.arange(1, 41) * step - 440 / (200 / 3)).argmin())


@given(st.integers(1, 400_000))
@settings(deadline=None)
def test_windows_cover_what_sounds(num_samples: int) -> None:
    starts = window_starts(num_samples)
    assert starts == [STEP * index for index in range(len(starts))]
    covered = (num_samples / HOP - starts[-1]) / FRAMES
    assert covered >= MIN_COVERAGE or len(starts) == 1, "the last window is mostly sound"
    assert num_samples / HOP - (starts[-1] + FRAMES) < FRAMES * MIN_COVERAGE, "what is left wouldn't fill a window"


def test_loudness_and_pauses_are_no_voice(judge: BundledVoiceJudge) -> None:
    first, second = voice(140, 1.0, end_hz=180), voice(160, 1.0, end_hz=120)
    sound = np.concatenate([first, second])
    louder, slower = sound * np.float32(4), np.concatenate([silence(0.7), first, silence(0.9), second, silence(0.4)])
    here, there, later = judge.embed([sound, louder, slower])
    assert here is not None
    assert there is not None
    assert later is not None
    assert here @ there == pytest.approx(1, abs=1e-6)
    assert here @ later == pytest.approx(1, abs=1e-3)
    spoken = without_pauses(slower)
    assert spoken is not None
    assert len(spoken) / RATE == pytest.approx(2, abs=0.05)


def test_too_little_sound_is_no_voice(judge: BundledVoiceJudge) -> None:
    short, enough = voice(150, SHORTEST_S - 0.05), voice(150, SHORTEST_S + 0.05)
    padded = np.concatenate([silence(1), short, silence(1)])
    found = judge.embed([short, padded, silence(2), np.zeros(0, np.float32), enough])
    assert found[:4] == [None] * 4
    assert found[4] is not None


def test_company_changes_no_vector_of_a_speaker(judge: BundledVoiceJudge) -> None:
    together, alone = judge.embed(SOUNDS), [judge.embed([sound])[0] for sound in SOUNDS]
    assert [one is None for one in together] == [len(sound) / RATE < SHORTEST_S for sound in SOUNDS]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_is_the_default_and_says_what_it_is(judge: BundledVoiceJudge) -> None:
    off = {"emotion": "none", "words": "none", "quality": "none"}
    chosen = choose_judges(off, "happy")
    assert chosen.voice is not None
    assert chosen.voice.id == judge.id == load_judge("voice", "ge2e").id
    assert judge.id.startswith("ge2e@")
    assert (judge.tier, judge.licence) == ("bundled", "Apache-2.0")
    assert judge.known.heard == ("LibriSpeech", "VoxCeleb1", "VoxCeleb2")


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real speech of shared/data isn't beside this checkout")
def test_people_are_told_apart_by_other_sentences(judge: BundledVoiceJudge) -> None:
    """Neutral and calm clips of RAVDESS' actors, one sentence against the other; the equal error rate was 10 %."""
    clips = sorted((REAL_DATA / "RAVDESS").glob("Actor_*/03-01-0[12]-01-*.flac"))
    speakers = [path.parent.name for path in clips]
    sentences = [path.stem.split("-")[4] for path in clips]
    vectors = np.array(judge.embed([read_sound(path, RATE) for path in clips]))
    cosines = vectors @ vectors.T
    pairs = [(i, j) for i in range(len(clips)) for j in range(i) if sentences[i] != sentences[j]]
    own = [cosines[pair] for pair in pairs if speakers[pair[0]] == speakers[pair[1]]]
    others = [cosines[pair] for pair in pairs if speakers[pair[0]] != speakers[pair[1]]]
    assert len(set(speakers)) >= 4
    assert equal_error_rate(own, others) < 0.15
