"""`affetto miniature build`: the recipe that makes the miniature, in stages, resumable at each.

It is deterministic given its seed (on one machine and thread count; float sums differ between machines). docs/log.md
has the times.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from affetto.codes.cache import CodeCache
from affetto.codes.vocoder import VocoderCodec, analyse
from affetto.files import write_atomically
from affetto.miniature import corpus
from affetto.miniature.language import save_language_model
from affetto.model.base import weights_hash
from affetto.model.batch import Row, Turn
from affetto.model.csm import CsmNetwork
from affetto.model.packed import pack, unpacked
from affetto.progress import progress, say

T = TypeVar("T")
ASSETS = Path(__file__).parent / "assets"
JUDGES = ("words", "emotion")

CODEC_CLIPS = {"plain": 1400, "acted by judging voices": 1100, "acted texts": 6}
BASE_CLIPS, BASE_VALIDATION_CLIPS = 40_000, 600
JUDGING_CLIPS, JUDGING_PLAIN_SHARE = 6_600, 0.2
JUDGING_VALIDATION_CLIPS, JUDGING_VALIDATION_PLAIN_SHARE = 480, 0.2
RECOGNISER_PLAIN_CLIPS = 6_000
"""The base's clips of voices that don't act: plain speech for the recogniser at a quarter of the cost."""
ACTED_TIMES = 2
"""How often the recogniser hears each judging clip in an epoch."""


def build(work: Path, *, install: bool = False, seed: int = 0, earlier: Path | None = None) -> None:
    """Run every stage whose result isn't in `work` yet; `install` then replaces the package's weights.

    `earlier` is the folder of another miniature's weights (an `assets` folder), from which base and recogniser then
    continue, the base for its last cycle only.

    `seed` determines initial weights and the order of batches; the corpus has its own (`corpus.SEED`), which users'
    clips share.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work.mkdir(parents=True, exist_ok=True)
    # 1. The codec, on plain and acted speech of many voices.
    fit_codec(work)
    # 2. Plain speech in codes, and the base that learns to continue it.
    code_base_clips(work)
    train_base(work, seed, earlier)
    # 3. Speech through the codec, as the judges hear it, and the judges.
    make_features(work)
    train_judges(work, seed, earlier)
    # 4. Install the weights into the package, and measure them.
    if install:
        install_assets(work)
        from affetto.miniature.card import measure

        measure(ASSETS / "README.md")
    say(f"the miniature is in {work}" + (f" and installed in {ASSETS}" if install else ""))


def fit_codec(work: Path) -> None:
    """Fit the vocoder codec (`work/codec`)."""
    if (work / "codec" / "codec.json").is_file():
        return
    lines = list(corpus.general_lines(CODEC_CLIPS["plain"], "base", "train"))
    lines += corpus.judging_lines(CODEC_CLIPS["acted by judging voices"], "train", 0.3)
    for emotion in corpus.EMOTIONS:
        lines += corpus.acted_lines(emotion, {"validation": CODEC_CLIPS["acted texts"]})
    with _pool() as pool, progress("Analysing speech", len(lines)) as bar:
        features = []
        for item in pool.map(_analyse, lines, chunksize=20):
            features.append(item.astype(np.float64))
            bar.advance(1)
    VocoderCodec.fit(features).save(work / "codec")


def code_base_clips(work: Path) -> None:
    """Code the base's plain speech (`work/codes`)."""
    cache = CodeCache(work / "codes")
    lines = [line for line in _base_lines() if line.id not in cache]
    with _pool(work) as pool, progress("Coding plain speech", len(lines)) as bar:
        waiting: dict[str, NDArray[np.int64]] = {}
        for part in pool.map(_code, _chunks(lines, 25)):
            waiting |= part
            bar.advance(len(part))
            if len(waiting) >= 2000:
                cache.add(waiting)
                waiting = {}
        cache.add(waiting)


