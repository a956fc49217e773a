"""docs/data.md is held to the code: every corpus, label, column name and kind of problem stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from affetto.audio.columns import COLUMNS
from affetto.audio.corpora import CORPORA
from affetto.audio.corpora.hugging_face import _KEYS
from affetto.audio.labels import LABELS
from affetto.audio.manifest import KEYS

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
ROWS = {line.split("|")[1].strip().lower(): line for line in DOCS.splitlines() if line.startswith("| ")}


@pytest.mark.parametrize("corpus", sorted(LABELS.keys() - {"folder", "msp-podcast"}))
def test_labels_are_those_of_the_code(corpus: str) -> None:
    written = ROWS[corpus].split("|")[3]
    found = {
        code: said[1]
        for said in re.finditer(r"(\w+)((?: `[\w-]+`)+)", written)
        for code in re.findall(r"`([\w-]+)`", said[2])
    }
    assert found == LABELS[corpus]


def test_every_corpus_has_a_row() -> None:
    told = " ".join(ROWS)
    assert [name for name in CORPORA if name != "folder" and name not in told] == []


def test_every_name_stands_in_the_tables() -> None:
    ticked = set(re.findall(r"`([^`\s]+)`", DOCS))
    columns = {name for names in COLUMNS.values() for name in names}
    assert columns - ticked == set()
    assert {*KEYS, *_KEYS, *LABELS["folder"]} - ticked == set()
