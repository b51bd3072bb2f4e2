"""Loading of any base: a base that cannot be loaded gives one line, and no code of a checkpoint is run."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import tiny_t5
from places import TINY
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from lora_retriever.errors import UserError
from lora_retriever.generation.composition import Composition
from lora_retriever.generation.generator import Generator, make_prompts
from lora_retriever.generation.loading import (
    ModelSource,
    load_base,
    load_composable,
    load_config,
    load_generator,
    load_tokenizer,
    skeleton,
)
from lora_retriever.generation.settings import GenerationSection

SETTINGS = GenerationSection(template="{inputs}", max_prompt_tokens=64, max_new_tokens=8)
WEIGHTS = "model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of the miniature's base, to spoil."""
    folder = tmp_path / "base"
    shutil.copytree(TINY / "base", folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoiled_weights(folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


CODE = 'raise SystemExit("code of a checkpoint was run")\n'


@pytest.mark.parametrize("load", [load_config, load_tokenizer, skeleton, lambda f: load_base(f, torch.float32, "cpu")])
def test_code_of_a_base_is_neither_run_nor_asked_about(
    base: Path, load: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config_own.py", "model_own.py", "tokenizer_own.py"):
        (base / name).write_text(CODE)
    auto_map = {"AutoConfig": "config_own.OwnConfig", "AutoModelForCausalLM": "model_own.OwnModel"}
    edit(base / "config.json", model_type="own-llama", auto_map=auto_map)
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenizer_own.Own", None]}})
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(UserError) as error:
        load(base)
    message = one_line(error)
    assert str(base) in message
    assert "brings Python code of its own (`auto_map`), and code of a checkpoint is never run" in message
    assert sys.stdin.read() == "y\n" * 9


def test_a_base_of_a_known_type_loads_without_the_code_beside_it(base: Path) -> None:
    (base / "config_own.py").write_text(CODE)
    edit(base / "config.json", auto_map={"AutoConfig": "config_own.OwnConfig"})
    assert load_base(base, torch.float32, "cpu").config.model_type == "llama"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "null"),
        ("config.json", "[" * 100_000),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}'),
        ("config.json", '{"model_type": "llama", "vocab_size": -5}'),
        ("config.json", '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}"),
        ("config.json", '{"model_type": "nothing-of-this-name"}'),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"eos_token": {"a": {}}}'),
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": "two"}'),
        (WEIGHTS, ""),
        (WEIGHTS, "no tensors at all"),
    ],
)  # fmt: skip
def test_an_unusable_file_of_a_base_is_one_line(base: Path, file: str, content: str) -> None:
    (base / file).write_text(content)
    source = ModelSource(base, {}, SETTINGS)
    with pytest.raises(UserError) as error:
        load_generator(source)
    assert str(base) in one_line(error)


def test_files_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for load in (load_config, load_tokenizer, skeleton):
        with pytest.raises(UserError) as error:
            load(tmp_path / "empty")
        one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_with_a_weight_that_is_no_number_is_named(base: Path, value: float, dtype: torch.dtype) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = value

    spoiled_weights(base, spoil)
    with pytest.raises(UserError) as error:
        load_base(base, dtype, "cpu")
    assert "weights hold NaN or infinity (model.layers.2.mlp.up_proj.weight)" in one_line(error)


