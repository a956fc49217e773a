"""Bases from the hub: what is asked for, and what is said where the hub says no. Nothing here has a network."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

import affetto.hub
from affetto.errors import BaseModelError, JudgeError
from affetto.hub import cache_alone_if_unreachable
from affetto.judges.choice import load_judge
from affetto.model.base import find_base, load_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _answer(kind: type[Exception], code: int) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/sesame/csm-1b/resolve/main/config.json")
    if kind is LocalEntryNotFoundError:
        return kind("nothing is cached and there is no network")
    return kind("the hub says no", response=httpx.Response(code, request=request))  # type: ignore[call-arg]


@pytest.fixture
def hub(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Play the hub: hub(error) refuses, hub() has one model. Returns the list of what is asked for."""

    def play(error: Exception | None = None, on: str = "both", **config: Any) -> list[Any]:
        asked: list[Any] = []
        snapshot = tmp_path / "models--sesame--csm-1b" / "snapshots" / COMMIT
        shutil.copytree(tiny_base_folder, snapshot)
        path = snapshot / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))

        def one_file(hub_id: str, name: str, revision: str | None = None) -> str:
            asked.append((hub_id, name, revision))
            if error is not None and on != "snapshot":
                raise error
            return str(path)

        def everything(hub_id: str, revision: str | None = None, allow_patterns: Any = None, **_: Any) -> str:
            asked.append((hub_id, allow_patterns, revision))
            if error is not None and on != "config":
                raise error
            return str(snapshot)

        monkeypatch.setattr(affetto.hub, "_answers", lambda: True)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", everything)
        return asked

    return play


def test_a_gated_model_says_what_to_accept_and_how_to_log_in(hub: Callable[..., list[Any]]) -> None:
    hub(_answer(GatedRepoError, 403))
    with pytest.raises(BaseModelError) as caught:
        load_base("sesame/csm-1b")
    said = str(caught.value)
    assert "sesame/csm-1b is gated" in said
    assert "https://huggingface.co/sesame/csm-1b" in said
    assert "hf auth login" in said
    assert "HF_TOKEN" in said


def test_the_weights_alone_may_be_gated(hub: Callable[..., list[Any]]) -> None:
    hub(_answer(GatedRepoError, 403), on="snapshot")
    with pytest.raises(BaseModelError, match="is gated"):
        load_base("sesame/csm-1b")


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        (RepositoryNotFoundError, 404, "no model 'sesame/csm-1b', or it is private.*hf auth login"),
        (RevisionNotFoundError, 404, "no revision 'v9'.*commits/main"),
        (
            LocalEntryNotFoundError,
            0,
            "csm-1b at revision v9 is not in the hub's local cache and can't be fetched now: "
            "give a folder that holds it, or check the network",
        ),
    ],
)
def test_what_the_hub_lacks_is_said(hub: Callable[..., list[Any]], kind: Any, code: int, said: str) -> None:
    hub(_answer(kind, code))
    with pytest.raises(BaseModelError, match=said):
        find_base("sesame/csm-1b@v9")


def test_a_pinned_revision_is_asked_for_and_the_commit_is_known(hub: Callable[..., list[Any]]) -> None:
    asked = hub()
    base = load_base(f"sesame/csm-1b@{COMMIT}")
    assert [item[::2] for item in asked] == [("sesame/csm-1b", COMMIT)] * 2
    assert (base.id, base.revision) == (f"sesame/csm-1b@{COMMIT}", COMMIT)


def test_a_folders_revision_is_unknown(tiny_base_folder: Path) -> None:
    assert load_base(str(tiny_base_folder)).revision is None


def test_only_the_weights_that_the_config_names_are_fetched(hub: Callable[..., list[Any]]) -> None:
    asked = hub(transformers_weights="transformers.safetensors.index.json")
    find_base("sesame/csm-1b")
    assert asked[1][1][-1] == "transformers*.safetensors"
    assert not any("pt" in pattern.split(".") or pattern == "*.safetensors" for pattern in asked[1][1])


def test_without_a_config_every_safetensors_file_is_fetched(hub: Callable[..., list[Any]]) -> None:
    asked = hub(_answer(RemoteEntryNotFoundError, 404), on="config")
    find_base("kyutai/moshiko-pytorch-bf16")
    assert asked[1][1][-1] == "*.safetensors"


def test_the_hubs_cache_serves_without_a_network(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real huggingface_hub, offline, on a cache laid out as it lays it out."""
    model = tmp_path / "models--sesame--csm-1b"
    shutil.copytree(tiny_base_folder, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    base = load_base("sesame/csm-1b")
    assert base.folder.resolve() == (model / "snapshots" / COMMIT).resolve()
    assert base.revision == COMMIT
    assert load_base(f"sesame/csm-1b@{COMMIT}").hash == base.hash
    with pytest.raises(BaseModelError, match=r"at revision other is not in the hub's local cache"):
        load_base("sesame/csm-1b@other")


def test_of_a_hub_that_does_not_answer_one_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real huggingface_hub, on a port where nobody is. It tried for half a minute, transformers for more."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it was tried again"))
    with pytest.raises(BaseModelError, match=r"nobody/nothing is not in .*give a folder .* or check the network"):
        find_base("nobody/nothing")
    said = "".join(capfd.readouterr())
    assert said.count("the hub doesn't answer") == 1
    assert "Retrying" not in said
    assert "thrown while" not in said
    with pytest.raises(JudgeError, match="can't load the emotion judge: nope is not in the hub's local cache"):
        load_judge("emotion", "nope")
    with pytest.raises(JudgeError, match="there is no folder 'no;pe', and it can't be a hub id"):
        load_judge("words", "no;pe")
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("code", [200, 404, 503])
def test_a_hub_that_says_anything_is_asked(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(code)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with cache_alone_if_unreachable() as is_asked:
        assert (is_asked, constants.HF_HUB_OFFLINE) == (True, False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with cache_alone_if_unreachable() as is_asked:
        assert (is_asked, constants.HF_HUB_OFFLINE) == (False, True)
    assert asked == [constants.ENDPOINT], "not at all where HF_HUB_OFFLINE says so"


def test_a_hub_whose_address_is_looked_up_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def wait(_: httpx.Request) -> httpx.Response:
        never.wait(60)
        return httpx.Response(200)

    client = httpx.Client(transport=httpx.MockTransport(wait))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(affetto.hub, "_PATIENCE_S", 0.05)
    with cache_alone_if_unreachable() as is_asked:
        assert (is_asked, constants.HF_HUB_OFFLINE) == (False, True)
    never.set()
    assert constants.HF_HUB_OFFLINE is False
