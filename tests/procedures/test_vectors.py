"""Vectors of passages from a base: each vector is the mean over its passage's tokens, whatever else is in the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from places import TINY
from procedures import passage_vectors
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["what does Karin wear?", "the crop", "what is the crop of Ister and of Velan?"]


@pytest.mark.slow
def test_a_vector_is_the_mean_of_the_last_hidden_states_of_its_passage(tmp_path: Path) -> None:
    """Passages of different lengths in one batch equal one pass for each passage.

    The file keeps the passages' order.
    """
    lines = [{"sentText": text, "relationMentions": [], "negativeLabels": [], "fold": 1} for text in TEXTS]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = ["--knowledgenet", str(tmp_path / "passages.jsonl"), "--base", str(TINY / "base")]
    assert passage_vectors.main([*call, "--out", str(tmp_path / "v.npz")]) == 0
    base, tokenizer = AutoModelForCausalLM.from_pretrained(TINY / "base"), AutoTokenizer.from_pretrained(TINY / "base")
    raw = []
    for text in TEXTS:
        with torch.no_grad():
            states = base(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0]
        raw.append([sum(column) / len(column) for column in states.T.tolist()])
    wanted = []
    for column in zip(*raw, strict=True):
        mean = sum(column) / len(column)
        deviation = (sum((value - mean) ** 2 for value in column) / len(column)) ** 0.5
        wanted.append([(value - mean) / deviation for value in column])
    rows = np.array(wanted).T
    rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
    assert np.allclose(np.load(tmp_path / "v.npz")["emb"], rows, atol=2e-3)
    assert [path.name for path in tmp_path.iterdir() if "unfinished" in path.name] == []
