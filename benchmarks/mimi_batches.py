"""Mimi one clip at a time against batches: clips per second, and how many codes the order of float32's sums decides.

    OMP_NUM_THREADS=1 python benchmarks/mimi_batches.py
    python benchmarks/mimi_batches.py --device cuda --clips 256 --long-clips 8

Writes `benchmarks/results/mimi_batches.json`, one entry a device. The Mimi has the sizes that kyutai/mimi publishes and
random weights; each codebook holds differences of latents of other sounds, scaled so that 32 of them leave a sixth of
the latents. The sounds are gliding vowels with pauses over noise, half of them 2.3 to 6.6 s long as in emotional
corpora, drawn anew from a seed. Both ways are the codec's own; the clips are in memory, and files aren't read.

Codes are compared with those of each clip alone on the same device, on these clips and on some of 30 s. What float64
makes of the latter, one by one, tells how many codes rounding decides anyway. Time on a CPU is the processor's.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import run_facts
from numpy.typing import NDArray
from transformers import MimiConfig, MimiModel

from affetto.codes import codec as coding
from affetto.codes.batches import exactly, mimi_latents
from affetto.codes.neural import MimiCodec
from affetto.files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "mimi_batches.json"
RATE, BOOKS = 24_000, 32
Sounds = list[NDArray[np.float32]]
Codes = list[NDArray[np.int64]]


def main() -> None:
    """Measure one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--batch-s", type=float, nargs="+", help="seconds of sound in a batch, with padding")
    parser.add_argument("--long-clips", type=int, default=2, help="clips of 30 s whose codes are compared")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest counts")
    options = parser.parse_args()
    is_gpu = options.device != "cpu"
    bounds = options.batch_s or ([30.0, 60.0, 120.0, 240.0] if is_gpu else [5.0, 60.0])
    rng = np.random.default_rng(0)
    codec = MimiCodec(make_mimi(make_sounds(rng, [5.0] * 12)).to(options.device), BOOKS)
    clips = make_sounds(rng, np.clip(rng.lognormal(1.36, 0.78, options.clips), 0.6, 20.0))
    longs = make_sounds(rng, rng.uniform(29.0, 30.0, options.long_clips))
    print(f"{len(clips)} clips, {sum(map(len, clips)) / RATE:.0f} s", file=sys.stderr, flush=True)
    found: dict[str, Any] = run_facts()
    found["machine"] |= {"gpu": torch.cuda.get_device_name()} if is_gpu else {"threads": torch.get_num_threads()}
    found |= {"clips": len(clips), "sound_s": round(sum(map(len, clips)) / RATE, 1)}
    found["float32"] = speeds(codec, clips, bounds, options.repeats)
    _keep(options.device, found)
    found["clips_of_30_s"] = differences(codec, longs, bounds[-1])
    _keep(options.device, found)
    if is_gpu:
        # What torch does unless it is told otherwise.
        coding.exactly = torch.inference_mode
        found["cudnn_default_tf32"] = speeds(codec, clips, bounds[-2:], options.repeats)
        coding.exactly = exactly
        _keep(options.device, found)
    print(RESULT.read_text(encoding="utf-8"))


def _keep(device: str, found: dict[str, Any]) -> None:
    """Write what is known so far."""
    write_json(RESULT, (read_json(RESULT) if RESULT.is_file() else {}) | {device: found})


def make_sounds(rng: np.random.Generator, durations_s: Iterable[float]) -> Sounds:
    """Sounds of these lengths, each by a generator of its own, so that all cores may be at it."""
    lengths = list(map(float, durations_s))
    with ThreadPoolExecutor() as pool:
        return list(pool.map(make_sound, rng.spawn(len(lengths)), lengths))


def make_sound(rng: np.random.Generator, duration_s: float) -> NDArray[np.float32]:
    """Like speech: a wandering pitch under formants that change with every syllable, pauses, and noise."""
    num = round(duration_s * RATE)
    times = np.arange(num) / RATE
    num_syllables = max(2, round(4 * duration_s))
    knots = np.sort(rng.uniform(0, duration_s, num_syllables))

    def wander(low: float, high: float) -> NDArray[np.float64]:
        return np.interp(times, knots, rng.uniform(low, high, num_syllables))

    f0 = rng.uniform(90, 240) * 2 ** wander(-0.4, 0.4)
    phase, formants = 2 * np.pi * np.cumsum(f0) / RATE, [wander(300, 800), wander(900, 2300), wander(2400, 3000)]
    sound = np.zeros(num)
    for harmonic in range(1, 25):
        gain = sum(1 / (1 + ((harmonic * f0 - formant) / 120) ** 2) for formant in formants)
        sound += (gain + 0.01) * np.cos(harmonic * phase + harmonic)
    sound *= np.clip(wander(-0.4, 1.0), 0, None) / max(np.abs(sound).max(), 1e-9)
    return np.asarray(0.5 * sound + 0.003 * rng.standard_normal(num), dtype=np.float32)


