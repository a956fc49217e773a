"""Many clips: what a run with nothing to do costs, and what a SIGKILL at any moment leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from code_signals import make_clips, manifest
from safetensors.numpy import save

from affetto.codes import prepare as stage
from affetto.codes.cache import CodeCache
from affetto.codes.codec import codec_hash
from affetto.codes.prepare import Prepared, prepare
from affetto.codes.vocoder import VocoderCodec
from affetto.types import EMOTIONS, Clip, Problem

_SHARD_CLIPS = 4


def many_clips(sound: Path, count: int) -> list[Clip]:
    """`count` segments of one sound, each with a text of its own."""
    return [
        Clip(f"c-{index}", sound, f"take {index}", None, "0", "many", start_s=0.0, end_s=0.4 + index * 1e-6)
        for index in range(count)
    ]


def test_a_run_with_nothing_to_do_only_looks(
    tmp_path: Path, codec_folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = make_clips(tmp_path / "data", 1)[0].audio
    clips = many_clips(sound, 3_000)
    keys = list(stage._keys(clips).values())
    cache = CodeCache(cache_folder / "codes" / codec_hash(codec_folder)[:24])
    for start in range(0, len(keys), 256):
        cache.add(dict.fromkeys(keys[start : start + 256], np.ones((5, 4), dtype=np.int64)))
    source = manifest(tmp_path / "data" / "manifest.jsonl", clips)
    monkeypatch.setattr(VocoderCodec, "encode", lambda *_: pytest.fail("all is coded"))
    monkeypatch.setattr("affetto.audio.checks._levels", lambda *_: pytest.fail("all was checked"))
    start_s = time.process_time()
    prepared = prepare([source], codec_folder, emotions=EMOTIONS)
    took_s = time.process_time() - start_s
    assert len(prepared.clips) == 3_000
    # 0.15 ms a clip when this was written, so 100,000 take 15 s of a busy core.
    assert took_s < 3.0, f"{took_s:.1f} s for 3,000 clips"


def test_leaving_clips_out_does_not_grow_with_the_square_of_their_number() -> None:
    """It took 0.4 ms of every clip for 10,000 of them, and 4 ms for 100,000."""
    clips = [replace(clip, context=(f"c-{index - 1}",) if index % 2 else ()) for index, clip in
             enumerate(many_clips(Path("/a.wav"), 40_000))]  # fmt: skip
    clips = [replace(clip, emotion="happy" if index % 2 else "sad") for index, clip in enumerate(clips)]
    start_s = time.process_time()
    kept = stage._without(clips, {"sad"})
    assert time.process_time() - start_s < 2.0
    assert kept == clips, "what a clip hears comes along"
    assert stage._without([*clips, replace(clips[0], id="unheard")], {"sad"}) == clips


def test_many_problems_do_not_grow_with_the_square_of_their_number(tmp_path: Path) -> None:
    warnings = tuple(Problem(f"w-{index}", "mislabelled", "put right") for index in range(20_000))
    problems = tuple(Problem(f"p-{index // 2}", "silent", f"{index}") for index in range(20_000))
    prepared = Prepared((), (*problems, *warnings), warnings, {}, {}, CodeCache(tmp_path))
    start_s = time.process_time()
    assert prepared.num_bad == 10_000
    assert time.process_time() - start_s < 2.0


def test_killed_at_any_moment_nothing_is_lost_or_torn(
    tmp_path: Path, codec_folder: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after random times, until one has hit a shard while it was being written."""
    sound = make_clips(tmp_path / "data", 1)[0].audio
    source = manifest(tmp_path / "data" / "manifest.jsonl", many_clips(sound, 40))
    monkeypatch.setattr(stage, "_SHARD_CLIPS", _SHARD_CLIPS)
    monkeypatch.setattr("affetto.codes.cache.save_file", _slow_save)
    place = cache_folder / "codes" / codec_hash(codec_folder)[:24]
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "straight"))
    start_s = time.monotonic()
    straight = prepare([source], codec_folder, emotions=EMOTIONS)
    whole_s = time.monotonic() - start_s
    monkeypatch.setenv("AFFETTO_CACHE", str(cache_folder))
    rng = np.random.default_rng(0)
    known: dict[str, bytes] = {}
    sizes: list[int] = []
    while len(sizes) < 60 and (len(sizes) < 6 or not list(place.glob(".*"))):
        _killed_run(source, codec_folder, float(rng.uniform(0.0, whole_s)))
        place.mkdir(parents=True, exist_ok=True)
        cache = CodeCache(place)
        now = {key: cache[key].tobytes() for key in cache}
        assert known.items() <= now.items(), "a shard that was there is lost or changed"
        assert len(now) % _SHARD_CLIPS == 0, "a shard is there as a whole"
        known = now
        if len(known) == 40 and not list(place.glob(".*")):
            # It came to its end and no kill has hit a write yet: from the beginning.
            shutil.rmtree(place)
            known = {}
        sizes.append(len(known))
    assert list(place.glob(".*")), f"no kill hit the writing: {sizes}"
    resumed = prepare([source], codec_folder, emotions=EMOTIONS)
    assert len(resumed.clips) == 40
    assert known.items() <= {key: resumed.cache[key].tobytes() for key in resumed.cache}.items()
    assert straight.clips == resumed.clips
    for clip in straight.clips:
        np.testing.assert_array_equal(resumed.codes(clip), straight.codes(clip))


def _slow_save(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """What safetensors writes, in two parts with time between them."""
    written = save(tensors, metadata=metadata)
    with path.open("wb") as file:
        file.write(written[: len(written) // 2])
        file.flush()
        time.sleep(0.15)
        file.write(written[len(written) // 2 :])


def _killed_run(source: Path, codec_folder: Path, after_s: float) -> None:
    """`prepare` in a process of its own, which is killed `after_s` after it began."""
    child = os.fork()
    if child == 0:
        try:
            prepare([source], codec_folder, emotions=EMOTIONS)
        finally:
            os._exit(0)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


_WITH_WORKERS = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from affetto.codes.workers import start_worker

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), start_worker)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(100)
"""


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    """They stayed for ever, a hundred megabytes each."""
    script = tmp_path / "with_workers.py"
    script.write_text(_WITH_WORKERS)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        os.kill(worker, 0)
        run.kill()
        run.wait()
        deadline_s = time.monotonic() + 20.0
        while _is_running(worker) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert not _is_running(worker)


def _is_running(process: int) -> bool:
    """Whether it is there and not merely waiting for somebody to ask for its exit status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
