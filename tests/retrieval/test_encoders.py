"""Encoders give the same embeddings as their parts, computed one by one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import TINY
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, RobertaConfig, RobertaModel, T5EncoderModel

from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import INSTRUCTION
from lora_retriever.retrieval.encoders import SentenceEncoder, default_prompt, load_encoder

TEXTS = ["where does Karl live ?", "  a review of the film \n", "x"]


def instructor_by_hand(folder: Path, texts: list[str]) -> np.ndarray:
    """T5, the mean over all tokens except the instruction's tokens, the dense layer, and unit length; text by text."""
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


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["auto", "instructor"])
def test_instructor_vectors_leave_the_instruction_out_of_the_pooling(layout: str) -> None:
    """Fault 12 of the original: InstructorEmbedding is wrong or fails with current sentence-transformers."""
    encoder = load_encoder(TINY / "encoder", layout, INSTRUCTION)  # type: ignore[arg-type]
    assert np.abs(encoder.encode(TEXTS) - instructor_by_hand(TINY / "encoder", TEXTS)).max() < 3e-6


@pytest.mark.slow
def test_a_folder_that_names_instructor_classes_is_read_as_one(tmp_path: Path) -> None:
    """InstructorEmbedding itself saves such a folder; sentence-transformers alone does not know the class."""
    folder = tmp_path / "encoder"
    shutil.copytree(TINY / "encoder", folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "InstructorEmbedding.instructor.INSTRUCTOR_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    vectors = load_encoder(folder, "auto", INSTRUCTION).encode(TEXTS)
    assert np.abs(vectors - instructor_by_hand(TINY / "encoder", TEXTS)).max() < 3e-6


@pytest.mark.slow
def test_vectors_do_not_depend_on_the_batch() -> None:
    one, many = (load_encoder(TINY / "encoder", batch_size=size).encode(TEXTS * 3) for size in (1, 64))
    assert np.abs(one - many).max() < 1e-6


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(tmp_path)


# Prompts


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the miniature's encoder, to be changed."""
    return Path(shutil.copytree(TINY / "encoder", tmp_path / "encoder"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PROMPT = "please answer this question : "


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["auto", "sentence-transformers"])
def test_without_an_instruction_the_checkpoints_default_prompt_stays_out(
    copied: Path, layout: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copied / "config_sentence_transformers.json", prompts={"query": PROMPT}, default_prompt_name="query")
    capsys.readouterr()
    found = load_encoder(copied, layout).encode(TEXTS)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "prompt" in line]
    assert said.endswith(
        f"encoder {copied}: the checkpoint's default prompt {PROMPT!r} is not used; the instruction is ''. To use the "
        "prompt, set it as the instruction"
    )
    assert np.array_equal(found, load_encoder(TINY / "encoder", layout).encode(TEXTS))
    assert default_prompt(copied) == PROMPT
    given = load_encoder(copied, layout, PROMPT).encode(TEXTS)
    assert "prompt" not in capsys.readouterr().err, "the prompt is used as the instruction, so nothing is to be said"
    assert not np.allclose(found, given)


@pytest.mark.parametrize(
    "settings", [{}, {"prompts": None}, {"prompts": {"query": ""}}, {"prompts": {"a": "b"}}, {"prompts": ["a"]}]
)
def test_a_folder_that_names_no_default_prompt_has_none(copied: Path, settings: dict[str, Any]) -> None:
    (copied / "config_sentence_transformers.json").write_text(json.dumps({**settings, "default_prompt_name": "query"}))
    assert default_prompt(copied) is None
    (copied / "config_sentence_transformers.json").unlink()
    assert default_prompt(copied) is None


# Limits


Roberta = Callable[..., SentenceEncoder]


@pytest.fixture
def roberta(tmp_path: Path) -> Roberta:
    """Makes a small random RoBERTa.

    Its positions begin at `padding` + 1, so it has learned `padding` + 1 fewer positions.
    """

    def make(positions: int, padding: int = 1, model_max_length: int = 10**30) -> SentenceEncoder:
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(TINY / "encoder")
        config = RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=positions, pad_token_id=padding,
        )  # fmt: skip
        RobertaModel(config).eval().save_pretrained(tmp_path / "roberta")
        tokenizer.model_max_length = model_max_length
        tokenizer.save_pretrained(tmp_path / "roberta")
        modules = [Transformer(str(tmp_path / "roberta")), Pooling(16, pooling_mode="mean")]
        return SentenceEncoder(SentenceTransformer(modules=modules, device="cpu"), name="small")

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "padding", "limit"), [(18, 1, 16), (18, 0, 17)])
def test_positions_behind_the_padding_index_are_the_limit(
    roberta: Roberta, positions: int, padding: int, limit: int
) -> None:
    encoder = roberta(positions, padding)
    assert encoder.limit == limit
    words = "x " * 40
    cut = encoder.model.tokenizer(words, truncation=True, max_length=limit).input_ids
    assert len(cut) == limit
    with torch.no_grad():
        hidden = encoder.model[0].model(torch.tensor([cut])).last_hidden_state[0]
    assert np.abs(encoder.encode([words])[0] - hidden.mean(dim=0).numpy()).max() < 1e-5


