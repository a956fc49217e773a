"""Rendering: the same bits every time, and emotions that move in the directions of the literature."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from affetto.codes.vocoder import NUM_CEPSTRA, analyse
from affetto.errors import MissingDependencyError
from affetto.miniature import acting, corpus
from affetto.miniature.corpus import PLAIN, SAMPLE_RATE, acted_lines, general_lines, judging_lines, render
from affetto.miniature.espeak import Espeak, engine


def some_lines() -> list[corpus.Line]:
    lines = [next(acted_lines(emotion, {"train": 1})) for emotion in ("happy", "fearful")]
    return [*lines, *general_lines(6, "general", "train"), *judging_lines(3, "train", 0.3)]


def test_rendering_does_not_depend_on_what_was_rendered_before() -> None:
    lines = some_lines()
    forwards = [render(line) for line in lines]
    backwards = [render(line) for line in reversed(lines)][::-1]
    for line, one, other in zip(lines, forwards, backwards, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=line.id)


def test_rendering_is_the_same_in_every_process() -> None:
    # f2 has breath noise, whose seed espeak-ng takes from the clock.
    line = next(line for line in general_lines(6, "general", "train") if line.voice == "f2")
    code = f"from affetto.miniature.corpus import Line, render; import sys; sys.stdout.buffer.write(render({line!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    render(some_lines()[0])
    np.testing.assert_array_equal(np.frombuffer(found.stdout), render(line))


@pytest.mark.parametrize(("name", "told"), [("get_library_path", "can't be loaded"), ("get_data_path", "no data")])
def test_an_espeak_that_does_not_load_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, told: str
) -> None:
    def gone() -> str:
        if name == "get_data_path":
            raise RuntimeError("data path not exists")  # what the package does
        return str(tmp_path / "libespeak-ng.so")

    monkeypatch.setattr(espeakng_loader, name, gone)
    with pytest.raises(MissingDependencyError, match=f"{told}.*pip install --force-reinstall espeakng-loader"):
        Espeak()


def test_identity_and_text_decide_the_sound() -> None:
    line = next(acted_lines("sad", {"train": 1}))
    for other in (replace(line, id="other"), replace(line, text="The other text"), replace(line, strength=1.3)):
        assert not np.array_equal(render(other), render(line)), other


def test_sound_is_sane() -> None:
    for line in some_lines():
        samples = render(line)
        assert samples.dtype == np.float64
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 0.98
        assert 0.5 < len(samples) / SAMPLE_RATE < 8
        assert 0.01 < np.sqrt(np.mean(samples**2)) < 0.2


def measure(line: corpus.Line) -> np.ndarray:
    """(median F0 in semitones, seconds, level in dB, deviation of F0, how far F0 ends above its median)."""
    samples = render(line)
    features = analyse(samples)
    semitones = 12 / np.log(2) * features[features[:, -1] > 0.5, NUM_CEPSTRA]
    level = 10 * np.log10(np.mean(samples**2))
    ending = np.median(semitones[-len(semitones) // 8 :]) - np.median(semitones)
    return np.asarray([np.median(semitones), len(samples) / SAMPLE_RATE, level, np.std(semitones), ending])


@pytest.fixture(scope="module")
def moved() -> dict[str, np.ndarray]:
    """By emotion: mean change of (F0, log2 duration, level, log2 span, ending) against the same plainly said."""
    changes: dict[str, list[np.ndarray]] = {emotion: [] for emotion in corpus.EMOTIONS}
    plain: dict[tuple[str, str], np.ndarray] = {}
    for emotion in corpus.EMOTIONS:
        for line in acted_lines(emotion, {"train": 3}):
            if line.strength != 1.0:
                continue
            key = (line.text, line.voice)
            if key not in plain:
                plain[key] = measure(replace(line, emotion=PLAIN, id="-".join(key)))
            now, before = measure(line), plain[key]
            change = now - before
            change[[1, 3]] = np.log2(now[[1, 3]] / before[[1, 3]])
            changes[emotion].append(change)
    return {emotion: np.mean(rows, axis=0) for emotion, rows in changes.items()}


def test_pitch_moves_as_published(moved: dict[str, np.ndarray]) -> None:
    pitch = {emotion: change[0] for emotion, change in moved.items()}
    for emotion, least in (("happy", 2.5), ("fearful", 4.0), ("surprised", 2.5), ("angry", 0.5)):
        assert pitch[emotion] > least, pitch
    assert pitch["sad"] < -0.8, pitch
    assert abs(pitch["neutral"]) < 1.5, pitch


def test_tempo_moves_as_published(moved: dict[str, np.ndarray]) -> None:
    tempo = {emotion: -change[1] for emotion, change in moved.items()}
    assert tempo["sad"] < tempo["neutral"] < 0 < tempo["angry"] < tempo["fearful"], tempo
    assert tempo["happy"] > 0, tempo


def test_level_moves_as_published(moved: dict[str, np.ndarray]) -> None:
    level = {emotion: change[2] for emotion, change in moved.items()}
    assert level["angry"] == max(level.values())
    assert level["sad"] == min(level.values())
    assert level["angry"] > 2 > -2 > level["sad"], level


def test_span_moves_as_published(moved: dict[str, np.ndarray]) -> None:
    span = {emotion: change[3] for emotion, change in moved.items()}
    assert min(span["happy"], span["angry"]) > 0.2, span
    assert max(span["sad"], span["neutral"]) < -0.1, span


def test_surprise_ends_high_and_anger_low(moved: dict[str, np.ndarray]) -> None:
    ending = {emotion: change[4] for emotion, change in moved.items()}
    assert ending["surprised"] == max(ending.values())
    assert ending["surprised"] > 2 > -1 > ending["angry"], ending


def test_strength_zero_is_plain_on_average() -> None:
    rng = np.random.default_rng(0)
    drawn = [acting.varied(acting.RULES["angry"], 0.0, rng) for _ in range(400)]
    for name, plain in (("rate", 1.0), ("span", 1.0), ("formants", 1.0), ("level_st", 0.0), ("gain_db", 0.0)):
        values = [getattr(rule, name) for rule in drawn]
        assert np.mean(values) == pytest.approx(plain, abs=4 * np.std(values) / 20 + 0.01), name


def test_acting_by_no_rule_changes_little() -> None:
    line = next(general_lines(1, "general", "train"))
    samples = render(line)
    rule = acting.ActingRule(1.0, 0.0, 1.0, 0.0, 0.0, jitter_st=0.0)
    acted = acting.act(samples, SAMPLE_RATE, rule, np.random.default_rng(0))
    assert len(acted) == len(samples)
    one, other = analyse(samples), analyse(acted)
    both = (one[:, -1] > 0.5) & (other[:, -1] > 0.5)
    assert np.median(np.abs(one[both, NUM_CEPSTRA] - other[both, NUM_CEPSTRA])) < 0.01


def test_unknown_voices_are_refused() -> None:
    """espeak-ng itself falls back to its standard voice, and two speakers would be one."""
    for voice in ("en-us+nobody", "tlh-nowhere"):
        with pytest.raises(ValueError, match="no voice"):
            engine().speak("hello", voice)
    for voice in {*corpus.VOICES, *corpus.JUDGING_VOICES}:
        assert len(engine().speak("hello", f"en-us+{voice}").samples) > 1000


def test_words_start_where_the_synthesiser_says() -> None:
    """Every start is a word's first letter, in order; the words before a pause end where the sound does."""
    for line in some_lines():
        rendered = corpus.render_timed(line)
        places, seconds = zip(*rendered.word_starts, strict=True)
        assert places[0] == 0
        assert all(line.text[place - 1] == " " for place in places[1:]), line
        assert list(places) == sorted(set(places))
        assert list(seconds) == sorted(seconds)
        assert seconds[-1] < rendered.end < len(rendered.samples) / SAMPLE_RATE
    lines = [replace(line, text=text) for text in ("the tomato", "wonderful tomato")]
    short, long = (corpus.render_timed(line).word_starts[1][1] for line in lines)
    assert long > short + 0.15, "a longer word before it makes a word start later"


