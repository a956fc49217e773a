"""A results document of three systems, as an evaluation would write it, for tests that read one."""

from __future__ import annotations

import copy
from typing import Any

LABELS = ["neutral", "happy", "sad"]


def metric(value: float | None, low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 40, "unit": "share", "reason": None} | more


def compared(difference: float | None, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    row = {"difference": difference, "low": low, "high": high, "n": 40, "margin": None, "verdict": None}
    return row | {"reason": "no margin was stated for this metric", "p_holm": 0.0004} | more


def system(name: str, role: str, recall: float, wer: float, *, plain: bool = True) -> dict[str, Any]:
    metrics = {
        "recall": metric(recall, recall - 0.08, recall + 0.07),
        "wer": metric(wer, wer - 0.01, wer + 0.01),
        "mos_overall": metric(None, n=0, unit="1 to 5", reason="no quality judge was given"),
        "f0_median_st": metric(6.2, 5.8, 6.6, unit="semitones re 100 Hz"),
    }
    return {
        "name": name, "role": role, "intensity": 1.0 if role == "adapter" else None, "num_files": 1, "num_failed": 1,
        "metrics": metrics, "plain_metrics": {"recall": metric(0.05, 0.01, 0.12)} if plain else None,
        "confusion": {"neutral": 30, "happy": 8, "sad": 2},
        "files": [{
            "file": "a.wav", "prompt": "emotional", "text": "hello", "speaker": "0", "seed": 1, "duration_s": None,
            "error": f"a.wav of {name} is broken", "values": {},
        }],
    }  # fmt: skip


def result() -> dict[str, Any]:
    nats = {"unit": "nats/code"}
    judge = {"tier": "miniature", "labels": LABELS, "licence": "Apache-2.0", "sample_rate": 16000}
    document = {
        "schema": "affetto.results/1", "emotion": "happy", "command": "affetto evaluate happy",
        "versions": {"affetto": "0.1.0", "torch": "2.11.0"},
        "judges": {
            "emotion": {"id": "miniature/emotion", **judge, "ceiling": metric(0.914, 0.85, 0.95)},
            "words": {"id": "miniature/words", **judge, "labels": None, "ceiling": None}, "quality": None,
        },
        "systems": [
            system("base", "base", 0.092, 0.054), system("happy", "adapter", 0.783, 0.061),
            system("real", "real", 0.914, 0.041, plain=False),
        ],
        "comparisons": [
            {"system": "happy", "against": "base", "prompt": "emotional", "metrics": {
                "recall": compared(0.691, 0.6, 0.77),
                "wer": compared(0.007, -0.004, 0.018, margin=0.01, verdict="undecided", reason=None),
                "mos_overall": compared(None, None, None, n=0, reason="no pair has this value", p_holm=None),
            }},
            {"system": "happy", "against": "base", "prompt": "plain", "metrics": {
                "recall": compared(0.0, -0.01, 0.01),
            }},
        ],
        "retention": {
            "num_clips": 40, "num_codes": 12800, "delta_nll": metric(0.0041, 0.0022, 0.0061, **nats),
            "kl": metric(0.0093, 0.0081, 0.0107, **nats),
            "per_codebook": {"delta_nll": [0.012, -0.001], "kl": [0.02, 0.01]},
        },
    }  # fmt: skip
    return copy.deepcopy(document)


def reseeded_result() -> dict[str, Any]:
    """The same with the base's other seeds, and a voice judge that heard plain prompts."""
    document, name = result(), "base, other seeds"
    document["judges"]["voice"] = {**document["judges"]["words"], "id": "some/voice"}
    document["systems"].append(system(name, "reseeded", 0.1, 0.05))
    _, plain = document["comparisons"]
    plain["metrics"] |= {
        "speaker_similarity": compared(-0.011, -0.02, -0.002, margin=0.02, verdict="preserved", reason=None),
        "flips_lost": compared(0.05, 0.01, 0.14),
    }
    document["comparisons"].append({"system": name, "against": "base", "prompt": "plain", "metrics": {
        "recall": compared(0.002, -0.01, 0.015),
        "speaker_similarity": compared(-0.003, -0.012, 0.006, margin=0.02, verdict="preserved", reason=None),
        "flips_lost": compared(0.025, 0.004, 0.13),
    }})  # fmt: skip
    return document


def run_of(emotion: str) -> dict[str, Any]:
    """A run's results, of another emotion."""
    document = result() | {"emotion": emotion}
    document["systems"][1]["name"] = emotion
    for comparison in document["comparisons"]:
        comparison["system"] = emotion
    return document
