"""Machine-made texts: only where there are none, marked, and resumable at any clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from affetto.audio.manifest import read_manifest, write_manifest
from affetto.errors import DataError
from affetto.evaluate.transcription import BATCH_CLIPS, journal_of, transcribe
from affetto.judges.choice import load_judge
from affetto.types import Clip
from evaluate_fakes import RATE, PitchWords, silence, voice
from tiny_judges import bert_words, whisper_words


class Counting(PitchWords):
    """Counts the sounds it heard, and may fail after some."""

    def __init__(self, fails_after: int = 10**9) -> None:
        self.num_heard, self.fails_after = 0, fails_after

    def transcribe(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
        if self.num_heard >= self.fails_after:
            raise KeyboardInterrupt
        self.num_heard += len(sounds)
        return super().transcribe(sounds)


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Voices at 120, 130, … Hz, which say their tenth; every third has a text already."""
    found = []
    for number in range(2 * BATCH_CLIPS + 6):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, voice(120 + 10 * (number % 3), 0.3), RATE)
        found.append(Clip(str(number), path, "As given." if number % 3 == 0 else None, None, "0", "test"))
    return found


def test_missing_texts_are_written_and_given_ones_stay(clips: list[Clip], tmp_path: Path) -> None:
    clips[3] = replace(clips[3], transcribed_by="an/earlier@model")
    clips[4] = replace(clips[4], text=" ")
    done = transcribe(clips, PitchWords(), tmp_path / "journal")
    assert done.problems == ()
    assert [clip for clip in done.clips if int(clip.id) % 3 == 0] == clips[::3], "untouched"
    written = [clip for clip in done.clips if int(clip.id) % 3]
    assert [clip.text for clip in written] == ["thirteen", "fourteen"] * (len(written) // 2)
    assert {clip.transcribed_by for clip in written} == {"fake/numbers"}
    assert (done.num_written, done.num_resumed) == (len(written), 0)
    write_manifest(tmp_path / "manifest.jsonl", done.clips)
    assert read_manifest(tmp_path / "manifest.jsonl") == (list(done.clips), [])


def test_a_killed_run_goes_on_where_it_was_even_with_a_torn_line(clips: list[Clip], tmp_path: Path) -> None:
    journal, judge = journal_of(tmp_path / "manifest.jsonl"), Counting(fails_after=BATCH_CLIPS)
    with pytest.raises(KeyboardInterrupt):
        transcribe(clips, judge, journal)
    assert judge.num_heard == BATCH_CLIPS
    journal.write_text(journal.read_text()[:-5])
    again = Counting()
    done = transcribe(clips, again, journal)
    missing = sum(clip.text is None for clip in clips)
    assert again.num_heard == missing - BATCH_CLIPS + 1, "the torn line's clip is heard again"
    assert done.num_resumed == BATCH_CLIPS - 1
    assert done.clips == transcribe(clips, PitchWords(), tmp_path / "fresh").clips


def test_another_judge_or_another_recording_is_heard_anew(clips: list[Clip], tmp_path: Path) -> None:
    transcribe(clips[:3], Counting(), tmp_path / "journal")
    other = Counting()
    other.id = "fake/other"
    assert transcribe(clips[:3], other, tmp_path / "journal").clips[1].transcribed_by == "fake/other"
    assert other.num_heard == 2
    transcribe(clips[:3], Counting(), tmp_path / "journal")
    soundfile.write(clips[1].audio, voice(150, 0.4), RATE)
    again = Counting()
    done = transcribe(clips[:3], again, tmp_path / "journal")
    assert (again.num_heard, done.clips[1].text) == (1, "fifteen")


def test_segments_silence_and_broken_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "two.wav", np.concatenate([voice(120, 0.5), voice(150, 0.5)]), RATE)
    soundfile.write(tmp_path / "still.wav", silence(0.5), RATE)
    (tmp_path / "torn.wav").write_bytes(b"torn")

    class Deaf(PitchWords):
        def transcribe(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
            return [
                text if sound.any() else " " for sound, text in zip(sounds, super().transcribe(sounds), strict=True)
            ]

    clips = [
        Clip("late", tmp_path / "two.wav", None, None, "0", "test", start_s=0.5),
        Clip("still", tmp_path / "still.wav", None, None, "0", "test"),
        Clip("torn", tmp_path / "torn.wav", None, None, "0", "test"),
    ]
    done = transcribe(clips, Deaf(), tmp_path / "journal")
    assert [(clip.text, clip.transcribed_by) for clip in done.clips] == [
        ("fifteen", "fake/numbers"), (None, None), (None, None)
    ]  # fmt: skip
    assert [(problem.where, problem.kind) for problem in done.problems] == [
        ("torn", "unreadable"), ("still", "missing-text")
    ]  # fmt: skip
    with pytest.raises(DataError, match="can't write"):
        transcribe(clips, Deaf(), tmp_path / "torn.wav" / "journal")


def test_clips_too_short_for_a_judge_are_listed_and_the_others_written_down(clips: list[Clip], tmp_path: Path) -> None:
    judge = load_judge("words", bert_words(tmp_path / "judge"))
    shorts = []
    for count in (3, 100, 200, int(0.1 * RATE) - 1):
        soundfile.write(tmp_path / f"short{count}.wav", voice(120, 0.3)[:count], RATE)
        shorts.append(Clip(f"short{count}", tmp_path / f"short{count}.wav", None, None, "0", "test"))
    done = transcribe([*shorts, *clips[:8]], judge, tmp_path / "journal")
    told = {problem.where for problem in done.problems if problem.kind == "too-short"}
    assert told == {clip.id for clip in shorts}
    assert all(clip.text is None for clip in done.clips[: len(shorts)])
    assert done.num_written > 0


@pytest.mark.parametrize("make", [bert_words, whisper_words], ids=["ctc", "whisper"])
def test_real_recognisers_write_what_they_hear_alone(tmp_path: Path, make: object, clips: list[Clip]) -> None:
    judge = load_judge("words", make(tmp_path / "judge"))  # type: ignore[operator]
    done = transcribe(clips[:8], judge, tmp_path / "journal")
    assert done.num_written > 0
    for clip in done.clips:
        if clip.transcribed_by:
            samples, _ = soundfile.read(clip.audio, dtype="float32")
            assert [clip.text] == [" ".join(judge.transcribe([samples])[0].split())]
            assert clip.transcribed_by == judge.id
