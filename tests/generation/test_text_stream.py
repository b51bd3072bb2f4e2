"""The text of an answer while its tokens come: the pieces give the whole text, which is cut before stop texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lora_retriever.generation.text import TextStream


def streamed(tokenizer: PreTrainedTokenizerBase, ids: list[int], **options: object) -> tuple[str, TextStream]:
    stream = TextStream(tokenizer, **options)  # type: ignore[arg-type]
    text = "".join(stream.push([id]) for id in ids)
    return text + stream.finish(), stream


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(3, 500), max_size=12), cut=st.integers(0, 20), length=st.integers(1, 6))
def test_pieces_are_the_whole_text_up_to_the_stop_text(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], cut: int, length: int
) -> None:
    ids = [id % len(tokenizer) for id in ids]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert streamed(tokenizer, ids)[0] == whole
    assert streamed(tokenizer, ids, trims=True)[0] == whole.strip()
    stop = whole[cut : cut + length]
    if stop:
        text, stream = streamed(tokenizer, ids, stop=[stop, "\0never"])
        assert text == stream.text == whole[: whole.index(stop)] and stream.stopped


def test_an_answer_that_goes_on_keeps_the_space_at_the_border(tokenizer: PreTrainedTokenizerBase) -> None:
    before = tokenizer("what is the", add_special_tokens=False).input_ids
    whole = tokenizer("what is the answer to it", add_special_tokens=False).input_ids
    text = streamed(tokenizer, whole[len(before) :], before=before)[0]
    assert tokenizer.decode(before) + text == tokenizer.decode(whole)