def test_a_crowd_varies_and_actors_do_not() -> None:
    """General speech of the voices that don't act covers the pitch that acting reaches; the actors' stays their own."""
    lines = list(general_lines(60, "general", "train"))
    assert [line.is_crowd for line in lines[:6]] == [False, False, True, True, True, True]
    assert not any(line.may_be_roused for line in lines)
    spread = {speaker: float(np.std(pitch)) for speaker, pitch in _pitches(lines).items()}
    assert max(spread["0"], spread["1"]) < 1.0, spread
    assert min(spread[speaker] for speaker in "2345") > 1.5, spread


def test_what_actors_read_for_the_base_is_even_but_at_times_and_then_mostly_after_a_direction() -> None:
    lines = [line for line in general_lines(1800, "base", "train") if line.speaker in "01"]
    assert all(line.may_be_roused for line in lines)
    for pitch in _pitches(lines[:160]).values():
        away = np.abs(np.array(pitch) - np.median(pitch))
        assert np.median(away) < 0.7, away
        assert 0.03 < np.mean(away > 1.5) < 0.25, away
    roused = [corpus._draw_roused(line, corpus._dice(line)) for line in lines]
    assert 0.1 < np.mean(roused) < 0.2
    undirected = [was for line, was in zip(lines, roused, strict=True) if corpus.prompt(line) == line.text]
    directed = [was for line, was in zip(lines, roused, strict=True) if corpus.prompt(line) != line.text]
    assert np.mean(undirected) < 0.08
    assert 0.3 < np.mean(directed) < 0.7


def _pitches(lines: list[corpus.Line]) -> dict[str, list[float]]:
    """Median pitch of every clip, by voice."""
    found: dict[str, list[float]] = {}
    for line in lines:
        found.setdefault(line.speaker, []).append(measure(line)[0])
    return found


def test_directions_come_before_a_colon_and_are_not_said() -> None:
    lines = list(general_lines(400, "base", "train"))
    prompts = [corpus.prompt(line) for line in lines]
    assert prompts == [corpus.prompt(line) for line in lines]
    directed = [prompt for line, prompt in zip(lines, prompts, strict=True) if prompt != line.text]
    assert 0.1 < len(directed) / len(lines) < 0.2
    for line, prompt in zip(lines, prompts, strict=True):
        direction, colon, text = prompt.rpartition(": ")
        assert text == line.text
        assert bool(colon) == (2 <= len(direction.split()) <= 6)
