"""Sentence encoders: texts to vectors, by sentence-transformers.

Two layouts of checkpoint are read: the layout of sentence-transformers, and *Instructor* (a T5 encoder, mean pooling
over all tokens except the instruction's, a dense layer, division by the length), whose vectors equal the vectors of the
InstructorEmbedding package. This file does not deal with adapters or scores. sentence-transformers takes seconds to
import, so the functions import it: a run that finds all vectors in the cache (`embedding_cache`) never imports it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_terminal, quoted
from lora_retriever.files import read_bytes
from lora_retriever.hub import ENCODER_WANTED, folder_or_id

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Layout = Literal["auto", "sentence-transformers", "instructor"]
Embeddings = NDArray[np.float32]

_HALF_PAIR = re.compile("[\ud800-\udfff]")
SHOWN = 60  # Maximum number of characters of a text that a message shows.
UNLIMITED = 10**9  # A limit of at least this many tokens means no limit: tokenizers without a limit state 10^30.
MOST_COUNTS = 100_000  # Number of texts whose tokens are remembered; a server encodes texts without end.
TELLING = 16  # Minimum number of texts for which equal vectors show a broken encoder.


class Encoder(Protocol):
    """The interface of an encoder that retrieval needs."""

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, in their order; float32."""


class SentenceEncoder:
    """A loaded encoder, with the instruction that is put before every text."""

    def __init__(
        self, model: SentenceTransformer, instruction: str = "", batch_size: int = 16, name: str = "given"
    ) -> None:
        """Take a loaded model.

        Args:
            instruction: text before every input; "" means no text, whatever default prompt the checkpoint names.
            name: the encoder's name in messages.

        Raises:
            UserError: the instruction alone is as long as the texts that the encoder takes.
        """
        self.model = model
        self.instruction = instruction
        self.batch_size = batch_size
        self.name = name
        self.limit = token_limit(model)
        if self.limit is not None and model.max_seq_length != self.limit:
            model.max_seq_length = self.limit
        self._counts: dict[str, int] = {}  # tokens of each stripped text, special tokens included
        self._check_room()

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Vectors [n, dim] of the texts, in their order; float32. White space at the ends is cut, as in the original.

        Each text is encoded once, in batches of about equal token counts. sentence-transformers itself sorts by
        characters, whose number predicts the number of tokens badly where languages mix. On the official pool, padding
        adds 31 % to the tokens in the order of sentence-transformers, and 2 % in this order (61 and 10 % in batches of
        64).

        Raises:
            UserError: the encoder fails on a text, or gives NaN, zeros, or the same vector for all texts.
        """
        if len(self._counts) > MOST_COUNTS:
            self._counts.clear()
        self.report_truncated(texts)
        stripped = [text.strip() for text in texts]
        ordered = self._longest_first(set(stripped))
        vectors: dict[str, Embeddings] = {}
        for start in range(0, len(ordered), self.batch_size):
            batch = ordered[start : start + self.batch_size]
            vectors.update(zip(batch, self._encode_batch(batch), strict=True))
        if len(vectors) >= TELLING and len({vector.tobytes() for vector in vectors.values()}) == 1:
            raise UserError(
                f"encoder {self.name}: gives the same vector for {len(vectors)} different texts; its weights or its "
                "configuration are broken"
            )
        return np.array([vectors[text] for text in stripped], dtype=np.float32)

    def report_truncated(self, texts: Sequence[str]) -> None:
        """Say in one line how many of the texts are longer than the encoder takes; each text is counted once."""
        new = sorted({text.strip() for text in texts} - self._counts.keys())
        self._count_tokens(new)
        if self.limit is None or not self._counts_tokens:
            return
        room = self.limit - len(self._tokens(self.instruction))  # approximate: words may merge at the border
        near = [self.instruction + text for text in new if self._counts[text] >= room]
        longer = sum(len(self._tokens(text)) > self.limit for text in near)
        if longer:
            _say(
                f"encoder {self.name}: {longer} of {len(new)} texts are longer than the {self.limit} tokens that the "
                "encoder takes; their ends are cut off"
            )

    def _encode_batch(self, batch: list[str]) -> Embeddings:
        """Vectors [n, dim] of a batch of stripped texts."""
        try:
            encoded = self.model.encode(
                [_encodable(text) for text in batch],
                prompt=self.instruction,  # "" is passed, too: with None, the checkpoint's default prompt would be used
                batch_size=self.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            vectors = np.array(encoded, dtype=np.float32)
            if vectors.ndim != 2:
                raise ValueError(f"{vectors.ndim - 1} dimensions for a text, where a vector has one")
        except Exception as error:
            raise UserError(
                f"encoder {self.name}: fails on text {_shown(batch[0])} or one of the {len(batch) - 1} after it: "
                f"{_reason(error)}"
            ) from error
        for text, vector in zip(batch, vectors, strict=True):
            if not np.isfinite(vector).all():
                raise UserError(f"encoder {self.name}: gives NaN or infinite values for text {_shown(text)}")
            if not vector.any():
                raise UserError(f"encoder {self.name}: gives only zeros for text {_shown(text)}")
        return vectors

    def _longest_first(self, texts: Collection[str]) -> list[str]:
        """The texts by falling number of tokens, or of characters if the tokenizer is not of transformers."""
        return sorted(sorted(texts), key=self._counts.__getitem__ if self._counts_tokens else len, reverse=True)

    @cached_property
    def _counts_tokens(self) -> bool:
        """Whether the tokenizer is of transformers, so that tokens can be counted."""
        from transformers import PreTrainedTokenizerBase

        return isinstance(self.model.tokenizer, PreTrainedTokenizerBase)

    def _count_tokens(self, texts: Sequence[str]) -> None:
        if texts and self._counts_tokens:
            try:
                encodings = self.model.tokenizer([_encodable(text) for text in texts], verbose=False).input_ids
            except Exception as error:
                raise UserError(f"encoder {self.name}: the tokenizer fails: {_reason(error)}") from error
            self._counts.update(zip(texts, map(len, encodings), strict=True))

    def _tokens(self, text: str) -> list[int]:
        """The tokens of one text, special tokens included."""
        tokens: list[int] = self.model.tokenizer(_encodable(text), verbose=False).input_ids
        return tokens

    def _check_room(self) -> None:
        """Refuse an encoder that has no room for a text after the instruction."""
        if self.limit is None or not self._counts_tokens:
            return
        needed = len(self._tokens(self.instruction))
        if needed >= self.limit:
            before = f"the instruction {_shown(self.instruction)}" if self.instruction else "special tokens"
            raise UserError(
                f"encoder {self.name}: takes {self.limit} tokens, and {before} fill {needed} of them: no text fits. "
                "Shorten the instruction, or check max_seq_length and model_max_length in the encoder's folder"
            )


def token_limit(model: SentenceTransformer) -> int | None:
    """Maximum number of tokens of a text, special tokens and instruction included; None: no limit is known.

    The limit is sentence-transformers' own `max_seq_length`, or fewer if the loaded model has learned fewer positions:
    RoBERTa, MPNet and XLM-R begin to count positions after the padding index, so 514 positions are 512 tokens.
    """
    from torch import nn

    limits = [model.max_seq_length]
    for module in model.modules():
        table, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, nn.Embedding) and isinstance(padding, int):
            limits.append(table.num_embeddings - padding - 1)
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and limit < UNLIMITED]
    return min(known, default=None)


def default_prompt(folder: Path) -> str | None:
    """The default prompt that an encoder's folder names, which `SentenceEncoder` never uses; None: no prompt named.

    Raises:
        ValueError: the file that would name a prompt is not readable JSON.
    """
    settings = _read_json(folder / "config_sentence_transformers.json")
    if not isinstance(settings, dict) or not isinstance(settings.get("prompts"), dict):
        return None
    name = settings.get("default_prompt_name")
    prompt = settings["prompts"].get(name) if isinstance(name, str) else None
    return prompt if isinstance(prompt, str) and prompt else None


def load_encoder(
    location: Path | str,
    layout: Layout = "auto",
    instruction: str = "",
    batch_size: int = 16,
    device: str = "cpu",
) -> SentenceEncoder:
    """Load an encoder from a folder, or from the Hub. Code of a checkpoint is never run.

    Args:
        location: a folder, as a path or a text, or a Hub id.
        layout: `auto` reads a folder as Instructor's if its `modules.json` names classes of InstructorEmbedding. The
            hkunlp checkpoints name classes of sentence-transformers, so these checkpoints need `instructor`.
        instruction: text before every input.
        batch_size: number of texts in a batch.
        device: a device of torch.

    Raises:
        UserError: there is no such folder or repository, or the folder holds no encoder of this layout, or an encoder
            that needs code of its own.
    """
    from sentence_transformers import SentenceTransformer

    folder = folder_or_id(location, ENCODER_WANTED) if isinstance(location, str) else location
    try:
        instructor = layout == "instructor" or (layout == "auto" and _names_instructor(folder))
        _refuse_code(folder, instructor)
        _check_weights(folder)
        with _quiet():
            model = (
                _load_instructor(folder, device)
                if instructor
                else SentenceTransformer(str(folder), device=device, trust_remote_code=False, local_files_only=True)
            )
        _check_vocabulary(folder, model)
        encoder, prompt = SentenceEncoder(model, instruction, batch_size, str(folder)), default_prompt(folder)
    except UserError:
        raise
    except Exception as error:  # any library that reads a file of the folder may raise
        if "trust_remote_code" in str(error):
            raise UserError(_code_message(folder, "transformers has no class of its own for this model")) from error
        raise UserError(f"encoder {folder}: cannot be loaded: {_reason(error)}") from error
    if prompt is not None and prompt != instruction:
        _say(
            f"encoder {folder}: the checkpoint's default prompt {quoted(prompt)} is not used; the instruction is "
            f"{instruction!r}. To use the prompt, set it as the instruction"
        )
    return encoder


def _refuse_code(folder: Path, instructor: bool) -> None:
    """Refuse a folder that names classes or activation functions of unknown packages.

    sentence-transformers would replace such an activation function by tanh, with only a warning.
    """
    dense = [folder / "2_Dense"] if instructor else []
    modules = _read_json(folder / "modules.json")
    for module in modules if isinstance(modules, list) else []:
        kind = str(module.get("type"))
        if not instructor and not kind.startswith("sentence_transformers."):
            raise UserError(_code_message(folder, f"modules.json names the class {quoted(kind)}"))
        if kind.endswith(".Dense"):
            dense.append(folder / str(module.get("path")))
    for part in dense:
        settings = _read_json(part / "config.json")
        activation = settings.get("activation_function") if isinstance(settings, dict) else None
        if activation is not None and not str(activation).startswith("torch."):
            raise UserError(_code_message(folder, f"{part.name}/config.json names the function {quoted(activation)}"))


def _check_weights(folder: Path) -> None:
    """Refuse a safetensors file without tensors: transformers would silently fill the encoder with random numbers."""
    from safetensors import safe_open

    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            if not file.keys():
                raise UserError(f"encoder {folder}: {path.relative_to(folder)} has no tensors; copy the encoder again")


def _check_vocabulary(folder: Path, model: SentenceTransformer) -> None:
    """Refuse a folder without the tokenizer's files: transformers would silently use an empty vocabulary."""
    names = set(getattr(model.tokenizer, "vocab_files_names", {}).values())
    if names and not any(next(folder.rglob(name), None) for name in names):
        raise UserError(f"encoder {folder}: the tokenizer's vocabulary is missing ({' or '.join(sorted(names))})")


