"""The command line: help that is quick and complete, errors without tracebacks, and what the verbs call."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import affetto
from affetto import cli, pipeline
from affetto.adapters.bank import AdapterBank
from affetto.adapters.peft_files import save_adapter
from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.codes.cache import CodeCache
from affetto.codes.prepare import Prepared
from affetto.commands import reporting
from affetto.commands.options import pairs_of, settings_of
from affetto.config import Config
from affetto.errors import AffettoError, ConfigError, DataError, Interrupted
from affetto.evaluate.folder_lines import MINIATURE_NOTE
from affetto.evaluate.results import build_results, write_results
from affetto.judges.choice import KINDS
from affetto.miniature import data as miniature_data
from affetto.model.base import load_base
from affetto.preserve import self_speech
from affetto.speak.arguments import blend_of
from affetto.speak.requests import Request, Spoken
from affetto.types import SPEAKING_TEMPERATURE, Clip, Problem

VERBS = {
    ("prepare",): ("--emotion", "--config", "--base", "--data", "--general", "--output", "--skip-bad-clips"),
    ("train",): ("--emotion", "--config", "--base", "--data", "--general", "--output", "--skip-bad-clips", "--resume"),
    ("evaluate",): ("--emotion", "--judge", "--intensity", "--resume", "--versa", "--allow-failures"),
    ("score",): (
        "--emotion",
        "--output",
        "--metadata",
        "--base",
        "--reference",
        "--neutral",
        "--judge",
        "--device",
        "--resume",
        "--versa",
        "--allow-failures",
    ),
    ("report",): ("--emotion", "--config", "--output", "--out", "--against", "--audio", "--sentences", "--title"),
    ("schema",): (),
    ("doctor",): ("--emotion", "--json"),
    ("run",): (
        "--emotion",
        "--config",
        "--base",
        "--data",
        "--general",
        "--output",
        "--skip-datasets",
        "--skip-bad-clips",
        "--resume",
        "--jobs",
    ),
    ("speak",): ("--emotion", "--intensity", "--out", "--base", "--models", "--speaker", "--seed", "--temperature"),
    ("miniature", "build"): ("--work", "--install"),
    ("miniature", "measure"): ("--output",),
}
Called = tuple[int, str, str]


def make_clips(folder: Path, count: int, emotion: str | None = None, **fields: Any) -> list[Clip]:
    clips = []
    for index in range(count):
        path = folder / f"{emotion}-{index}.wav"
        times = np.arange(12_000 + 480 * index) / 24_000
        write_sound(path, 0.2 * np.sin(2 * np.pi * 150 * times) * (1 + np.sin(9 * times)) / 2, 24_000)
        given = {"text": f"line {index}", "speaker": "0", "corpus": "test"} | fields
        clips.append(Clip(id=f"{emotion}-{index}", audio=path, emotion=emotion, **given))
    return clips


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_manifest(folder / "clips.jsonl", [*make_clips(folder, 4), *make_clips(folder, 4, "happy")])
    return folder / "clips.jsonl"


def test_help_lists_the_verbs(affetto: Callable[..., Called]) -> None:
    status, out, _ = affetto("--help")
    assert status == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb[0]}\b", out), verb


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_of_each_verb_mentions_its_options(affetto: Callable[..., Called], verb: tuple[str, ...]) -> None:
    status, out, _ = affetto(*verb, "--help")
    assert status == 0
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", out)) - {"--no-install"} >= set(VERBS[verb])


def test_no_arguments_show_the_help(affetto: Callable[..., Called]) -> None:
    status, out, err = affetto()
    assert status == 2
    assert "prepare" in out + err


def test_help_is_quick_and_imports_no_models() -> None:
    code = (
        "import sys; sys.argv = ['affetto', '--help']\n"
        "from affetto.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('IMPORTED', sorted({'torch', 'transformers', 'numpy', 'scipy', 'peft'} & sys.modules.keys()))"
    )
    took_s = []
    for _ in range(3):
        start = time.process_time(), os.times()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = os.times()
        took_s.append(after.children_user + after.children_system - start[1].children_user - start[1].children_system)
        assert "IMPORTED []" in found.stdout
    # Processor time, the best of three: other processes on the machine don't count.
    assert min(took_s) < 1.0, took_s


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError, 1), (DataError, 1), (AffettoError, 1), (Interrupted, 130), (KeyboardInterrupt, 130)],
)
def test_errors_that_users_can_mend_have_no_traceback(
    affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, error: type[BaseException], status: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("do this [about] it")

    monkeypatch.setattr(pipeline, "prepare_clips", fail)
    found, _, err = affetto("prepare")
    assert found == status
    assert "Traceback" not in err
    assert "do this [about] it" in err or error is KeyboardInterrupt


def test_errors_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "prepare_clips", fail)
    monkeypatch.setattr(sys, "argv", ["affetto", "prepare"])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_terminal_that_knows_ascii_alone_is_written_to(monkeypatch: pytest.MonkeyPatch, errors: str) -> None:
    """`affetto doctor` failed at its Δ; a file's name keeps its bytes, as Python has it where the locale is C."""
    written = io.BytesIO()
    monkeypatch.setattr("affetto.doctor.diagnose.examine", lambda *_: ["ΔNLL of caf\udce9.wav"])
    monkeypatch.setattr("affetto.doctor.table.render", str)
    monkeypatch.setattr(sys, "argv", ["affetto", "doctor", "run"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors=errors))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    sys.stdout.flush()
    assert (stopped.value.code, written.getvalue()) == (0, b"\\u0394NLL of caf\xe9.wav\n")


