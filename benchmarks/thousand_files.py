"""A thousand short files, fifty of them broken, through the folder evaluation: time, and peak memory against 100 files.

python benchmarks/thousand_files.py [--quality none]

Each number of files is evaluated in a process of its own, whose peak memory is its own; both with the judges that
affetto ships (DNSMOS, which takes most of the time, can be left out). Memory must not grow with the number of files by
more than their rows take. The larger run is then stopped half way (the process is killed) and resumed, and must end
with the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from facts import run_facts

from affetto.evaluate.folder import evaluate_folder
from affetto.evaluate.journal import journal_path
from affetto.files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results" / "thousand_files.json"
RATE = 16_000
BROKEN_PER_HUNDRED = 5
WORDS = ["the", "silver", "key", "was", "found", "below", "an", "old", "stone", "bridge", "by", "two", "tired", "men"]


def main() -> None:
    """Measure, and write `benchmarks/results/thousand_files.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[100, 1000], help="numbers of files, ascending")
    parser.add_argument("--quality", choices=("dnsmos", "none"), default="dnsmos", help="the judge of quality")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "OUTPUT"), help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        evaluate(Path(options.child[0]), Path(options.child[1]), options.quality, options.resume)
        return
    document: dict[str, Any] = {**run_facts(), "file_duration_s": [0.5, 1.5], "runs": []}
    with tempfile.TemporaryDirectory() as place:
        for count in options.files:
            folder = Path(place) / f"files-{count}"
            make_files(folder, count)
            document["runs"].append(
                measure(folder, Path(place) / f"out-{count}" / "results.json", count, options.quality)
            )
        document["resumed"] = stop_and_resume(
            folder, Path(place), Path(place) / f"out-{count}" / "results.json", options.quality
        )
    grown = document["runs"][-1]["peak_memory_mib"] - document["runs"][0]["peak_memory_mib"]
    document["memory_growth_mib"] = round(grown, 1)
    write_json(RESULTS, document)
    print(RESULTS.read_text(encoding="utf-8"))


def make_files(folder: Path, count: int) -> None:
    """Buzzing voices of 0.5 to 1.5 s with texts; every twentieth file is broken, in one of five ways."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index:05d}.wav"
        seconds = np.arange(round(random.uniform(0.5, 1.5) * RATE)) / RATE
        phase = 2 * np.pi * random.uniform(90, 260) * seconds
        sound = 0.1 * sum(np.sin(k * phase) / k for k in range(1, 9)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * seconds))
        soundfile.write(path, sound, RATE)
        path.with_suffix(".txt").write_text(" ".join(random.choice(WORDS, 4)))
        if index % (100 // BROKEN_PER_HUNDRED) == 7:
            break_file(path, index // 20 % 5)


def break_file(path: Path, how: int) -> None:
    """Junk, no bytes, the second half gone, silence, or 20 ms."""
    whole = path.read_bytes()
    if how < 3:
        path.write_bytes((b"this is no sound", b"", whole[: len(whole) // 2])[how])
    else:
        soundfile.write(path, np.zeros(RATE if how == 3 else RATE // 50), RATE)


def evaluate(folder: Path, output: Path, quality: str, resume: bool) -> None:
    """In a process of its own: evaluate, and say how much memory that took at most."""
    start = time.monotonic()
    evaluate_folder(folder, "happy", output, judges={"quality": quality}, command="benchmark", resume=resume)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"seconds": time.monotonic() - start, "cpu_seconds": used.ru_utime + used.ru_stime}
    write_json(output.with_suffix(".cost"), {**cost, "peak_memory_mib": used.ru_maxrss / 1024})


def measure(folder: Path, output: Path, count: int, quality: str) -> dict[str, Any]:
    """One evaluation of `count` files."""
    subprocess.run(child(folder, output, quality), check=True)
    cost, results = read_json(output.with_suffix(".cost")), read_json(output)
    system = results["systems"][0]
    return {
        "num_files": system["num_files"], "num_failed": system["num_failed"],
        "num_broken": count * BROKEN_PER_HUNDRED // 100,
        "judges": {kind: judge and judge["id"] for kind, judge in results["judges"].items()},
        "seconds": round(cost["seconds"], 1), "cpu_seconds": round(cost["cpu_seconds"], 1),
        "peak_memory_mib": round(cost["peak_memory_mib"], 1),
        "results_mib": round(output.stat().st_size / 2**20, 2),
    }  # fmt: skip


def stop_and_resume(folder: Path, place: Path, whole: Path, quality: str) -> dict[str, Any]:
    """Kill an evaluation of `folder` about half way, resume it, and hold its results against those of `whole`."""
    output = place / "stopped" / "results.json"
    num_rows = sum(1 for _ in journal_path(whole).open())
    process = subprocess.Popen(child(folder, output, quality))
    while process.poll() is None and count_rows(output) < num_rows // 2:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = count_rows(output)
    start = time.monotonic()
    subprocess.run([*child(folder, output, quality), "--resume"], check=True)
    same = [digest(path) == digest(other) for path, other in ((output, whole), (csv_of(output), csv_of(whole)))]
    return {
        "rows_when_killed": kept, "rows": num_rows, "seconds_of_the_rest": round(time.monotonic() - start, 1),
        "same_bytes": all(same),
    }  # fmt: skip


def child(folder: Path, output: Path, quality: str) -> list[str]:
    """The command that evaluates in a process of its own."""
    return [sys.executable, str(Path(__file__).resolve()), "--child", str(folder), str(output), "--quality", quality]


def count_rows(output: Path) -> int:
    """Rows written down so far."""
    path = journal_path(output)
    return sum(1 for _ in path.open("rb")) if path.is_file() else 0


def csv_of(path: Path) -> Path:
    """The CSV twin."""
    return path.with_suffix(".csv")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
