"""The output layer's input lies in one piece of memory, and the logits equal the logits of the plain model."""

from __future__ import annotations

import pytest
import torch
from composition_cases import tiny_llama

from lora_retriever.generation.heads import contiguous_head


def test_logits_of_the_last_positions_are_those_of_the_plain_model_and_are_made_of_one_piece() -> None:
    model, ids = tiny_llama(), torch.randint(5, 50, (3, 7))
    head, seen = model.get_output_embeddings(), []

    class Spy(torch.nn.Module):
        weight = head.weight

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            seen.append(hidden.is_contiguous())
            return head(hidden)

    model.set_output_embeddings(Spy())
    plain = model(input_ids=ids, logits_to_keep=2).logits  # [3, 2, vocabulary]
    with contiguous_head(model):
        logits = model(input_ids=ids, logits_to_keep=2).logits
    again = model(input_ids=ids, logits_to_keep=2).logits
    assert seen == [False, True, False]
    torch.testing.assert_close(logits, plain)
    assert torch.equal(again, plain)


def test_an_error_leaves_the_model_as_it_was() -> None:
    model = tiny_llama()
    with pytest.raises(RuntimeError, match="out of luck"), contiguous_head(model):
        raise RuntimeError("out of luck")
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_without_an_output_layer_is_left_alone() -> None:
    model = tiny_llama().model
    with contiguous_head(model):
        assert model(input_ids=torch.tensor([[5, 6]])).last_hidden_state.shape[:2] == (1, 2)
