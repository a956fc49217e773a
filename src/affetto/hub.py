"""Checkpoints from the hub, or from its cache without a network; errors say what to do."""

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
"""Longest time to wait for any answer of the hub."""


def fetch(hub_id: str, revision: str | None = None) -> Path:
    """The folder of a hub model's snapshot, of `revision` (commit, branch or tag) or the newest.

    If its config.json names transformers' weights (CSM-1B has other formats, too), only those are fetched. Raises
    BaseModelError.
    """
    return _snapshot(hub_id, revision, lambda: [*_FACTS, _weights_pattern(hub_id, revision)])


def fetch_files(hub_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of a hub model's snapshot with those of `files` that it has. Raises BaseModelError."""
    return _snapshot(hub_id, revision, lambda: list(files))


def fetch_config(hub_id: str, revision: str | None = None) -> Path:
    """The config.json of a hub model, without other files. Raises BaseModelError."""
    from huggingface_hub import hf_hub_download

    with _errors_explained(hub_id, revision):
        return Path(hf_hub_download(hub_id, "config.json", revision=revision))


def _snapshot(hub_id: str, revision: str | None, patterns: Callable[[], list[str]]) -> Path:
    from huggingface_hub import snapshot_download

    with _errors_explained(hub_id, revision):
        try:
            return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns()))
        except OSError as error:
            if _is_refusal(error):
                raise
            # Without a network huggingface_hub 1.33 doesn't look for a pinned commit in its cache by itself.
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
    """A block in which the hub's client uses only its cache if HF_HUB_OFFLINE is set, or if the hub doesn't answer one
    short request, since its own retries of every file take minutes. Yields whether the hub is used."""
    from huggingface_hub import constants

    is_online = not constants.HF_HUB_OFFLINE and _answers()
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, not is_online
    try:
        yield is_online
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def loading(hub_id: str, revision: str | None = None) -> Iterator[None]:
    """A block in which a library loads a judge from the hub, or from its cache as in `cache_alone_if_unreachable`.

    If that fails, BaseModelError if `hub_id` isn't a valid id, or if the hub isn't used and its cache lacks the model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    with cache_alone_if_unreachable() as is_online:
        try:
            yield
        except JudgeError:
            with _errors_explained(hub_id, revision):
                validate_repo_id(hub_id)
                if not is_online:
                    snapshot_download(hub_id, revision=revision, local_files_only=True)
            raise


def _answers() -> bool:
    """Whether the hub answers; asked in a thread, since looking up its address has no time limit of its own."""
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
        say("the hub doesn't answer: using only its cache", style="yellow")
    return bool(answers)


@contextmanager
def _errors_explained(hub_id: str, revision: str | None) -> Iterator[bool]:
    """Turn the hub's errors into BaseModelError with a remedy; yields whether the hub is used."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with _one_line_of_retries(), cache_alone_if_unreachable() as is_online:
            yield is_online
    except GatedRepoError as error:
        raise BaseModelError(
            f"{hub_id} is gated: accept its licence at https://huggingface.co/{hub_id} with your account, then log in "
            "with `hf auth login` (or set HF_TOKEN) and run this again; or give a folder that holds the checkpoint"
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
    """Print a single line of our own instead of huggingface_hub's two per failed attempt."""
    was_shown = False

    def is_wanted(record: logging.LogRecord) -> bool:
        nonlocal was_shown
        message = record.getMessage()
        if "thrown while requesting" not in message and "Retrying in" not in message:
            return True
        if not was_shown:
            say("the hub doesn't answer; trying for about half a minute", style="yellow")
        was_shown = True
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
        # Other formats have none; an unreadable one is reported when it is loaded.
        return "*.safetensors"
    named = config.get("transformers_weights") if isinstance(config, dict) else None
    return f"{str(named).partition('.')[0]}*.safetensors" if named else "*.safetensors"
