"""A plan as tables for the terminal: what stays in memory, each stage's peak, disk and time."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from affetto.errors import counted
from affetto.planning.plan import Plan
from affetto.planning.speaking import Speaking

_TITLES = {
    "runtime": "Python and libraries",
    "weights": "frozen weights",
    "curvature": "EWC's curvature",
    "adapter": "adapter",
    "optimizer": "optimizer",
    "teacher": "teacher's answers",
    "fisher": "EWC's curvature",
    "best": "adapter (best)",
    "last": "state to resume from (last)",
    "checkpoints": "intermediate adapters",
}

_SPEAKING_TITLES = {
    "runtime": "Python and libraries (training's)",
    "weights": "weights",
    "copies": "weights as the engine reads them",
    "adapters": "adapters",
    "codec": "codec (without what it needs to decode)",
    "arrangements": "weights changed by adapters",
    "rooms": "keys and values",
}


def render(plan: Plan) -> Group:
    """Tables of memory (for training and for speaking) and disk, and the assumptions."""
    where = "resident memory" if plan.device == "cpu" else "GPU memory"
    title = f"{plan.base} on {plan.device}: at most {size(plan.peak_bytes)} of {where}"
    memory = Table(title=title, title_justify="left")
    memory.add_column("memory")
    memory.add_column("", justify="right")
    memory.add_column("time", justify="right")
    for name, value in plan.parts.items():
        if value:
            memory.add_row(f"stays: {_TITLES[name]}", size(value), "")
    memory.add_section()
    for stage in plan.stages:
        memory.add_row(f"peak: {stage.name}", size(stage.peak_bytes), duration(stage.time_s))
    memory.add_row("all", size(plan.peak_bytes), duration(plan.time_s), style="bold")
    disk = Table(title="Disk", title_justify="left")
    disk.add_column("what")
    disk.add_column("", justify="right")
    for name, value in plan.disk.items():
        if name == "codes_per_hour":
            disk.add_row("codes of an hour of speech", size(value))
        elif value:
            disk.add_row(_TITLES[name], size(value))
    tables = [memory, *_speaking(plan.speaking), disk]
    return Group(*tables, *(f"- {assumption}" for assumption in plan.assumptions))


def _speaking(speaking: Speaking | None) -> list[Table]:
    if speaking is None:
        return []
    adapters, takes = counted(speaking.num_adapters, "adapter"), counted(speaking.takes, "take")
    title = f"Speaking in {speaking.precision} with {adapters}, {takes} of a sentence"
    table = Table(title=title, title_justify="left")
    table.add_column("memory")
    table.add_column("", justify="right")
    for name, value in speaking.parts.items():
        if value:
            table.add_row(_SPEAKING_TITLES[name], size(value))
    table.add_section()
    table.add_row("at most", size(speaking.peak_bytes), style="bold")
    return [table]


def size(count: float) -> str:
    """Bytes as MB or GB of 10^6 and 10^9."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as s, min or h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
