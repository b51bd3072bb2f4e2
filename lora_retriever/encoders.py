"""Sentence encoders: texts to vectors, by sentence-transformers.

Two layouts of checkpoint are read: what sentence-transformers itself loads, and *Instructor* (T5 encoder, mean pooling
that leaves the instruction out, dense, normalise), whose vectors equal those of the InstructorEmbedding package without
it. Knows nothing of adapters or scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from lora_retriever.errors import UserError

Layout = Literal["auto", "sentence-transformers", "instructor"]
Embeddings = NDArray[np.float32]


class SentenceEncoder:
    """A loaded encoder with the instruction that stands before every text."""

    def __init__(self, model: SentenceTransformer, instruction: str = "", batch_size: int = 64) -> None:
        self.model = model
        self.instruction = instruction
        self.batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, stripped as the original does, in their order; float32."""
        return self.model.encode(
            [text.strip() for text in texts],
            prompt=self.instruction or None,
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )


def load_encoder(
    folder: Path,
    layout: Layout = "auto",
    instruction: str = "",
    batch_size: int = 64,
    device: str = "cpu",
) -> SentenceEncoder:
    """Load an encoder from a local folder; code that a checkpoint brings is never run.

    Args:
        layout: `auto` takes a folder for Instructor's where its `modules.json` names InstructorEmbedding's classes. The
            hkunlp models' names sentence-transformers' own, so say `instructor` for those.

    Raises:
        UserError: the folder is no encoder of that layout.
    """
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
    transformer = Transformer.load(str(folder), local_files_only=True)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean", include_prompt=False)
    dense = Dense.load(str(folder / "2_Dense"))
    return SentenceTransformer(modules=[transformer, pooling, dense, Normalize()], device=device)
