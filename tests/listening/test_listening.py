"""Listening tests: blind, of one loudness, and votes back to numbers that are known otherwise."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.stats import binomtest
from typer.testing import CliRunner

from affetto.audio.sound import write_sound
from affetto.cli import app
from affetto.errors import DataError
from affetto.files import read_json
from affetto.listening.test_page import VOTES_SCHEMA, export_test, level
from affetto.listening.votes import Vote, read_votes, score_votes
from affetto.metrics.activity import find_activity
from browser import chromium
from evaluate_fakes import voice

EMOTIONS = ("happy", "sad")
Called = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two systems that say the same five sentences, one of them much louder, one file only in one."""
    found = {"base": tmp_path / "plain", "happy": tmp_path / "cheerful"}
    for place, folder in enumerate(found.values()):
        for number in range(5 + place):
            path = folder / f"{number:03d}.wav"
            write_sound(path, (0.05, 0.4)[place] * voice(120 + 20 * number, 0.4), 24_000)
            path.with_suffix(".txt").write_text(f"sentence {number}")
    return found


def test_nothing_that_listeners_get_tells_the_systems(folders: dict[str, Path], tmp_path: Path) -> None:
    key = export_test(folders, tmp_path / "out", EMOTIONS, num_sentences=4)
    assert key == tmp_path / "out_key.json"
    assert not list((tmp_path / "out").rglob("*key*"))
    page, config = ((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("test.html", "webmushra.yaml"))
    known = read_json(key)
    assert len(known["items"]) == 8
    assert len(known["pairs"]) == 4
    for text in (re.sub(r"base64,[^\"]*|(?s:<style>.*</style>)", "", page), config):
        assert "cheerful" not in text
        assert not re.search(r"\bbase\b", text)
        assert not re.search(r"00\d\.wav", text)
    assert not re.search(r"https?://|src=\"(?!\$)", page), "nothing is fetched"
    ids = {path.stem for path in (tmp_path / "out" / "audio").iterdir()}
    assert ids == {*known["items"], *known["pairs"]}
    both = {frozenset(known["items"][pair[side]]["system"] for side in "ab") for pair in known["pairs"].values()}
    assert both == {frozenset({"base", "happy"})}


def test_a_folder_that_cant_be_written_is_told(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"can't write /proc/new/audio \(.*name another place"):
        export_test(folders, Path("/proc/new"), EMOTIONS, num_sentences=1)


def test_the_same_seed_gives_the_same_test_and_another_one_another(folders: dict[str, Path], tmp_path: Path) -> None:
    keys = [
        read_json(export_test(folders, tmp_path / name, EMOTIONS, seed=seed))
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    assert keys[0] == keys[1]
    assert keys[0]["items"].keys().isdisjoint(keys[2]["items"])


def test_every_sound_is_of_one_level_and_none_is_clipped(folders: dict[str, Path], tmp_path: Path) -> None:
    export_test(folders, tmp_path / "out", EMOTIONS)
    page = (tmp_path / "out" / "test.html").read_text(encoding="utf-8")
    embedded = re.findall(r'"(\w+)": "data:audio/wav;base64,([^"]+)"', page)
    assert len(embedded) == 10
    levels = []
    for name, data in embedded:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        left, right = soundfile.read(tmp_path / "out" / "audio" / f"{name}.wav")[0].T
        np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(np.trim_zeros(left), np.trim_zeros(samples))
        found = find_activity(samples, rate)
        assert found is not None
        levels.append(found.level_db)
        assert np.abs(samples).max() <= 10 ** (-1 / 20) + 1e-4
    assert max(levels) - min(levels) < 0.5
    spiky = np.zeros(24_000)
    spiky[::4000] = 1.0
    assert np.abs(level(spiky, 24_000)).max() <= 10 ** (-1 / 20) + 1e-6
    assert not level(np.zeros(2400), 24_000).any()


def test_folders_that_share_nothing_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two folders"):
        export_test({"base": folders["base"]}, tmp_path / "out", EMOTIONS)
    (folders["base"] / "000.wav").write_bytes(b"torn")
    with pytest.raises(DataError, match="can't be played"):
        export_test(folders, tmp_path / "out", EMOTIONS, num_sentences=5)


@pytest.mark.parametrize("what", ["an earlier test", "something of the user's", "a file", "the key alone"])
def test_a_test_is_never_mixed_with_what_is_there(folders: dict[str, Path], tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "an earlier test":
        export_test(folders, out, EMOTIONS)
    elif what == "something of the user's":
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    elif what == "a file":
        out.write_text("years of work")
    else:
        (tmp_path / "out_key.json").write_text("of a test that is running")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="name another --out"):
        export_test(folders, out, EMOTIONS, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_empty_folder_will_do(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export_test(folders, tmp_path / "out", EMOTIONS).is_file()


def test_a_text_that_is_not_utf_8_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    (folders["happy"] / "003.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"003\.txt: not UTF-8"):
        export_test(folders, tmp_path / "out", EMOTIONS)


def key_of(num_sentences: int) -> dict[str, Any]:
    items = {
        f"{name[0]}{number}": {"system": name, "file": f"{number}.wav", "text": None}
        for name in ("base", "happy")
        for number in range(num_sentences)
    }
    pairs = {f"pair-{number}": {"a": f"b{number}", "b": f"h{number}"} for number in range(num_sentences)}
    return {
        "schema": "affetto.listening-key/1",
        "test": "t",
        "choices": ["happy", "sad", "none"],
        "items": items,
        "pairs": pairs,
    }


def test_scores_are_counted_by_system() -> None:
    votes = [
        Vote(rater, item, "naturalness", value)
        for rater, values in (("ann", "54"), ("bob", "32"))
        for item, value in zip(("b0", "h0"), values, strict=True)
    ]
    heard = (("ann", "h0", "happy"), ("bob", "h0", "none"), ("ann", "b0", "sad"))
    votes += [Vote(rater, item, "emotion", value) for rater, item, value in heard]
    found = score_votes(key_of(2), votes, "happy")
    assert found["num_raters"] == 2
    assert found["systems"]["base"]["naturalness"]["value"] == 4.0
    assert found["systems"]["happy"]["naturalness"]["value"] == 3.0
    assert found["systems"]["happy"]["naturalness"]["low"] is None, "one sentence gives no interval"
    assert found["systems"]["happy"]["emotions"] == {"happy": 1, "none": 1}
    assert found["systems"]["happy"]["recall"]["value"] == 0.5
    assert found["systems"]["base"]["recall"]["value"] == 0.0


def test_preferences_count_sentences_by_majority() -> None:
    # On five of six sentences happy wins two to one; on the sixth it loses; A is always the base.
    votes = [
        Vote(rater, f"pair-{number}", "preference", "A" if (number == 5) != (rater == "cy") else "B")
        for number in range(6)
        for rater in ("ann", "bob", "cy")
    ]
    votes.append(Vote("dan", "pair-0", "preference", "none"))
    (row,) = score_votes(key_of(6), votes)["preferences"]
    assert row["systems"] == ["base", "happy"]
    assert row["votes"] == {"base": 7, "happy": 11, "none": 1}
    assert row["sentences"] == {"base": 1, "happy": 5, "tied": 0}
    assert row["p_value"] == pytest.approx(binomtest(1, 6).pvalue)


def test_only_what_could_be_chosen_can_be_the_target() -> None:
    votes = [Vote("ann", "h0", "emotion", "happy")]
    with pytest.raises(DataError, match="'hapy' wasn't a choice in this test; the choices were happy, sad, none"):
        score_votes(key_of(1), votes, "hapy")
    assert score_votes(key_of(1), votes, "sad")["systems"]["happy"]["recall"]["value"] == 0.0


@pytest.mark.parametrize(
    ("content", "told"),
    [("[]", "n't the key"), ("{", "be read as a key"), ("null", "n't the key"), ('{"schema": "x"}', "n't the key"),
     ("\xff", "can't be read as a key"),
     ('{"schema": "affetto.listening-key/1", "test": "t", "choices": [], "items": []}', "it lacks items, pairs"),
     (json.dumps(key_of(1) | {"items": {"b0": {}, "h0": {}}}), "is damaged"),
     (json.dumps(key_of(1) | {"pairs": {"p": {"a": "b0", "b": "x9"}}}), "is damaged")],
)  # fmt: skip
def test_a_file_that_is_no_key_is_one_clear_line(affetto: Called, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "key.json").write_bytes(content.encode("latin-1"))
    votes = write_votes(tmp_path / "ann.json", [{"item": "b0", "kind": "naturalness", "value": 4}])
    status, out, err = affetto("listen", "score", votes, "--key", "key.json")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: key.json ")
    assert told in err
    assert "OUT_key.json" in err


def write_votes(path: Path, votes: list[dict[str, Any]], **changes: Any) -> Path:
    path.write_text(json.dumps({"schema": VOTES_SCHEMA, "test": "t", "rater": path.stem, "votes": votes} | changes))
    return path


def test_votes_are_read_from_pages_and_tables(tmp_path: Path) -> None:
    page = write_votes(tmp_path / "ann.json", [{"item": "b0", "kind": "naturalness", "value": 4}])
    table = tmp_path / "lab.csv"
    for mark in ",;\t":
        table.write_text(
            "rater,item,kind,value\nbob,b0,naturalness,2\n".replace(",", mark), "utf-8-sig", newline="\r\n"
        )
        votes = read_votes([page, table], "t")
        assert score_votes(key_of(1), votes)["systems"]["base"]["naturalness"]["value"] == 3.0


BAD: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "another test's": ([{"item": "b0", "kind": "naturalness", "value": 4}], {"test": "u"}, "is of test u"),
    "no votes file": ([], {"schema": "something"}, "holds no votes"),
    "empty": ([], {}, "no votes"),
    "twice": ([{"item": "b0", "kind": "naturalness", "value": 4}] * 2, {}, "voted twice"),
    "an unknown kind": ([{"item": "b0", "kind": "beauty", "value": 4}], {}, "unknown kind of vote 'beauty'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_votes_are_named(tmp_path: Path, case: str) -> None:
    votes, changes, said = BAD[case]
    with pytest.raises(DataError, match=said):
        read_votes([write_votes(tmp_path / "ann.json", votes, **changes)], "t")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [("ann.json", None, "can't be read as votes (No such file or directory)"),
     ("ann.csv", None, "can't be read as votes (No such file or directory)"),
     ("ann.json", "{", "can't be read as votes (it isn't JSON: Expecting"),
     ("ann.csv", "rater,item\n\xff", "can't be read as votes (it isn't UTF-8)"),
     ("ann.csv", "rater,item\n", "lacks the columns kind, value"),
     ("ann.json", "{}", "holds no votes"), ("ann.json", "[]", "holds no votes"),
     ("ann.json", json.dumps({"schema": VOTES_SCHEMA, "test": "t"}), "it lacks its rater or votes"),
     ("ann.json", json.dumps({"schema": VOTES_SCHEMA, "test": "t", "rater": "ann", "votes": [{"item": "b0"}]}),
      "vote 1 lacks one of item, kind, value")],
)  # fmt: skip
def test_a_file_that_holds_no_votes_is_one_clear_line(
    affetto: Called, tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(key_of(1)))
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    status, out, err = affetto("listen", "score", name, "--key", "key.json")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {name} ")
    assert told in err
    assert "give the .json that a listener's page saved" in err


def test_votes_beyond_the_scale_or_the_key_are_errors() -> None:
    with pytest.raises(DataError, match="goes from 1 to 5"):
        score_votes(key_of(1), [Vote("ann", "b0", "naturalness", "6")])
    with pytest.raises(DataError, match="doesn't know"):
        score_votes(key_of(1), [Vote("ann", "zzz", "naturalness", "3")])
    with pytest.raises(DataError, match="doesn't know"):
        score_votes(key_of(1), [Vote("ann", "b0", "preference", "A")])
    with pytest.raises(DataError, match="ann heard 'Happy'; the choices were happy, sad, none"):
        score_votes(key_of(1), [Vote("ann", "b0", "emotion", "Happy")])
    with pytest.raises(DataError, match="isn't the key"):
        score_votes({"schema": "x"}, [])


def test_the_verbs_go_from_an_evaluation_to_numbers(folders: dict[str, Path], tmp_path: Path) -> None:
    options = [f"--system={name}={folder}" for name, folder in folders.items()]
    out = tmp_path / "listening"
    made = CliRunner().invoke(app, ["listen", "export", "-e", "happy", "--out", str(out), *options])
    assert made.exit_code == 0, made.output
    key = read_json(tmp_path / "listening_key.json")
    votes = [{"item": item, "kind": "naturalness", "value": 3} for item in key["items"]]
    write_votes(tmp_path / "ann.json", votes, test=key["test"])
    scored = CliRunner().invoke(
        app, ["listen", "score", str(tmp_path / "ann.json"), "--key", str(tmp_path / "listening_key.json")]
    )
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.output)["systems"]["happy"]["naturalness"]["value"] == 3.0


def test_a_listener_can_vote_in_a_browser(folders: dict[str, Path], tmp_path: Path) -> None:
    """Clicks through the whole page; the votes that it would save are complete and of the key's items."""
    key = read_json(export_test(folders, tmp_path / "out", EMOTIONS, num_sentences=2))
    with chromium(tmp_path / "profile") as browser:
        for domain in ("Runtime", "Page"):
            browser.call(f"{domain}.enable")
        browser.call("Page.navigate", url=(tmp_path / "out" / "test.html").as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())
        browser.evaluate(
            "URL.createObjectURL = blob => { window.saved = blob.text(); return '#'; };"
            "document.getElementById('rater').value = 'ann'; document.getElementById('next').click()"
        )
        for _ in range(len(key["items"]) + len(key["pairs"])):
            assert browser.evaluate("document.getElementById('next').disabled") is True
            browser.evaluate("document.querySelectorAll('fieldset').forEach(f => f.querySelector('input').click())")
            browser.evaluate("document.getElementById('next').click()")
        saved = json.loads(browser.evaluate("window.saved"))
    (tmp_path / "ann.json").write_text(json.dumps(saved))
    votes = read_votes([tmp_path / "ann.json"], key["test"])
    assert {vote.item for vote in votes} == {*key["items"], *key["pairs"]}
    assert len(votes) == 2 * len(key["items"]) + len(key["pairs"])
    assert score_votes(key, votes)["systems"]["base"]["naturalness"]["value"] == 1.0
