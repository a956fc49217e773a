"""A plan for people: what stays, what each stage needs on top, disk and time."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from affetto.planning.plan import Plan

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
    "checkpoints": "adapters on the way",
}


def render(plan: Plan) -> Group:
    """Two tables and the assumptions."""
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
    return Group(memory, disk, *(f"- {assumption}" for assumption in plan.assumptions))


def size(count: float) -> str:
    """Bytes as MB or GB of 10^6 and 10^9."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds as s, min or h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
