"""webMUSHRA's configuration is what its documentation and its pages ask for, and its table is read back."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from scipy.stats import binomtest
from typer.testing import CliRunner

from affetto.audio.sound import write_sound
from affetto.cli import app
from affetto.errors import DataError
from affetto.files import read_json
from affetto.listening.test_page import export_test
from affetto.listening.votes import read_votes, score_votes
from evaluate_fakes import voice

REQUIRED = {
    "generic": {"id", "name", "content"},
    "likert_single_stimulus": {"id", "name", "content", "mustRate", "mustPlayback", "stimuli", "response"},
    "finish": {"name", "content", "popupContent", "showResults", "writeResults", "questionnaire"},
}
"""Keys of a page by its type, of doc/experimenter.md and FinishPage.js."""
HEADER = ["session_test_id", "rater", "trial_id", "stimuli_rating", "stimuli", "rating_time"]
"""Of lss.csv, by service/write.php, with `rater` as the one question of the finish page."""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    for place, name in enumerate(("base", "happy")):
        for number in range(3):
            write_sound(tmp_path / name / f"{number:03d}.wav", voice(120 + 30 * number + 10 * place, 0.4), 24_000)
    folders = {name: tmp_path / name for name in ("base", "happy")}
    export_test(folders, tmp_path / "my test", ("happy", "sad"))
    return tmp_path / "my test"


def config_of(exported: Path) -> dict[str, Any]:
    found = yaml.safe_load((exported / "webmushra.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_configuration_is_what_webmushra_documents(exported: Path) -> None:
    config, key = config_of(exported), read_json(exported.with_name("my test_key.json"))
    top = {"testname", "testId", "bufferSize", "stopOnErrors", "showButtonPreviousPage", "remoteService", "pages"}
    assert set(config) == top
    assert config["bufferSize"] in {256 << power for power in range(7)}
    assert config["remoteService"] == "service/write.php"
    assert config["testId"] == re.sub(r"[^\w-]", "-", config["testId"]).lower(), "the folder of the results"
    for page in config["pages"]:
        assert set(page) == REQUIRED[page["type"]] | {"type"}
    first, *questions, last = config["pages"]
    assert first["type"] == "generic", "the first page must have no sound"
    assert {page["type"] for page in questions} == {"likert_single_stimulus"}
    assert {page["id"]: set(page["stimuli"]) for page in questions} == {
        "naturalness": set(key["items"]),
        "emotion": set(key["items"]),
        "preference": set(key["pairs"]),
    }
    assert [[option["value"] for option in page["response"]] for page in questions] == [
        [1, 2, 3, 4, 5],
        ["happy", "sad", "other", "none"],
        ["A", "B", "none"],
    ]
    assert all(page["mustRate"] is True and page["mustPlayback"] == "ended" for page in questions)
    assert (last["type"], last["writeResults"], last["showResults"]) == ("finish", True, False)
    assert [(asked["type"], asked["name"]) for asked in last["questionnaire"]] == [("text", "rater")]
    assert all(asked["label"] and not asked.get("optional") for asked in last["questionnaire"])


def test_every_sound_that_is_named_is_there_when_the_folder_lies_in_configs(exported: Path) -> None:
    paths = [path for page in config_of(exported)["pages"] for path in page.get("stimuli", {}).values()]
    assert len(paths) == 6 + 6 + 3
    for path in paths:
        assert path.startswith("configs/my%20test/audio/")
        assert (exported / "audio" / path.rsplit("/", 1)[1]).is_file()


def test_its_yaml_is_of_the_kind_that_webmushra_reads(exported: Path) -> None:
    """A key a line, lists indented, none begins with a list; and no name that looks like a number."""
    parents: list[int] = []
    lines = (exported / "webmushra.yaml").read_text(encoding="utf-8").splitlines()[1:]
    for line in lines:
        found = re.fullmatch(r"( *)(- )?([\w-]+):( .+)?", line)
        assert found, line
        depth = len(found[1])
        if found[2]:
            assert depth > max((parent for parent in parents if parent <= depth), default=-1), line
        parents = [parent for parent in parents if parent < depth]
        if not found[4]:
            parents.append(depth + len(found[2] or ""))
        assert not re.match(r"[\d.+-]", found[3]), line
    assert sum(line.endswith("pages:") for line in lines) == 1


def test_a_pair_is_one_sound_a_then_b(exported: Path) -> None:
    key = read_json(exported.with_name("my test_key.json"))
    sounds = {path.stem: soundfile.read(path)[0] for path in (exported / "audio").iterdir()}
    for name, sides in key["pairs"].items():
        a, b = (sounds[sides[side]][2400:-2400] for side in "ab")
        assert not sounds[sides["a"]][:2400].any(), "a tenth of a second to fade in"
        both = np.concatenate([a, np.zeros((19_200, 2)), b])
        np.testing.assert_array_equal(sounds[name][2400:-2400], both)


def write_table(path: Path, test: str, answers: list[tuple[str, ...]], header: list[str] = HEADER) -> Path:
    """lss.csv of (rater, question, rating, stimulus) rows as service/write.php writes them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows((f"affetto-{test}", *answer, "1234") for answer in answers)
    return path


