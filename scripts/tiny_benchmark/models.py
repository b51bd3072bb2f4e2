"""The miniature's word-level tokenizer and the base model trained on it: a small Llama, made in minutes on one core."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import mean

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BATCH = 8
LENGTH = 128
LEARNING_RATE = 3e-3

_WORD = re.compile(r"\n|[.,?:|]|[^\s.,?:|\[\]]+")
_IGNORED = -100  # the label that transformers' loss passes over
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def vocabulary_of(texts: Iterable[str]) -> list[str]:
    """All words, punctuation marks and line breaks of some texts, sorted."""
    return sorted({word for text in texts for word in _WORD.findall(text)})


def build_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word, punctuation mark or line break.

    It puts `<s>` first and pads on the left.
    Decoding puts one space before a word, none before a punctuation mark, and none around a line break.
    """
    ids = {token: number for number, token in enumerate([*_SPECIAL, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex(r"[\n.,?:|]"), "isolated")]
    )
    # WordPiece's decoder joins tokens by spaces. No token begins with the decoder's continuation prefix.
    tidy = [decoders.Replace(f" {mark}", mark) for mark in (".", ",", "?", ":", "\n")]
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="@@", cleanup=False), decoders.Fuse(), *tidy, decoders.Replace("\n ", "\n")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def base_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaConfig:
    """The Llama of the miniature: heads of 32, tied embeddings."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # The usual 0.02 is for wide models. Here, attention would stay near zero for many steps.
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def train_base(
    config: LlamaConfig,
    tokenizer: PreTrainedTokenizerFast,
    documents: Iterator[str],
    seed: int,
    steps: int,
) -> tuple[LlamaForCausalLM, float]:
    """Train a language model from scratch on packed documents: AdamW, a short warm-up, linear decay in the last third.

    Args:
        documents: a stream that does not end before `steps` × `BATCH` × `LENGTH` tokens, marked as in `corpus`.

    Returns:
        The model, and its mean loss on the marked words of the last hundred steps.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    started, losses = time.perf_counter(), []
    for step, (tokens, labels, positions) in enumerate(islice(_packed(tokenizer, documents), steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(step / 100, 1, (steps - step + 1) / (steps / 3))
        loss = model(input_ids=tokens, labels=labels, position_ids=positions, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"  base: step {step}/{steps}, loss {mean(losses[-100:]):.3f}, {seconds:.0f} s", flush=True)
    return model.eval(), mean(losses[-100:])


def _packed(tokenizer: PreTrainedTokenizerFast, documents: Iterator[str]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Blocks of token ids, labels and positions, each [BATCH, LENGTH], documents packed as `<s> document </s>`.

    Positions begin at 0 with every document. Without a cache, transformers reads from these positions where a document
    begins, and no document attends to another document.
    """
    flat: list[tuple[int, int, int]] = []  # token, label, position
    for document in documents:
        tokens, labels = [tokenizer.bos_token_id], [_IGNORED]
        for place, part in enumerate(re.split(r"[\[\]]", document)):  # every second part was in brackets
            ids = tokenizer(part, add_special_tokens=False)["input_ids"]
            tokens += ids
            labels += ids if place % 2 else [_IGNORED] * len(ids)
        tokens.append(tokenizer.eos_token_id)
        labels.append(tokenizer.eos_token_id)
        flat += zip(tokens, labels, range(len(tokens)), strict=True)
        if len(flat) >= BATCH * LENGTH:
            block, flat = flat[: BATCH * LENGTH], flat[BATCH * LENGTH :]
            yield tuple(torch.tensor(column).view(BATCH, LENGTH) for column in zip(*block, strict=True))
