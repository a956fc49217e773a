"""The other corpus readers, each on a small folder laid out as published, with the quirks that are known of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from affetto.audio.corpora import CORPORA, load_clips
from affetto.audio.labels import LABELS
from affetto.audio.splits import assign_splits
from affetto.errors import DataError

Tone = Callable[..., Path]
Told = tuple[str | None, str, str | None]
"""(emotion, speaker, text)."""


def _write(tmp_path: Path, name: str, text: str, encoding: str = "utf-8") -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def _crema_d(tone: Tone, _: Path) -> dict[str, Told]:
    for name in ("1001_IEO_HAP_HI", "1002_WSI_NEU_XX", "1091_DFA_ANG_MD", "1040_ITH_SAD_X"):
        tone(f"CREMA-D/AudioWAV/{name}.wav", duration_s=0.1)
    return {
        "1001_IEO_HAP_HI": ("happy", "crema-d-1001", "It's eleven o'clock."),
        "1002_WSI_NEU_XX": ("neutral", "crema-d-1002", "We'll stop in a couple of minutes."),
        "1091_DFA_ANG_MD": ("angry", "crema-d-1091", "Don't forget a jacket."),
        "1040_ITH_SAD_X": ("sad", "crema-d-1040", "I think I have a doctor's appointment."),
    }


def _tess(tone: Tone, _: Path) -> dict[str, Told]:
    for name in ("OAF_angry/OAF_back_angry", "YAF_pleasant_surprised/YAF_dog_ps", "OAF_neutral/OA_bite_neutral"):
        tone(f"TESS/{name}.wav", duration_s=0.1)
    return {
        "OAF_back_angry": ("angry", "tess-OAF", "Say the word back."),
        "YAF_dog_ps": ("surprised", "tess-YAF", "Say the word dog."),
        "OA_bite_neutral": ("neutral", "tess-OAF", "Say the word bite."),
    }


def _savee(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for name in ("DC_sa07", "DC_a01", "KL_su15", "KL_f02"):
        tone(f"SAVEE/ALL/{name}.wav", duration_s=0.1)
    _write(tmp_path, "SAVEE/ALL/DC_a01.txt", "She had your dark suit")
    return {
        "DC_sa07": ("sad", "savee-DC", None),
        "DC_a01": ("angry", "savee-DC", "She had your dark suit"),
        "KL_su15": ("surprised", "savee-KL", None),
        "KL_f02": ("fearful", "savee-KL", None),
    }


def _savee_by_speaker(tone: Tone, _: Path) -> dict[str, Told]:
    for name in ("DC/sa07", "JE/s01", "JE/h03"):
        tone(f"SAVEE/AudioData/{name}.wav", duration_s=0.1)
    return {"sa07": ("sad", "savee-DC", None), "h03": ("happy", "savee-JE", None)}


def _jl_corpus(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    place = "JL/Raw JL corpus (unchecked and unannotated)/JL(wav+txt)"
    for name in ("male2_concerned_6b_1", "female1_excited_10a_2"):
        tone(f"{place}/{name}.wav", duration_s=0.1)
    _write(tmp_path, f"{place}/male2_concerned_6b_1.txt", "Jack views an art piece\n")
    return {
        "male2_concerned_6b_1": ("concerned", "jl-corpus-male2", "Jack views an art piece"),
        "female1_excited_10a_2": ("happy", "jl-corpus-female1", None),
    }


def _esd(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for name in ("0011/Happy/0011_000701", "0011/Surprise/test/0011_001401", "0003/Sad/train/0003_001051"):
        tone(f"ESD/{name}.wav", duration_s=0.1)
    _write(tmp_path, "ESD/0011/0011.txt", "0011_000701\tThe nine the eggs.\tHappy\n0011_001401\tOh no.\tSurprise\n")
    # Speaker 3's list is in another encoding, its emotions in Chinese.
    _write(tmp_path, "ESD/0003/0003.txt", "0003_001051\t打远一看\t伤心\n", "gb18030")
    return {
        "0011_000701": ("happy", "esd-0011", "The nine the eggs."),
        "0011_001401": ("surprised", "esd-0011", "Oh no."),
        "0003_001051": ("sad", "esd-0003", "打远一看"),
    }


def _emov_db(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for name in ("bea_Angry/anger_1-28_0011", "josh_Sleepy/sleepiness_1-28_0011", "sam_Amused/amused_1-15_0002"):
        tone(f"EmoV-DB/{name}.wav", duration_s=0.1)
    listed = '( arctic_a0002 "Not at this particular case, Tom, apologized Whittemore." )\n( arctic_a0011 "He was." )\n'
    _write(tmp_path, "EmoV-DB/cmuarctic.data", listed)
    return {
        "anger_1-28_0011": ("angry", "emov-db-bea", "He was."),
        "sleepiness_1-28_0011": ("sleepy", "emov-db-josh", "He was."),
        "amused_1-15_0002": (
            "amused", "emov-db-sam", "Not at this particular case, Tom, apologized Whittemore.",
        ),
    }  # fmt: skip


def _expresso(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for name in ("ex04/happy/base/ex04_happy_00085", "ex01/default/ex01_default_00001", "ex02/sing/ex02_singing_01"):
        tone(f"expresso/audio_48khz/read/{name}.wav", duration_s=0.1)
    _write(tmp_path, "expresso/read_transcriptions.txt", "ex04_happy_00085\tSo fun!\nex01_default_00001\tSo.\n")
    return {
        "ex04_happy_00085": ("happy", "expresso-ex04", "So fun!"),
        "ex01_default_00001": ("neutral", "expresso-ex01", "So."),
    }


def _iemocap(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for name in ("Ses01F_impro01_F000", "Ses01F_impro01_M001", "Ses01F_impro01_M002"):
        tone(f"IEMOCAP/Session1/sentences/wav/Ses01F_impro01/{name}.wav", duration_s=0.1)
    rows = [
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", "",
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()",
        "[8.30 - 9.10]\tSes01F_impro01_M001\texc\t[4.0, 4.0, 3.0]",
        "[9.30 - 9.50]\tSes01F_impro01_M002\txxx\t[3, 3, 3]",
    ]  # fmt: skip
    _write(tmp_path, "IEMOCAP/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt", "\n".join(rows))
    said = "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\nSes01F_impro01_M001 [008.3000-009.1000]: Do you?\n"
    _write(tmp_path, "IEMOCAP/Session1/dialog/transcriptions/Ses01F_impro01.txt", said)
    return {
        "Ses01F_impro01_F000": ("neutral", "iemocap-01F", "Excuse me."),
        "Ses01F_impro01_M001": ("happy", "iemocap-01M", "Do you?"),
        "Ses01F_impro01_M002": ("other", "iemocap-01M", None),
    }


def _meld(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    for part, words in (("train", '"also I was the point person, you know"'), ("dev", "Oh my God!")):
        tone(f"MELD/{part}_splits_wav/dia0_utt0.wav", duration_s=0.1, hertz=200 + len(part))
        _write(tmp_path, f"MELD/{part}_sent_emo.csv", f"{header}1,{words},Chandler,joy,positive,0,0\n")
    return {}


def _emns(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for number in (1, 2):
        tone(f"EMNS/wavs/{number}.wav", duration_s=0.1)
    header = "id|user_id|gender|emotion|level|utterance|description|date|status|audio_recording|age"
    rows = [f"{n}|3|Female|{e}|9|Words {n}.|d|t|ok|wavs/{n}.webm|20s" for n, e in ((1, "Excited"), (2, "Sarcastic"))]
    _write(tmp_path, "EMNS/metadata.csv", "\n".join([header, *rows]))
    return {"1": ("happy", "emns-narrator", "Words 1."), "2": ("sarcastic", "emns-narrator", "Words 2.")}


def _libritts(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for subset, name in (("dev-clean", "84/121123/84_121123_000007_000001"), ("train", "19/198/19_198_000000_000000")):
        tone(f"LibriTTS/{subset}/{name}.wav", duration_s=0.1)
        _write(tmp_path, f"LibriTTS/{subset}/{name}.normalized.txt", f"Words of {subset}.")
    return {
        "84_121123_000007_000001": (None, "libritts-84", "Words of dev-clean."),
        "19_198_000000_000000": (None, "libritts-19", "Words of train."),
    }


def _vctk(tone: Tone, tmp_path: Path) -> dict[str, Told]:
    for microphone in (1, 2):
        tone(f"VCTK-Corpus-0.92/wav48_silence_trimmed/p225/p225_001_mic{microphone}.flac", duration_s=0.1)
    _write(tmp_path, "VCTK-Corpus-0.92/txt/p225/p225_001.txt", "Please call Stella.\n")
    return {"p225_001_mic1": (None, "vctk-p225", "Please call Stella.")}


LAYOUTS: dict[str, tuple[str, Callable[[Tone, Path], dict[str, Told]]]] = {
    "CREMA-D": ("crema-d", _crema_d), "TESS": ("tess", _tess), "SAVEE/ALL": ("savee", _savee),
    "JL": ("jl-corpus", _jl_corpus), "ESD": ("esd", _esd), "EmoV-DB": ("emov-db", _emov_db),
    "expresso": ("expresso", _expresso), "IEMOCAP": ("iemocap", _iemocap), "EMNS": ("emns", _emns),
    "LibriTTS": ("libritts", _libritts), "VCTK-Corpus-0.92": ("vctk", _vctk),
}  # fmt: skip
"""By the folder that a user gives."""


@pytest.mark.parametrize("root", LAYOUTS)
def test_labels_speakers_and_texts_are_the_corpus_own(tone: Tone, tmp_path: Path, root: str) -> None:
    corpus, build = LAYOUTS[root]
    expected = build(tone, tmp_path)
    clips, problems = load_clips([tmp_path / root])
    assert problems == []
    assert {clip.audio.stem: (clip.emotion, clip.speaker, clip.text) for clip in clips} == expected
    assert {clip.corpus for clip in clips} == {corpus}
    assert len({clip.id for clip in clips}) == len(clips)
    assert all(clip.split is None for clip in clips)


def test_how_strongly_crema_d_is_acted_is_read_where_it_is_said(tone: Tone, tmp_path: Path) -> None:
    _crema_d(tone, tmp_path)
    tone("CREMA-D/AudioWAV/1001_IEO_HAP_LO.wav", duration_s=0.1)
    found = {clip.audio.stem: clip.intensity for clip in load_clips([tmp_path / "CREMA-D"])[0]}
    assert found["1001_IEO_HAP_LO"] < found["1091_DFA_ANG_MD"] < found["1001_IEO_HAP_HI"] == 1.0
    assert found["1002_WSI_NEU_XX"] is found["1040_ITH_SAD_X"] is None


@pytest.mark.parametrize("root", LAYOUTS)
def test_pitfall_23_no_text_and_where_asked_no_speaker_in_two_splits(tone: Tone, tmp_path: Path, root: str) -> None:
    LAYOUTS[root][1](tone, tmp_path)
    clips, _ = load_clips([tmp_path / root])
    for by_speaker in (False, True):
        placed, _ = assign_splits(clips, by_speaker=by_speaker)
        assert placed
        for key in ("text", "speaker") if by_speaker else ("text",):
            splits: dict[str, set[str | None]] = {}
            for clip in placed:
                if getattr(clip, key) is not None and clip.split is not None:
                    splits.setdefault(re.sub(r"\W+", " ", getattr(clip, key)).casefold(), set()).add(clip.split)
            assert all(len(found) == 1 for found in splits.values()), (key, splits)


def test_all_corpora_in_one_folder_are_told_apart(tone: Tone, tmp_path: Path) -> None:
    expected = 0
    for corpus, build in LAYOUTS.values():
        expected += len(build(tone, tmp_path))
        assert corpus in CORPORA
    clips, problems = load_clips([tmp_path])
    assert problems == []
    assert len(clips) == expected
    assert {clip.corpus for clip in clips} == {corpus for corpus, _ in LAYOUTS.values()}


def test_savee_by_speakers_folders_and_a_name_that_is_none(tone: Tone, tmp_path: Path) -> None:
    expected = _savee_by_speaker(tone, tmp_path)
    clips, problems = load_clips([tmp_path / "SAVEE"])
    assert {clip.audio.stem: (clip.emotion, clip.speaker, clip.text) for clip in clips} == expected
    assert [(problem.kind, problem.where) for problem in problems] == [("bad-row", "SAVEE/AudioData/JE/s01.wav")]


def test_each_savee_speaker_has_recordings_of_the_same_names(tone: Tone, tmp_path: Path) -> None:
    for name in ("DC/a01", "JE/a01", "JE/JE_sa02"):
        tone(f"SAVEE/{name}.wav", duration_s=0.1)
    clips, problems = load_clips([tmp_path / "SAVEE"])
    assert problems == []
    assert {clip.id: clip.speaker for clip in clips} == {
        "savee-DC_a01": "savee-DC", "savee-JE_a01": "savee-JE", "savee-JE_sa02": "savee-JE"
    }  # fmt: skip


def test_somebodys_own_short_names_are_not_taken_for_savees(tone: Tone, tmp_path: Path) -> None:
    for name in ("happy/h01", "sad/a01", "sad/d02", "general/n03"):
        tone(f"mine/{name}.wav", duration_s=0.1)
    clips, problems = load_clips([tmp_path / "mine"])
    assert problems == []
    assert {(clip.audio.stem, clip.emotion, clip.corpus) for clip in clips} == {
        ("h01", "happy", "mine"), ("a01", "sad", "mine"), ("d02", "sad", "mine"), ("n03", None, "mine")
    }  # fmt: skip
    for source in ("sad", "general"):
        assert {clip.corpus for clip in load_clips([tmp_path / "mine" / source])[0]} == {source}


def test_melds_parts_number_their_dialogues_alike(tone: Tone, tmp_path: Path) -> None:
    _meld(tone, tmp_path)
    (tmp_path / "MELD/test_splits").mkdir()
    _write(tmp_path, "MELD/test_sent_emo.csv", "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nHi,Ross,fear,3,1\n")
    clips, problems = load_clips([tmp_path / "MELD"])
    told = {clip.id: (clip.emotion, clip.speaker, clip.text) for clip in clips}
    assert told == {
        "meld-train-dia0_utt0": ("happy", "meld-Chandler", "also I was the point person, you know"),
        "meld-dev-dia0_utt0": ("happy", "meld-Chandler", "Oh my God!"),
    }
    assert [(problem.kind, "ffmpeg" in problem.message) for problem in problems] == [("missing-file", True)]


BAD: dict[str, tuple[Callable[[Tone, Path], dict[str, Told]], str, Callable[[Tone, Path], object], str]] = {
    "a name of another kind": (_crema_d, "CREMA-D", lambda tone, _: tone("CREMA-D/AudioWAV/song.wav"), "bad-row"),
    "an emotion that the corpus lacks": (
        _crema_d, "CREMA-D", lambda tone, _: tone("CREMA-D/AudioWAV/1001_IEO_SUR_HI.wav"), "unknown-emotion",
    ),
    "the same clip twice": (_tess, "TESS", lambda tone, _: tone("TESS/OAF_sad/OAF_back_angry.wav"), "duplicate-id"),
    "an utterance without a label": (
        _iemocap, "IEMOCAP", lambda tone, _: tone("IEMOCAP/Session1/sentences/wav/x/Ses01F_impro09_F000.wav"),
        "bad-row",
    ),
    "a folder that is no emotion": (
        _esd, "ESD", lambda tone, _: tone("ESD/0011/Tired/0011_000999.wav"), "unknown-emotion",
    ),
    "a recording without a sound file": (
        _emns, "EMNS", lambda _, folder: (folder / "EMNS/wavs/2.wav").unlink(), "missing-file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_and_the_rest_is_read(tone: Tone, tmp_path: Path, case: str) -> None:
    build, root, spoil, kind = BAD[case]
    expected = build(tone, tmp_path)
    spoil(tone, tmp_path)
    clips, problems = load_clips([tmp_path / root])
    assert [problem.kind for problem in problems] == [kind]
    assert len(clips) >= len(expected) - 1


@pytest.mark.parametrize(("build", "listed"), [(_emns, "EMNS/metadata.csv"), (_emov_db, "EmoV-DB/cmuarctic.data")])
def test_a_list_in_another_encoding_is_named_and_not_guessed(
    tone: Tone, tmp_path: Path, build: Callable[[Tone, Path], object], listed: str
) -> None:
    """Latin-1's é before a letter is a Chinese letter in the encoding of ESD's lists."""
    build(tone, tmp_path)
    path = tmp_path / listed
    path.write_bytes(path.read_bytes().replace(b"s", "éa".encode("latin-1")))
    path.read_bytes().decode("gb18030")
    with pytest.raises(DataError, match=rf"{path.name}: not UTF-8; save it as UTF-8"):
        load_clips([path.parent])


def test_pitfall_24_letters_that_collide_mean_each_corpus_own(tone: Tone, tmp_path: Path) -> None:
    _savee(tone, tmp_path)
    clips, _ = load_clips([tmp_path / "SAVEE/ALL"])
    heard = {clip.audio.stem: clip.emotion for clip in clips}
    assert heard["DC_sa07"] == "sad"
    assert heard["DC_a01"] == "angry"
    assert LABELS["msp-podcast"]["S"] == "sad" != LABELS["savee"]["su"]
    assert "surprised" not in LABELS["crema-d"].values()


def test_emov_db_sorted_by_speaker_and_with_numbers_for_them(tone: Tone, tmp_path: Path) -> None:
    for name in ("jenie/Angry/anger_393-420_0397", "josh/Neutral/neutral_1-28_0001", "3/Disgusted/disgust_1-28_0002"):
        tone(f"EmoV-DB_sorted/{name}.wav", duration_s=0.1)
    _write(tmp_path, "EmoV-DB_sorted/cmuarctic.data", '( arctic_a0397 "It was." )\n( arctic_b0001 "Not this." )\n')
    clips, problems = load_clips([tmp_path / "EmoV-DB_sorted"])
    assert problems == []
    assert {clip.id: (clip.emotion, clip.speaker, clip.text) for clip in clips} == {
        "emov-db-jenie-anger_393-420_0397": ("angry", "emov-db-jenie", "It was."),
        "emov-db-josh-neutral_1-28_0001": ("neutral", "emov-db-josh", None),
        "emov-db-3-disgust_1-28_0002": ("disgusted", "emov-db-3", None),
    }


def test_meld_as_it_is_unpacked(tone: Tone, tmp_path: Path) -> None:
    """One list inside its part, the others above; the test's folder has a name of its own; code page 1252."""
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    places = {
        "train": ("train/train_sent_emo.csv", "train/train_splits"),
        "dev": ("dev_sent_emo.csv", "dev/dev_splits_complete"),
        "test": ("test_sent_emo.csv", "test/output_repeated_splits_test"),
    }
    for number, (part, (listed, sounds)) in enumerate(places.items()):
        tone(f"MELD.Raw/{sounds}/dia1_utt{number}.wav", duration_s=0.1, hertz=200 + 10 * number)
        _write(tmp_path, f"MELD.Raw/{listed}", f"{header}1,my company\x92s {part},Joey,anger,negative,1,{number}\n")
    tone("MELD.Raw/test/output_repeated_splits_test/final_videos_testdia1_utt2.wav", duration_s=0.1)
    clips, problems = load_clips([tmp_path / "MELD.Raw"])
    assert problems == []
    assert {clip.id: clip.text for clip in clips} == {
        "meld-train-dia1_utt0": "my company’s train", "meld-dev-dia1_utt1": "my company’s dev",
        "meld-test-dia1_utt2": "my company’s test",
    }  # fmt: skip


