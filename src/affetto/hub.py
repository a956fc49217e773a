"""Checkpoints from the hub, or from its cache without a network; what stands in the way is said with the remedy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from affetto.errors import BaseModelError, JudgeError
from affetto.files import read_json
from affetto.progress import say

_FACTS = ["*.json", "*.jinja", "*.model"]
_PATIENCE_S = 5.0
"""How long the hub may take to say anything at all."""


def fetch(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a hub model's snapshot, of `revision` (commit, branch or tag) or the newest.

    Where its config.json says which weights are transformers' (CSM-1B stores each of its formats), only those are
    fetched. Raises BaseModelError.
    """
    return _snapshot(hub_id, revision, lambda: [*_FACTS, _weights_pattern(hub_id, revision)])


def fetch_files(hub_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of a hub model's snapshot with `files`, those that it has. Raises BaseModelError."""
    return _snapshot(hub_id, revision, lambda: list(files))


def fetch_config(hub_id: str, revision: str | None = None) -> Path:
    """config.json of a hub model, alone. Raises BaseModelError."""
    from huggingface_hub import hf_hub_download

    with _told(hub_id, revision):
        return Path(hf_hub_download(hub_id, "config.json", revision=revision))


def _snapshot(hub_id: str, revision: str | None, patterns: Callable[[], list[str]]) -> Path:
    from huggingface_hub import snapshot_download

    with _told(hub_id, revision):
        try:
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns()))
        except OSError as error:
            if _is_refusal(error):
                raise
            # A pinned commit isn't looked for in the cache by itself where there is no network (huggingface_hub 1.33).
            try:
                return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
            except OSError:
                raise error from None


def _is_refusal(error: Exception) -> bool:
    """Whether the hub was reached and said no."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    return isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError))


@contextmanager
def cache_alone_if_unreachable() -> Iterator[bool]:
    """A block in which the hub's client looks in its cache alone where HF_HUB_OFFLINE says so, or where the hub doesn't
    answer one short try: its own retries of every file take minutes. Yields whether the hub is asked."""
    from huggingface_hub import constants

    is_asked = not constants.HF_HUB_OFFLINE and _answers()
    told, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, not is_asked
    try:
        yield is_asked
    finally:
        constants.HF_HUB_OFFLINE = told


@contextmanager
def loading(hub_id: str, revision: str | None = None) -> Iterator[None]:
    """A block in which others load a judge from the hub, from its cache alone as in `cache_alone_if_unreachable`.

    Where they fail, BaseModelError if `hub_id` can't be one, or if the hub isn't asked and its cache has nothing of it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with cache_alone_if_unreachable() as is_asked:
        try:
            yield
        except JudgeError:
            with _told(hub_id, revision):
                validate_repo_id(hub_id)
                if not is_asked:
                    snapshot_download(hub_id, revision=revision, local_files_only=True)
            raise


def _answers() -> bool:
    """Whether the hub says anything, in a thread, since looking up its address has no time limit of its own."""
    import httpx
    from huggingface_hub import constants, get_session

    answers: list[object] = []

    def ask() -> None:
        with suppress(httpx.HTTPError, OSError):
            answers.append(get_session().head(constants.ENDPOINT, timeout=_PATIENCE_S))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    if not answers:
        say("the hub doesn't answer: looking in its cache alone", style="yellow")
    return bool(answers)


@contextmanager
def _told(hub_id: str, revision: str | None) -> Iterator[bool]:
    """What the hub raises, as BaseModelError with a remedy; yields whether it is asked."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with _one_line_of_retries(), cache_alone_if_unreachable() as is_asked:
            yield is_asked
    except GatedRepoError as error:
        raise BaseModelError(
            f"{hub_id} is gated: accept its licence at https://huggingface.co/{hub_id} with your account, then log in "
            "with `hf auth login` (or set HF_TOKEN) and run this again. A folder that holds the checkpoint does, too"
        ) from error
    except RevisionNotFoundError as error:
        raise BaseModelError(
            f"{hub_id} has no revision {revision!r}: take one from https://huggingface.co/{hub_id}/commits/main"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"the hub has no model {hub_id!r}, or it is private: check the id and `hf auth login`"
        ) from error
    except HFValidationError as error:
        raise BaseModelError(f"there is no folder {hub_id!r}, and it can't be a hub id: {error}") from error
    except OSError as error:
        at = f" at revision {revision}" if revision else ""
        why = "" if isinstance(error, LocalEntryNotFoundError) else f". {' '.join(str(error).split())}"
        raise BaseModelError(
            f"{hub_id}{at} is not in the hub's local cache and can't be fetched now: give a folder that holds it, or "
            "check the network (HF_HUB_OFFLINE must not be set) and run this again; once fetched it is in the cache, "
            f"which needs no network{why}"
        ) from error


@contextmanager
def _one_line_of_retries() -> Iterator[None]:
    """One line of our own for huggingface_hub's two of every attempt that failed."""
    told = False

    def is_wanted(record: logging.LogRecord) -> bool:
        nonlocal told
        message = record.getMessage()
        if "thrown while requesting" not in message and "Retrying in" not in message:
            return True
        if not told:
            say("the hub doesn't answer; trying for about half a minute", style="yellow")
        told = True
        return False

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def _weights_pattern(hub_id: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        config = read_json(Path(hf_hub_download(hub_id, "config.json", revision=revision)))
    except LocalEntryNotFoundError:
        raise
    except (EntryNotFoundError, ValueError):
        # Other formats have none; what can't be read is told when it is loaded.
        return "*.safetensors"
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    return f"{str(named).partition('.')[0]}*.safetensors" if named else "*.safetensors"