def train_base(work: Path, seed: int = 0, earlier: Path | None = None) -> None:
    """Train the base and save it with its codec (`work/base/model`)."""
    from affetto.miniature import base
    from affetto.miniature.carry import carried_weights

    target = work / "base" / "model"
    if (target / "config.json").is_file():
        return
    cache, tokenizer = CodeCache(work / "codes"), base.make_tokenizer()
    rows: dict[str, list[Row]] = {"train": [], "validation": []}
    for line in _base_lines():
        ids = tuple(tokenizer(f"[{line.speaker}]{corpus.prompt(line)}")["input_ids"])
        rows[line.split].append(Row(line.id, (Turn(ids, cache[line.id]),)))
    recipe, start = base.BaseRecipe(seed=seed), None
    codec = VocoderCodec.load(work / "codec")
    if earlier:
        recipe, start = replace(recipe, cycles=recipe.cycles[-1:]), carried_weights(unpacked(earlier / "base"), codec)
    model = base.train_base(rows["train"], rows["validation"], work / "base", recipe, start=start)
    c0, depth = base.evaluate(CsmNetwork(model), rows["validation"])
    facts = {
        "recipe": recipe.__dict__, "clips": BASE_CLIPS, "held_out_nats_c0": c0, "held_out_nats_depth": depth,
        "went_on_from": weights_hash(unpacked(earlier / "base"))[:16] if earlier else None,
    }  # fmt: skip
    base.save_base(model, target, facts)
    codec.save(target)


def make_features(work: Path) -> None:
    """Make the judges' inputs and targets (`work/features/{words,places,emotion,pitch}`)."""
    cache = CodeCache(work / "codes")
    jobs: list[tuple[Path, Sequence[corpus.Line], dict[str, NDArray[np.integer]]]] = []
    for name, lines in {**_judging_lines(), "plain": _recogniser_plain_lines()}.items():
        for number, part in enumerate(_chunks(lines, 40)):
            path = work / "features" / "words" / f"{name}-{number:05d}.safetensors"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                jobs.append((path, part, {line.id: cache[line.id] for line in part} if name == "plain" else {}))
    with _pool(work) as pool, progress("Rendering for the judges", len(jobs)) as bar:
        for _ in pool.map(_featurise, jobs):
            bar.advance(1)


def train_judges(work: Path, seed: int = 0, earlier: Path | None = None) -> None:
    """Train both judges (`work/judges/words`, `work/judges/emotion`)."""
    from affetto.miniature import judges

    folder = work / "judges"
    lines = {line.id: line for line in [*_judging_lines()["train"], *_recogniser_plain_lines()]}
    if not (folder / "words" / "config.json").is_file():
        features, places = (_for_recogniser(work / "features" / name) for name in ("words", "places"))
        texts = {key: lines[key.partition("/")[0]].text for key in features}
        recipe, start = judges.RECOGNISER, None
        if earlier:
            recipe, start = judges.RECOGNISER_AGAIN, unpacked(earlier / "judges" / "words")
        recipe = replace(recipe, seed=seed)
        judges.train_recogniser(features, texts, places, recipe, folder / "words", start)
    if not (folder / "words" / "language_model" / "attrs.json").is_file():
        save_language_model((line.text for line in _base_lines() if line.split == "train"), folder / "words")
    if not (folder / "emotion" / "config.json").is_file():
        features = read_features(work / "features" / "emotion", "train")
        pitches = read_features(work / "features" / "pitch", "train")
        emotions = {key: lines[key].emotion for key in features}
        judges.train_emotion_judge(features, emotions, pitches, replace(judges.EMOTION, seed=seed), folder / "emotion")


def _for_recogniser(folder: Path) -> dict[str, NDArray[Any]]:
    """Features with plain clips once and judging clips `ACTED_TIMES` times per epoch."""
    features = read_features(folder, "plain")
    for key, value in read_features(folder, "train").items():
        features |= {f"{key}/{time}": value for time in range(ACTED_TIMES)}
    return features


def install_assets(work: Path) -> None:
    """Install the finished weights, packed, into the package."""
    sources = {"base": work / "base" / "model", **{f"judges/{kind}": work / "judges" / kind for kind in JUDGES}}
    for name, source in sources.items():
        shutil.rmtree(ASSETS / name, ignore_errors=True)
        pack(source, ASSETS / name)


