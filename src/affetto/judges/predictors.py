"""Quality judges other than DNSMOS, by name, with it or instead of it: `quality=dnsmos,ID_OR_PATH,…`.

Each is one of
- `dnsmos`, which is bundled;
- `distillmos`, Microsoft's Distill-MOS (Stahl & Gamper 2025, arXiv 2502.05356), if that package is installed;
- `utmos`, a TorchScript file from the hub (`known` says which);
- a TorchScript file (`mine.jit`, say), or a folder or hub id with one, which maps samples (1, T) to one number per
  output. A JSON file beside it, of the same name with `.json`, may give `name`, `sample_rate` (16000), `input`
  (`float32` in ±1, or `int16`), `outputs` (names, `["mos"]`), `scale` and `licence`; in a folder or a hub repository it
  may also be called `judge.json`;
- `utmos:PATH` or `nisqa:PATH`, such a file or folder whose JSON affetto knows (a file called `utmos.jit`, as
  balacoon/utmos calls it, gets `int16`);
- a transformers audio classifier used as a regressor (folder or hub id): one number per label, no softmax. A
  `judge.json` in it may give `name`, `outputs`, `scale` and `licence`.
Scores are not clipped to 1 to 5: clipping would hide that a predictor is outside its domain. The scale and licence of
an unknown predictor are what its JSON says, null otherwise.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affetto.errors import JudgeError, MissingDependencyError, counted
from affetto.files import expanded, hash_bytes
from affetto.judges.choice import OFF, Source, dnsmos, find_source
from affetto.judges.kinds import QualityJudge
from affetto.judges.known import KNOWN_JUDGES, SCRIPTS, KnownJudge, known_script
from affetto.judges.scripts import FOLDER_FACTS, SUFFIXES, find_script, is_script_folder, read_facts, script_facts

Sounds = Sequence[NDArray[np.float32]]


class Predictor:
    """A quality judge from any function of one sound that returns one number per output."""

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
        known: KnownJudge | None = None,
    ) -> None:
        self._predict, self.known = predict, known
        self.id, self.tier, self.licence, self.scale, self.sample_rate = id, tier, licence, scale, sample_rate
        stem = f"mos_{_slug(name)}"
        self.names = (stem,) if len(outputs) == 1 else tuple(f"{stem}_{_slug(output)}" for output in outputs)

    def score(self, sounds: Sounds) -> list[dict[str, float]]:
        """Scores of each sound, unclipped."""
        return [self._score(sound) for sound in sounds]

    def _score(self, sound: NDArray[np.float32]) -> dict[str, float]:
        try:
            values = np.asarray(self._predict(sound), dtype=np.float64).reshape(-1)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise JudgeError(f"{self.id} can't score {counted(len(sound), 'sample')}: {error}") from error
        if values.shape != (len(self.names),) or not np.isfinite(values).all():
            raise JudgeError(f"{self.id} gave {values.tolist()[:8]}, but {len(self.names)} finite scores were expected")
        return dict(zip(self.names, values.tolist(), strict=True))


class QualityPanel:
    """Several quality judges; each hears the sounds at its own rate."""

    def __init__(self, members: Sequence[QualityJudge]) -> None:
        self.members = tuple(members)
        self.id = " + ".join(judge.id for judge in members)
        tiers = {judge.tier for judge in members}
        self.tier = tiers.pop() if len(tiers) == 1 else "mixed"
        self.licence = " + ".join(judge.licence or "unknown" for judge in members)
        self.sample_rate = members[0].sample_rate
        scales = [(judge.id, getattr(judge, "scale", None) or "unknown") for judge in members]
        self.scale = "; ".join(f"{name}: {scale}" for name, scale in scales)
        if repeated := [name for name in self.ids if self.ids.count(name) > 1]:
            raise JudgeError(f"the quality judge {repeated[0]} is named twice")
        names = [name for judge in members for name in getattr(judge, "names", ())]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise JudgeError(
                f"two of {self.id} call a score {repeated[0]}: give one of them another `name` in the JSON beside it"
            )

    @property
    def ids(self) -> list[str]:
        """The members' ids."""
        return [judge.id for judge in self.members]

    def score(self, sounds: Sounds) -> list[dict[str, float]]:
        """All members' scores of sounds at the rate that they share."""
        if len({judge.sample_rate for judge in self.members}) > 1:
            raise JudgeError(f"{self.id} hear at different rates: score with each of `members` on its own")
        scores: list[dict[str, float]] = [{} for _ in sounds]
        for judge in self.members:
            for merged, own in zip(scores, judge.score(sounds), strict=True):
                merged.update(own)
        return scores


