"""Stacks sampled by processor time, and their picture: an icicle as an SVG, each box as wide as what it takes.

The sampler is a SIGPROF timer whose handler runs in the main thread, between two instructions of Python. A long call
into a library delays it (to the next call of a function: a product written as an operator shows under the line after
it), so every sample counts as much processor time as has passed since the one before, whoever's
threads spent it.
"""

from __future__ import annotations

import linecache
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.002
WIDTH, ROW, FIRST_ROW = 1000, 19, 42
SMALLEST = 0.004
"""Share of the whole under which a box is left out."""
_LETTER = 6.3
_COLOURS = {"affetto": "#cfe3f7", "transformers": "#fbe3b8", "peft": "#fbe3b8", "line": "#eeeeea", "other": "#dfe8d5"}


@dataclass
class Box:
    """What one function took, with what it called."""

    name: str
    kind: str
    spent_s: float = 0.0
    below: dict[str, Box] = field(default_factory=dict)

    def child(self, name: str, kind: str) -> Box:
        """The box of what this one called by that name."""
        return self.below.setdefault(name, Box(name, kind))

    def depth(self, least_s: float) -> int:
        """Rows that the picture needs under this one, its own included."""
        return 1 + max((box.depth(least_s) for box in self.below.values() if box.spent_s >= least_s), default=0)


@contextmanager
def sampled(name: str) -> Iterator[Box]:
    """Sample the block's stacks into a box called `name`. Main thread only."""
    top = Box(name, "other")
    entered = len(_frames(_here()))
    last_s = time.process_time()

    def note(_number: int, frame: FrameType | None) -> None:
        nonlocal last_s
        now_s = time.process_time()
        passed_s, last_s = now_s - last_s, now_s
        top.spent_s += passed_s
        box = top
        for label, kind in _told(_frames(frame)[entered - 1 :]):
            box = box.child(label, kind)
            box.spent_s += passed_s

    before = signal.signal(signal.SIGPROF, note)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)
    try:
        yield top
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _here() -> FrameType | None:
    import inspect

    frame = inspect.currentframe()
    # The caller's caller's caller: this function, the generator and contextlib stand between.
    for _ in range(3):
        frame = frame.f_back if frame else None
    return frame


def _frames(frame: FrameType | None) -> list[FrameType]:
    """From the outermost frame to `frame`."""
    found = []
    while frame:
        found.append(frame)
        frame = frame.f_back
    return found[::-1]


def _told(frames: list[FrameType]) -> Iterator[tuple[str, str]]:
    """(label, kind) of the frames worth a box: ours and the networks', and the line at which the innermost one is.

    What merely passes calls on is left out. A frame of another library counts where it was called from.
    """
    own = [frame for frame in frames if _kind(frame) in ("affetto", "transformers", "peft")]
    for frame in own:
        yield f"{_owner(frame)}{frame.f_code.co_name}", _kind(frame)
    inner = own[-1] if own else frames[-1] if frames else None
    if inner is not None:
        text = linecache.getline(inner.f_code.co_filename, inner.f_lineno).strip()
        if text and not text.startswith(("def ", "class ", "@")):
            yield text, "line"


def _kind(frame: FrameType) -> str:
    parts = Path(frame.f_code.co_filename).parts
    if frame.f_code.co_name.startswith(("<", "wrapper", "inner")):
        return "other"
    if "transformers" in parts:
        return "transformers" if "models" in parts else "other"
    return next((name for name in ("affetto", "peft") if name in parts), "other")


def _owner(frame: FrameType) -> str:
    """The class of a method, else the module."""
    mine = frame.f_locals.get("self")
    if mine is not None:
        return f"{type(mine).__name__}."
    return f"{Path(frame.f_code.co_filename).stem}." if frame.f_code.co_name in ("forward", "backward", "main") else ""


def icicle(top: Box, title: str) -> str:
    """The picture: callers above what they call, the widest on the left. Hover over a box to read all of it."""
    least_s = SMALLEST * top.spent_s
    height = FIRST_ROW + ROW * top.depth(least_s) + 8
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'font-family="DejaVu Sans, sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="6" y="17" font-size="13" font-weight="bold">{escape(title)}</text>',
        '<text x="6" y="33" fill="#555">Width is processor time. Blue: affetto; yellow: transformers; grey: '
        "the line that was at work, its calls into libraries included.</text>",
    ]
    drawn += _drawn(top, 0.0, 0, WIDTH / top.spent_s, top.spent_s, least_s)
    return "\n".join([*drawn, "</svg>"]) + "\n"


def _drawn(box: Box, x: float, row: int, scale: float, whole_s: float, least_s: float) -> Iterator[str]:
    width = box.spent_s * scale
    y = FIRST_ROW + ROW * row
    share = f"{box.spent_s / whole_s:.1%}"
    yield (
        f'<g><title>{escape(box.name)}: {share}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 0.6, 0.4):.1f}" '
        f'height="{ROW - 1}" fill="{_COLOURS[box.kind]}"/>'
    )
    if text := _fitting(f"{box.name} {share}", box.name, width):
        yield f'<text x="{x + 3:.1f}" y="{y + 13}">{escape(text)}</text>'
    yield "</g>"
    for child in sorted(box.below.values(), key=lambda child: -child.spent_s):
        if child.spent_s >= least_s:
            yield from _drawn(child, x, row + 1, scale, whole_s, least_s)
            x += child.spent_s * scale


def _fitting(long: str, short: str, width: float) -> str:
    """As much of a label as a box holds; nothing where that would be a few letters."""
    room = int((width - 6) / _LETTER)
    for text in (long, short):
        if len(text) <= room:
            return text
    return f"{short[: room - 1]}…" if room >= 6 else ""
