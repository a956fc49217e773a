"""The torch network against the published graph, window by window, in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from affetto.errors import JudgeError
from affetto.judges import dnsmos, quality
from evaluate_fakes import RATE


@pytest.fixture(scope="module")
def graph() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(quality.find_model()), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def network() -> dnsmos.DnsmosNetwork:
    return dnsmos.DnsmosNetwork(quality.find_model())


def _speechlike(num_samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(num_samples) / RATE
    tone = np.sin(2 * np.pi * 150 * t * (1 + 0.1 * np.sin(3 * t))) * (0.3 + 0.2 * np.sin(7 * t))
    return (tone + rng.normal(0, 0.02, num_samples)).astype(np.float32)


def _by_graph(graph: onnxruntime.InferenceSession, filled: np.ndarray, num_windows: int) -> np.ndarray:
    starts = [index * quality.HOP for index in range(num_windows)]
    return np.concatenate([
        graph.run(None, {"input_1": filled[None, start : start + quality.WINDOW]})[0] for start in starts
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("num_samples", "num_windows"),
    [
        (1280 * 23 + 80, 5),  # half a frame over: the period is two repetitions
        (quality.WINDOW, 1),
        (RATE * 11 + 77, 2),  # a sound of its own length
    ],
)
def test_windows_are_the_published_graphs(
    graph: onnxruntime.InferenceSession, network: dnsmos.DnsmosNetwork, num_samples: int, num_windows: int
) -> None:
    sound = _speechlike(num_samples, num_samples)
    filled = quality.fill(sound)
    assert quality.count_windows(len(filled)) == num_windows
    period = None if len(filled) == num_samples else num_samples
    found = network.score(filled, num_windows, period)
    np.testing.assert_allclose(found, _by_graph(graph, filled, num_windows), atol=5e-5)


def test_a_repeated_sound_is_worth_the_same_when_nobody_says_that_it_repeats(network: dnsmos.DnsmosNetwork) -> None:
    """Every edge, offset and remainder of a period against the same network without one."""
    for num_samples in (9_601, 160 * 33):
        filled = quality.fill(_speechlike(num_samples, 3))
        windows = quality.count_windows(len(filled))
        np.testing.assert_allclose(
            network.score(filled, windows, num_samples), network.score(filled, windows, None), atol=2e-5
        )


def test_groups_of_windows_change_nothing(network: dnsmos.DnsmosNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = _speechlike(RATE * 13, 5)
    at_once = network.score(sound, 4, None)
    monkeypatch.setattr(dnsmos, "_GROUP", 3)
    monkeypatch.setattr(dnsmos, "_CHUNK", 64)
    np.testing.assert_allclose(network.score(sound, 4, None), at_once, atol=1e-5)


def test_the_work_on_a_repeated_sound_is_that_of_one_period(
    network: dnsmos.DnsmosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[int] = []
    convolve = network._convolve
    monkeypatch.setattr(network, "_convolve", lambda x_NTF: (frames.append(x_NTF[..., 0].numel()), convolve(x_NTF))[1])
    filled = quality.fill(_speechlike(1280 * 25, 1))
    network.score(filled, quality.count_windows(len(filled)), 1280 * 25)
    assert sum(frames) == 200 + 2 * 8 + 2 * 16, "one period in two chunks, and the ends of two windows; not 7 * 900"


def test_silence_has_a_finite_score(network: dnsmos.DnsmosNetwork) -> None:
    assert np.isfinite(network.score(np.zeros(quality.WINDOW, np.float32), 1, None)).all()


@pytest.mark.parametrize("content", [b"", b"\x3a\xff\x01abc", b"RIFF" * 10, b"\x0f", b"\x80"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sig_bak_ovr.onnx"
    path.write_bytes(content)
    with pytest.raises(JudgeError, match="ONNX"):
        dnsmos.DnsmosNetwork(path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """A graph with one tensor, written by hand: name `w`, one float."""
    tensor = bytes([8, 1, 16, 1, 66, 1, ord("w"), 74, 4]) + np.float32(2).tobytes()
    graph = bytes([42, len(tensor)]) + tensor
    path = tmp_path / "other.onnx"
    path.write_bytes(bytes([58, len(graph)]) + graph)
    assert torch.equal(dnsmos.read_weights(path)["w"], torch.tensor([2.0]))
    with pytest.raises(JudgeError, match="isn't DNSMOS"):
        dnsmos.DnsmosNetwork(path)