def members_of(judge: QualityJudge) -> tuple[QualityJudge, ...]:
    """The members of a quality judge; most are their own single member."""
    return getattr(judge, "members", (judge,))


def load_quality(choice: str, device: str = "cpu") -> QualityJudge:
    """The quality judges named in `choice`, separated by commas.

    Raises JudgeError if one can't be loaded, MissingDependencyError if its package isn't installed.
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
    short, colon, place = name.partition(":")
    if colon and short in SCRIPTS:
        return _load_local_script(expanded(place), device, short)
    short, at, revision = name.partition("@")
    if short in SCRIPTS:
        _check_is_published(short, KNOWN_JUDGES[SCRIPTS[short]])
        return _load_from_hub(find_source("quality", f"{SCRIPTS[short]}{at}{revision}"), device)
    path = expanded(name)
    if path.is_file() or path.suffix in SUFFIXES or is_script_folder(path):
        return _load_local_script(path, device)
    if not path.is_dir() and "/" not in name:
        raise JudgeError(
            f"there is no quality judge {name}; there are dnsmos, distillmos, {', '.join(SCRIPTS)}, TorchScript files "
            f"({', '.join(SUFFIXES)}) by path, folder or hub id, and transformers regressors by folder or hub id"
        )
    source = find_source("quality", name)
    return _load_from_hub(source, device) if source.tier == "hub" else _load_regressor(source, path, device)


def _check_is_published(name: str, known: KnownJudge) -> None:
    """JudgeError if only the authors' own code can load a judge, with instructions for exporting it."""
    script = known.script
    assert script is not None
    if script.file is None:
        raise JudgeError(
            f"no TorchScript file of {name} is known on the hub, and its own weights ({known.licence}) load only with "
            f"its own code: load them with that, save as {name}.jit what torch.jit.script or torch.jit.trace makes of "
            f"a module that takes samples (1, T) at {known.sample_rate} Hz and gives {', '.join(script.outputs)}, and "
            f"name it with --judge quality={name}:{name}.jit"
        )


def _load_distillmos(device: str) -> QualityJudge:
    try:
        version = importlib.metadata.version("distillmos")
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError("Distill-MOS isn't installed: pip install distillmos") from error
    import torch

    model = importlib.import_module("distillmos").ConvTransformerSQAModel().eval().to(device)
    known = KNOWN_JUDGES["distillmos"]
    return Predictor(
        lambda sound: _run(torch, model, torch.from_numpy(np.ascontiguousarray(sound)), device), "distillmos", ["mos"],
        id=f"distillmos@{version}", tier=known.tier, licence=known.licence,
        scale=known.scale, sample_rate=known.sample_rate, known=known,
    )  # fmt: skip


def _load_local_script(path: Path, device: str, name: str | None = None) -> QualityJudge:
    """A TorchScript file, or the one in a folder; `name` is one of `SCRIPTS` if the user says that it is that one."""
    is_in_folder = path.is_dir()
    script = find_script(path, str(path)) if is_in_folder else path
    if script is None or not script.is_file():
        raise JudgeError(f"there is no file {path} to load a quality judge from")
    known = known_script(name, script.name) if name else None
    facts = script_facts(script, known, is_in_folder=is_in_folder)
    judge_id = f"local/{script.name}@{hash_bytes(script.read_bytes())[:12]}"
    return _load_script(script, facts, Source(str(path), judge_id, "local", None, known=known), device)