def test_a_verb_that_nobody_reads_any_more_ends_as_other_tools_do() -> None:
    """By the number that a shell has for SIGPIPE."""
    verb = f"{sys.executable} -m affetto schema"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{verb} | true"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(
    "arguments",
    [("prepare", "--emotoin", "happy"), ("speak",), ("prepare", "--config", "absent.yaml"), ("walk",),
     ("speak", "hello", "--seed", "-1"), ("speak", "hello", "--intensity", "much")],
)  # fmt: skip
def test_wrong_usage_exits_with_2(affetto: Callable[..., Called], arguments: tuple[str, ...]) -> None:
    status, _, err = affetto(*arguments)
    assert status == 2
    assert "Traceback" not in err
    assert "Usage" in err


def test_emotions_must_be_configured(affetto: Callable[..., Called]) -> None:
    status, _, err = affetto("prepare", "--emotion", "hapy")
    assert status == 1
    assert err.startswith("error: unknown emotion 'hapy' (did you mean 'happy'?); configured: happy, sad")


def test_all_stands_alone_and_is_no_emotion_to_add(affetto: Callable[..., Called]) -> None:
    for others in (("-e", "all", "-e", "sad"), ("-e", "sad", "-e", "all")):
        status, _, err = affetto("prepare", *others)
        assert status == 1
        assert err == "error: --emotion all means every emotion: leave out either it or the other --emotion\n"


