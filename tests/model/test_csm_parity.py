"""CSM with 32 codebooks and random weights against transformers, as `benchmarks/parity/csm.py` compares them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affetto.model.base import Base, load_base

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks" / "parity"


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.delitem(sys.modules, "csm", raising=False)
    return importlib.import_module("csm")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFFETTO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_base("random:csm-tiny")


@pytest.mark.parametrize("what", ["prompts", "logits", "speech", "coding"])
def test_everything_is_as_transformers_has_it(parity: Any, base: Base, what: str) -> None:
    found = getattr(parity, what)(base)
    assert [item.name for item in found if item.differing] == []
    assert all(item.compared > 0 for item in found)
    assert len(found) == {"prompts": 2, "logits": 32, "speech": 6, "coding": 2}[what]
    assert all(item.largest < 1e-4 for item in found if item.largest is not None)


def test_the_comparisons_can_fail(parity: Any, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one weight moved on our side alone, logits and speech differ; the fixture speaks and varies."""
    speaking = parity.speech(base)
    assert all(item.compared == 6 * 32 for item in speaking)
    with torch.no_grad():
        weight = base.network.depth.codebooks_head.weight
        kept = weight[20].clone()
        weight[20].neg_()
        differing = {item.name for item in parity.logits(base) if item.differing}
        weight[20].copy_(kept)
    assert differing == {"logits of codebook 21"}
    monkeypatch.setattr(parity, "generate", lambda *_: [type("Said", (), {"codes_TK": np.ones((6, 32))})] * 3)
    assert all(item.differing for item in parity.speech(base))
