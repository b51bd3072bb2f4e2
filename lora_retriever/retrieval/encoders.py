"""Sentence encoders: texts to vectors, by sentence-transformers.

Two layouts of checkpoint are read: what sentence-transformers itself loads, and *Instructor* (T5 encoder, mean pooling
that leaves the instruction out, dense, normalise), whose vectors equal those of the InstructorEmbedding package without
it. Knows nothing of adapters or scores. sentence-transformers takes seconds to import, so that stands inside the
functions: who finds all vectors in the cache (`embedding_cache`) does without it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from lora_retriever.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Layout = Literal["auto", "sentence-transformers", "instructor"]
Embeddings = NDArray[np.float32]


class Encoder(Protocol):
    """What retrieval wants of an encoder."""

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, in their order; float32."""


class SentenceEncoder:
    """A loaded encoder with the instruction that stands before every text."""

    def __init__(self, model: SentenceTransformer, instruction: str = "", batch_size: int = 16) -> None:
        self.model = model
        self.instruction = instruction
        self.batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, stripped as the original does, in their order; float32.

        Each text is encoded once, in batches of about equal token counts. sentence-transformers itself sorts by
        characters, which say little where languages mix: on the official pool padding then adds 31 % to the tokens,
        here 2 % (61 and 10 % in batches of 64).
        """
        stripped = [text.strip() for text in texts]
        ordered = self._longest_first(set(stripped))
        vectors: dict[str, Embeddings] = {}
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            encoded = self.model.encode(
                batch,
                prompt=self.instruction or None,
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            vectors.update(zip(batch, encoded, strict=True))
        return np.array([vectors[text] for text in stripped], dtype=np.float32)

    def _longest_first(self, texts: Collection[str]) -> list[str]:
        """The texts by falling count of tokens, or of characters where the tokenizer is no transformer's."""
        from transformers import PreTrainedTokenizerBase

        ordered, tokenizer = sorted(texts), self.model.tokenizer
        if not ordered or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return sorted(ordered, key=len, reverse=True)
        counts = {
            text: len(ids) for text, ids in zip(ordered, tokenizer(ordered, verbose=False).input_ids, strict=True)
        }
        return sorted(ordered, key=lambda text: counts[text], reverse=True)


def load_encoder(
    folder: Path,
    layout: Layout = "auto",
    instruction: str = "",
    batch_size: int = 16,
    device: str = "cpu",
) -> SentenceEncoder:
    """Load an encoder from a local folder; code that a checkpoint brings is never run.

    Args:
        layout: `auto` takes a folder for Instructor's where its `modules.json` names InstructorEmbedding's classes. The
            hkunlp models' names sentence-transformers' own, so say `instructor` for those.

    Raises:
        UserError: the folder is no encoder of that layout.
    """
    from sentence_transformers import SentenceTransformer

    try:
        model = (
            _load_instructor(folder, device)
            if layout == "instructor" or (layout == "auto" and _names_instructor(folder))
            else SentenceTransformer(str(folder), device=device, trust_remote_code=False, local_files_only=True)
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"encoder {folder}: cannot be loaded: {error}") from error
    return SentenceEncoder(model, instruction, batch_size)


def _names_instructor(folder: Path) -> bool:
    modules = folder / "modules.json"
    if not modules.is_file():
        return False
    return any("instructor" in module["type"].lower() for module in json.loads(modules.read_text(encoding="utf-8")))


def _load_instructor(folder: Path, device: str) -> SentenceTransformer:
    """Transformer, Pooling without the instruction, Dense, Normalize; the four parts of every Instructor checkpoint."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    transformer = Transformer.load(str(folder), local_files_only=True)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean", include_prompt=False)
    dense = Dense.load(str(folder / "2_Dense"))
    return SentenceTransformer(modules=[transformer, pooling, dense, Normalize()], device=device)
