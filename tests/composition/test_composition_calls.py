"""Loading, unloading and calling: allowed calls, refused calls, and a base that is never left changed."""

from __future__ import annotations

import pytest
import torch
from composition_cases import some_ids, tiny_llama
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_composition import AdapterError, ComposableModel, CompositionError

HALF = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
NAMES = ["plain", "rank2"]


def hooks_on(module: nn.Module) -> int:
    """The number of hooks of a model, and of modules whose `forward` is not the `forward` of their class."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in module.modules())


def test_adapters_are_listed_in_loading_order(model, folders):
    assert model.adapters == list(folders)
    model.adapters.clear()
    assert model.adapters == list(folders), "the list is the caller's own"


def test_the_base_is_unchanged_outside_composed(model):
    ids, base = some_ids(2), model.base
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    before = base(input_ids=ids).logits
    with model.composed(NAMES, HALF):
        assert not torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(base(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    assert hooks_on(base) == 0


def test_rows_cannot_leave_while_the_batch_is_read_in_parts(model):
    ids = some_ids(2)
    with torch.no_grad(), model.composed(NAMES, HALF):
        expected = model(input_ids=ids).logits
        with model.only_rows(slice(0, 2)):
            with model.only_rows(slice(0, 1)):
                pass
            with pytest.raises(CompositionError, match="within only_rows; change the batch afterwards"):
                model.keep_rows(torch.tensor([1]))
        assert torch.equal(model(input_ids=ids).logits, expected)
        model.keep_rows(torch.tensor([1]))
        torch.testing.assert_close(model(input_ids=ids[1:]).logits, expected[1:])


def test_an_exception_inside_composed_leaves_the_model_as_it_was(model):
    ids = some_ids(2)
    before = model(input_ids=ids).logits
    with pytest.raises(KeyError), model.composed(NAMES, HALF):
        raise KeyError("a user's own mistake")
    assert hooks_on(model.base) == 0
    assert torch.equal(model(input_ids=ids).logits, before)
    with model.composed(NAMES, HALF):
        assert not torch.equal(model(input_ids=ids).logits, before)


def test_rows_of_zeros_are_the_base_model(model):
    ids = some_ids(3)
    plain = model(input_ids=ids).logits
    with model.composed(NAMES, torch.zeros(3, 2)):
        assert torch.equal(model(input_ids=ids).logits, plain)
    with model.composed(NAMES, [[0, 0], [1, 0], [0, 0]]):
        mixed = model(input_ids=ids).logits
    torch.testing.assert_close(mixed[[0, 2]], plain[[0, 2]])
    assert (mixed[1] - plain[1]).abs().max() > 0.05


def test_only_the_modules_concerned_are_hooked(model):
    with model.composed(["regex"], [[1.0]]):
        hooked = [name for name, module in model.base.named_modules() if "forward" in vars(module)]
    assert hooked == ["model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj"]


@pytest.mark.slow
def test_an_unloaded_adapters_place_is_taken_without_a_trace(base, folders):
    ids = some_ids(2)

    def logits(model, *names):
        # The cross terms of a fusion would show a trace of the adapter that was unloaded.
        with model.composed(names, [[1.0] * len(names), [0.5] * len(names)], "fusion"):
            return model(input_ids=ids).logits

    model = ComposableModel(base)
    for name in ("plain", "patterns", "alike"):
        model.load_adapter(folders[name], name)
    expected = logits(model, "alike")
    model.unload_adapter("patterns")
    assert model.adapters == ["plain", "alike"]
    model.load_adapter(folders["rank2"], "patterns")  # smaller rank, fewer settings, the same slot
    fresh = ComposableModel(base)
    fresh.load_adapter(folders["rank2"], "patterns")
    fresh.load_adapter(folders["alike"], "alike")
    both = ("patterns", "alike")
    torch.testing.assert_close(logits(model, *both), logits(fresh, *both), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model, "patterns"), logits(fresh, "patterns"), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(logits(model, "alike"), expected)
    for name in model.adapters:
        model.unload_adapter(name)
    assert model.adapters == []
    model.load_adapter(folders["plain"], "plain")


def test_the_cost_does_not_grow_with_the_resident_adapters(base, folders, model):
    # A forward pass computes with the A's and B's in use alone: here two adapters of rank at most 4, of ten resident
    # adapters.
    few = ComposableModel(base)
    for name in NAMES:
        few.load_adapter(folders[name], name)
    for composable in (few, model):
        for mode, shape in (("mixture", (2 * 4, 16)), ("fusion", (2, 4, 16))):  # two rows share the mixture's A's
            with composable.composed(NAMES, HALF, mode):
                assert {tuple(update.down.shape) for update in composable._live._updates.values()} == {shape}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixture", "fusion"])
def test_the_call_of_the_originals_fork_does_the_same(model, mode):
    ids = some_ids(2)
    with model.composed(NAMES, HALF, mode):
        logits, tokens = model(input_ids=ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
    model.set_adapter(NAMES)
    assert torch.equal(model(input_ids=ids, lora_mapping=HALF, merging_type=mode).logits, logits)
    again = model.generate(
        input_ids=ids, lora_mapping=HALF.half(), merging_type=mode, max_new_tokens=4, do_sample=False
    )
    assert torch.equal(again, tokens)
    model.set_adapter(NAMES[::-1])
    assert torch.equal(model(input_ids=ids, lora_mapping=HALF.flip(1), merging_type=mode).logits, logits)
    assert hooks_on(model.base) == 0


def test_fault_7_an_unknown_merging_type_is_refused(model):
    model.set_adapter(NAMES)
    for unknown in ("average", ""):
        with pytest.raises(CompositionError, match="choose one of: mixture, fusion"):
            model(input_ids=some_ids(2), lora_mapping=HALF, merging_type=unknown)
    with pytest.raises(CompositionError, match="unknown mode 'soup'"), model.composed(NAMES, HALF, "soup"):
        pass


def test_fault_7_a_one_row_mapping_is_not_broadcast(model):
    with model.composed(NAMES, [[0.5, 0.5]]):
        with pytest.raises(CompositionError, match="2 rows and the weights 1"):
            model(input_ids=some_ids(2))
        with pytest.raises(CompositionError, match="2 rows and the weights 1"):
            model.generate(some_ids(2), max_new_tokens=1)
    model.set_adapter(NAMES)
    with pytest.raises(CompositionError, match="2 rows and the weights 1"):
        model.generate(input_ids=some_ids(2), lora_mapping=HALF[:1], merging_type="mixture")
    with pytest.raises(CompositionError, match="3 rows and the weights 2"):
        model(input_ids=some_ids(3), lora_mapping=HALF)


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights",
    [
        [0.5, 0.5],
        [[0.5, 0.5, 0.0]],
        [[0.5]],
        torch.zeros(0, 2),
        [[0.5, float("nan")]],
        [[float("inf"), 0.0]],
        [["a", "b"]],
        [[1.0, 0.0], [1.0]],
        None,
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_refused(model, weights):
    with pytest.raises(CompositionError, match="weights"), model.composed(NAMES, weights):
        pass
    assert hooks_on(model.base) == 0


def test_names_that_do_not_fit_are_refused(model, folders):
    with pytest.raises(AdapterError, match=r"'dart': it is not loaded.*loaded: plain, "):
        model.composed(["plain", "dart"], HALF).__enter__()
    with pytest.raises(AdapterError, match="'plain': it is named twice"):
        model.composed(["plain", "plain"], HALF).__enter__()
    with pytest.raises(CompositionError, match="at least one name"):
        model.composed([], torch.zeros(2, 0)).__enter__()
    with pytest.raises(AdapterError, match="'dart': it is not loaded"):
        model.set_adapter("dart")
    with pytest.raises(AdapterError, match="'dart': it is not loaded"):
        model.unload_adapter("dart")
    with pytest.raises(AdapterError, match="'plain': an adapter of this name is loaded already"):
        model.load_adapter(folders["alike"], name="plain")
    assert model.adapters == list(folders)


def test_an_adapter_unloaded_since_set_adapter_is_missed(model):
    model.set_adapter(NAMES)
    model.unload_adapter("rank2")
    with pytest.raises(AdapterError, match="'rank2': it is not loaded"):
        model(input_ids=some_ids(2), lora_mapping=HALF)


def test_calls_that_leave_something_out_are_refused(model):
    with pytest.raises(CompositionError, match="set_adapter first"):
        model(input_ids=some_ids(2), lora_mapping=HALF)
    with pytest.raises(CompositionError, match="without lora_mapping"):
        model(input_ids=some_ids(2), merging_type="fusion")
    with model.composed(NAMES, HALF), pytest.raises(CompositionError, match="without input_ids"):
        model.generate(max_new_tokens=1)


def test_a_composition_inside_another_is_refused_and_the_outer_one_goes_on(model):
    ids = some_ids(2)
    with model.composed(NAMES, HALF):
        before = model(input_ids=ids).logits
        with pytest.raises(CompositionError, match="active already"), model.composed(["alike"], [[1.0], [1.0]]):
            pass
        assert torch.equal(model(input_ids=ids).logits, before)
    assert hooks_on(model.base) == 0


def test_a_module_that_sees_positions_out_of_order_is_refused(model):
    # A mixture-of-experts layer calls a module with some positions only, so that rows cannot be told apart.
    with model.composed(["plain"], [[1.0], [0.0]]), torch.no_grad():
        model(input_ids=some_ids(2))
        with pytest.raises(CompositionError, match=r"'model.layers.0.self_attn.q_proj'.*cannot be told apart"):
            model.base.model.layers[0].self_attn.q_proj(torch.zeros(6, 16))


def test_a_base_that_carries_peft_adapters_is_refused():
    wrapped = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(CompositionError, match="unload them first"):
        ComposableModel(wrapped)


def test_adapters_loaded_under_inference_mode_serve_outside_it(base, folders):
    model = ComposableModel(base)
    with torch.inference_mode():
        model.load_adapter(folders["plain"], "plain")
        with model.composed(["plain"], [[1.0]]):
            inside = model(input_ids=some_ids(1)).logits.clone()
    model.load_adapter(folders["alike"], "alike")
    with model.composed(["plain"], [[1.0]]):
        torch.testing.assert_close(model(input_ids=some_ids(1)).logits, inside)


def test_config_device_and_dtype_are_the_bases(model, base):
    assert (model.config, model.device, model.dtype) == (base.config, base.device, base.dtype)
