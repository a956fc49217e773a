"""The shell scripts: their syntax, their options, and which environment they run in."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
RUN = ROOT / "scripts" / "run_emotion_finetuning.sh"
OPTIONS = (
    "--emotion",
    "--config",
    "--base",
    "--data",
    "--general",
    "--output",
    "--gpu",
    "--jobs",
    "--skip-datasets",
    "--help",
)


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python can import everything and, run as `-m affetto`, says what it was called with."""
    program = tmp_path / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\n[ "$1" = -m ] || exit 0\necho "gpu=$CUDA_VISIBLE_DEVICES"\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(tmp_path / "venv"), "CUDA_VISIBLE_DEVICES": "unset"}


def call(*arguments: str, env: dict[str, str] | None = None, script: Path = RUN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, env=env, check=False)


def test_there_are_scripts() -> None:
    assert {path.name for path in SCRIPTS} >= {"environment.sh", "run_emotion_finetuning.sh", "run_tests.sh"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", [RUN, ROOT / "scripts" / "run_tests.sh"], ids=lambda path: path.name)
def test_scripts_can_be_started(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()


def test_help_lists_the_options() -> None:
    shown = call("--help")
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert set(OPTIONS) <= set(re.findall(r"^  (--[a-z-]+)", shown.stdout, flags=re.MULTILINE))


@pytest.mark.parametrize("wrong", ["--emotoin", "happy", "--emotoin=happy", "-x"])
def test_unknown_options_exit_with_2(wrong: str) -> None:
    found = call(wrong)
    assert found.returncode == 2
    assert f"unknown option {wrong.partition('=')[0]}" in found.stderr
    assert "Usage:" in found.stderr


@pytest.mark.parametrize("option", ["--emotion", "--config", "--base", "--data", "--general", "--output", "--gpu"])
@pytest.mark.parametrize("rest", [[], [""]])
def test_missing_values_exit_with_2(option: str, rest: list[str]) -> None:
    found = call(option, *rest)
    assert found.returncode == 2
    assert f"{option} needs a value" in found.stderr


def test_without_options_all_of_the_shipped_configuration_is_run(fake: dict[str, str]) -> None:
    found = call(env=fake)
    config = ROOT / "configs" / "emotion_specific_finetuning.yaml"
    assert found.stderr == ""
    assert found.stdout.splitlines() == ["gpu=unset", "-m", "affetto", "run", "--config", str(config)]


def test_options_are_handed_on(fake: dict[str, str]) -> None:
    found = call(
        "--emotion", "happy", "--base=a folder", "--data", "one", "--data", "two words", "--general", "self",
        "--output", "out", "--gpu", "1", "--jobs", "2", "--config", "mine.yaml", "--skip-datasets",
        "--skip-bad-clips", "--resume",
        env=fake,
    )  # fmt: skip
    assert found.stdout.splitlines() == [
        "gpu=1", "-m", "affetto", "run", "--config", "mine.yaml", "--emotion", "happy", "--base", "a folder",
        "--data", "one", "--data", "two words", "--general", "self", "--output", "out", "--jobs", "2",
        "--skip-datasets", "--skip-bad-clips", "--resume",
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["one", "0,1", "-1", "1.5"])
def test_a_gpu_is_a_number(fake: dict[str, str], number: str) -> None:
    found = call("--gpu", number, env=fake)
    assert found.returncode == 2
    assert f"--gpu {number}: give the number of one GPU" in found.stderr


TORCH = """
import os
from types import SimpleNamespace
seen = os.environ.get("CUDA_VISIBLE_DEVICES")
cuda = SimpleNamespace(device_count=lambda: 2 if seen is None else int(seen in ("0", "1")))
"""
"""On a machine with two GPUs."""


@pytest.mark.parametrize(("number", "is_there"), [("0", True), ("1", True), ("2", False), ("7", False)])
def test_a_gpu_that_torch_does_not_see_stops_the_run(tmp_path: Path, number: str, is_there: bool) -> None:
    """It would go on without a word, on the CPU."""
    program = interpreter(tmp_path / "venv" / "bin", "python", "torch", "affetto")
    site = program.parent / "site"
    (site / "torch" / "__init__.py").write_text(TORCH)
    (site / "affetto" / "__main__.py").write_text('import os\nprint("gpu", os.environ["CUDA_VISIBLE_DEVICES"])\n')
    env = {"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(tmp_path / "venv")}
    found = call("--gpu", number, env=env)
    if is_there:
        assert (found.returncode, found.stdout, found.stderr) == (0, f"gpu {number}\n", "")
    else:
        assert (found.returncode, found.stdout) == (1, "")
        assert f"--gpu {number}: torch finds no GPU of that number, only 2, counted from 0" in found.stderr


def test_every_option_of_the_script_is_one_of_the_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "affetto", "run", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout  # fmt: skip
    options = re.findall(r"^  (--[a-z-]+)", call("--help").stdout, flags=re.MULTILINE)
    assert "--emotion" in options
    for option in options:
        assert option in shown or option == "--gpu", option


def use(folder: Path, env: dict[str, str], *modules: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    source = f'source "{ROOT}/scripts/environment.sh"; make_environment() {{ python=made; }}; '
    command = f'set -euo pipefail; {source} use_environment "{folder}" {" ".join(modules)}; echo "$python"'
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env, check=True, cwd=cwd)


def interpreter(folder: Path, name: str, *modules: str) -> Path:
    """A program that runs the real Python, in which only `modules` of those asked for can be found."""
    folder.mkdir(parents=True, exist_ok=True)
    site = folder / "site"
    for module in modules:
        (site / module).mkdir(parents=True)
        (site / module / "__init__.py").touch()
    program = folder / name
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" -S "$@"\n')
    program.chmod(0o755)
    return program


def test_environment_is_the_first_with_all_modules(tmp_path: Path) -> None:
    active = interpreter(tmp_path / "active" / "bin", "python", "alpha_module")
    python3 = interpreter(tmp_path / "path", "python3", "alpha_module", "beta_module")
    own = interpreter(tmp_path / "root" / ".venv" / "bin", "python", "alpha_module", "beta_module", "gamma_module")
    env = {"PATH": f"{python3.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path / "active")}
    root = tmp_path / "root"
    assert use(root, env, "alpha_module").stdout == f"{active}\n"
    assert use(root, env, "alpha_module", "beta_module").stdout == f"{python3}\n"
    assert use(root, env, "beta_module", "gamma_module").stdout == f"{own}\n"
    assert use(root, env, "delta_module").stdout == "made\n"
    del env["VIRTUAL_ENV"]
    assert use(root, env, "alpha_module").stdout == f"{python3}\n"


def test_scoring_before_any_set_up_names_the_command_that_does_it(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "bare", "python")
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(ROOT / "scripts" / "evaluation_metrics.py", tmp_path / "scripts")
    (tmp_path / "src").symlink_to(ROOT / "src")
    found = subprocess.run([str(python), script, "--help"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert "Traceback" not in found.stderr
    assert "has no numpy, pydantic, soundfile, torch, typer: ./scripts/run_emotion_finetuning.sh sets" in found.stderr


def test_ctrl_c_while_the_scoring_script_loads_just_ends_it(tmp_path: Path) -> None:
    """Its imports take a second, in which a traceback would be all that is seen."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'affetto.evaluate.folder':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    found = subprocess.run(
        [sys.executable, ROOT / "scripts" / "evaluation_metrics.py", "--help"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (-signal.SIGINT, "", "")


def test_folder_that_we_are_in_is_no_environment(tmp_path: Path) -> None:
    python3 = interpreter(tmp_path / "path", "python3")
    (tmp_path / "here" / "alpha_module").mkdir(parents=True)
    (tmp_path / "here" / "alpha_module" / "__init__.py").touch()
    env = {"PATH": f"{python3.parent}:{os.environ['PATH']}"}
    assert use(tmp_path / "root", env, "alpha_module", cwd=tmp_path / "here").stdout == "made\n"


@pytest.mark.parametrize(("needed", "chosen"), [("numpy", "mine"), ("numpy==0.0.1", "made"), ("no-such-thing", "made")])
def test_an_environment_with_the_requirements_is_used_as_it_is(tmp_path: Path, needed: str, chosen: str) -> None:
    """As the guide's first step leaves it: affetto itself isn't installed there."""
    site = Path(sysconfig.get_paths()["purelib"])
    if (site / "affetto").exists():
        pytest.skip("affetto is installed here, not linked to")
    root, python = tmp_path / "root", tmp_path / "venv" / "bin" / "python"
    for folder in (root, python.parent):
        folder.mkdir(parents=True)
    (root / "requirements-expressivity-finetuning.txt").write_text(f"# pinned\n{needed}\n")
    python.write_text(f'#!/bin/sh\nexec "{sys._base_executable}" "$@"\n')  # type: ignore[attr-defined]
    python.chmod(0o755)
    asked = f"""
        source "{ROOT / "scripts" / "environment.sh"}"
        make_environment() {{ python=made; }}
        use_environment "{root}" affetto
        echo "$python" "$PYTHONPATH"
    """
    env = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path / "venv"), "PYTHONPATH": str(site)}
    found = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, env=env, check=True)
    mine = f"{python} {root / 'src'}:{site}"
    assert found.stdout.strip() == (mine if chosen == "mine" else f"made {site}")


def test_a_link_to_a_script_is_the_script(fake: dict[str, str], tmp_path: Path) -> None:
    link = tmp_path / "run"
    link.symlink_to(RUN)
    assert call(env=fake, script=link).stdout == call(env=fake).stdout != ""


def test_what_is_wrong_stands_last(fake: dict[str, str]) -> None:
    assert call("--emotoin", env=fake).stderr.splitlines()[-1] == "unknown option --emotoin"
