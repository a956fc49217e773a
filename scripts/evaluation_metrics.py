"""Score a folder of spoken files: emotion, pronunciation, quality, pitch and timing."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import sys
from pathlib import Path

if importlib.util.find_spec("affetto") is None:
    # The main script's environment where there is one; else this Python, which then needs the requirements.
    _ROOT = Path(__file__).resolve().parents[1]
    _PYTHON = _ROOT / ".venv" / "bin" / "python"
    if _PYTHON.is_file() and Path(sys.prefix).resolve() != _PYTHON.parents[1].resolve():
        os.execv(_PYTHON, [str(_PYTHON), *sys.argv])
    sys.path.insert(0, str(_ROOT / "src"))
if _missing := [
    name for name in ("numpy", "pydantic", "soundfile", "torch", "typer") if importlib.util.find_spec(name) is None
]:
    sys.stderr.write(
        f"{sys.executable} has no {', '.join(_missing)}: ./scripts/run_emotion_finetuning.sh sets everything up when "
        "it first runs, and so does pip install -r requirements-expressivity-finetuning.txt\n"
    )
    sys.exit(2)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what follows takes a second: Ctrl-C just ends it

from affetto.commands.options import pairs_of
from affetto.commands.output import tell, write_anything
from affetto.errors import MENDABLE, AffettoError
from affetto.evaluate.folder import Beside, evaluate_folder
from affetto.evaluate.folder_lines import failures, folder_lines
from affetto.evaluate.journal import check_outputs
from affetto.evaluate.results import Results
from affetto.evaluate.versa import write_versa
from affetto.files import as_text

EPILOG = """
example:
  python scripts/evaluation_metrics.py --eval-dir evaluation/test_samples/happy --emotion happy \\
      --output evaluation_results/happy_results.json --batch

Texts: put what is said in hello.txt beside hello.wav, or name a table with --metadata. Without texts, pronunciation
can't be scored and is null with a reason.

Differences: --base-dir, --reference-dir and --neutral-dir name folders to hold the files against.

Judges: the default ones work offline. The miniature's emotion and word judges know the miniature's synthetic voices
only; for real speech name others, for example
  --judge emotion=superb/wav2vec2-base-superb-er --judge words=openai/whisper-base.en

Written: OUTPUT (JSON: every number with its 95 % interval, and one entry per file), the same name with .csv (one row
per file), and with .rows.jsonl what --resume goes on from (safe to delete); docs/results.md tells what is in them.
No file that affetto didn't write is written over.
Exit status: 0 all files scored, 1 some files failed, 2 wrong input, 130 stopped by Ctrl-C (--resume goes on).
"""

BESIDE = {
    "base": "the same sentences without the emotion, by the base model, say: differences are told, paired by text and "
    "speaker, or by file name where there is no text",
    "reference": "real recordings of the emotion: the judges' ceiling, and whose voices the files should have",
    "neutral": "neutral speech of the same speakers, of any texts: differences in prosody are told",
}
"""Folders that the files may be held against; each is read as DIR is."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, evaluate, print the numbers; returns the exit status."""
    write_anything()
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    # Resuming changes nothing in what is written, this line included.
    again = [argument for argument in given if argument != "--resume"]
    command = as_text(shlex.join(["python", "scripts/evaluation_metrics.py", *again]))
    try:
        judges = pairs_of(options.judge, "--judge", "KIND=NAME, such as emotion=superb/wav2vec2-base-superb-er")
        _check(options.eval_dir, options.batch)
        beside = Beside(options.base_dir, options.reference_dir, options.neutral_dir)
        folders = [options.eval_dir, *beside.folders.values()]
        check_outputs(options.output, folders=folders, metadata=options.metadata, versa=options.versa)
        results = evaluate_folder(
            options.eval_dir, options.emotion, options.output, judges=judges, metadata=options.metadata,
            beside=beside, command=command, device=options.device, resume=options.resume,
        )  # fmt: skip
        if options.versa:
            write_versa(options.versa, results)
        return _report(results, options.output, options.allow_failures)
    except KeyboardInterrupt:
        return 130  # as the command line's
    except (AffettoError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in MENDABLE:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--eval-dir", type=Path, required=True, metavar="DIR", help="folder of sound files, or one file"
    )
    parser.add_argument("--emotion", required=True, help="the emotion that the files should express, such as happy")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="where the results are written")
    parser.add_argument("--batch", action="store_true", help="DIR is a folder: score every sound file directly in it")
    parser.add_argument(
        "--judge", action="append", metavar="KIND=NAME",
        help="emotion=, words=, voice= a Hugging Face id (id@revision pins it) or a local folder; quality=dnsmos; "
        "dimensions=, embedding= judge only where named (docs/evaluation.md); NAME none switches a judge off; "
        "may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="csv or jsonl table with columns file, text, speaker (default: DIR's metadata.csv or metadata.jsonl)",
    )
    for name, told in BESIDE.items():
        parser.add_argument(f"--{name}-dir", type=Path, metavar="DIR", help=told)
    parser.add_argument("--device", default="cpu", help="where the judges run: cpu or cuda (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on where a stopped run with the same OUTPUT was")
    parser.add_argument(
        "--versa", type=Path, metavar="FILE.jsonl", help="also write one flat JSON line per file, as VERSA does"
    )
    parser.add_argument(
        "--allow-failures", "--allow-failed", action="store_true", help="exit with 0 although files could not be scored"
    )
    return parser


def _check(path: Path, is_batch: bool) -> None:
    if path.is_dir() and not is_batch:
        raise AffettoError(f"{path} is a folder; add --batch to score every file in it")
    if path.is_file() and is_batch:
        raise AffettoError(f"{path} is one file; leave --batch out")


def _report(results: Results, output: Path, is_failure_allowed: bool) -> int:
    tell(folder_lines(results, output))
    failed = list(failures(results))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed and not is_failure_allowed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
