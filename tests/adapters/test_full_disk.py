"""A disk that is full while an adapter is saved: told, and the adapter that was there stays."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lora_tools import random_adapter

from affetto.adapters.bank import AdapterBank
from affetto.adapters.checkpoints import save_checkpoint
from affetto.adapters.peft_files import save_adapter
from affetto.errors import DataError
from affetto.model.base import Base

Save = Callable[[Base, Path], None]


def _save_lora(base: Base, folder: Path) -> None:
    bank = AdapterBank(base.model, base.network.gates)
    random_adapter(bank, "happy")
    save_adapter(folder, bank, "happy", base.id, {})


def _save_full(base: Base, folder: Path) -> None:
    bank = AdapterBank(base.model, base.network.gates)
    bank.add_full("happy")
    save_checkpoint(folder, bank, "happy", base.model, base.folder, {})


@contextmanager
def _no_file_over(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond that, which fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("save", "num_bytes"),
    # The base's tokenizer is among the smaller files that a checkpoint begins with; no weights are under 100 kB.
    [(_save_lora, 1000), (_save_full, 1000), (_save_full, 100_000)],
    ids=["adapter", "checkpoint's copied files", "checkpoint's weights"],
)
def test_a_full_disk_is_told_and_the_old_adapter_stays(
    tiny_base: Base, tmp_path: Path, save: Save, num_bytes: int
) -> None:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "old").write_text("as it was")
    with _no_file_over(num_bytes), pytest.raises(DataError) as caught:
        save(tiny_base, folder)
    assert str(caught.value).startswith(f"can't write {folder} ("), "the place that the user knows"
    assert str(caught.value).endswith("; name another place, or make room there")
    assert list(tmp_path.iterdir()) == [folder], "nothing is left of it"
    assert (folder / "old").read_text() == "as it was"


def test_a_place_that_cannot_be_written_is_told(tiny_base: Base, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"can't write .*best \(.*; name another place, or fix its permissions"):
        _save_lora(tiny_base, tmp_path / "file" / "best")
