"""Scorers and encoders of a user's own, named by `module:object`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_retriever.errors import UserError
from lora_retriever.own_objects import is_own, load_object
from lora_retriever.retrieval.encoders import Encoder
from lora_retriever.retrieval.scorers import Scorer, as_scorer


def find_scorer(name: str, folder: Path | None = None) -> Scorer:
    """The project's scorer of this name, or a user's own scorer, which then has the name `module:object`.

    Args:
        folder: a folder in which the module of an own scorer is found, beside Python's own path.

    Raises:
        UserError: the scorer is unknown or cannot be loaded, or the object is no scorer.
    """
    if not is_own(name):
        try:
            return as_scorer(name)
        except ValueError as error:
            raise UserError(str(error)) from error
    found = load_object(name, folder, "scorer")
    if not isinstance(found, Scorer):
        raise UserError(f"scorer {name}: expected a lora_retriever.retrieval.scorers.Scorer, not {found!r:.80}")
    return replace(found, name=name)


def find_encoder(location: str, folder: Path | None = None) -> Encoder:
    """A user's own encoder: an object with a function `encode`, from a list of texts to an array [texts, dim].

    Raises:
        UserError: the encoder cannot be loaded, or has no `encode`.
    """
    found: Encoder = load_object(location, folder, "encoder")
    if isinstance(found, type) or not callable(getattr(found, "encode", None)):
        raise UserError(f"encoder {location}: expected an object with a function `encode`, not {found!r:.80}")
    return found
