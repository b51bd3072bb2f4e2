"""Composition on bases that are quantised, compiled, tied or spread; a base on which it would be wrong is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from composition_cases import dense_update, merged, parts_of, some_ids, tiny_llama, write_adapter
from model_families import DECODERS, InDouble
from peft import PeftModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from peft_composition import AdapterError, ComposableModel, CompositionError
from peft_composition.pairs import Pair
from peft_composition.updates import add_pair

pytestmark = pytest.mark.slow

NAMES = ("attention", "full")
WEIGHTS = torch.tensor([[0.5, 0.25], [1.0, -0.5], [0.0, 0.0]])
SMALL_WEIGHTS = torch.tensor([[1.0], [0.5], [0.0]])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of the tiny Llama, in float."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(folder / "attention", tiny_llama(), seed=1),
        write_adapter(folder / "full", tiny_llama(), seed=2, target_modules="all-linear", r=2),
    ]


def loaded(base: Any, adapters: list[Path]) -> ComposableModel:
    model = ComposableModel(base)
    for name, adapter in zip(NAMES, adapters, strict=True):
        model.load_adapter(adapter, name)
    return model


# Quantised bases


class Int8Linear(nn.Module):
    """An int8 module like those of quantisation libraries: one scale for each output, and no parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127  # [d_out, 1]
        self.register_buffer("scale", scale.half())
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))  # [d_out, d_in]

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.qweight.to(x.dtype) * self.scale.to(x.dtype)).T


def replace_linears(base: LlamaForCausalLM, make: Callable[[nn.Linear], nn.Module]) -> LlamaForCausalLM:
    """Replace all linear modules but the output embedding."""
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, make(module))
    return base


def by_hand(base: LlamaForCausalLM) -> LlamaForCausalLM:
    return replace_linears(base, Int8Linear)


def by_torch(base: LlamaForCausalLM) -> LlamaForCausalLM:
    return torch.ao.quantization.quantize_dynamic(base, {nn.Linear}, dtype=torch.qint8)


def by_torchao(base: LlamaForCausalLM) -> LlamaForCausalLM:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig())
    return base


def by_bitsandbytes_8bit(base: LlamaForCausalLM) -> LlamaForCausalLM:
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear: nn.Linear) -> nn.Module:
        made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
        return made.to("cpu")

    return replace_linears(base, make)


def by_bitsandbytes_4bit(base: LlamaForCausalLM) -> LlamaForCausalLM:
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear: nn.Linear) -> nn.Module:
        made = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32)
        made.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False)
        return made.to("cpu")

    return replace_linears(base, make)


@pytest.mark.parametrize("mode", ["mixture", "fusion"])
@pytest.mark.parametrize("quantise", [by_hand, by_torch, by_torchao, by_bitsandbytes_8bit, by_bitsandbytes_4bit])
def test_on_a_quantised_base_the_update_is_exact_and_the_base_its_own(adapters, quantise, mode):
    parts = [parts_of(adapter, tiny_llama()) for adapter in adapters]
    base = quantise(tiny_llama())
    model = loaded(base, adapters)
    seen: dict[str, tuple[Tensor, Tensor]] = {}  # by module: input and output in the composed pass
    targets = {name for part in parts for name in part}
    for name in targets:

        def note(module: nn.Module, args: tuple[Tensor], output: Tensor, name: str = name) -> None:
            seen[name] = (args[0].clone(), output.clone())

        base.get_submodule(name).register_forward_hook(note)
    with torch.no_grad(), model.composed(NAMES, WEIGHTS, mode):
        model(input_ids=some_ids(3))
    assert seen.keys() == targets
    for name, (x, y) in seen.items():
        with torch.no_grad():
            expected = base.get_submodule(name)(x)  # the output of the quantised module itself
        for row, weights in enumerate(WEIGHTS):
            update = dense_update(parts, weights.tolist(), mode, name)
            assert update is not None
            expected[row] += (x[row].double() @ update.T).float()
        torch.testing.assert_close(y, expected, atol=2e-5, rtol=2e-5)