def test_vctk_before_its_second_microphone(tone: Tone, tmp_path: Path) -> None:
    tone("VCTK-Corpus/wav48/p226/p226_002.wav", duration_s=0.1)
    _write(tmp_path, "VCTK-Corpus/txt/p226/p226_002.txt", "Ask her to bring these things.\n")
    ((clip,), problems) = load_clips([tmp_path / "VCTK-Corpus"])
    assert (problems, clip.id, clip.speaker) == ([], "vctk-p226_002", "vctk-p226")
    assert clip.text == "Ask her to bring these things."


def test_libritts_r_from_its_root(tone: Tone, tmp_path: Path) -> None:
    name = "LibriTTS_R/dev-clean/1272/128104/1272_128104_000001_000000"
    tone(f"{name}.wav", duration_s=0.1)
    _write(tmp_path, f"{name}.normalized.txt", "A normalised text.")
    _write(tmp_path, f"{name}.original.txt", "An original text.")
    ((clip,), problems) = load_clips([tmp_path / "LibriTTS_R"])
    assert (problems, clip.text, clip.speaker) == ([], "A normalised text.", "libritts-1272")


def test_expresso_variants_of_the_default_style_and_long_recordings(tone: Tone, tmp_path: Path) -> None:
    names = (
        "base/ex03_default_emphasis_00010",
        "base/ex03_default_essentials_00005",
        "longform/ex03_default_longform_00001",
    )
    for name in names:
        tone(f"expresso/audio_48khz/read/ex03/default/{name}.wav", duration_s=0.1)
    _write(tmp_path, "expresso/read_transcriptions.txt", "ex03_default_emphasis_00010\tIt *is*.\n")
    clips, problems = load_clips([tmp_path / "expresso"])
    assert problems == []
    assert {(clip.emotion, clip.speaker) for clip in clips} == {("neutral", "expresso-ex03")}
    assert [clip.text for clip in clips] == ["It *is*.", None, None]