def test_settings_come_from_file_and_options(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("emotions: [happy, proud]\nbase: one\nnum_epochs: 2\n")
    settings, wanted = settings_of(tmp_path / "mine.yaml", None, base="two", data=["a", "b"], output_dir=None)
    assert wanted == ["happy", "proud"]
    assert (settings.base, settings.data, settings.num_epochs) == ("two", ("a", "b"), 2)
    assert settings_of(tmp_path / "mine.yaml", ["proud"])[1] == ["proud"]


@pytest.mark.parametrize(
    ("text", "blend"),
    [
        (None, {}), ("happy", {"happy": 1.0}), ("happy=0.6,surprised=0.4", {"happy": 0.6, "surprised": 0.4}),
        (" happy = 0.5 , sad ", {"happy": 0.5, "sad": 1.0}), ({"happy": 1, "sad": 0}, {"happy": 1.0, "sad": 0.0}),
    ],
)  # fmt: skip
def test_blends(text: str | dict[str, float] | None, blend: dict[str, float]) -> None:
    assert blend_of(text) == blend


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' names no emotion"), ("happy=", "'' is not a number"), ("happy=much", "'much' is not a number"),
        ("=0.5", "'=0.5' names no emotion"), ("happy,,sad", "'' names no emotion"), ("happy,", "'' names no emotion"),
        ("happy,happy", "happy is named twice"), ("happy=nan", "share nan: it must be a finite number"),
        ("happy=inf", "share inf: it must be a finite number"), ("happy=-0.5", "share -0.5: .* 0 .* or more"),
        ({"happy": -0.5}, "happy, its share -0.5"), ({"happy": "much"}, "share much: it must be a finite number"),
        (["happy"], r"\['happy'\]: write happy or happy=0.6"),
    ],
)  # fmt: skip
def test_wrong_blends_are_errors(text: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"^emotion .*{told}"):
        blend_of(text)


def test_judges() -> None:
    assert pairs_of(None, "--judge") is None
    assert pairs_of(["words=a/b@1", "emotion=x=y"], "--judge") == {"words": "a/b@1", "emotion": "x=y"}
    for wrong in ("words", "words=", "=a"):
        with pytest.raises(ConfigError, match="KIND=ID_OR_FOLDER"):
            pairs_of([wrong], "--judge")
    with pytest.raises(ConfigError, match="--system b: write it as NAME=FOLDER"):
        pairs_of(["b"], "--system", "NAME=FOLDER")
    with pytest.raises(ConfigError, match="--judge emotion=a and --judge emotion=b contradict each other"):
        pairs_of(["emotion=a", "words=c", "emotion=b"], "--judge")


def test_names_of_folders_are_asked_for_as_such(affetto: Callable[..., tuple[int, str, str]]) -> None:
    for arguments in (("listen", "export", "-e", "happy", "--system", "b"), ("report", "x.json", "--audio", "b")):
        status, _, err = affetto(*arguments)
        assert status == 1
        assert "b: write it as NAME=FOLDER" in err