def test_an_int8_base_keeps_pairs_in_the_models_dtype(adapters):
    model = loaded(by_hand(tiny_llama().bfloat16()), adapters)
    with model.composed(NAMES, WEIGHTS):
        logits = model(input_ids=some_ids(3)).logits
        tokens = model.generate(some_ids(3), max_new_tokens=3, do_sample=False)
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
    assert tokens.shape == (3, 10)


# Compiled bases


def compile_in_place(base: LlamaForCausalLM) -> None:
    base.compile(backend="eager", fullgraph=True)


def compile_the_forward(base: LlamaForCausalLM) -> None:
    base.__dict__["forward"] = torch.compile(base.forward, backend="eager", fullgraph=True)


def compile_the_layers(base: LlamaForCausalLM) -> None:
    for layer in base.model.layers:
        layer.compile(backend="eager")


@pytest.fixture
def no_compiled_code() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def small_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny Llama of one layer, which takes less time to compile."""
    return write_adapter(
        tmp_path_factory.mktemp("small"), tiny_llama(layers=1), 1, target_modules=["v_proj", "up_proj"]
    )


def logits_of_steps(base: Any, adapter: Path, steps: list[Tensor | None]) -> list[Tensor]:
    """The logits of each step: a plain pass, or a composed pass, which goes on with two of its rows."""
    model = ComposableModel(base)
    model.load_adapter(adapter, "small")
    ids, logits = some_ids(3), []
    for weights in steps:
        scope: AbstractContextManager = nullcontext() if weights is None else model.composed(["small"], weights)
        with torch.no_grad(), scope:
            logits.append(model(input_ids=ids).logits)
            if weights is not None:
                model.keep_rows(torch.tensor([2, 0]))
                logits.append(model(input_ids=ids[[2, 0]]).logits)
    return logits


@pytest.mark.long
@pytest.mark.usefixtures("no_compiled_code")
@pytest.mark.parametrize(
    ("compile_it", "first"),
    [
        (compile_in_place, "plain"),
        (compile_in_place, "composed"),
        (compile_the_forward, "plain"),
        (compile_the_layers, "plain"),
    ],
)
def test_a_compiled_base_is_composed_as_an_uncompiled_one(small_adapter, compile_it, first):
    # Code that was compiled without a composition must not be used for a composition, and code that was compiled with a
    # composition must not be used for the plain base.
    plain: list[Tensor | None] = [None, None]
    composed: list[Tensor | None] = [SMALL_WEIGHTS, SMALL_WEIGHTS.flip(0)]
    steps = [*plain, *composed, *plain] if first == "plain" else [*composed, *plain, *composed]
    compiled = tiny_llama(layers=1)
    compile_it(compiled)
    expected = logits_of_steps(tiny_llama(layers=1), small_adapter, steps)
    actual = logits_of_steps(compiled, small_adapter, steps)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    index = 0 if first == "composed" else 2
    assert not torch.allclose(expected[index], expected[index + 2], atol=0.05), "the adapter does something"


@pytest.mark.long
@pytest.mark.usefixtures("no_compiled_code")
def test_other_weights_need_no_other_code(small_adapter):
    made = []

    def counting(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    base = tiny_llama(layers=1)
    base.compile(backend=counting)
    model = ComposableModel(base)
    model.load_adapter(small_adapter, "small")
    for weights in (SMALL_WEIGHTS, SMALL_WEIGHTS.flip(0), SMALL_WEIGHTS * 0.3):
        with torch.no_grad(), model.composed(["small"], weights):
            model(input_ids=some_ids(3))
    assert len(made) == 1


def test_a_base_inside_a_compiled_module_is_refused():
    with pytest.raises(CompositionError, match=r"torch.compile.*base.compile\(\)"):
        ComposableModel(torch.compile(tiny_llama(), backend="eager"))
    base = tiny_llama()
    base.model.layers[1] = torch.compile(base.model.layers[1], backend="eager")
    with pytest.raises(CompositionError, match=r"torch.compile.*base.compile\(\)"):
        ComposableModel(base)


# Bases with tied weights, with shared modules, with experts, over several devices


def test_an_adapter_on_a_head_tied_to_the_embedding_leaves_the_embedding_alone(tmp_path):
    base = DECODERS["qwen3"].build()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    folder = write_adapter(tmp_path, base, seed=1, target_modules=["lm_head", "v_proj"])
    model = ComposableModel(base)
    model.load_adapter(folder, "head")
    with torch.no_grad(), model.composed(["head"], [[1.0], [0.5]]), InDouble():
        logits = model(input_ids=some_ids(2)).logits
    for row, weight in enumerate((1.0, 0.5)):
        dense = merged(base, [parts_of(folder, base)], [weight], "mixture")
        with torch.no_grad(), InDouble():
            expected = dense(input_ids=some_ids(2)[row : row + 1]).logits[0]
        torch.testing.assert_close(logits[row], expected, atol=1e-10, rtol=0)


def test_an_adapter_that_keeps_head_and_embedding_tied_is_refused(tmp_path):
    base = DECODERS["qwen3"].build()
    folder = write_adapter(tmp_path, base, seed=1, target_modules=["lm_head", "v_proj"], ensure_weight_tying=True)
    with pytest.raises(AdapterError, match=r"'tied', module 'model.embed_tokens': it adapts a Embedding"):
        ComposableModel(base).load_adapter(folder, "tied")


def test_an_adapter_on_a_module_that_two_others_share_is_refused(tmp_path):
    # PEFT adapts a shared module in one of its parents alone.
    base = tiny_llama()
    base.model.layers[1].self_attn.v_proj = base.model.layers[0].self_attn.v_proj
    folder = write_adapter(tmp_path, base, seed=1)
    first, second = (f"model.layers.{layer}.self_attn.v_proj" for layer in range(2))
    with pytest.raises(AdapterError, match=f"'shared', module '{first}': .* between '{first}' and '{second}'"):
        ComposableModel(base).load_adapter(folder, "shared")


def test_a_layer_that_runs_twice_is_composed_as_peft_does(tmp_path):
    base = tiny_llama()
    base.model.layers[1] = base.model.layers[0]
    folder = write_adapter(tmp_path, base, seed=1)
    model = ComposableModel(base)
    model.load_adapter(folder, "twice")
    with torch.no_grad(), model.composed(["twice"], [[1.0]]):
        actual = model(input_ids=some_ids(1)).logits
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(folder)).eval()(input_ids=some_ids(1)).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


class Experts(nn.Module):
    """An MLP of experts in which the first expert gets all positions in reverse order."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList([mlp])

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x.flatten(0, 1).flip(0)).flip(0).view(x.shape)


