"""Word n-gram models with back-off, in the ARPA format that SRILM and KenLM write.

log10 p(w | h) is the n-gram's if it is listed, else the history's back-off weight plus log10 p(w | h without its first
word); the back-off weight of an unlisted history is 0 (Katz 1987). KenLM's own binary files aren't read.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from affetto.errors import JudgeError
from affetto.files import write_atomically

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
Ngram = tuple[str, ...]

_LOWEST = -99.0
"""log10 of probability 0, as SRILM writes it."""


@dataclass(frozen=True)
class BackoffModel:
    """Probabilities of n-grams up to `order` words."""

    order: int
    log10_probabilities: Mapping[Ngram, float]
    log10_backoffs: Mapping[Ngram, float]

    def __contains__(self, word: str) -> bool:
        return (word,) in self.log10_probabilities and word != UNKNOWN

    @property
    def vocabulary(self) -> list[str]:
        """The words that it lists, without marks such as <s>."""
        return [ngram[0] for ngram in self.log10_probabilities if len(ngram) == 1 and ngram[0][:1] != "<"]

    def log10_probability(self, word: str, history: Ngram) -> float:
        """log10 p(`word` | the last `order` - 1 words of `history`); unknown words count as `UNKNOWN`."""
        context = tuple(item if item in self or item == START else UNKNOWN for item in history)
        context = context[len(context) - min(len(context), self.order - 1) :]
        word = word if word in self else UNKNOWN
        backed_off = 0.0
        while True:
            probability = self.log10_probabilities.get((*context, word))
            if probability is not None:
                return backed_off + probability
            if not context:
                return backed_off + _LOWEST
            backed_off += self.log10_backoffs.get(context, 0.0)
            context = context[1:]


def write_arpa(model: BackoffModel, path: Path) -> None:
    """Write `model` to `path`, gzipped if it ends in .gz; always the same bytes for the same model."""
    orders = range(1, model.order + 1)
    by_order = {order: sorted(ngram for ngram in model.log10_probabilities if len(ngram) == order) for order in orders}
    lines = ["\\data\\", *(f"ngram {order}={len(ngrams)}" for order, ngrams in by_order.items()), ""]
    for order, ngrams in by_order.items():
        lines.append(f"\\{order}-grams:")
        for ngram in ngrams:
            backoff = model.log10_backoffs.get(ngram)
            tail = "" if backoff is None else f"\t{backoff:.5f}"
            lines.append(f"{model.log10_probabilities[ngram]:.5f}\t{' '.join(ngram)}{tail}")
        lines.append("")
    data = ("\n".join(lines) + "\n\\end\\\n").encode()
    written = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    write_atomically(path, lambda temporary: temporary.write_bytes(written))


def read_arpa(path: Path) -> BackoffModel:
    """The model in `path` (.arpa or .arpa.gz); JudgeError if it can't be read or isn't complete."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            return _parsed(file, path)
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise JudgeError(f"the language model {path} can't be read ({error})") from error


def _parsed(file: IO[str], path: Path) -> BackoffModel:
    promised: dict[int, int] = {}
    probabilities: dict[Ngram, float] = {}
    backoffs: dict[Ngram, float] = {}
    order, has_ended = 0, False
    for number, line in _numbered(file):
        if line.startswith("ngram ") and order == 0:
            size, count = line[len("ngram ") :].split("=")
            promised[int(size)] = int(count)
        elif line.startswith("\\") and line.endswith("-grams:"):
            order = int(line[1 : -len("-grams:")])
        elif line == "\\end\\":
            has_ended = True
            break
        elif order:
            probability, *words = line.split()
            if len(words) not in (order, order + 1):
                raise JudgeError(f"{path}:{number}: expected {order} words after the probability, found {len(words)}")
            probabilities[tuple(words[:order])] = float(probability)
            if len(words) > order:
                backoffs[tuple(words[:order])] = float(words[order])
    counts = dict.fromkeys(promised, 0)
    for ngram in probabilities:
        counts[len(ngram)] = counts.get(len(ngram), 0) + 1
    if not has_ended or not promised or counts != promised:
        raise JudgeError(
            f"{path} is cut short or isn't an ARPA language model: it promises {promised or 'nothing'} n-grams by "
            f"order and holds {counts}"
        )
    return BackoffModel(max(promised), probabilities, backoffs)


def _numbered(file: IO[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        if stripped := line.strip():
            yield number, stripped