@pytest.mark.slow
def test_a_tokenizers_smaller_limit_counts(roberta: Roberta) -> None:
    assert roberta(100, 1, model_max_length=12).limit == 12
    assert load_encoder(TINY / "encoder").limit is None or load_encoder(TINY / "encoder").limit > 100


@pytest.mark.slow
def test_truncated_texts_are_counted_in_one_line(roberta: Roberta, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = roberta(12)  # 10 tokens
    fits = next("x " * n for n in range(1, 12) if len(encoder.model.tokenizer("x " * n).input_ids) == 10)
    texts = [fits, fits + "x", "short", "x " * 50, "x " * 50, "x " * 51]
    capsys.readouterr()
    encoder.encode(texts)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == (
        "lora-retriever: encoder small: 3 of 5 texts are longer than the 10 tokens that the encoder takes; their ends "
        "are cut off"
    )
    encoder.encode(texts)
    assert capsys.readouterr().err == "", "each text is counted once"


@pytest.mark.slow
def test_the_instruction_counts_as_tokens_of_a_text(roberta: Roberta, capsys: pytest.CaptureFixture[str]) -> None:
    plain = roberta(12)
    fits = next("x " * n for n in range(1, 12) if len(plain.model.tokenizer("x " * n).input_ids) == 10)
    with_instruction = SentenceEncoder(plain.model, "x x ", name="small")
    capsys.readouterr()
    with_instruction.encode([fits, "x"])
    assert "1 of 2 texts are longer than the 10 tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_an_instruction_that_leaves_no_room_is_refused(roberta: Roberta) -> None:
    with pytest.raises(
        UserError, match=r"takes 10 tokens, and the instruction 'x x .*…' fill \d\d of them: no text fits"
    ):
        SentenceEncoder(roberta(12).model, "x " * 60)


def test_a_limit_that_leaves_no_text_is_refused(copied: Path) -> None:
    edit(copied / "tokenizer_config.json", model_max_length=1)
    with pytest.raises(UserError, match="takes 1 tokens, and special tokens fill 1 of them: no text fits"):
        load_encoder(copied)


# Encoders that are broken, or bring code


def broken(copied: Path, change: Callable[[dict[str, torch.Tensor]], None], part: str = "") -> Path:
    path = copied / part / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return copied


@pytest.mark.parametrize("part", ["", "2_Dense"])
def test_a_file_of_weights_without_tensors_is_refused(copied: Path, part: str) -> None:
    """transformers fills missing tensors of an encoder with random numbers."""
    broken(copied, dict.clear, part)
    with pytest.raises(UserError, match=r"^encoder .*: (2_Dense/)?model\.safetensors has no tensors; copy the encoder"):
        load_encoder(copied)


def test_an_encoder_that_gives_nan_is_named_with_the_text(copied: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["linear.weight"][0, 0] = torch.nan

    encoder = load_encoder(broken(copied, spoil, "2_Dense"))
    with pytest.raises(UserError, match=f"^encoder {copied}: gives NaN or infinite values for text '.*'$"):
        encoder.encode(TEXTS)


@pytest.mark.slow
def test_an_encoder_whose_last_layer_is_zero_is_named(copied: Path) -> None:
    encoder = load_encoder(broken(copied, lambda tensors: tensors["linear.weight"].zero_(), "2_Dense"))
    with pytest.raises(UserError, match=f"^encoder {copied}: gives only zeros for text "):
        encoder.encode(TEXTS)


@pytest.mark.slow
def test_an_encoder_that_tells_no_texts_apart_is_named(roberta: Roberta) -> None:
    encoder = roberta(100)
    with torch.no_grad():
        encoder.model[0].model.encoder.layer[0].output.LayerNorm.weight.zero_()
        encoder.model[0].model.encoder.layer[0].output.LayerNorm.bias.fill_(1)
    with pytest.raises(UserError, match="encoder small: gives the same vector for 20 different texts"):
        encoder.encode([f"text {n}" for n in range(20)])
    assert encoder.encode(["Yes", "yes"]).shape == (2, 16), "of few texts all may be equal"


@pytest.mark.slow
def test_an_encoder_that_fails_on_a_text_is_named(roberta: Roberta, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = roberta(100)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise IndexError("index out of range\nin self")

    monkeypatch.setattr(encoder.model, "encode", fail)
    with pytest.raises(UserError, match=r"^encoder small: fails on text 'text' .*: index out of range in self$"):
        encoder.encode(["text"])


def vectors_of_all_tokens(*args: Any, **kwargs: Any) -> Any:
    return [np.ones((3, 4))] * len(args[0])


@pytest.mark.slow
def test_an_encoder_that_gives_no_vectors_is_named(roberta: Roberta, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = roberta(100)
    monkeypatch.setattr(encoder.model, "encode", vectors_of_all_tokens)
    with pytest.raises(UserError, match="2 dimensions for a text, where a vector has one"):
        encoder.encode(["text"])


def write_module(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "evil.Module"
    (folder / "modules.json").write_text(json.dumps(modules))


BROUGHT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a module": (write_module, "modules.json names the class 'evil.Module'"),
    "an activation": (
        lambda folder: edit(folder / "2_Dense" / "config.json", activation_function="evil.Activation"),
        "2_Dense/config.json names the function 'evil.Activation'",
    ),
    "a model": (
        lambda folder: edit(
            folder / "config.json",
            model_type="evil",
            auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Module"},
        ),
        "transformers has no class of its own for this model",
    ),
    "a tokenizer": (
        lambda folder: edit(
            folder / "tokenizer_config.json",
            tokenizer_class="EvilTokenizer",
            auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
        ),
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("brought", BROUGHT)
def test_code_of_a_checkpoint_is_never_run_or_asked_about(
    copied: Path, brought: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, message = BROUGHT[brought]
    write(copied)
    mark = tmp_path / "it-ran"
    (copied / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Module: ...\nConfig = Activation = Module\n")
    monkeypatch.syspath_prepend(str(copied))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("standard input was read"))
    for layout in ("auto", "instructor"):
        if message and (brought, layout) != ("a module", "instructor"):
            with pytest.raises(UserError, match=f"needs Python code of its own .{message}.*is never run") as raised:
                load_encoder(copied, layout)  # type: ignore[arg-type]
            assert "\n" not in str(raised.value)
        else:
            load_encoder(copied, layout)  # type: ignore[arg-type]
    assert not mark.exists()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut off": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100),
    "another width": lambda folder: edit(folder / "config.json", d_model=48),
    "another dense layer": lambda folder: edit(folder / "2_Dense" / "config.json", in_features=7),
    "no JSON": lambda folder: (folder / "modules.json").write_text("{"),
    "deep JSON": lambda folder: (folder / "modules.json").write_text("[" * 100_000),
    "JSON of another shape": lambda folder: (folder / "modules.json").write_text('{"a": [1]}'),
    "a list of numbers": lambda folder: (folder / "modules.json").write_text("[1, 2]"),
    "null": lambda folder: (folder / "config.json").write_text("null"),
    "deep prompts": lambda folder: (folder / "config_sentence_transformers.json").write_text("[" * 100_000),
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
    "a path outside": lambda folder: edit_path(folder, "../../.."),
}


def edit_path(folder: Path, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_wrong_with_a_folder_is_one_message(copied: Path, damage: str) -> None:
    DAMAGES[damage](copied)
    with pytest.raises(UserError, match=f"^encoder {copied}: ") as raised:
        load_encoder(copied)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_half_a_surrogate_pair_is_encoded_as_the_replacement_character() -> None:
    encoder = load_encoder(TINY / "encoder")
    assert np.array_equal(encoder.encode(["half \ud83d !"]), encoder.encode(["half \ufffd !"]))
    assert encoder.encode(["nul \x00", "\u2028", "\ufeffa", ""]).shape[0] == 4