def _code_message(folder: Path, what: str) -> str:
    return (
        f"encoder {folder}: needs Python code of its own ({what}), and code of a checkpoint is never run; choose an "
        "encoder that needs none"
    )


def _names_instructor(folder: Path) -> bool:
    modules = _read_json(folder / "modules.json")
    if not isinstance(modules, list):
        return False
    return any("instructor" in str(module.get("type")).lower() for module in modules if isinstance(module, dict))


def _load_instructor(folder: Path, device: str) -> SentenceTransformer:
    """Transformer, Pooling without the instruction, Dense, Normalize: the four modules of an Instructor checkpoint."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    transformer = Transformer.load(str(folder), local_files_only=True, trust_remote_code=False)
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean", include_prompt=False)
    dense = Dense.load(str(folder / "2_Dense"), trust_remote_code=False)
    return SentenceTransformer(modules=[transformer, pooling, dense, Normalize()], device=device)


def _read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
        ValueError: the file is not readable JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not readable JSON ({error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide sentence-transformers' warnings: the warning about default prompts is wrong here."""
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _encodable(text: str) -> str:
    """The text with U+FFFD for half surrogate pairs, which tokenizers refuse."""
    return _HALF_PAIR.sub("\ufffd", text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")


def _reason(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _say(message: str) -> None:
    print(for_terminal(f"lora-retriever: {message}"), file=sys.stderr)