@pytest.fixture(scope="module")
def models(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One adapter that changes a lot."""
    folder = tmp_path_factory.mktemp("emotion_models")
    base = load_base(str(tiny_base_folder))
    bank = AdapterBank(base.model, base.network.gates)
    bank.add("happy", rank=2, alpha=8.0, seed=0)
    with torch.no_grad():
        for _, _, b_OR, _ in bank.factors("happy"):
            b_OR.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    save_adapter(folder / "happy" / "best", bank, "happy", base.id, {"base": {"id": "tiny", "hash": base.hash}})
    return folder


def test_speak_writes_a_sound(
    affetto: Callable[..., Called], tiny_base_folder: Path, models: Path, tmp_path: Path
) -> None:
    def spoken(name: str, *options: object) -> bytes:
        where = tmp_path / "new" / name
        how = ("--base", tiny_base_folder, "--models", models, "--out", where, "--seed", 3)
        status, out, err = affetto("speak", "hi", *how, *options)
        assert (status, out) == (0, f"{where}\n"), err
        samples, rate = soundfile.read(where)
        assert rate == 24_000
        assert samples.ndim == 1
        assert len(samples) >= 1920
        return where.read_bytes()

    base = spoken("base.wav")
    assert spoken("again.wav") == base
    assert spoken("zero.wav", "--emotion", "happy", "--intensity", 0) == base
    assert spoken("none.wav", "--emotion", "happy=0") == base
    happy = spoken("happy.wav", "--emotion", "happy")
    assert happy != base
    assert spoken("blend.wav", "--emotion", "happy=0.5", "--intensity", 2) == spoken(
        "one.wav", "-e", "happy", "--intensity", 1
    )
    assert spoken("other.wav", "--seed", 4) != base


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("hello", "--emotion", "happy", "--models", "nowhere"), "there is no adapter nowhere/happy/best"),
        (("  ",), "nothing in '  ' can be spoken"),
        (("hello", "--out", "key.mp4"), "key.mp4: sounds are written as .wav, .wave, .flac; name it key.wav"),
        (("hello", "--intensity", "nan"), "intensity nan: it must be a finite number, 0 (the base) or more"),
        (("hello", "--emotion", "happy=-1"), "emotion happy, its share -1.0: it must be a finite number, 0 (the base)"),
        (("hello", "--temperature", "inf"), "--temperature and --depth-temperature must be finite numbers"),
        (("hello", "--depth-temperature", "inf"), "--temperature and --depth-temperature must be finite numbers"),
        (("caf\udce9",), r"'caf\udce9' can't be spoken: parts of it are bytes that aren't UTF-8"),
        (("hello", "--out", ""), "no name is given for the sound file to write"),
        (("hello", "--seed", str(10**30)), "it must be a whole number from 0 to 9223372036854775807"),
        (("hello", "--base", "./nowhere"), "there is no folder './nowhere'"),
    ],
)
def test_what_cannot_be_spoken_is_told(
    affetto: Callable[..., Called], tiny_base_folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    base = () if "--base" in arguments else ("--base", str(tiny_base_folder))
    status, out, err = affetto("speak", *arguments, *base)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert told in err.replace("\n", "")


def test_prepare_counts_the_clips(affetto: Callable[..., Called], tiny_base_folder: Path, manifest: Path) -> None:
    status, _, err = affetto("prepare", "--base", tiny_base_folder, "--data", manifest, "--emotion", "happy")
    assert status == 0, err
    assert "clips ready: 4 general, 4 happy" in err


def test_bad_clips_stop_unless_skipped(
    affetto: Callable[..., Called], tiny_base_folder: Path, manifest: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "happy-1.wav").unlink()
    (tmp_path / "data" / "happy-2.wav").write_bytes(b"")
    options = ("prepare", "--base", tiny_base_folder, "--data", manifest, "--emotion", "happy")
    status, _, err = affetto(*options)
    assert status == 1
    for told in ("happy-1", "missing-file", "happy-2", "empty", "2 clips can't be used", "--skip-bad-clips"):
        assert told in err, told
    status, _, err = affetto(*options, "--skip-bad-clips")
    assert status == 0, err
    assert "clips ready: 4 general, 2 happy" in err


def test_warnings_alone_do_not_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base_folder: Path) -> None:
    warning = Problem("splits", "missing-split", "happy has no test clips")
    prepared = Prepared((), (warning,), (warning,), {}, {}, CodeCache(tmp_path))
    monkeypatch.setattr(pipeline, "prepare", lambda *_, **__: prepared)
    config = Config(base=str(tiny_base_folder), data=(str(tmp_path),))
    assert pipeline.prepare_clips(config, ["happy"]) is prepared
    bad = Prepared((), (Problem("a", "silent", "x"), warning), (warning,), {}, {}, CodeCache(tmp_path))
    monkeypatch.setattr(pipeline, "prepare", lambda *_, **__: bad)
    with pytest.raises(DataError, match="1 clip can't be used"):
        pipeline.prepare_clips(config, ["happy"])


def test_run_hands_its_options_on(affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Config, list[str], dict[str, Any]]] = []
    monkeypatch.setattr("affetto.run.run", lambda config, emotions, **how: calls.append((config, emotions, how)) or [])
    assert (
        affetto(
            "run",
            "--emotion",
            "sad",
            "--base",
            "b",
            "--data",
            "d",
            "--general",
            "self",
            "-o",
            "out",
            "--skip-datasets",
            "--resume",
            "--jobs",
            "3",
        )[0]
        == 0
    )
    config, emotions, how = calls[0]
    assert (config.base, config.data, config.general, config.output_dir) == ("b", ("d",), "self", Path("out"))
    assert emotions == ["sad"]
    assert how == {
        "command": (
            "affetto run --emotion sad --base b --data d --general self -o out --skip-datasets --jobs 3"
        ),
        "are_named": True, "skip_bad_clips": False, "skip_datasets": True, "together": False, "resume": True, "jobs": 3,
    }  # fmt: skip
    assert affetto("run", "--emotion", "sad")[0] == 0
    assert calls[1][2]["jobs"] is None, "as many as processors and memory allow"
    for options in ((), ("-e", "all")):
        assert affetto("run", *options)[0] == 0
        assert calls[-1][2]["are_named"] is False


def happy_and_sad() -> Any:
    """What was prepared, for those who only ask which emotions there are clips of."""
    return SimpleNamespace(clips=[SimpleNamespace(emotion=emotion) for emotion in ("happy", "sad")])


@pytest.mark.parametrize("verb", ["train", "run"])
@pytest.mark.parametrize(("unmet", "expected"), [((), 0), (("sad",), 3), (("happy", "sad"), 3)])
def test_a_budget_that_was_not_met_is_the_exit_status_after_every_emotion(
    affetto: Callable[..., Called],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    verb: str,
    unmet: tuple[str, ...],
    expected: int,
) -> None:
    trained = []

    def train(config: Config, emotion: str, *_: object, **__: object) -> Path:
        best = config.output_dir / "emotion_models" / emotion / "best"
        best.mkdir(parents=True)
        budget = {"budget": 1e-4, "kl": 2e-3, "met": emotion not in unmet, "multiplier": 300.0}
        facts = {"emotion": emotion, "recommended_intensity": 0.25, "forgetting_budget": budget}
        (best / "affetto.json").write_text(json.dumps(facts))
        trained.append(emotion)
        return best.parent

    monkeypatch.setattr("affetto.training.loop.train", train)
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: happy_and_sad())
    monkeypatch.setattr(
        "affetto.run.run", lambda config, emotions, **_: [train(config, name) / "report.html" for name in emotions]
    )
    settings = tmp_path / "settings.yaml"
    settings.write_text("forgetting_budget: 1.0e-4")
    status, _, err = affetto(verb, "--config", settings, "-e", "happy", "-e", "sad")
    assert (status, trained) == (expected, ["happy", "sad"])
    said = [line.split(":")[0] for line in err.splitlines() if "budget of 0.0001 nats per code was not met" in line]
    assert said == list(unmet)
    # What an earlier run with a budget left behind is no concern of a run without one.
    config = Config(output_dir=tmp_path)
    assert pipeline.unmet_budgets(config, ["happy", "sad"]) == []


def test_skipping_datasets_needs_what_was_prepared(
    affetto: Callable[..., Called], tiny_base_folder: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--base", tiny_base_folder, "--data", manifest, "--emotion", "happy")
    status, _, err = affetto("run", *options, "--skip-datasets")
    assert status == 1
    assert "nothing in" in err
    assert "run once without --skip-datasets" in err
    affetto("prepare", *options)
    config = Config(base=str(tiny_base_folder), data=(str(manifest),))
    monkeypatch.setattr("affetto.codes.prepare.check_clips", lambda *_, **__: pytest.fail("nothing is checked"))
    prepared = pipeline.prepare_clips(config, ["happy"], skip_datasets=True)
    assert len(prepared.clips) == 8


def test_the_base_may_speak_the_general_clips(
    affetto: Callable[..., Called], tiny_base_folder: Path, manifest: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The data's own are neither used nor checked."""

    def spoken(_: Any, requests: list[Request], *, on_progress: Any) -> list[Spoken]:  # noqa: ARG001
        return [Spoken(np.random.default_rng(one.seed).integers(0, 256, (8, 8)), False) for one in requests]

    monkeypatch.setattr(self_speech, "generate", spoken)
    (tmp_path / "data" / "None-0.wav").unlink()
    settings = tmp_path / "few.yaml"
    settings.write_text("{rehearsal_buffer_size: 5, fisher_clips: 4, validation_clips: 2, evaluation_clips: 3}")
    options = ("--base", tiny_base_folder, "--data", manifest, "--emotion", "happy", "--config", settings)
    status, _, err = affetto("prepare", *options, "--general", "self")
    assert status == 0, err
    assert "clips ready: 14 general, 4 happy" in err
    status, _, err = affetto("prepare", *options)
    assert status == 1
    assert "None-0" in err
    status, _, err = affetto("prepare", *options, "--general", "mine")
    assert status == 1
    assert "'data' or 'self'" in err


def test_skipping_datasets_renders_nothing(affetto: Callable[..., Called], tiny_base_folder: Path) -> None:
    status, _, err = affetto("run", "--base", tiny_base_folder, "--emotion", "happy", "--skip-datasets")
    assert status == 1
    assert "the miniature's clips of general, happy aren't there" in err
    options = ("--base", tiny_base_folder, "--emotion", "happy", "--skip-datasets", "--general", "self")
    status, _, err = affetto("run", *options)
    assert status == 1
    assert "the miniature's clips of happy aren't there" in err


def test_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def sources(emotions: list[str], *, do_render: bool, with_general: bool) -> list[Path]:
        assert do_render
        assert with_general
        asked.append(list(emotions))
        return [Path("general.jsonl")]

    monkeypatch.setattr(miniature_data, "miniature_sources", sources)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "miniature").mkdir()
    config = Config(emotions=("happy", "proud"), data=("miniature", "~/clips"))
    assert pipeline.find_sources(config, ["happy", "proud"]) == [Path("general.jsonl"), tmp_path / "clips"]
    assert asked == [["happy"]], "what nobody acts must come from the other sources"
    pipeline.find_sources(Config(emotions=("happy", "proud")), ["happy", "proud"])
    assert asked[1] == ["happy", "proud"], "and without other sources that is an error"


