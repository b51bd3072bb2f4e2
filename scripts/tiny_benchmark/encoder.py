"""The sentence encoder: a small T5 encoder in Instructor's layout, trained to bring a task's inputs together.

As in the paper, the encoder is trained on a share of the tasks only, and has to generalise to the other tasks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from random import Random

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from lora_retriever.experiment.profile import INSTRUCTION

TEMPERATURE = 0.1
LEARNING_RATE = 5e-4
WIDTH = 96


def build_encoder(vocabulary: Sequence[str], seed: int) -> SentenceTransformer:
    """An untrained encoder: T5 encoder of two layers, mean pooling without the instruction, dense, normalise."""
    torch.manual_seed(seed)
    ids = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"[\n.,?:|]"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", ids["</s>"])])
    config = T5Config(
        vocab_size=len(ids), d_model=WIDTH, d_kv=WIDTH // 4, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        dropout_rate=0.0, pad_token_id=ids["<pad>"], eos_token_id=ids["</s>"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        T5EncoderModel(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=256
        ).save_pretrained(folder)
        transformer = Transformer(folder)
    pooling = Pooling(WIDTH, pooling_mode="mean", include_prompt=False)
    dense = Dense(WIDTH, WIDTH, bias=False, activation_function=torch.nn.Identity())
    return SentenceTransformer(modules=[transformer, pooling, dense, Normalize()], device="cpu")


def train_encoder(
    encoder: SentenceTransformer,
    samples: Mapping[str, Sequence[str]],
    seed: int,
    steps: int,
) -> list[float]:
    """Train by contrast.

    Each step takes two inputs of each task, which must be nearer to each other than to other inputs.
    Args:
        samples: inputs of the tasks trained on, by task.

    Returns:
        The loss of every step.
    """
    rng = Random(f"encoder/{seed}")
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(steps):
        pairs = [rng.sample(inputs, 2) for inputs in samples.values()]
        anchors, positives = (_embed(encoder, [pair[side] for pair in pairs]) for side in (0, 1))
        similarity = anchors @ positives.T / TEMPERATURE  # [tasks, tasks]
        loss = torch.nn.functional.cross_entropy(similarity, torch.arange(len(pairs)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    encoder.eval()
    return losses


def _embed(encoder: SentenceTransformer, texts: Sequence[str]) -> Tensor:
    """Embeddings [texts, width] with gradients. The instruction is left out of the pooling, as in `encode`."""
    features = encoder.preprocess([text.strip() for text in texts], prompt=INSTRUCTION)
    return encoder(features)["sentence_embedding"]