@pytest.mark.slow
def test_a_base_that_lacks_weights_is_named(base: Path) -> None:
    """transformers fills missing tensors with random numbers."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.2.mlp.up_proj.weight"]

    spoiled_weights(base, spoil)
    with pytest.raises(UserError) as error:
        load_base(base, torch.float32, "cpu")
    assert "lack 1 of the weights that its configuration asks for, such as model.layers.2.mlp.up_proj.weight" in str(
        error.value
    )


@pytest.mark.slow
def test_an_encoder_decoder_base_that_is_no_t5_is_loaded_for_composing_alone(tmp_path: Path) -> None:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    BartForConditionalGeneration(BartConfig(vocab_size=566, **sizes, **heads)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "base" / name, tmp_path / name)
    assert load_composable(tmp_path, {}, torch.float32, "cpu", every_kind=True).base.config.model_type == "bart"
    for load in (lambda: load_generator(ModelSource(tmp_path, {}, SETTINGS)), lambda: skeleton(tmp_path)):
        with pytest.raises(UserError) as error:
            load()
        assert "bart is an encoder-decoder model; of these, rows are answered" in one_line(error)


@pytest.mark.slow
def test_a_t5_that_names_no_start_token_is_refused(tmp_path: Path) -> None:
    tiny_t5(tmp_path)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / name).read_text())
        del content["decoder_start_token_id"]
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load_generator(ModelSource(tmp_path, {}, SETTINGS))
    assert "its configuration names no decoder_start_token_id" in one_line(error)


@pytest.mark.slow
def test_a_model_type_without_a_language_model_is_one_short_line(base: Path) -> None:
    edit(base / "config.json", model_type="vit", architectures=["ViTModel"])
    with pytest.raises(UserError) as error:
        skeleton(base)
    assert one_line(error).endswith("transformers has no language model of this type")


def test_more_layers_than_any_model_has_are_refused_before_they_are_built(base: Path) -> None:
    edit(base / "config.json", num_hidden_layers=10**9)
    for load in (load_config, skeleton):
        with pytest.raises(UserError) as error:
            load(base)
        assert "num_hidden_layers = 1000000000; no model has more than 10000" in one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize("token", [565, 566])
def test_a_padding_token_that_the_base_lacks_is_refused(base: Path, token: int) -> None:
    source = ModelSource(base, {}, SETTINGS.model_copy(update={"pad_token_id": token}))
    if token < 566:
        assert load_generator(source).pad_id == token
        return
    with pytest.raises(UserError, match="pad_token_id = 566 is outside the base's vocabulary of 566 tokens"):
        load_generator(source)


@pytest.mark.slow
def test_learned_positions_are_checked_before_weights_are_read(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=566, n_embd=16, n_layer=1, n_head=2, n_positions=48, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "base" / name, tmp_path / name)
    settings = SETTINGS.model_copy(update={"max_prompt_tokens": 40})
    load_generator(ModelSource(tmp_path, {}, settings))
    (tmp_path / WEIGHTS).write_text("no tensors at all")
    with pytest.raises(UserError, match=r"= 41 \+ 8 = 49, and the base has 48 positions"):
        load_generator(ModelSource(tmp_path, {}, settings.model_copy(update={"max_prompt_tokens": 41})))


# Generators


@pytest.fixture
def generator(base: Path) -> Generator:
    return load_generator(ModelSource(base, {}, SETTINGS))


@pytest.mark.slow
def test_a_prompt_with_a_token_outside_the_vocabulary_is_refused_by_name(base: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<new>"])
    generator = Generator(load_composable(base, {}, torch.float32, "cpu"), tokenizer, SETTINGS)
    prompts = make_prompts(["what is it ?", "what is <new> ?"], tokenizer, SETTINGS)
    generator.answer(prompts[:1], [Composition()], "mixture")
    with pytest.raises(UserError, match=r"^token 566 is outside the base's vocabulary of 566$"):
        generator.answer(prompts, [Composition()] * 2, "mixture")


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 2])
def test_logits_that_are_no_numbers_fail_the_row(
    generator: Generator, value: float, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong logits come at the first token of an answer, or at a later token."""
    model, calls = generator.model, 0

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            logits = logits.clone()
            logits[-1, -1, 7] = value
        return logits

    prompts = make_prompts(["what is it", "who is it"], generator.tokenizer, SETTINGS)
    monkeypatch.setattr(generator, "eos_ids", [])
    handle = model.base.get_output_embeddings().register_forward_hook(spoil)
    try:
        with pytest.raises(UserError, match="the model's logits are NaN or infinite for this prompt"):
            generator.answer(prompts, [Composition()] * 2, "mixture")
    finally:
        handle.remove()
    answers = generator.answer(prompts, [Composition()] * 2, "mixture")
    assert [answer.generated_tokens for answer in answers] == [SETTINGS.max_new_tokens] * 2
