"""Further predictors of listening scores, by name, beside or instead of DNSMOS: `quality=dnsmos,ID_OR_PATH,…`.

Each is one of
- `dnsmos`, which is bundled;
- `distillmos`, Microsoft's Distill-MOS (Stahl & Gamper 2025, arXiv 2502.05356), where that package is installed;
- a TorchScript file (`utmos.jit`, say): samples (1, T) in, as many numbers as it has outputs out. What it is may be
  said in a JSON file beside it, of the same name with `.json`: `name`, `sample_rate` (16000), `input` (`float32` in
  ±1, or `int16`), `outputs` (names, `["mos"]`), `scale`, `licence`. A folder with one such pair will do as well;
- a transformers audio classifier used as a regressor (folder or hub id): one number per label, no softmax.
Scores come out as they are, beyond 1 and 5 too: clipping would hide that a predictor is out of its depth. Nothing is
known of a predictor's scale or licence but what it says itself; it is null otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.errors import JudgeError, MissingDependencyError
from affetto.files import hash_bytes, read_json
from affetto.judges.choice import OFF, dnsmos, find_source
from affetto.judges.kinds import QualityJudge
from affetto.judges.known import KNOWN_JUDGES

SCRIPT_SUFFIXES = (".jit", ".pt", ".ts", ".torchscript")
_KEYS = {"name", "sample_rate", "input", "outputs", "scale", "licence"}
_INPUTS = ("float32", "int16")

Sounds = Sequence[NDArray[np.float32]]


class Predictor:
    """A quality judge: any function of one sound that gives one number per output."""

    def __init__(
        self,
        predict: Callable[[NDArray[np.float32]], NDArray[np.float64]],
        name: str,
        outputs: Sequence[str],
        *,
        id: str,
        tier: str,
        sample_rate: int = 16_000,
        scale: str | None = None,
        licence: str | None = None,
    ) -> None:
        self._predict = predict
        self.id, self.tier, self.licence, self.scale, self.sample_rate = id, tier, licence, scale, sample_rate
        stem = f"mos_{_slug(name)}"
        self.names = (stem,) if len(outputs) == 1 else tuple(f"{stem}_{_slug(output)}" for output in outputs)

    def score(self, sounds: Sounds) -> list[dict[str, float]]:
        """Scores of each sound, as the predictor gives them."""
        return [self._score(sound) for sound in sounds]

    def _score(self, sound: NDArray[np.float32]) -> dict[str, float]:
        try:
            values = np.asarray(self._predict(sound), dtype=np.float64).reshape(-1)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise JudgeError(f"{self.id} can't score {len(sound)} samples: {error}") from error
        if values.shape != (len(self.names),) or not np.isfinite(values).all():
            raise JudgeError(
                f"{self.id} gave {values.tolist()[:8]} where {len(self.names)} finite scores were expected"
            )
        return dict(zip(self.names, values.tolist(), strict=True))


class QualityPanel:
    """Several quality judges; each hears the sounds at its own rate."""

    def __init__(self, members: Sequence[QualityJudge]) -> None:
        self.members = tuple(members)
        self.id = " + ".join(judge.id for judge in members)
        self.tier = members[0].tier
        self.licence = " + ".join(judge.licence or "unknown" for judge in members)
        self.sample_rate = members[0].sample_rate
        scales = [(judge.id, getattr(judge, "scale", None) or "unknown") for judge in members]
        self.scale = "; ".join(f"{name}: {scale}" for name, scale in scales)
        if repeated := [name for name in self.ids if self.ids.count(name) > 1]:
            raise JudgeError(f"the quality judge {repeated[0]} is named twice")

    @property
    def ids(self) -> list[str]:
        """The members' ids."""
        return [judge.id for judge in self.members]

    def score(self, sounds: Sounds) -> list[dict[str, float]]:
        """All members' scores, of sounds at the one rate that they share."""
        if len({judge.sample_rate for judge in self.members}) > 1:
            raise JudgeError(f"{self.id} hear at different rates: score with each of `members` on its own")
        scores: list[dict[str, float]] = [{} for _ in sounds]
        for judge in self.members:
            for merged, found in zip(scores, judge.score(sounds), strict=True):
                merged.update(found)
        return scores


def members_of(judge: QualityJudge) -> tuple[QualityJudge, ...]:
    """The judges that a quality judge is made of; most are made of themselves."""
    return getattr(judge, "members", (judge,))


def load_quality(choice: str, device: str = "cpu") -> QualityJudge:
    """The quality judges named in `choice`, separated by commas.

    Raises JudgeError where one can't be loaded, MissingDependencyError where its package isn't installed.
    """
    names = [name.strip() for name in choice.split(",")]
    if not all(names) or OFF in names:
        raise JudgeError(f"quality={choice}: name quality judges with a comma between them, or `none` alone")
    judges = [_load_one(name, device) for name in names]
    return judges[0] if len(judges) == 1 else QualityPanel(judges)


