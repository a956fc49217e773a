"""`affetto ablate`: one training run per method, emotion and seed, each measured on test clips; resumable.

Each cell of that table is a file, written when the cell is done. Any number of processes may work on one folder: each
takes cells by locks, which are released when it ends, however it ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from affetto.audio.stratified import spread
from affetto.codes.prepare import Prepared
from affetto.config import Config, load_config
from affetto.errors import CheckpointError, ConfigError, DataError, counted
from affetto.evaluate.matching import match_clips
from affetto.evaluate.strengths import hear
from affetto.evaluate.suite import held_out_sentences
from affetto.files import hash_text, one_at_a_time, read_json, write_json, write_text
from affetto.judges.choice import Judges, choose_judges
from affetto.laboratory.calibration import require_no_expressive_base
from affetto.laboratory.methods import METHODS
from affetto.model.base import Base, load_base
from affetto.model.rows import PLAIN_TEMPLATE
from affetto.progress import progress, say
from affetto.provenance import versions
from affetto.speak.voice import Voice
from affetto.training.loop import train
from affetto.training.streams import gated_rows
from affetto.training.validation import INTENSITIES, Validation

SCHEMA = "affetto.ablation/1"
HEARD = ("recall", "posterior", "wer")


@dataclass(frozen=True)
class Cell:
    """One training run."""

    method: str
    emotion: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.method}-{self.emotion}-{self.seed}"

    def config(self, config: Config, folder: Path) -> Config:
        """`config` with the method's changes, training into a folder of its own.

        Each sentence gets a single take, since choosing the best of several would blur the methods' differences.
        ConfigError if the method's settings contradict the configuration's.
        """
        own = {"seed": self.seed, "output_dir": folder / "runs" / self.name, "trackers": (), "sampling_takes": 1}
        settings = config.model_dump() | dict(METHODS[self.method].changes) | own
        return load_config(None, told_as=f"the configuration with method {self.method}", **settings)


def cells(methods: Sequence[str], emotions: Sequence[str], num_seeds: int) -> list[Cell]:
    """All cells, seed by seed, so that a stopped ablation has whole comparisons. ConfigError for an unknown method."""
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"unknown method {unknown[0]!r}; there are {', '.join(METHODS)}")
    return [Cell(name, emotion, seed) for seed in range(num_seeds) for emotion in emotions for name in methods]


def check_cells(config: Config, wanted: Sequence[Cell], folder: Path) -> None:
    """Raise ConfigError if a run of `wanted` is impossible, before anything is prepared or trained."""
    require_no_expressive_base(config)
    for cell in wanted:
        cell.config(config, folder)


def ablate(
    config: Config, wanted: Sequence[Cell], prepared: Prepared, folder: Path, command: str = ""
) -> list[dict[str, Any]]:
    """Run all `wanted` cells that aren't done or taken by another process; returns the rows of those that are done."""
    base = load_base(config.base)
    with progress("Ablation", len(wanted)) as bar:
        for cell in wanted:
            path = _path(folder, cell)
            key = _key(cell.config(config, folder), cell, base, prepared)
            if not _is_whole(_done(path, key)):
                with one_at_a_time(folder / "locks" / f"{cell.name}.lock", do_wait=False) as is_ours:
                    # Another process may have finished it since.
                    row = _done(path, key)
                    if is_ours and row is None:
                        row = {"key": key, "command": command, **_run(config, cell, prepared, folder)}
                        write_json(path, row)
                    if is_ours and row is not None and not _is_whole(row):
                        write_json(path, row | {"as_acted": _as_acted(cell.config(config, folder), cell, prepared)})
            bar.advance(1)
    done = [_done(_path(folder, cell), _key(cell.config(config, folder), cell, base, prepared)) for cell in wanted]
    rows = [row for row in done if row is not None and _is_whole(row)]
    if len(rows) < len(wanted):
        runs = counted(len(wanted) - len(rows), "run is", "runs are")
        say(f"{runs} still at work in another process; the table has the finished ones", style="yellow")
    return rows


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All finished runs in `folder`, whatever their settings, else those in its `ablation.json`; DataError if none."""
    rows = [read_json(path) for path in sorted((folder / "rows").glob("*.json"))]
    if not rows and (folder / "ablation.json").is_file():
        rows = read_json(folder / "ablation.json")["rows"]
    if not rows:
        raise DataError(f"{folder / 'rows'} holds no finished run: make some with affetto ablate")
    return rows


def write_comparison(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write `ablation.json` (all rows), `ablation.md` and `ablation.svg` into `folder`; returns the table."""
    from affetto.laboratory.comparison import acted_markdown, markdown
    from affetto.laboratory.picture import ablation_picture

    table = f"{markdown(rows)}\n\n{acted_markdown(rows)}"
    write_json(folder / "ablation.json", {"schema": SCHEMA, "rows": list(rows)})
    write_text(folder / "ablation.md", table + "\n")
    write_text(folder / "ablation.svg", ablation_picture(rows).standalone() + "\n")
    return table


