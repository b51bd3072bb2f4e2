"""Vectors of KnowledgeNet's passages from a base model, for the missing-label study (`missing_labels.py --embeddings`).

    python scripts/procedures/passage_vectors.py --knowledgenet FILE --base DIR --out vectors.npz

The vector of a passage is the mean of the last hidden states of its tokens; the base has no adapter. Each dimension is
then standardised over all passages, without their labels, and each vector gets the length 1. A stopped run goes on
where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.generation.loading import load_base, load_tokenizer

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `procedures` is
from procedures.relation_data import read_knowledgenet

Array = NDArray[np.float32]
BATCH = 16
"""Number of passages in one pass through the base."""
PASSES = 20
"""Number of passes after which the vectors are written to disk."""


@torch.inference_mode()
def means(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Array:
    """The mean of the last hidden states of the tokens of each text, [texts, hidden]."""
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
    states = base.base_model(**batch).last_hidden_state.float()  # [texts, n, hidden]
    mask = batch["attention_mask"][..., None]  # [texts, n, 1]
    found: Array = ((states * mask).sum(dim=1) / mask.sum(dim=1)).numpy()
    return found


def standardised(raw: Array) -> Array:
    """Vectors [n, dim] with mean 0 and variance 1 in each dimension, and then with length 1."""
    centred = (raw - raw.mean(axis=0)) / np.maximum(raw.std(axis=0), 1e-6)
    found: Array = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and compute; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--knowledgenet", type=Path, required=True, help="file of KnowledgeNet's passages")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="file of numpy for the vectors")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts = [passage.text for passage in read_knowledgenet(args.knowledgenet)]
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # batches of equal lengths need no padding
    base, tokenizer = load_base(args.base, torch.float32, "cpu"), load_tokenizer(args.base)
    unfinished = args.out.with_suffix(".unfinished.npy")
    raw: Array = np.load(unfinished) if unfinished.exists() else np.zeros((0, base.config.hidden_size), np.float32)
    while len(raw) < len(texts):
        for _ in range(PASSES):
            if len(raw) < len(texts):
                chosen = [texts[place] for place in order[len(raw) : len(raw) + BATCH]]
                raw = np.concatenate([raw, means(base, tokenizer, chosen)])
        np.save(unfinished, raw)
        print(f"{len(raw)} of {len(texts)} passages", flush=True)
    in_order = np.empty_like(raw)
    in_order[order] = raw
    np.savez(args.out, emb=standardised(in_order))
    unfinished.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
