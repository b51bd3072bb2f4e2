"""From a profile's locations to folders on this machine; the only place that talks to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lora_retriever.errors import UserError
from lora_retriever.profile import Profile

# Weights as safetensors, configuration and tokenizer; never code, never pickles.
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")
# Instructor encoders on the Hub are older than safetensors; torch reads a .bin file as mere tensors (weights_only).
ENCODER_WANTED = (*WANTED, "*.bin")


def folder_of(profile: Profile, location: str, revision: str | None, wanted: Sequence[str] = WANTED) -> Path:
    """The folder a profile's location means; fetched from the Hub (or its cache) where it is a Hub id.

    Raises:
        UserError: the folder is not there, or the Hub does not give it.
    """
    local = profile.local_path(location)
    if local is None:
        return fetch(location, revision, wanted)
    if not local.is_dir():
        raise UserError(f"profile {profile.name}: no folder {local}")
    return local


def folder_or_id(text: str, wanted: Sequence[str] = WANTED) -> Path:
    """What a user named on the command line: a folder that is there, or else a Hub id."""
    return Path(text) if Path(text).is_dir() else fetch(text, None, wanted)


def fetch(repository: str, revision: str | None, wanted: Sequence[str] = WANTED) -> Path:
    """The local copy of a Hub repository's files that match `wanted`.

    Raises:
        UserError: the Hub does not give it.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(wanted)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"{repository}: there is no such folder, and the Hub does not give it either ({first_line}). "
            "Check the name, and your access to gated models (`hf auth login`, and the licence on the model's page)"
        ) from error


def is_cached(repository: str, revision: str | None) -> bool:
    """Whether a Hub repository is on this machine already."""
    try:
        snapshot_download(repository, revision=revision, allow_patterns=list(WANTED), local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return False
    return True
