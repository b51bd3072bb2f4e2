"""Fetching from the Hugging Face Hub. No other module talks to the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_retriever.errors import UserError

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Files that are fetched: weights as safetensors, configuration and tokenizer. Never code, never pickles."""
ENCODER_WANTED = (*WANTED, "*.bin")
"""Instructor encoders on the Hub are older than safetensors. torch reads a .bin file as tensors only (weights_only)."""


def folder_or_id(text: str, wanted: Sequence[str] = WANTED) -> Path:
    """The folder that a user named on the command line; a text that is no folder is a Hub id.

    Raises:
        UserError: there is no such folder, and the Hub does not give the repository.
    """
    return Path(text) if Path(text).is_dir() else fetch(text, None, wanted)


def fetch(repository: str, revision: str | None, wanted: Sequence[str] = WANTED) -> Path:
    """The local copy of those files of a Hub repository that match `wanted`.

    Raises:
        UserError: the Hub does not give the repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repository}: there is no such folder, and the Hub does not give it either ({first_line}). "
            "Check the name, and your access to gated models (`hf auth login`, and the licence on the model's page)"
        ) from error


def is_cached(repository: str, revision: str | None) -> bool:
    """Whether a Hub repository is in the Hub's cache on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(repository, revision=revision, allow_patterns=list(WANTED), local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return False
    return True
