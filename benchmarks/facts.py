"""Where a benchmark's figures come from: command, commit, date, machine, versions."""

from __future__ import annotations

import argparse
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from affetto.provenance import versions


def take_no_options(doc: str | None) -> None:
    """`--help` shows `doc`, what the script says of itself, and anything else is refused, before any work."""
    argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()


def run_facts() -> dict[str, Any]:
    """What stands above the figures of every result; `commit` is None outside a checkout, and `+` marks changes."""
    return {
        "command": shlex.join(["python", _script(), *sys.argv[1:]]),
        "commit": commit(),
        "date": date.today().isoformat(),
        "machine": {"processor": _processor(), "system": platform.system(), "threads": 1},
        "versions": versions(),
    }


def _script() -> str:
    """The script as seen from the checkout: where that lies is nobody's concern."""
    script, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[1]
    return script.relative_to(root).as_posix() if script.is_relative_to(root) else script.name


def commit() -> str | None:
    """The checkout's commit, `+` where it has changes; None outside one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
