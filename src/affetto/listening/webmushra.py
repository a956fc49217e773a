"""The listening test for webMUSHRA (Schoeffler et al. 2018, doi:10.5334/jors.187), and the table of its answers.

Made for webMUSHRA 1.4.3 (its `package.json`) after these files of github.com/audiolabs/webMUSHRA, each in the newest
version at hand: `doc/experimenter.md`, `startup.js`, `service/write.php`; of `lib/webmushra`
`pages/{LikertSingleStimulusPage,LikertSingleStimulusPageManager,PairedComparisonPage,FinishPage}.js`,
`misc/{LikertScale,FilePlayer}.js`, `audio/GenericAudioControl.js` and `business/DataSender.js`. The first published
version (03c4b4b) of the pages, `write.php` and `configs/mushra_customquestionaire.yaml` was read too, so the table can
be read from either.
Design decisions that follow from them:

- A preference is asked on a `likert_single_stimulus` page about one file that plays A, a pause and B:
  `paired_comparison` looks for a reference and stores whether it was found; a page for preferences is proposed, not
  merged (pull request 91).
- One page per question suffices: it becomes a page per stimulus, in a random order for each listener.
- The first page has no sound, since browsers play none before the first click (issue 32).
- Sounds have two equal channels, since a single channel is played only on the left (issues 53, 124), and begin and end
  with a pause, since the first buffer is faded in and the last one runs on into the beginning.
- Only a finish page sends answers, and only its questionnaire names the listener.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from numpy.typing import NDArray

from affetto.errors import DataError

COLUMNS = ("session_test_id", "rater", "trial_id", "stimuli_rating", "stimuli")
"""What `lss.csv` must have: `rater` comes from the finish page's questionnaire, the others from `service/write.php`."""
NOT_RATED = "NA"
"""What webMUSHRA stores if nothing was chosen."""
_REST_S, _PAUSE_S = 0.1, 0.8
_INTRODUCTION = (
    "You will hear short sentences by synthetic voices. Please use headphones, set a comfortable volume now and leave "
    "it. There are no right answers. Your votes are sent on the last page."
)


def webmushra_config(test: str, folder: str, items: Sequence[str], pairs: Sequence[str], choices: Sequence[str]) -> str:
    """YAML of the test of `items` and `pairs` (names of files in `audio/`), for webMUSHRA's `configs/FOLDER`."""

    def likert(kind: str, question: str, content: str, names: Sequence[str], labels: Mapping[Any, str]) -> Any:
        return {
            "type": "likert_single_stimulus",
            "id": kind,
            "name": question,
            "content": content,
            "mustRate": True,
            "mustPlayback": "ended",
            "stimuli": {name: f"configs/{quote(folder)}/audio/{name}.wav" for name in names},
            "response": [{"value": value, "label": label} for value, label in labels.items()],
        }

    scale = {1: "1 not at all", 2: "2", 3: "3", 4: "4", 5: "5 like a person"}
    sides = {"A": "A", "B": "B", "none": "no difference"}
    pages = [
        {"type": "generic", "id": "introduction", "name": "Listening test", "content": _INTRODUCTION},
        likert("naturalness", "How natural does it sound?", "Play it to the end, then choose.", items, scale),
        likert("emotion", "Which emotion do you hear?", "Choose one.", items, {name: name for name in choices}),
        likert("preference", "Which do you prefer?", "You hear A, a pause, then B.", pairs, sides),
        {
            "type": "finish",
            "name": "Thank you",
            "content": "Please tell who you are, and send your votes.",
            "popupContent": "Your votes were sent. Thank you.",
            "showResults": False,
            "writeResults": True,
            "questionnaire": [{"type": "text", "label": "A nickname (letters and digits only)", "name": COLUMNS[1]}],
        },
    ]
    config = {
        "testname": "Listening test",
        "testId": _test_id(test),
        "bufferSize": 2048,
        "stopOnErrors": True,
        "showButtonPreviousPage": False,
        "remoteService": "service/write.php",
        "pages": pages,
    }
    text = yaml.dump(config, Dumper=_Indented, sort_keys=False, allow_unicode=True, width=float("inf"))
    return f"# For webMUSHRA's configs/{folder}\n{text}"


def stereo(samples: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """(N,) to (N + pauses, 2): two equal channels, with a pause before and after."""
    rest = np.zeros(round(_REST_S * sample_rate), dtype=np.float32)
    padded = np.concatenate([rest, samples, rest])
    return np.stack([padded, padded], axis=1)


def one_after_another(a: NDArray[np.float32], b: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """`a`, a pause, `b`."""
    return np.concatenate([a, np.zeros(round(_PAUSE_S * sample_rate), dtype=np.float32), b])


def read_answers(rows: Sequence[Mapping[str, str]], test: str, source: object) -> Iterator[tuple[str, str, str, str]]:
    """(rater, item, kind, value) of each answered row of `lss.csv`; DataError for another test's."""
    for row in rows:
        given, rater, kind, value, item = (row[name].strip() for name in COLUMNS)
        if given != _test_id(test):
            raise DataError(f"{source} has votes of test {given}, but the key is of {_test_id(test)}")
        if not rater:
            raise DataError(f"{source} has votes without a rater's name (on {item})")
        if value != NOT_RATED:
            yield rater, item, kind, value


class _Indented(yaml.SafeDumper):
    """Indents lists: webMUSHRA's YAML reader (yaml.js 0.1) can't read others, nor a list that begins with a list, nor a
    value that continues on the next line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 (its signature)
        super().increase_indent(flow, False)


def _test_id(test: str) -> str:
    return f"affetto-{test}"
