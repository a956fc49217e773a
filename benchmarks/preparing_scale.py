"""Preparing many clips: a second run with nothing to do, memory as clips grow, kills at any moment, speed of one core.

    OMP_NUM_THREADS=1 python benchmarks/preparing_scale.py

Writes `benchmarks/results/preparing_scale.json`. Clips are links to a few sounds under texts of their own. The cache
of the second run was filled with codes that nobody computed, under the keys of those clips; the run itself is the
library's own. Memory is the most that a process of its own held, with coding replaced by a constant: the road from the
manifest through checks and shards into the cache is the real one. The runs that are killed (SIGKILL after a random
time, in shards of 64 clips) and the speed are real throughout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from facts import run_facts

from affetto.audio.manifest import write_manifest
from affetto.audio.sound import write_sound
from affetto.codes import prepare as stage
from affetto.codes import workers
from affetto.codes.cache import CodeCache
from affetto.codes.codec import codec_hash
from affetto.codes.vocoder import VocoderCodec
from affetto.files import cache_root, read_json, write_json
from affetto.model.base import find_base
from affetto.types import EMOTIONS, Clip

RESULT = Path(__file__).parent / "results" / "preparing_scale.json"
NUM_SOUNDS, SOUND_S = 50, 0.5
_CODES = np.zeros((7, 8), dtype=np.int64)
_SHARD = 256


def main() -> None:
    """Measure everything, or be the process that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=8, help="runs at least that are killed before one may end")
    parser.add_argument(
        "--only", choices=("speed", "killed", "memory", "second_run"), help="the others stay as they were"
    )
    parser.add_argument("--child", nargs=2, metavar=("MANIFEST", "CODING"), help="for the script's own use")
    options = parser.parse_args()
    if options.child:
        _child(Path(options.child[0]), options.child[1])
        return
    base = find_base("miniature")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = {
            "speed": lambda: _speed(folder / "speed", base),
            "killed": lambda: _killed(folder / "killed", options.kills),
            "memory": lambda: _memory(folder / "memory"),
            "second_run": lambda: _second_run(folder / "second", base, options.clips),
        }
        found = read_json(RESULT) if RESULT.is_file() else {}
        for part in [options.only] if options.only else list(parts):
            found[part] = run_facts() | parts[part]()
    write_json(RESULT, found)
    print(RESULT.read_text(encoding="utf-8"))


def make_clips(folder: Path, count: int, rate: int = 24_000) -> Path:
    """A manifest of `count` clips whose files are links to a few sounds."""
    rng = np.random.default_rng(0)
    for number in range(NUM_SOUNDS):
        times = np.arange(round(SOUND_S * rate)) / rate
        tone = sum(np.sin(2 * np.pi * (100 + 3 * number) * h * times) / h for h in range(1, 12))
        write_sound(folder / f"sound-{number}.wav", 0.1 * tone + 0.01 * rng.standard_normal(len(times)), rate)
    (folder / "links").mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        link = folder / "links" / f"{number}.wav"
        link.symlink_to(folder / f"sound-{number % NUM_SOUNDS}.wav")
        emotion = (*EMOTIONS, None)[number % 7]
        clips.append(Clip(f"c-{number}", link, f"take {number}", emotion, str(number % 11), "many"))
    write_manifest(folder / "manifest.jsonl", clips)
    return folder / "manifest.jsonl"


def _second_run(folder: Path, base: Path, count: int) -> dict[str, Any]:
    manifest = make_clips(folder, count)
    os.environ["AFFETTO_CACHE"] = str(folder / "cache")
    try:
        clips, _ = stage.load_clips([manifest], emotions=EMOTIONS)
        keys = list(stage._keys(clips).values())
        cache = CodeCache(cache_root() / "codes" / codec_hash(base)[:24])
        for start in range(0, len(keys), _SHARD):
            cache.add(dict.fromkeys(keys[start : start + _SHARD], _CODES))
        runs = [_run(manifest, "none") for _ in range(3)]
    finally:
        del os.environ["AFFETTO_CACHE"]
    best = min(runs, key=lambda run: float(run["processor_s"]))
    assert best["clips"] == count
    return {"clips": count, "processor_s": best["processor_s"], "clock_s": min(run["clock_s"] for run in runs),
            "peak_mib": best["peak_mib"]}  # fmt: skip