@pytest.mark.parametrize("form", ["{}", " {} "], ids=["1.4.3", "older, with spaces"])
def test_its_table_is_scored_to_numbers_known_otherwise(exported: Path, form: str) -> None:
    """Ann gives the base 2 and happy 4, Bob one less each; both hear happy in happy; Ann prefers happy, Bob nothing."""
    key_path = exported.with_name("my test_key.json")
    key = read_json(key_path)
    answers = []
    for rater, strictness in (("Ann, 1st", 0), ("bob", 1)):
        for item, known in key["items"].items():
            happy = known["system"] == "happy"
            answers.append((rater, "naturalness", form.format((4 if happy else 2) - strictness), item))
            answers.append((rater, "emotion", form.format("happy" if happy else "none"), item))
        for pair, sides in key["pairs"].items():
            side = next(side for side in "ab" if key["items"][sides[side]]["system"] == "happy").upper()
            answers.append((rater, "preference", form.format("none" if strictness else side), pair))
    answers.append(("cy", "emotion", form.format("NA"), next(iter(key["items"]))))
    table = write_table(exported / "lss.csv", key["test"], answers)
    found = score_votes(key, read_votes([table], key["test"]), "happy")
    assert found["num_raters"] == 2
    assert found["systems"]["base"]["naturalness"]["value"] == 1.5
    assert found["systems"]["happy"]["naturalness"]["value"] == 3.5
    assert (found["systems"]["happy"]["naturalness"]["low"], found["systems"]["happy"]["naturalness"]["high"]) == (3, 4)
    assert found["systems"]["base"]["emotions"] == {"none": 6}
    assert found["systems"]["happy"]["recall"]["value"] == 1.0
    (row,) = found["preferences"]
    assert row["votes"] == {"base": 0, "happy": 3, "none": 3}
    assert row["sentences"] == {"base": 0, "happy": 3, "tied": 0}
    assert row["p_value"] == pytest.approx(binomtest(0, 3).pvalue)
    said = CliRunner().invoke(app, ["listen", "score", str(table), "--key", str(key_path), "-e", "happy"])
    assert said.exit_code == 0, said.output
    assert '"value": 3.5' in said.output


BAD: dict[str, tuple[str, list[tuple[str, ...]], list[str], str]] = {
    "another test's": ("u", [("ann", "naturalness", "4", "x")], HEADER, "of test affetto-u, but the key is"),
    "nobody's": ("t", [(" ", "naturalness", "4", "x")], HEADER, "without a rater's name"),
    "no questionnaire": ("t", [("naturalness", "4", "x")], [n for n in HEADER if n != "rater"], "columns rater"),
    "sent twice": ("t", [("ann", "ann", "naturalness", "4", "x")], HEADER, "row 1 under the header has more or fewer"),
    "cut short": ("t", [("ann", "naturalness", "4")], HEADER, "row 1 under the header has more or fewer"),
    "a page of another test": ("t", [("ann", "beauty", "4", "x")], HEADER, "unknown kind of vote 'beauty'"),
    "nothing rated": ("t", [("ann", "emotion", "NA", "x")], HEADER, "there are no votes"),
    "the same listener again": ("t", [("ann", "emotion", "sad", "x")] * 2, HEADER, "ann voted twice on x"),
    "another kind of test's": ("t", [("ann", "p", "a", "b", "correct")], ["session_test_id", "rater", "trial_id",
        "choice_reference", "choice_non_reference", "choice_answer", "choice_time"], "columns stimuli_rating, stimuli"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_tables_that_cannot_be_scored_are_named(tmp_path: Path, case: str) -> None:
    test, answers, header, said = BAD[case]
    with pytest.raises(DataError, match=re.escape(said)):
        read_votes([write_table(tmp_path / "lss.csv", test, answers, header)], "t")
