"""Weights in eight bits: how far they are from what was packed, and that the cache's copy is made once and whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from affetto.errors import BaseModelError
from affetto.model.base import Base, load_base
from affetto.model.batch import collate
from affetto.model.losses import code_losses
from affetto.model.packed import PACKED, PLAIN, pack, unpacked


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFETTO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "plain"
    made.mkdir()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 40, generator=generator) * torch.logspace(-3, 1, 6)[:, None]
    weights = {
        "matrix": rows, "stack": torch.randn(3, 4, 20, generator=generator), "norm": torch.linspace(0.9, 1.1, 7),
        "kernel": torch.randn(9, 30, 1, generator=generator),
        "zeros": torch.zeros(2, 3), "counts": torch.arange(4),
    }  # fmt: skip
    save_file(weights, made / PLAIN)
    (made / "config.json").write_text("{}")
    return made


def test_every_number_is_within_half_a_step_of_its_row(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    assert not (tmp_path / "packed" / PLAIN).exists()
    before, after = load_file(folder / PLAIN), load_file(unpacked(tmp_path / "packed") / PLAIN)
    assert before.keys() == after.keys()
    for name, dims in (("matrix", -1), ("stack", -1), ("kernel", (-2, -1))):
        step = before[name].abs().amax(dim=dims, keepdim=True) / 127
        # Half a step, and float16's rounding of the product.
        assert ((after[name].float() - before[name]).abs() <= 0.5 * step + 1e-3 * before[name].abs() + 1e-7).all()
        assert after[name].dtype == torch.float16
    assert torch.equal(after["norm"], before["norm"].half())
    assert not after["zeros"].any()
    assert torch.equal(after["counts"], before["counts"])
    # A quarter of float32's size, but for scales and header.
    assert (tmp_path / "packed" / PACKED).stat().st_size < 0.4 * (folder / PLAIN).stat().st_size + 600


def test_a_packed_base_says_nearly_what_it_said(
    tiny_base: Base, tiny_base_folder: Path, tmp_path: Path, make_row
) -> None:  # type: ignore[no-untyped-def]
    pack(tiny_base_folder, tmp_path / "packed")
    base = load_base(str(unpacked(tmp_path / "packed")))
    batch = collate([make_row(number, frames=(6,)) for number in range(4)], 8)
    with torch.no_grad():
        before = [term.mean.item() for term in code_losses(tiny_base.network(batch), batch)]
        after = [term.mean.item() for term in code_losses(base.network(batch), batch)]
    assert after == pytest.approx(before, abs=0.02)
    assert after != before


def test_what_is_plain_stays_where_it_is(folder: Path) -> None:
    assert unpacked(folder) == folder


def test_unpacking_happens_once_and_other_weights_get_another_place(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    pack(folder, packed)
    first = unpacked(packed)
    written = (first / PLAIN).stat().st_mtime_ns
    assert unpacked(packed) == first
    assert (first / PLAIN).stat().st_mtime_ns == written
    weights = load_file(folder / PLAIN)
    save_file(weights | {"norm": weights["norm"] + 1}, folder / PLAIN)
    pack(folder, packed)
    assert unpacked(packed) != first


def test_several_at_once_find_one_whole_folder(folder: Path, tmp_path: Path) -> None:
    packed, found = tmp_path / "packed", []
    pack(folder, packed)
    threads = [threading.Thread(target=lambda: found.append(unpacked(packed))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert {path.name for path in found[0].parent.iterdir()} == {found[0].name}, "nothing half made is left"


def test_damaged_packed_weights_are_named(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed")
    (tmp_path / "packed" / PACKED).write_bytes(b"torn")
    with pytest.raises(BaseModelError, match=PACKED):
        unpacked(tmp_path / "packed")