def _load_one(name: str, device: str) -> QualityJudge:
    if name == "dnsmos":
        return dnsmos()
    if name == "distillmos":
        return _load_distillmos(device)
    path = Path(name).expanduser()
    if path.is_file() or path.suffix in SCRIPT_SUFFIXES:
        return _load_script(path, device)
    scripts = sorted(entry for entry in path.glob("*") if entry.suffix in SCRIPT_SUFFIXES) if path.is_dir() else []
    if scripts and not (path / "config.json").is_file():
        if len(scripts) > 1:
            raise JudgeError(f"{path} holds {len(scripts)} TorchScript files: name one of them")
        return _load_script(scripts[0], device)
    if not path.is_dir() and "/" not in name:
        raise JudgeError(
            f"there is no quality judge {name}; there are dnsmos, distillmos, TorchScript files "
            f"({', '.join(SCRIPT_SUFFIXES)}), and transformers regressors by folder or hub id"
        )
    return _load_regressor(name, device)


def _load_distillmos(device: str) -> QualityJudge:
    if importlib.util.find_spec("distillmos") is None:
        raise MissingDependencyError("Distill-MOS isn't installed: pip install distillmos")
    import torch

    model = importlib.import_module("distillmos").ConvTransformerSQAModel().eval().to(device)
    known = KNOWN_JUDGES["distillmos"]
    return Predictor(
        lambda sound: _run(torch, model, torch.from_numpy(np.ascontiguousarray(sound)), device), "distillmos", ["mos"],
        id="distillmos", tier="bundled", licence=known.licence, scale=known.scale, sample_rate=known.sample_rate,
    )  # fmt: skip


def _load_script(path: Path, device: str) -> QualityJudge:
    import torch

    if not path.is_file():
        raise JudgeError(f"there is no file {path} to load a quality judge from")
    about = _read_about(path)
    try:
        model = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise JudgeError(f"{path} is no TorchScript file (a pickled model can't be a judge): {error}") from error
    is_int16 = about.get("input") == "int16"

    def predict(sound: NDArray[np.float32]) -> NDArray[np.float64]:
        whole = np.clip(np.round(sound * 32767.0), -32768, 32767).astype(np.int16) if is_int16 else sound
        return _run(torch, model, torch.from_numpy(np.ascontiguousarray(whole)), device)

    return Predictor(
        predict, str(about.get("name", path.stem)), about.get("outputs", ["mos"]),
        id=f"local/{path.name}@{hash_bytes(path.read_bytes())[:12]}", tier="local",
        sample_rate=int(about.get("sample_rate", 16_000)), scale=about.get("scale"), licence=about.get("licence"),
    )  # fmt: skip


def _read_about(path: Path) -> dict[str, Any]:
    """What the JSON beside a TorchScript file says of it."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        about = read_json(beside)
    except (OSError, ValueError) as error:
        raise JudgeError(f"can't read {beside}: {error}") from error
    if not isinstance(about, dict) or set(about) - _KEYS:
        raise JudgeError(f"{beside} must be a JSON object with keys out of {', '.join(sorted(_KEYS))}")
    if about.get("input", "float32") not in _INPUTS:
        raise JudgeError(f"{beside}: input is {about['input']!r}, which must be one of {', '.join(_INPUTS)}")
    rate, outputs = about.get("sample_rate", 16_000), about.get("outputs", ["mos"])
    if not isinstance(rate, int) or rate <= 0 or not isinstance(outputs, list) or not outputs:
        raise JudgeError(f"{beside}: sample_rate must be a whole number over 0, outputs a list of names")
    return about


def _load_regressor(name: str, device: str) -> QualityJudge:
    import torch
    import transformers

    from affetto.judges.listeners import TransformersJudge, load, load_whole

    source = find_source("quality", name)
    model = load_whole(transformers.AutoModelForAudioClassification, source)
    judge = TransformersJudge(model, load(transformers.AutoFeatureExtractor, source), source, device)
    outputs = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]

    @torch.inference_mode()
    def predict(sound: NDArray[np.float32]) -> NDArray[np.float64]:
        _, inputs = next(judge.batches([sound]))
        scores: NDArray[np.float64] = judge.model(**inputs).logits[0].double().cpu().numpy()
        return scores

    stem = Path(name.partition("@")[0]).name
    return Predictor(
        predict, stem, outputs, id=judge.id, tier=judge.tier, sample_rate=judge.sample_rate, licence=judge.licence
    )


def _run(torch: Any, model: Any, sound_T: Any, device: str) -> NDArray[np.float64]:
    with torch.inference_mode():
        scores: NDArray[np.float64] = model(sound_T[None].to(device)).double().cpu().numpy()
    return scores


def _slug(name: str) -> str:
    """A name's letters and digits, small, with `_` between."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "score"
