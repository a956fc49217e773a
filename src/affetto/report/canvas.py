"""Pictures for a page: matplotlib figures as small inline SVGs whose colours follow the page's light or dark theme.

matplotlib draws with placeholder colours (`INK`, `RULE`, …, `system_colour`), which the SVG replaces by CSS variables
of the page. Text stays text. One user unit is one CSS pixel. The same figure always gives the same bytes.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, FAINT, RULE, PAPER, FILL = "#010101", "#010102", "#010103", "#010104", "#010105"
NUM_SYSTEM_COLOURS = 10
_VARIABLES = {INK: "--ink", FAINT: "--faint", RULE: "--rule", PAPER: "--card", FILL: "--fill"} | {
    f"#0102{number:02x}": f"--system-{number}" for number in range(NUM_SYSTEM_COLOURS)
}
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "p", "h", "*")
"""Shape by system, so that colour is never the only cue; the style sheet has the same shapes as `.m0` to `.m9`."""
_OWN_COLOURS = {"base": 0, "real": 2}
"""Roles whose systems have the same colour on every page."""
_STYLE = {
    "svg.fonttype": "none", "svg.image_inline": True, "text.parse_math": False, "text.usetex": False,
    "axes.unicode_minus": True, "axes.formatter.useoffset": False, "font.size": 11.0, "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"], "path.simplify": True, "lines.solid_capstyle": "round",
}  # fmt: skip
_LOCK = threading.Lock()
"""matplotlib's rc parameters are global."""


@dataclass(frozen=True)
class Picture:
    """An SVG for inlining into a page, and a description of it."""

    svg: str
    alt: str

    def standalone(self) -> str:
        """The SVG as a standalone file in the light theme's colours."""
        theme = (Path(__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
        colours = dict(reversed(re.findall(r"(--[\w-]+): (#\w+);", theme)))  # the light theme comes first
        svg = re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], self.svg)
        return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)


def system_numbers(roles: Mapping[str, str]) -> dict[str, int]:
    """The number of each system of a page, which decides its colour and marker; `roles` are theirs by name.

    On every page bases share one colour and real recordings another, and differ in their markers; the first eight other
    systems have a colour each.
    """
    others = [number for number in range(NUM_SYSTEM_COLOURS) if number not in _OWN_COLOURS.values()]
    numbers, places = {}, dict.fromkeys((*_OWN_COLOURS, ""), 0)
    for name, role in roles.items():
        kind = role if role in _OWN_COLOURS else ""
        own = [_OWN_COLOURS[kind]] if kind else others
        turn, place = divmod(places[kind], len(own))
        numbers[name] = own[place] + NUM_SYSTEM_COLOURS * turn
        places[kind] += 1
    return numbers


def system_colour(number: int) -> str:
    """Placeholder for the colour of the page's system `number` (0 is the base)."""
    return f"#0102{number % NUM_SYSTEM_COLOURS:02x}"


def marker(number: int) -> str:
    """Marker of the page's system `number`; the first 100 have distinct pairs of colour and marker."""
    return MARKERS[_marker_place(number)]


def look(number: int) -> str:
    """Colour and marker of the page's system `number` as the style sheet's classes."""
    return f"s{number % NUM_SYSTEM_COLOURS} m{_marker_place(number)}"


def _marker_place(number: int) -> int:
    return (number + number // NUM_SYSTEM_COLOURS) % len(MARKERS)


def picture(width: int, height: int, draw: Callable[[Figure], None], *, name: str, alt: str) -> Picture:
    """`draw` onto a figure of width x height CSS pixels. `name` must be unique on the page: it salts the SVG's ids."""
    import matplotlib
    import matplotlib.style
    from matplotlib.figure import Figure

    drawn = io.StringIO()
    with _LOCK, matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has the glyph
        matplotlib.style.use(["default", {**_STYLE, "svg.hashsalt": name}])
        figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        draw(figure)
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return Picture(_inline(drawn.getvalue(), width, height, alt), alt)


def plot_area(figure: Figure, left: int, right: int, top: int, bottom: int) -> Axes:
    """Unobtrusive axes with margins in CSS pixels: no box, faint ticks, a grid behind."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(which="both", length=0, pad=5, colors=FAINT, labelcolor=FAINT, labelsize=10)
    axes.grid(color=RULE, linewidth=0.8)
    return axes


def plain_ticks(axis: Axis) -> None:
    """Label the decades of a logarithmic axis with plain numbers, without minor ticks, since math isn't parsed here."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _inline(svg: str, width: int, height: int, alt: str) -> str:
    """The content of matplotlib's <svg> in our own: without prolog, metadata, unused ids and its style element."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<(\w+)((?: [\w:-]+="[^"]*")+)', _tidy_element, body)
    used = set(re.findall(r"url\(#(\w+)\)", body)) | set(re.findall(r'href="#(\w+)"', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="picture" role="img" aria-label="{escape(alt)}" {size}>\n{body}\n</svg>'


def _tidy_element(found: re.Match[str]) -> str:
    tag, attributes = found[1], found[2].replace("xlink:href=", "href=")
    attributes = re.sub(r' (d|x|y|points)="([^"]*)"', _round_numbers, attributes)
    attributes = re.sub(r' style="([^"]*)"', _theme, attributes)
    attributes = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", attributes)
    return f"<{tag}{attributes}"


def _round_numbers(found: re.Match[str]) -> str:
    numbers = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), found[2])
    return f' {found[1]}="{" ".join(numbers.split())}"'


def _theme(found: re.Match[str]) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", found[1])
    style = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)
    style = re.sub(r"image-rendering:[\w-]+;?", "", style)
    style = re.sub(r"#010[12][0-9a-f]{2}", lambda colour: f"var({_VARIABLES[colour[0]]})", style)
    return f' style="{style}"' if style else ""
