"""Fetching from the Hugging Face Hub. No other module talks to the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
"""Maximum length of the Hub's own message within ours, in characters."""


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
    except Exception as error:  # errors of the Hub, of the network below it, of the disk, of a name
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