def _memory(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in (2_000, 20_000):
        manifest = make_clips(folder / str(count), count)
        os.environ["AFFETTO_CACHE"] = str(folder / str(count) / "cache")
        found[f"peak_mib_of_{count}_clips"] = _run(manifest, "constant")["peak_mib"]
        del os.environ["AFFETTO_CACHE"]
    few, many = found.values()
    return found | {"kib_per_clip": round((many - few) * 1024 / 18_000, 2)}


def _killed(folder: Path, kills: int) -> dict[str, Any]:
    """Runs of 600 clips that die at random moments: what is in the cache only grows, and is right at the end."""
    rng = np.random.default_rng(0)
    manifest = make_clips(folder, 600)
    os.environ["AFFETTO_CACHE"] = str(folder / "straight")
    whole_s = float(_run(manifest, "real")["clock_s"])
    cache_folder = folder / "cache"
    os.environ["AFFETTO_CACHE"] = str(cache_folder)
    known: dict[str, bytes] = {}
    grew = killed = 0
    # The last run, which may end, is to find some clips of killed ones, and not all.
    while killed < kills or not 0 < len(known) < 600:
        assert killed < 10 * kills, f"no run of {killed} was killed between its first shard and its last"
        killed += 1
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(manifest), "real"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(float(rng.uniform(0.0, whole_s)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = _cached(cache_folder)
        assert known.items() <= now.items(), "a shard was lost, or changed"
        grew += len(now) > len(known)
        ended_before = len(now) == 600
        known = {} if ended_before else now
        if ended_before:
            # The kill came too late: from the beginning.
            shutil.rmtree(cache_folder)
    ended = _run(manifest, "real")
    del os.environ["AFFETTO_CACHE"]
    after = _cached(cache_folder)
    assert known.items() <= after.items()
    assert ended["clips"] == 600
    codec = VocoderCodec.load(find_base("miniature"))
    wanted = {_coded(codec, folder / f"sound-{number}.wav") for number in range(NUM_SOUNDS)}
    assert set(after.values()) == wanted, "a shard holds other codes than the codec gives"
    return {"runs_killed": killed, "of_them_wrote_shards": grew, "clips_coded_before_the_last_run": len(known),
            "lost_or_torn": 0}  # fmt: skip


def _coded(codec: VocoderCodec, sound: Path) -> bytes:
    from affetto.audio.sound import read_sound

    return codec.encode(read_sound(sound, codec.sample_rate)).astype(np.int16).tobytes()


def _cached(cache_folder: Path) -> dict[str, bytes]:
    """All codes by key; CacheError where a shard is torn."""
    found = {}
    for folder in (cache_folder / "codes").glob("*"):
        cache = CodeCache(folder)
        found |= {key: cache[key].tobytes() for key in cache}
    return found


def _speed(folder: Path, base: Path) -> dict[str, Any]:
    """Everything that one core does to speech of 48 kHz: check, decode, resample, code."""
    from affetto.audio.checks import check_clips
    from affetto.audio.sound import read_sound

    codec = VocoderCodec.load(base)
    made = sorted((cache_root() / "miniature").glob("clips-*/*/*.wav"))[:30]
    assert made, "the miniature's clips aren't rendered: run `affetto prepare` once"
    clips, total_s = [], 0.0
    for number, path in enumerate(made):
        samples = read_sound(path, 48_000)
        total_s += len(samples) / 48_000
        copy = folder / f"{number}.wav"
        write_sound(copy, samples, 48_000)
        clips.append(Clip(str(number), copy, f"some words {number}", None, "0", "copies"))
    spent: dict[str, float] = {}
    start = time.process_time()
    check_clips(clips, emotions=None)
    spent["check"] = time.process_time() - start
    start = time.process_time()
    sounds = [read_sound(clip.audio, codec.sample_rate) for clip in clips]
    spent["decode_and_resample"] = time.process_time() - start
    start = time.process_time()
    for samples in sounds:
        codec.encode(samples)
    spent["code"] = time.process_time() - start
    return {
        "speech_s": round(total_s, 1),
        "times_real_time_per_core": round(total_s / sum(spent.values()), 1),
        "ms_per_s_of_speech": {name: round(1e3 * value / total_s, 2) for name, value in spent.items()},
    }


def _run(manifest: Path, coding: str) -> dict[str, Any]:
    made = subprocess.run(
        [sys.executable, __file__, "--child", str(manifest), coding], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return found


def _child(manifest: Path, coding: str) -> None:
    """`prepare` in a process of its own. Coding is real, a constant, or not to happen at all (none)."""
    base = find_base("miniature")
    if coding == "constant":
        workers._IN_PROCESS = 10**9
        VocoderCodec.encode = lambda self, samples: _CODES  # type: ignore[method-assign] # noqa: ARG005
    if coding == "real":
        stage._SHARD_CLIPS = 64
    if coding == "none":
        VocoderCodec.encode = lambda self, samples: 1 / 0  # type: ignore[assignment, method-assign] # noqa: ARG005
    print("begins", flush=True)
    clock, processor = time.perf_counter(), time.process_time()
    prepared = stage.prepare([manifest], base, emotions=EMOTIONS)
    found = {
        "clips": len(prepared.clips),
        "clock_s": round(time.perf_counter() - clock, 2),
        "processor_s": round(time.process_time() - processor, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