def _run(config: Config, cell: Cell, prepared: Prepared, folder: Path) -> dict[str, Any]:
    own = cell.config(config, folder)
    say(f"{METHODS[cell.method].title}, {cell.emotion}, seed {cell.seed}", style="bold")
    try:
        trained = train(own, cell.emotion, prepared, resume=True)
    except CheckpointError:
        trained = train(own, cell.emotion, prepared)
    facts = read_json(trained / "best" / "affetto.json")
    voice = speaking(own, cell.emotion, trained / "best")
    judges = choose_judges({**own.judges, "quality": "none"}, cell.emotion, voice.base.device.type)
    return {
        "schema": SCHEMA,
        "method": cell.method,
        "emotion": cell.emotion,
        "seed": cell.seed,
        "settings": dict(METHODS[cell.method].changes),
        "ewc_natural_weight": facts["ewc_natural_weight"],
        "recommended_intensity": facts["recommended_intensity"],
        "training_s": facts["timings_s"]["training"],
        "points": frontier_on_test(own, cell.emotion, prepared, voice),
        "heard": _heard(own, cell.emotion, prepared, voice, facts, judges),
        "judges": {kind: judge.id for kind, judge in (("emotion", judges.emotion), ("words", judges.words)) if judge},
        "base": facts["base"],
        "date": date.today().isoformat(),
        "versions": versions(),
    }


def speaking(config: Config, emotion: str, adapter: Path) -> Voice:
    """The run's base with the adapter of the folder `adapter`, for all measurements."""
    voice = Voice.of_run(config.base, config.base_precision)
    voice.load_adapter(emotion, adapter)
    return voice


def frontier_on_test(
    config: Config, emotion: str, prepared: Prepared, voice: Voice, intensities: Sequence[float] = (0.0, *INTENSITIES)
) -> list[dict[str, Any]]:  # fmt: skip
    """Expressivity and forgetting by intensity, on test clips, which neither training nor model selection saw.

    `voice` must have loaded this adapter only. Rows of `intensity` (0 is the base), `emotion_nll`, `general_nll` and
    `kl`, in nats per code.
    """
    frames = prepared.num_frames()

    def rows(name: str | None, most: int, template: str = PLAIN_TEMPLATE) -> list[Any]:
        clips = spread(prepared.select(name, "test"), frames, most, "ablation")
        return gated_rows(voice.base, clips, prepared, template)

    emotional = rows(emotion, config.validation_clips, config.prompt_template)
    general = rows(None, config.evaluation_clips)
    if not (emotional and general):
        raise DataError(f"the ablation needs {emotion} and general test clips, and the data lacks some")
    look = Validation(voice.base, emotional, general)
    points = []
    for intensity in intensities:
        values = look(intensity)
        points.append(
            {
                "intensity": intensity, "emotion_nll": values["emotion_nll"], "general_nll": values["general_nll"],
                "kl": values["general_kl"],
            }
        )  # fmt: skip
    return points


def _heard(
    config: Config, emotion: str, prepared: Prepared, voice: Voice, facts: Mapping[str, Any], judges: Judges,
    at: float = 1.0,
) -> dict[str, dict[str, float | None]]:  # fmt: skip
    """The judges' metrics (`HEARD`) at an intensity, for `base`, `emotional` and `plain`; null without a judge."""
    sentences = held_out_sentences(config, emotion, prepared, facts["trained_speakers"], facts["speakers"])
    heard: dict[str, dict[str, float | None]] = {}
    for kind, intensity in (("base", 0.0), ("emotional", at), ("plain", at)):
        metrics = hear(
            voice, sentences, emotion, judges, intensity=intensity, temperature=config.sampling_temperature,
            depth_temperature=config.sampling_depth_temperature, cued=kind == "emotional",
        )  # fmt: skip
        heard[kind] = {name: metrics[name]["value"] for name in HEARD}
    return heard


def _as_acted(config: Config, cell: Cell, prepared: Prepared) -> dict[str, Any]:
    """The run at the intensity that matches its clips' strength: the strengths, its frontier point on test clips, and
    the judges' metrics; only a reason if it can't be matched."""
    adapter = config.model_of(cell.emotion) / "best"
    voice = speaking(config, cell.emotion, adapter)
    match = match_clips(config, cell.emotion, prepared, adapter, voice)
    if match.intensity is None:
        return {"intensity": None, "reason": match.reason}
    judges = choose_judges({**config.judges, "quality": "none"}, cell.emotion, voice.base.device.type)
    (point,) = frontier_on_test(config, cell.emotion, prepared, voice, (match.intensity,))
    facts = read_json(adapter / "affetto.json")
    heard = _heard(config, cell.emotion, prepared, voice, facts, judges, match.intensity)
    return {**point, "strengths": match.document()["strengths"], "heard": heard}


def _is_whole(row: Mapping[str, Any] | None) -> bool:
    """Whether the row has all measurements; an earlier affetto didn't match clips."""
    return row is not None and "as_acted" in row


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "rows" / f"{cell.name}.json"


def _done(path: Path, key: str) -> dict[str, Any] | None:
    """The row, if it exists and has the same settings, base and clips."""
    if not path.is_file():
        return None
    row: dict[str, Any] = read_json(path)
    return row if row.get("key") == key else None


def _key(config: Config, cell: Cell, base: Base, prepared: Prepared) -> str:
    settings = config.model_dump_json(exclude={"output_dir", "trackers", "base", "data", "evaluation_strengths"})
    clips = (f"{clip.id}:{prepared.keys.get(clip.id)}:{clip.split}" for clip in prepared.clips)
    return hash_text(SCHEMA, settings, cell.name, base.hash, *clips)
