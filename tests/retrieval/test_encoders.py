"""Encoders give what their parts give when they are computed one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from places import TINY
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5EncoderModel

from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import INSTRUCTION
from lora_retriever.retrieval.encoders import load_encoder

TEXTS = ["where does Karl live ?", "  a review of the film \n", "x"]


def instructor_by_hand(folder: Path, texts: list[str]) -> np.ndarray:
    """T5, the mean over the tokens that are not the instruction's, dense, unit length; one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    (dense,) = [load_file(path) for path in folder.glob("*_Dense/model.safetensors")]
    instruction = [t for t in tokenizer(INSTRUCTION)["input_ids"] if t != tokenizer.eos_token_id]
    vectors = []
    for text in texts:
        tokens = tokenizer(INSTRUCTION + text.strip())["input_ids"]
        assert tokens[: len(instruction)] == instruction
        with torch.no_grad():
            hidden = model(torch.tensor([tokens])).last_hidden_state[0, len(instruction) :]  # [text tokens, width]
        vector = dense["linear.weight"] @ hidden.mean(dim=0)
        if "linear.bias" in dense:
            vector = vector + dense["linear.bias"]
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("layout", ["auto", "instructor"])
def test_instructor_vectors_leave_the_instruction_out_of_the_pooling(layout: str) -> None:
    """Fault 12 of the original: InstructorEmbedding is wrong or fails with current sentence-transformers."""
    encoder = load_encoder(TINY / "encoder", layout, INSTRUCTION)  # type: ignore[arg-type]
    assert np.abs(encoder.encode(TEXTS) - instructor_by_hand(TINY / "encoder", TEXTS)).max() < 3e-6


def test_a_folder_that_names_instructor_classes_is_read_as_one(tmp_path: Path) -> None:
    """What InstructorEmbedding itself saves; sentence-transformers alone would not know the class."""
    folder = tmp_path / "encoder"
    shutil.copytree(TINY / "encoder", folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "InstructorEmbedding.instructor.INSTRUCTOR_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    vectors = load_encoder(folder, "auto", INSTRUCTION).encode(TEXTS)
    assert np.abs(vectors - instructor_by_hand(TINY / "encoder", TEXTS)).max() < 3e-6


def test_vectors_do_not_depend_on_the_batch() -> None:
    one, many = (load_encoder(TINY / "encoder", batch_size=size).encode(TEXTS * 3) for size in (1, 64))
    assert np.abs(one - many).max() < 1e-6


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(tmp_path)