def test_an_expert_is_composed_for_one_row_and_refused_for_several(tmp_path):
    base = tiny_llama()
    base.model.layers[0].mlp = Experts(base.model.layers[0].mlp)
    folder = write_adapter(tmp_path, base, seed=1, target_modules=["down_proj"])
    model = ComposableModel(base)
    model.load_adapter(folder, "expert")
    with torch.no_grad(), model.composed(["expert"], [[0.5]]):
        actual = model(input_ids=some_ids(1)).logits
    expected = merged(base, [parts_of(folder, base)], [0.5], "mixture")(input_ids=some_ids(1)).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    expert = "model.layers.0.mlp.experts.0.down_proj"
    with pytest.raises(CompositionError, match=f"'{expert}' .*experts"):
        model.composed(["expert"], [[1.0], [0.0]]).__enter__()
    assert not any("forward" in vars(module) for module in base.modules())


def test_an_input_on_another_device_than_the_module_is_moved_to_it():
    # On a base that accelerate spreads, accelerate moves inputs inside a module's forward. Here the meta device stands
    # for the other device.
    pair = Pair(torch.zeros(2, 3, 8, device="meta"), torch.zeros(2, 3, 5, device="meta"))
    y = add_pair(torch.zeros(2, 4, 8), torch.zeros(2, 4, 5, device="meta"), pair)
    assert (y.shape, y.device.type) == ((2, 4, 5), "meta")
