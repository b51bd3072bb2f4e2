"""Small fast tokenizers of every kind, trained on a text here: none can be downloaded in a test."""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "### Instruction:\nwhat does the farmer plant in spring ?\n\n### Response:\nwheat and barley",
    "The bishop (of Rome) wears white; user and assistant, [INST] text [/INST].",
    "Ünïcode: naïve café 日本語 🙂 – and 3.14 numbers, 'quotes' and \"more\".",
] * 5
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_end|>"]
NFKC = normalizers.NFKC()
PLAIN_ADDED = "<tool>"
"""An added token that is not special, but a part of the vocabulary like any word."""


def finished(backend: Tokenizer, begins: bool = True, ends: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers that puts `<s>` before a text, `</s>` behind it, both or none."""
    backend.add_tokens([PLAIN_ADDED])
    single = [*(["<s>"] if begins else []), "$A", *(["</s>"] if ends else [])]
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=" ".join(single), special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer like GPT-2's and Llama-3's: bytes, merges, and whole words of the vocabulary."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return finished(backend)


def sentence_piece(legacy: bool = False, normalized: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama-2's:

    `▁` for spaces, bytes for unknown characters. With `legacy`, the normaliser writes the `▁`.
    """
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = [AddedToken(token, normalized=normalized, special=True) for token in SPECIAL]
    codes = [f"<0x{code:02X}>" for code in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, max_token_length=12, special_tokens=[*special, *codes], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in codes]
    return finished(Tokenizer.from_str(json.dumps(content)))


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer like T5's: special tokens are also pieces of the model, and `</s>` comes behind every text."""
    texts = sorted({NFKC.normalize_str(text) for text in TEXTS})
    words = sorted({f"▁{word}" for text in texts for word in text.split()})
    characters = sorted({"▁", *"".join(words)} - {*words})
    # A trained vocabulary would differ between processes. A word costs less than its characters.
    scores = [(token, 0.0) for token in SPECIAL] + [(word, -5.0) for word in words]
    backend = Tokenizer(models.Unigram(scores + [(character, -10.0) for character in characters], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.normalizer = NFKC
    backend.add_special_tokens(SPECIAL)
    backend.add_special_tokens(["<extra>"])
    return finished(backend, begins=False, ends=True)


def word_piece() -> PreTrainedTokenizerFast:
    """A tokenizer like BERT's: lower case, pieces of words, a token before and a token behind every text."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return finished(backend, ends=True)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "sentence_piece": sentence_piece,
    "sentence_piece_legacy": lambda: sentence_piece(legacy=True),
    "sentence_piece_normalized": lambda: sentence_piece(legacy=True, normalized=True),
    "unigram": unigram,
    "word_piece": word_piece,
}
