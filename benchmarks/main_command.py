"""How long the main command takes, `affetto run`, from empty caches and from warm ones, and what its stages take.

    python benchmarks/main_command.py [--emotion happy] [--caches cold warm]
    python benchmarks/main_command.py --emotion all                           # six emotions: half an hour and more

Adds to `benchmarks/results/main_command.json`, by emotions and caches; what isn't run stays as it was. `cold` begins
with an empty folder for all caches, `warm` goes on in the same folder with a new output, or, alone, in the caches that
are there ($AFFETTO_CACHE). The command is a process of its own, as a user starts it, with as many threads as it takes
by itself: `clock_s` is what the user waits, `processor_s` what all its processes used, `peak_mib` the most resident
memory of the largest of them. Stages are `timings_s` of each adapter's affetto.json, by the clock; rendering, coding,
evaluation and the report are what is left of `clock_s`. Installation isn't in it. A busy machine shows in
`load_before`, the processes that ran or waited for a processor in the minute before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from facts import run_facts

from affetto.files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "main_command.json"


def main() -> None:
    """Run what is asked for, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--emotion", nargs="+", default=["happy"], help="one or several, or all")
    parser.add_argument("--caches", nargs="+", choices=("cold", "warm"), default=["cold", "warm"])
    options = parser.parse_args()
    found: dict[str, Any] = read_json(RESULT) if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        is_own = "cold" in options.caches
        for caches in sorted(set(options.caches)):
            environment = {"AFFETTO_CACHE": str(folder / "cache")} if is_own else {}
            measured = _measured(options.emotion, folder / caches, environment)
            found[f"{'+'.join(options.emotion)}, {caches}"] = run_facts() | {"threads": os.cpu_count()} | measured
            write_json(RESULT, found)
    print(RESULT.read_text(encoding="utf-8"))


def _measured(emotions: list[str], output: Path, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "affetto", "run", "--output", str(output)]
    for emotion in emotions:
        command += ["--emotion", emotion]
    kept = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    load, start = os.getloadavg()[0], time.monotonic()
    process = subprocess.Popen(command, env=kept | environment)
    _, status, used = os.wait4(process.pid, 0)
    # The process is gone; Popen is not to wait for it again.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"affetto run ended with status {process.returncode}")
    clock_s = time.monotonic() - start
    facts = {path.parent.parent.name: read_json(path) for path in output.glob("emotion_models/*/best/affetto.json")}
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "load_before": round(load, 1),
        "clock_s": round(clock_s, 1),
        "processor_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / unit),
        "stages_s": {emotion: told["timings_s"] for emotion, told in sorted(facts.items())},
    }


if __name__ == "__main__":
    main()