def test_report_says_what_has_to_be_run_first(affetto: Callable[..., Called], tmp_path: Path) -> None:
    status, _, err = affetto("report", "--emotion", "happy")
    assert status == 1
    assert "affetto train --emotion happy" in err
    facts = tmp_path / "emotion_models" / "happy" / "best" / "affetto.json"
    facts.parent.mkdir(parents=True)
    facts.write_text("{}")
    status, _, err = affetto("report", "--emotion", "happy")
    assert status == 1
    assert "affetto evaluate --emotion happy" in err


def test_what_is_not_trained_is_told_before_clips_are_prepared_and_passed_over_where_nobody_named_it(
    affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judged: list[str] = []
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: pytest.fail("nothing is there to evaluate"))
    for options in ((), ("-e", "sad")):
        status, _, err = affetto("evaluate", *options)
        assert status == 1
        assert f"there is no adapter emotion_models/{'sad' if options else 'happy'}/best: affetto train" in err
    (tmp_path / "emotion_models" / "sad" / "best").mkdir(parents=True)
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: None)
    monkeypatch.setattr(
        "affetto.evaluate.suite.evaluate", lambda _, name, *__, **___: judged.append(name) or failed_results()
    )
    affetto("evaluate")
    assert judged == ["sad"]
    assert affetto("evaluate", "-e", "sad", "-e", "happy")[0] == 1

    drawn: list[str] = []
    monkeypatch.setattr(pipeline, "report", lambda _, name: drawn.append(name) or name)
    write_results(tmp_path / "evaluation_results" / "sad_results.json", failed_results())
    assert affetto("report")[0] == 0
    assert drawn == ["sad"]