def read_features(folder: Path, split: str) -> dict[str, NDArray[Any]]:
    """The features that `save_features` wrote, by clip id."""
    features: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob(f"{split}-*.safetensors")):
        features |= load_file(path)
    return features


def _base_lines() -> Iterator[corpus.Line]:
    yield from corpus.general_lines(BASE_CLIPS, "base", "train")
    yield from corpus.general_lines(BASE_VALIDATION_CLIPS, "base", "validation")


def _recogniser_plain_lines() -> list[corpus.Line]:
    lines = (line for line in _base_lines() if line.split == "train" and int(line.speaker) not in corpus.ACTORS)
    return [line for line, _ in zip(lines, range(RECOGNISER_PLAIN_CLIPS), strict=False)]


def _judging_lines() -> Mapping[str, list[corpus.Line]]:
    validation = corpus.judging_lines(JUDGING_VALIDATION_CLIPS, "validation", JUDGING_VALIDATION_PLAIN_SHARE)
    return {
        "train": list(corpus.judging_lines(JUDGING_CLIPS, "train", JUDGING_PLAIN_SHARE)),
        "validation": list(validation),
    }


def _pool(work: Path | None = None) -> ProcessPoolExecutor:
    """Workers with one thread each, since many small matrix products don't gain from more."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(os.cpu_count(), context, _start_worker, (work / "codec" if work else None,))


_codec: VocoderCodec | None = None


def _start_worker(codec: Path | None) -> None:
    global _codec
    _codec = VocoderCodec.load(codec) if codec else None


def _analyse(line: corpus.Line) -> NDArray[np.float32]:
    return analyse(corpus.render(line)).astype(np.float32)


def _code(lines: Sequence[corpus.Line]) -> dict[str, NDArray[np.int64]]:
    assert _codec is not None
    return {line.id: _codec.encode(corpus.render(line)) for line in lines}


def _featurise(job: tuple[Path, Sequence[corpus.Line], Mapping[str, NDArray[np.integer]]]) -> None:
    """Render, code and decode; the recogniser's features go to the job's path, the others to folders beside it.

    Clips that have codes already are for the recogniser only. One in three bypasses the codec, since judges also get
    people's recordings as they are.
    """
    from affetto.miniature import judges

    assert _codec is not None
    path, lines, coded = job
    hear_words, hear_pitch = judges.make_feature_extractor(), judges.make_pitch_extractor()
    results: dict[str, dict[str, NDArray[Any]]] = {"places": {}, "emotion": {}, "pitch": {}, "words": {}}
    for index, line in enumerate(lines):
        rendered = corpus.render_timed(line)
        codes = coded[line.id] if coded else _codec.encode(rendered.samples)
        sound = rendered.samples if index % 3 == 0 else _codec.decode(codes)
        sound = soxr.resample(sound, corpus.SAMPLE_RATE, 16_000, quality="HQ").astype(np.float32)
        options = {"sampling_rate": 16_000, "return_tensors": "np"}
        results["words"][line.id] = _half(hear_words(sound, padding=False, **options)["input_features"][0])
        results["places"][line.id] = judges.letter_places(rendered, line.text, len(results["words"][line.id]))
        # Half of the plain clips balance the classes.
        if not coded and (line.emotion != corpus.PLAIN or index % 2):
            results["emotion"][line.id] = _half(hear_pitch(sound, **options)["input_features"][0].T)
            results["pitch"][line.id] = judges.pitch_track(_codec.features(codes))
    # The words' file is written last, since it marks the job as done.
    for name, features in results.items():
        save_features(path.parent.parent / name / path.name, features)


def _half(values: NDArray[np.floating]) -> NDArray[np.float16]:
    return np.ascontiguousarray(values, dtype=np.float16)


def save_features(path: Path, features: Mapping[str, NDArray[Any]]) -> None:
    """Write features by clip id as one safetensors file."""
    write_atomically(path, lambda temporary: save_file(dict(features), temporary))


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
