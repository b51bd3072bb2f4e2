"""Training one LoRA: the loss is the answer's alone, the base stays, the loop over a pool resumes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from places import ROOT, TINY
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lora_retriever.data.rows import PoolEntry
from lora_retriever.errors import UserError
from lora_retriever.generation.examples import IGNORED, LeftPadding, encode_example
from lora_retriever.training.adapter import TrainingOptions, train_adapter
from peft_composition import ComposableModel

OPTIONS = TrainingOptions(rank=4, alpha=8, epochs=3, learning_rate=5e-3, batch_size=4, max_tokens=128)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_loras", ROOT / "scripts" / "train_loras.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loss_is_the_mean_over_the_answers_tokens(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry]
) -> None:
    """A padded batch with few logits kept, against one forward pass per sample with all of them."""
    examples = [
        encode_example(tokenizer, sample, OPTIONS.template, OPTIONS.max_tokens) for sample in tiny_pool[0].sample[:3]
    ]
    batch = LeftPadding(0)(examples)
    assert batch["labels"].shape[1] == batch["logits_to_keep"] < batch["input_ids"].shape[1]
    with torch.no_grad():
        loss = base(**batch).loss
        losses = []
        for example in examples:
            tokens = torch.tensor([example["input_ids"]])
            log_probabilities = base(tokens).logits.log_softmax(-1)[0]
            losses += [
                -log_probabilities[place - 1, token]
                for place, (token, label) in enumerate(zip(example["input_ids"], example["labels"], strict=True))
                if label != IGNORED
            ]
    assert loss == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_labels_are_the_answer_and_its_end(tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry]) -> None:
    sample = tiny_pool[0].sample[0]
    example = encode_example(tokenizer, sample, OPTIONS.template, OPTIONS.max_tokens)
    answer = [token for token, label in zip(example["input_ids"], example["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(answer[:-1]) == sample.targets
    assert answer[-1] == tokenizer.eos_token_id
    cut = encode_example(tokenizer, sample, OPTIONS.template, OPTIONS.max_tokens, 1)
    assert cut["labels"][-1] != tokenizer.eos_token_id


def test_a_tokenizer_without_an_eos_token_is_a_users_mistake(tiny_pool: list[PoolEntry]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"base: it has no EOS token, so no adapter learns to end answers"):
        encode_example(tokenizer, tiny_pool[0].sample[0], OPTIONS.template, OPTIONS.max_tokens)


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_base(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    samples = tiny_pool[0].sample
    record = train_adapter(base, tokenizer, samples[:16], OPTIONS, tmp_path / "adapter", validation=samples[16:])
    assert record["losses"][-1] < record["losses"][0]
    assert len(record["validation_losses"]) == 3
    assert record["steps"] == 12
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    ComposableModel(base).load_adapter(tmp_path / "adapter", name="trained")
    assert json.loads((tmp_path / "adapter" / "training.json").read_text()) == record


@pytest.mark.slow
def test_a_pool_is_trained_task_by_task_and_resumed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_pool: list[PoolEntry]
) -> None:
    names = [entry.model_name for entry in tiny_pool[:2]]
    arguments = [
        *("--base", str(TINY / "base"), "--pool", str(TINY / "pool.json"), "--out", str(tmp_path / "adapters")),
        *("--epochs", "1", "--batch-size", "10", "--dtype", "float32", "--device", "cpu"),
    ]
    assert script.main([*arguments, "--only", names[0]]) == 0
    first = (tmp_path / "adapters" / names[0] / "adapter_model.safetensors").stat().st_mtime_ns
    assert script.main([*arguments, "--only", ",".join(names)]) == 0
    assert "1 of 2 adapters exist, 1 to train" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(names)
    assert (tmp_path / "adapters" / names[0] / "adapter_model.safetensors").stat().st_mtime_ns == first

    assert script.main([*arguments, "--only", names[0], "--rank", "9"]) == 2
    assert "was trained with rank 6 (now 9)" in capsys.readouterr().err
    assert script.main([*arguments, "--only", "nothing"]) == 2
    assert "has no entry nothing" in capsys.readouterr().err
