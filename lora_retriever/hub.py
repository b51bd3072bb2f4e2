"""Fetching from the Hugging Face Hub. No other module talks to the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from lora_retriever.errors import UserError
from lora_retriever.escaping import one_line
from lora_retriever.files import is_location
from lora_retriever.settings import plain_text

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files that are fetched: model weights as safetensors, configuration and tokenizer. Never code, never pickles."""
TOKENIZER_WANTED = ("*.json", "*.txt", "*.model")
"""Files that make a tokenizer. The model weights are not fetched."""
ENCODER_WANTED = (*WANTED, "*.bin")
"""Instructor encoders on the Hub are older than safetensors. torch reads a .bin file as tensors only (weights_only)."""


MAX_REASON = 300
"""Maximum length of the part of the Hub's own message that a message shows, in characters."""
HUB_LIMIT = 10.0
"""Maximum time to wait for the Hub's answer to a question, in seconds."""


def folder_or_id(text: str, wanted: Sequence[str] = WANTED) -> Path:
    """The folder that a user named on the command line, or the local copy of a Hub repository of this name.

    Raises:
        UserError: there is no such folder, and the Hub does not give the repository.
    """
    folder = os.path.expanduser(text)
    if os.path.isdir(folder):
        return Path(folder)
    if is_location(text):
        raise UserError(f"{text}: there is no such folder")
    return fetch(text, None, wanted)


def fetch(repository: str, revision: str | None, wanted: Sequence[str] = WANTED, repo_type: str | None = None) -> Path:
    """The local copy of the files of a Hub repository that match `wanted`.

    Args:
        repo_type: `dataset` for a data set. None: a model.

    Raises:
        UserError: the Hub does not give the repository.
    """
    from huggingface_hub import snapshot_download

    try:
        name, patterns = plain_text(repository), list(wanted)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, repo_type=repo_type))
    except Exception as error:  # errors of the Hub, of the network, of the disk, of a name
        at = f" at {revision[:MAX_REASON]}" if revision else ""
        reason = one_line(str(error).strip().split("\n")[0])[:MAX_REASON] or type(error).__name__
        raise UserError(
            f"{repository[:MAX_REASON]}{at}: there is no such folder, and the Hub does not give it either ({reason}). "
            "Check the name, the network, and your access to gated models (`hf auth login`, and the licence on the "
            "model's page)"
        ) from error


def is_cached(repository: str, revision: str | None) -> bool:
    """Whether a Hub repository is in the Hub's cache on this machine."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repository, revision=revision, allow_patterns=list(WANTED), local_files_only=True)
    except Exception:  # not in the cache, an unreadable cache, an invalid name
        return False
    return True


@dataclass(frozen=True)
class HubAnswer:
    """The answer of the Hub about a repository.

    Attributes:
        gives: whether a fetch would be allowed. None: the Hub did not say.
        reason: why the Hub does not give the repository, or why the Hub did not answer; empty if the Hub gives the
            repository.
    """

    gives: bool | None
    reason: str = ""


def ask_hub(repository: str, revision: str | None, file: str = "config.json", limit: float = HUB_LIMIT) -> HubAnswer:
    """Ask the Hub whether this user may fetch a model's repository. Nothing is fetched.

    Args:
        file: a file of the repository, about which the Hub is asked.
        limit: maximum time to wait for the answer, in seconds.
    """
    answers: list[HubAnswer] = []
    # A thread, because looking up the Hub's address has no time limit of its own.
    asking = Thread(target=lambda: answers.append(_asked(repository, revision, file, limit)), daemon=True)
    asking.start()
    asking.join(limit)
    return answers[0] if answers else HubAnswer(None, f"the Hub did not answer within {limit:g} seconds")


def _asked(repository: str, revision: str | None, file: str, limit: float) -> HubAnswer:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(plain_text(repository), file, revision=revision), timeout=limit
        )
    except errors.GatedRepoError:
        if huggingface_hub.get_token() is None:
            return HubAnswer(
                False, "you are not logged in: accept the licence on the model's page, then `hf auth login`"
            )
        return HubAnswer(False, "your account has no access: accept the licence on the model's page")
    except errors.RepositoryNotFoundError:
        return HubAnswer(False, "the Hub has no such repository, or it is private and you are not logged in")
    except errors.RevisionNotFoundError:
        return HubAnswer(False, f"the repository has no revision {(revision or '')[:MAX_REASON]}")
    except errors.RemoteEntryNotFoundError:  # the repository is there, and may be read
        return HubAnswer(True)
    except Exception as error:  # errors of the network
        reason = one_line(str(error).strip().split("\n")[0])[:MAX_REASON] or type(error).__name__
        return HubAnswer(None, f"the Hub cannot be asked ({reason})")
    return HubAnswer(True)
