"""A random tiny base that is cheap to load and far from uniform, and the rows that it reads."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from affetto import cli
from affetto.codes.vocoder import VocoderCodec
from affetto.miniature.base import CODEBOOK_SIZE, NUM_CODEBOOKS, make_config, make_model, make_processor
from affetto.model.base import Base, load_base
from affetto.model.batch import Row, Turn, collate
from affetto.model.conversion.moshi import convert
from affetto.model.csm import CsmNetwork
from affetto.model.losses import code_losses
from moshi_checkpoint import write_authors_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models are too small to share, and sums of one thread are the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny random CSM in float32, with processor and codec. Read only: tests copy it to change it."""
    folder = tmp_path_factory.mktemp("tiny-base")
    config = make_config(hidden_size=128, num_layers=2, depth_size=64, depth_layers=2)
    config.tie_codebooks_embeddings = True  # as in CSM-1B
    model = make_model(config, seed=0)
    _sharpen(model)
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    _random_codec().save(folder)
    _assert_has_signal(load_base(str(folder)))
    return folder


@pytest.fixture(scope="session")
def _loaded(tiny_base_folder: Path) -> Base:
    return load_base(str(tiny_base_folder))


@pytest.fixture
def tiny_base(_loaded: Base) -> Base:
    """The tiny base as freshly loaded (a copy, which is ten times faster): tests may put adapters into it."""
    model = copy.deepcopy(_loaded.model)
    return replace(_loaded, model=model, network=CsmNetwork(model).eval())


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    """A row of random text and codes: make_row(seed, frames=(3, 5), words=(4, 6), gate=(1.0,)), one entry per turn."""
    return _row


def _row(
    seed: int, *, frames: tuple[int, ...] = (5,), words: tuple[int, ...] = (), gate: tuple[float, ...] = ()
) -> Row:
    rng = np.random.default_rng(seed)
    turns = []
    for index, num_frames in enumerate(frames):
        num_tokens = words[index] if words else int(rng.integers(4, 12))
        ids = (0, *rng.integers(5, 60, num_tokens).tolist(), 1)
        # Zero is a legal code: the first codebooks of the first frame carry it.
        codes = rng.integers(0, CODEBOOK_SIZE, (num_frames, NUM_CODEBOOKS))
        codes[:1, :2] = 0
        turns.append(Turn(ids, codes))
    return Row(f"clip-{seed}", tuple(turns), gate)


def _sharpen(model: torch.nn.Module) -> None:
    """Larger weights than at the usual start, so that logits are far from uniform and everything matters."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and not name.startswith("codec_model."):
                weight.mul_(5.0)


def _random_codec() -> VocoderCodec:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((208, 16)))
    mean = np.tile(np.r_[np.linspace(-4, 0, 24), np.log(150.0), 0.5], 8)
    return VocoderCodec(mean, np.full(208, 0.1), basis, rng.standard_normal((NUM_CODEBOOKS, CODEBOOK_SIZE, 16)))


def _assert_has_signal(base: Base) -> None:
    """Logits depend on the input and every part of the network gets gradients: no test may pass on a dead model."""
    batch = collate([_row(0), _row(1)], base.num_codebooks)
    base.model.requires_grad_(True)
    logits = base.network(batch)
    c0, depth = code_losses(logits, batch)
    uniform = float(np.log(base.network.vocab_size))
    for name, values, term in (("c0", logits.c0_NV, c0), ("depth", logits.depth_MJV, depth)):
        assert values.std() > 0.5, f"{name} logits are almost uniform: {values.std():.3f}"
        assert abs(term.mean.item() - uniform) > 0.05, f"{name} loss is that of a guess: {term.mean:.3f}"
    (c0.total + depth.total).backward()
    for name, weight in base.model.named_parameters():
        if not name.startswith("codec_model."):
            assert weight.grad is not None, f"{name} has no gradient"
            assert weight.grad.abs().max() > 1e-3, f"{name} has hardly any gradient: {weight.grad.abs().max():.2e}"


@pytest.fixture(scope="session")
def authors_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Moshi in the files of Kyutai's package. Read only: tests copy it to change it."""
    return write_authors_checkpoint(tmp_path_factory.mktemp("moshi") / "authors")


@pytest.fixture(scope="session")
def moshi_folder(authors_folder: Path) -> Path:
    """The same in transformers' format. Read only."""
    return convert(authors_folder, authors_folder.parent / "converted")


@pytest.fixture
def tiny_moshi(moshi_folder: Path) -> Base:
    """The tiny Moshi as a base, freshly loaded: tests may put adapters into it."""
    return load_base(str(moshi_folder))


Called = tuple[int, str, str]


@pytest.fixture
def affetto(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Called]:
    """Call the command: affetto("speak", "hello") gives (exit status, standard output, standard error)."""
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["affetto", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        return int(stopped.value.code or 0), said.out, said.err

    return call
