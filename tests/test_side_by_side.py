from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from affetto.errors import AffettoError, DataError, Interrupted
from affetto.progress import progress, say
from affetto.side_by_side import side_by_side

ALIVE_S = 30.0


def _meet(folder: Path, name: str) -> tuple[str, int, str]:
    """Wait until another is at work, too: only processes side by side ever get past this."""
    import torch

    (folder / name).touch()
    with progress(f"waiting as {name}", 2) as bar:
        bar.advance(1)
        end = time.monotonic() + ALIVE_S
        while len(list(folder.iterdir())) < 2:
            assert time.monotonic() < end, "nobody came"
            time.sleep(0.05)
        bar.note("met")
    say(f"{name} is here")
    return name, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def _fail(name: str) -> str:
    if name == "wrong":
        raise DataError("the clips are wrong")
    if name == "bug":
        return str(1 / 0)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return name.upper()


def _save_when_told(folder: Path, name: str) -> None:
    """As training does: a signal asks, and what is done is saved."""
    from affetto.training.runtime import stop_signals

    with stop_signals() as stop:
        (folder / f"{name}.begun").touch()
        end = time.monotonic() + ALIVE_S
        while stop.signal is None and time.monotonic() < end:
            time.sleep(0.02)
    (folder / f"{name}.saved").write_text(str(stop.signal))
    raise Interrupted("stopped")


def _signalled(folder: Path) -> None:
    """Main of the process that gets the signal."""
    try:
        list(side_by_side(partial(_save_when_told, folder), ["a", "b", "c"], 2))
    except Interrupted as stopped:
        sys.stdout.write(f"{stopped}\n")


def test_two_are_at_work_at_a_time_with_the_threads_that_they_were_given(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = dict(os.environ)
    found = dict(side_by_side(partial(_meet, tmp_path), ["a", "b"], 2, threads=1))
    assert found == {"a": ("a", 1, "1"), "b": ("b", 1, "1")}
    assert dict(os.environ) == before
    shown = capfd.readouterr().err
    assert "a: a is here" in shown, "what a process says has its name before it, and goes to the parent's terminal"
    assert "b: b is here" in shown


def test_the_others_go_on_and_errors_come_at_the_end() -> None:
    done: list[str] = []
    with pytest.raises(AffettoError) as raised:
        done.extend(value for _, value in side_by_side(_fail, ["wrong", "a", "bug", "b", "killed", "c"], 2))
    assert sorted(done) == ["A", "B", "C"]
    told = str(raised.value)
    assert "wrong: the clips are wrong" in told
    assert "ZeroDivisionError" in told
    assert "test_side_by_side.py" in told, "a bug comes with its traceback"
    assert "killed: its process was killed by SIGKILL; if memory ran out: --jobs 1" in told


def test_what_no_process_was_left_for_is_told() -> None:
    with pytest.raises(AffettoError, match=r"killed: .* SIGKILL.*\na: not started"):
        list(side_by_side(_fail, ["killed", "a"], 1))


def test_who_looks_away_early_leaves_no_process_behind() -> None:
    assert list(side_by_side(_fail, [], 2)) == []
    running = side_by_side(_fail, ["a", "b", "c"], 1)
    assert next(running) == ("a", "A")
    assert len(multiprocessing.active_children()) == 1
    running.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_all_is_saved(tmp_path: Path, number: signal.Signals) -> None:
    with _parent(tmp_path) as parent:
        parent.send_signal(number)
        out, _ = parent.communicate(timeout=ALIVE_S)
    assert out == f"stopped by {number.name}; go on with --resume\n"
    assert {path.read_text() for path in tmp_path.glob("*.saved")} == {"SIGTERM"}
    assert len(list(tmp_path.glob("*.saved"))) == 2, "nothing new was begun"


def test_processes_save_and_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    with _parent(tmp_path) as parent:
        parent.kill()
        parent.communicate(timeout=ALIVE_S)
        end = time.monotonic() + ALIVE_S
        while len(list(tmp_path.glob("*.saved"))) < 2 and time.monotonic() < end:
            time.sleep(0.05)
    assert len(list(tmp_path.glob("*.saved"))) == 2


def _parent(folder: Path) -> subprocess.Popen[str]:
    """A process that runs two at a time, both of which have begun."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom pathlib import Path\n"
        f"from test_side_by_side import _signalled\n_signalled(Path({str(folder)!r}))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    end = time.monotonic() + ALIVE_S
    while len(list(folder.glob("*.begun"))) < 2:
        assert time.monotonic() < end, "the processes didn't begin"
        time.sleep(0.05)
    return parent