def failed_results() -> dict[str, Any]:
    row = {"file": "a.wav", "prompt": None, "text": None, "speaker": None, "seed": None, "duration_s": None}
    files = [{**row, "error": "silent", "values": {}}, {**row, "file": "b.wav", "error": None, "values": {}}]
    system = {"name": "mine", "role": "files", "intensity": None, "num_files": 2, "num_failed": 1, "metrics": {},
              "plain_metrics": None, "confusion": None, "files": files}  # fmt: skip
    judge = {"id": "miniature/emotion@1", "tier": "miniature", "labels": ["happy"], "licence": None,
             "sample_rate": 16_000, "ceiling": None}  # fmt: skip
    judges = {**dict.fromkeys(KINDS), "emotion": judge}
    return build_results("happy", "affetto evaluate", judges, [system])  # type: ignore[list-item, return-value, arg-type]


def test_files_that_failed_are_the_exit_status_of_an_evaluation(
    affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def evaluate(*_: object, **how: Any) -> dict[str, Any]:
        asked.append(how)
        return failed_results()

    monkeypatch.setattr("affetto.evaluate.suite.evaluate", evaluate)
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: None)
    for emotion in ("happy", "sad"):
        (tmp_path / "emotion_models" / emotion / "best").mkdir(parents=True)
    status, _, err = affetto("evaluate", "-e", "happy", "--versa", "scores.jsonl")
    assert status == reporting.FILES_FAILED
    assert "failed: mine: a.wav: silent" in err
    assert "emotion judge: miniature/emotion@1 (miniature)\nwords judge: none\n" in err
    assert f"note: emotion: {MINIATURE_NOTE}" in err
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert lines == [{"key": "a.wav", "error": "silent"}, {"key": "b.wav"}]
    assert affetto("evaluate", "-e", "happy", "--allow-failures", "--resume")[0] == 0
    assert asked[0]["command"] == "affetto evaluate -e happy --versa scores.jsonl"
    assert asked[1] == {
        "command": "affetto evaluate -e happy --allow-failures", "intensity": None, "resume": True,
    }  # fmt: skip
    status, _, err = affetto("evaluate", "-e", "happy", "-e", "sad", "--versa", "scores.jsonl")
    assert status == 1
    assert "name one --emotion" in err