def _load_from_hub(source: Source, device: str) -> QualityJudge:
    """A TorchScript file of a hub repository, or else its transformers model."""
    from affetto.judges.checkpoints import at_commit, checkpoint_folder, fetched

    script = source.known.script if source.known else None
    if script is not None and script.file is not None:
        folder = checkpoint_folder(source, [script.file])
        path: Path | None = folder / script.file
    else:
        folder = fetched(source, ["config.json", FOLDER_FACTS])
        if (folder / "config.json").is_file():
            return _load_regressor(source, folder, device)
        folder = fetched(source, [*(f"*{suffix}" for suffix in SUFFIXES), "*.json"])
        path = find_script(folder, source.id)
    if path is None:
        raise JudgeError(f"{source.id} has neither a config.json nor a TorchScript file ({', '.join(SUFFIXES)})")
    source = at_commit(source, folder)
    facts = script_facts(path, source.known, is_in_folder=True)
    name = f"{source.id}@{source.revision}" if source.revision else source.id
    return _load_script(path, facts, replace(source, id=name), device)


def _load_script(path: Path, facts: dict[str, Any], source: Source, device: str) -> QualityJudge:
    import torch

    try:
        model = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise JudgeError(f"{path} isn't a TorchScript file (a pickled model can't be a judge): {error}") from error
    is_int16 = facts.get("input") == "int16"

    def predict(sound: NDArray[np.float32]) -> NDArray[np.float64]:
        samples = np.clip(np.round(sound * 32767.0), -32768, 32767).astype(np.int16) if is_int16 else sound
        return _run(torch, model, torch.from_numpy(np.ascontiguousarray(samples)), device)

    return Predictor(
        predict, str(facts.get("name", path.stem)), facts.get("outputs", ["mos"]), id=source.id, tier=source.tier,
        sample_rate=int(facts.get("sample_rate", 16_000)), scale=facts.get("scale"), licence=facts.get("licence"),
        known=source.known,
    )  # fmt: skip


def _load_regressor(source: Source, folder: Path, device: str) -> QualityJudge:
    """A transformers model; `folder` may hold its `judge.json`."""
    import torch
    import transformers

    from affetto.judges.listeners import TransformersJudge, load, load_whole

    facts = read_facts(folder / FOLDER_FACTS, is_script=False)
    model = load_whole(transformers.AutoModelForAudioClassification, source)
    judge = TransformersJudge(model, load(transformers.AutoFeatureExtractor, source), source, device)
    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    outputs = facts.get("outputs", labels)
    if len(outputs) != len(labels):
        raise JudgeError(f"{source.id} has {len(labels)} labels, but its {FOLDER_FACTS} names {len(outputs)} outputs")

    @torch.inference_mode()
    def predict(sound: NDArray[np.float32]) -> NDArray[np.float64]:
        _, inputs = next(judge.batches([sound]))
        scores: NDArray[np.float64] = judge.model(**inputs).logits[0].double().cpu().numpy()
        return scores

    return Predictor(
        predict, str(facts.get("name", Path(source.where).name)), outputs, id=judge.id, tier=judge.tier,
        sample_rate=judge.sample_rate, scale=facts.get("scale"), licence=facts.get("licence", judge.licence),
        known=source.known,
    )  # fmt: skip


def _run(torch: Any, model: Any, sound_T: Any, device: str) -> NDArray[np.float64]:
    with torch.inference_mode():
        scores: NDArray[np.float64] = model(sound_T[None].to(device)).double().cpu().numpy()
    return scores


def _slug(name: str) -> str:
    """A name's letters and digits in lower case, joined by `_`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "score"