@torch.no_grad()
def make_mimi(sounds: Sounds) -> MimiModel:
    """Random weights in the published sizes; `sounds` give the codebooks their scale."""
    torch.manual_seed(0)
    model = MimiModel(MimiConfig()).eval()
    assert (model.config.sampling_rate, model.config.num_quantizers) == (RATE, BOOKS)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and name.startswith("encoder."):
            # Elus lose half of the variance, so that with 1 in 3 the last layers would have biases alone.
            weight.copy_(1.5 * torch.randn_like(weight) / weight[0].numel() ** 0.5)
    latents_FD = torch.cat([mimi_latents(model, [sound])[0] for sound in sounds])
    quantizer = model.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        vectors_FD = part.input_proj(latents_FD.T[None])[0].T
        rest_FD, mean_D = vectors_FD, vectors_FD.mean(0)
        for index, layer in enumerate(part.layers):
            book = layer.codebook
            one, other = vectors_FD[torch.randint(len(vectors_FD), (2, book.codebook_size))]
            spread = rest_FD.std(0).norm() / vectors_FD.std(0).norm()
            book.embed_sum.copy_(0.5 * spread * (one - other) + (mean_D if index == 0 else 0.0))
            book.cluster_usage.fill_(1.0)
            rest_FD = rest_FD - book.decode(book.quantize(rest_FD))
            # What the book keeps of itself wouldn't go to another device.
            book._embed = None
        print(f"residual after {len(part.layers)} codebooks: {rest_FD.norm() / (vectors_FD - mean_D).norm():.3f}")
    return model


def speeds(codec: MimiCodec, clips: Sounds, bounds: Sequence[float], repeats: int) -> dict[str, Any]:
    """Clips per second one by one and in batches of `bounds` seconds, and codes that differ between the two."""
    device = codec.model.device.type
    # Once over all, so that kernels are chosen and memory is there for every shape.
    alone = [codec.encode(clip) for clip in clips]
    batched = {bound: codec.encode_batch(clips, batch_s=bound) for bound in bounds}
    alone_s, batched_s, peak_mib = np.inf, dict.fromkeys(bounds, np.inf), dict.fromkeys(bounds, 0.0)
    for _ in range(repeats):
        alone_s = min(alone_s, timed(device, lambda: [codec.encode(clip) for clip in clips]))
        for bound in bounds:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            took_s = timed(device, lambda bound=bound: codec.encode_batch(clips, batch_s=bound))  # type: ignore[misc]
            batched_s[bound] = min(batched_s[bound], took_s)
            if torch.cuda.is_available():
                peak_mib[bound] = torch.cuda.max_memory_allocated() / 2**20
    sound_s = sum(map(len, clips)) / RATE
    one = {"clips_per_s": round(len(clips) / alone_s, 2), "times_real_time": round(sound_s / alone_s, 1)}
    rows = {
        f"batches_of_{bound:g}_s": {
            "clips_per_s": round(len(clips) / batched_s[bound], 2),
            "times_real_time": round(sound_s / batched_s[bound], 1),
            "times_as_fast": round(alone_s / batched_s[bound], 2),
            **({"peak_mib": round(peak_mib[bound])} if peak_mib[bound] else {}),
            **compared(batched[bound], alone),
        }
        for bound in bounds
    }
    return {"one_by_one": one} | rows


def timed(device: str, run: Callable[[], object]) -> float:
    """Seconds of the processor on a CPU, else by the clock; codes are there when the GPU has ended."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    run()
    return clock() - start


def compared(found: Codes, wanted: Codes) -> dict[str, int]:
    """Codes that differ, and frames in which one does: the first to differ changes its frame's later codebooks."""
    differs = np.concatenate([one != other for one, other in zip(found, wanted, strict=True)])
    return {
        "codes": differs.size,
        "codes_that_differ": int(differs.sum()),
        "frames_that_differ": int(differs.any(1).sum()),
    }


def differences(codec: MimiCodec, clips: Sounds, bound: float) -> dict[str, Any]:
    """Latents and codes of long clips: in a batch against alone, and alone in float64 against float32."""
    alone = [codec.encode(clip) for clip in clips]
    with exactly():
        together_FD, frames = mimi_latents(codec.model, clips)
        apart = [latents_alone(codec.model, clip) for clip in clips]
        nearness = [
            float((part_FD - own_FD).abs().max() / own_FD.abs().max())
            for part_FD, own_FD in zip(together_FD.split(frames), apart, strict=True)
        ]
    batched = codec.encode_batch(clips, batch_s=max(bound, 60.0))
    codec.model.double()
    in_double = [codec.encode(clip) for clip in clips]
    codec.model.float()
    return {
        "clips": len(clips),
        "latents_differ_at_most_relative": float(f"{max(nearness):.1e}"),
        "in_batches": compared(batched, alone),
        "one_by_one_in_float64": compared(in_double, alone),
    }


def latents_alone(model: Any, clip: NDArray[np.float32]) -> torch.Tensor:
    """What the quantiser gets of one clip (F, D) as transformers encodes it."""
    values = model.encoder(torch.from_numpy(clip)[None, None].to(model.device))
    values = model.encoder_transformer(values.mT, return_dict=True).last_hidden_state.mT
    latents_FD: torch.Tensor = model.downsample(values)[0].T
    return latents_FD


if __name__ == "__main__":
    main()