def test_tables_that_were_asked_for_are_on_standard_output(
    affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "with_clips", lambda *_, **__: None)
    monkeypatch.setattr(pipeline, "calibrate", lambda *_, **__: [])
    monkeypatch.setattr("affetto.laboratory.calibration.require_general", lambda _: None)
    monkeypatch.setattr("affetto.commands.forgetting._check_adapters", lambda *_: None)
    monkeypatch.setattr("affetto.evaluate.suite.evaluate", lambda *_, **__: failed_results())
    row = {"intensity": 1.0, "kl": 0.25, "low": 0.2, "high": 0.3, "reason": None}
    monkeypatch.setattr("affetto.laboratory.calibration.predict_forgetting", lambda *_: [row])
    (tmp_path / "emotion_models" / "happy" / "best").mkdir(parents=True)
    for words, table in (
        (("calibrate",), "predicted over measured KL"),
        (("predict-forgetting", "adapter"), "0.2 to 0.3"),
        (("evaluate", "-e", "happy"), "mine"),
    ):
        _, out, _ = affetto(*words)
        assert table in out, words
    _, out, err = affetto("predict-forgetting", "adapter", "--json")
    assert (json.loads(out), err) == ([row], "")


def test_results_are_compared_on_one_page(affetto: Callable[..., Called], tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_results(tmp_path / f"{name}.json", failed_results())
    status, out, err = affetto("report", "one.json", "the other=two.json", "--against", "one", "--title", "Two")
    assert (status, out, err) == (0, "comparison.html\n", "")
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "<h1>Two</h1>" in page
    assert "the other" in page
    assert "affetto report one.json" in page
    for wrong, why in (
        (("one.json", "--emotion", "happy"), "are for runs"),
        (("--out", "page.html"), "name the results to compare"),
        (("one.json", "--against", "three"), "there is no system 'three'; there are one"),
        (("one.json", "one.json"), "two systems are called 'one'"),
        (("gone.json",), "can't read the results gone.json"),
        (("one.json", "--audio", "one=nowhere"), "no folder nowhere"),
    ):
        status, _, err = affetto("report", *wrong)
        assert status == 1, wrong
        assert why in err


@pytest.mark.parametrize(
    ("asked", "emotions", "together"),
    [
        (["all"], ["happy", "sad"], True),
        ([], ["happy", "sad"], False),
        (["sad", "base"], ["base", "sad"], False),
    ],
)
def test_all_is_one_run_and_the_expressive_base_comes_first(
    affetto: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: list[str],
    emotions: list[str], together: bool,
) -> None:  # fmt: skip
    """One after the other by default; the expressive base where it is named, before those that build on it."""
    trained: list[list[str]] = []

    def train_together(config: Config, names: list[str], *_: object, **__: object) -> list[Path]:
        trained.append(list(names))
        return [config.output_dir / "emotion_models" / name for name in names]

    monkeypatch.setattr("affetto.training.loop.train_together", train_together)
    monkeypatch.setattr("affetto.training.loop.train", lambda config, name, *_, **__: train_together(config, [name])[0])
    monkeypatch.setattr(pipeline, "prepare_clips", lambda *_, **__: happy_and_sad())
    matched: list[str] = []
    monkeypatch.setattr(pipeline, "recommend_as_acted", lambda _config, name, _prepared: matched.append(name))
    settings = tmp_path / "settings.yaml"
    settings.write_text("emotions: [happy, sad]")
    options = [option for name in asked for option in ("--emotion", name)]
    status, _, _ = affetto("train", "--config", settings, "--output", tmp_path, *options)
    assert status == 0
    assert trained == ([emotions] if together else [[name] for name in emotions])
    assert matched == emotions, "each is held against its clips"


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_the_expressive_base_has_no_emotion_to_be_judged_by(affetto: Callable[..., Called], verb: str) -> None:
    status, _, err = affetto(verb, "--emotion", "base")
    assert status == 1
    assert "expressive_base: true" in err


def test_help_lists_every_verb_once_and_the_main_road_first() -> None:
    from typer.main import get_command

    verbs = get_command(cli.app).commands  # type: ignore[attr-defined]
    assert sorted(verbs) == sorted(cli.VERBS)
    assert len(set(cli.VERBS)) == len(cli.VERBS)
    assert cli.VERBS[0] == "run"


def test_the_temperature_that_help_names_is_the_one_that_is_used(affetto: Callable[..., Called]) -> None:
    _, out, _ = affetto("speak", "--help")
    assert f"Default: {SPEAKING_TEMPERATURE}." in re.sub(r"[\s│]+", " ", out)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["affetto", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"affetto {version('affetto')}\n"
    assert affetto.__version__ == version("affetto")


def test_the_package_names_what_speaks() -> None:
    """And `import affetto` waits for nothing of it."""
    code = "import sys, affetto; print('torch' in sys.modules, affetto.Voice.__module__, 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "affetto.speak.voice", "True"]
    with pytest.raises(AttributeError, match="'voice'"):
        _ = affetto.voice


def test_a_page_is_not_written_over_a_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = tmp_path / "voice.wav"
    sound.write_bytes(b"RIFF")
    monkeypatch.setattr(sys, "argv", ["affetto", "report", str(tmp_path / "r.json"), "--out", str(sound)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert sound.read_bytes() == b"RIFF"


def test_an_emotion_that_is_named_twice_is_one(tmp_path: Path) -> None:
    assert settings_of(None, ["happy", "sad", "happy"], output_dir=tmp_path)[1] == ["happy", "sad"]
