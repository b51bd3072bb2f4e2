"""Compositions equal the formulas, row by row, computed with dense matrices that are added to the base's matrices."""

from __future__ import annotations

import shutil
from copy import deepcopy

import pytest
import torch
from composition_cases import dense_logits, edit_config, merged, parts_of, some_ids, tiny_gpt2, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from peft_composition import ComposableModel

MODES = ["mixture", "fusion"]
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.7, 0.0, -0.4]])


def assert_same(actual, expected, tolerance=2e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def check(model, base, parts, names, weights, mode, seed=3):
    ids = some_ids(len(weights), seed=seed)
    expected = dense_logits(base, [parts[name] for name in names], weights, mode, ids)
    plain = base(input_ids=ids).logits
    with torch.no_grad(), model.composed(names, weights, mode=mode):
        actual = model(input_ids=ids).logits
    assert_same(actual, expected)
    used = weights.abs().sum(dim=1) > 0
    assert ((actual - plain).abs().amax(dim=(1, 2))[used] > 0.05).all(), "the composition must be seen in the logits"


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "names",
    [
        ["plain", "alike", "alpha32"],
        ["rank2", "rslora", "patterns"],
        ["other_targets", "regex", "head"],
        ["one_layer", "head", "plain"],
        ["plain", "rank2", "other_targets"],
    ],
    ids=" ".join,
)
def test_each_row_is_composed_as_if_alone(model, base, parts, names, mode):
    check(model, base, parts, names, WEIGHTS, mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_adapter_meets_in_one_batch(model, base, parts, mode):
    names = list(parts)
    weights = 0.6 * torch.eye(len(names)) + 0.3 * torch.eye(len(names)).roll(1, 0)
    check(model, base, parts, names, weights, mode)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_weights_over_any_adapters(model, base, parts, data):
    names = data.draw(st.lists(st.sampled_from(sorted(parts)), min_size=1, max_size=4, unique=True))
    numbers = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, -0.5])
    rows = data.draw(st.lists(st.lists(numbers, min_size=len(names), max_size=len(names)), min_size=1, max_size=3))
    mode = data.draw(st.sampled_from(MODES))
    weights, ids = torch.tensor(rows), some_ids(len(rows))
    with torch.no_grad(), model.composed(names, weights, mode):
        actual = model(input_ids=ids).logits
    assert_same(actual, dense_logits(base, [parts[name] for name in names], weights, mode, ids))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_fault_1_a_second_batch_with_other_adapters_is_composed_too(model, base, parts, mode):
    check(model, base, parts, ["plain", "alpha32", "rank2"], WEIGHTS, mode, seed=1)
    check(model, base, parts, ["alike", "rslora"], WEIGHTS[:, :2], mode, seed=2)
    check(model, base, parts, ["other_targets", "plain", "patterns", "alike"], torch.full((2, 4), 0.25), mode, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_fault_2_each_adapter_has_its_own_scaling(model, base, parts, mode):
    check(model, base, parts, ["alpha32", "plain"], torch.tensor([[1.0, 0.0], [0.5, 0.5]]), mode)
    check(model, base, parts, ["plain", "alpha32"], torch.tensor([[1.0, 0.0], [0.5, 0.5]]), mode)


@pytest.mark.parametrize("mode", MODES)
def test_fault_3_adapters_of_different_rank_meet_in_one_batch(model, base, parts, mode):
    check(model, base, parts, ["plain", "rank2"], torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), mode)


@pytest.mark.parametrize("mode", MODES)
def test_fault_4_adapters_of_different_target_modules_meet_in_one_batch(model, base, parts, mode):
    check(model, base, parts, ["plain", "other_targets", "regex"], WEIGHTS[[0, 1, 3]], mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_order_in_which_adapters_are_named_changes_nothing(model, mode):
    ids = some_ids(4)
    with model.composed(["plain", "rank2", "patterns"], WEIGHTS, mode):
        forward = model(input_ids=ids).logits
    with model.composed(["patterns", "rank2", "plain"], WEIGHTS.flip(1), mode):
        assert torch.equal(model(input_ids=ids).logits, forward)


def test_a_row_does_not_depend_on_its_neighbours(model):
    ids = some_ids(4)
    with model.composed(["plain", "rank2", "other_targets"], WEIGHTS):
        together = model(input_ids=ids).logits
    for row in range(4):
        with model.composed(["plain", "rank2", "other_targets"], WEIGHTS[row : row + 1]):
            assert_same(model(input_ids=ids[row : row + 1]).logits, together[row : row + 1], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_fault_7_generation_beams_included_equals_each_row_alone_on_its_merged_model(model, base, parts, mode, options):
    names, ids = ["plain", "rank2", "other_targets"], some_ids(4)
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    expected = [
        merged(base, [parts[name] for name in names], weights.tolist(), mode).generate(ids[i : i + 1], **options)
        for i, weights in enumerate(WEIGHTS)
    ]
    with model.composed(names, WEIGHTS, mode):
        assert torch.equal(model.generate(input_ids=ids, **options), torch.cat(expected))


def test_several_sampled_sequences_keep_their_rows_weights(model):
    # Sampling from the top 1 has one token to choose from, so it is greedy: every returned sequence must be the
    # sequence of its own row.
    ids, options = some_ids(3), {"max_new_tokens": 4}
    with model.composed(["plain", "alpha32", "rank2"], torch.eye(3)):
        greedy = model.generate(ids, do_sample=False, **options)
        sampled = model.generate(ids, do_sample=True, top_k=1, num_return_sequences=3, **options)
    assert torch.equal(sampled, greedy.repeat_interleave(3, dim=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_close_to_float32(base, folders, model, mode, dtype):
    half = ComposableModel(deepcopy(base).to(dtype))
    names, ids = ["plain", "rank2", "rslora"], some_ids(4)
    for name in names:
        half.load_adapter(folders[name], name)
    with torch.no_grad(), model.composed(names, WEIGHTS, mode), half.composed(names, WEIGHTS, mode):
        exact, rounded = model(input_ids=ids).logits, half(input_ids=ids).logits
    assert rounded.dtype == dtype
    unit = 2**-8 if dtype == torch.bfloat16 else 2**-11
    assert (exact - rounded).norm() / exact.norm() < 6 * unit


def test_a_row_with_fewer_adapters_is_safe_from_the_others_overflow(base, folders, tmp_path):
    huge = shutil.copytree(folders["alike"], tmp_path / "huge")
    file = huge / "adapter_model.safetensors"
    save_file({key: torch.full_like(tensor, 3e4) for key, tensor in load_file(file).items()}, file)
    half, ids = ComposableModel(deepcopy(base).half()), some_ids(2)
    half.load_adapter(folders["plain"], "plain")
    half.load_adapter(edit_config(huge, lora_alpha=4), "huge")
    with torch.no_grad(), half.composed(["plain", "huge"], [[0.5, 0.5], [1.0, 0.0]]):
        together = half(input_ids=ids).logits
    with torch.no_grad(), half.composed(["plain"], [[1.0]]):
        alone = half(input_ids=ids[1:]).logits
    assert not together[0].isfinite().all(), "the first row must overflow for the second to be in danger"
    assert_same(together[1:], alone, 1e-2)


def test_a_base_cast_after_loading_takes_its_adapters_along(base, folders):
    composable = ComposableModel(deepcopy(base))
    composable.load_adapter(folders["plain"], "plain")
    composable.base.to(torch.bfloat16)
    with torch.inference_mode(), composable.composed(["plain"], [[1.0]]):
        assert composable(input_ids=some_ids(1)).logits.dtype == torch.bfloat16
    composable.load_adapter(folders["alike"], "alike")
    assert composable.adapters == ["plain", "alike"]


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_the_inputs_and_the_weights(model, base, parts, mode):
    names, ids = ["plain", "rank2", "other_targets"], some_ids(2)
    embeddings = base.get_input_embeddings()(ids).detach()
    ours, weights = embeddings.clone().requires_grad_(), WEIGHTS[:2].clone().requires_grad_()
    with model.composed(names, weights, mode):
        model(inputs_embeds=ours).logits.square().sum().backward()
    for row in range(2):
        theirs = embeddings[row : row + 1].clone().requires_grad_()
        dense = merged(base, [parts[name] for name in names], WEIGHTS[row].tolist(), mode)
        dense(inputs_embeds=theirs).logits.square().sum().backward()
        torch.testing.assert_close(
            ours.grad[row : row + 1], theirs.grad, rtol=1e-3, atol=1e-3 * theirs.grad.abs().max()
        )
    assert weights.grad is not None and (weights.grad[0] != 0).all()
    base.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_gpt2_whose_linear_modules_are_stored_transposed(tmp_path, mode):
    gpt2 = tiny_gpt2()
    targets = [["c_attn"], ["c_proj", "c_fc"]]
    folders = [
        write_adapter(tmp_path / str(i), gpt2, i, target_modules=t, fan_in_fan_out=True) for i, t in enumerate(targets)
    ]
    composable = ComposableModel(gpt2)
    for folder in folders:
        composable.load_adapter(folder, folder.name)
    ids, weights = some_ids(3), torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad(), composable.composed(["0", "1"], weights, mode):
        actual = composable(input_ids=ids).logits
    assert_same(actual, dense_logits(gpt2, [parts_of(f, gpt2) for f in folders], weights, mode, ids))


@pytest.mark.slow
def test_all_linear_means_what_peft_means_by_it(tmp_path, base):
    folder = edit_config(
        write_adapter(tmp_path / "all", base, 1, target_modules="all-linear"), target_modules="all-linear"
    )
    composable = ComposableModel(base)
    composable.load_adapter(folder, "all")
    ids, weights = some_ids(2), torch.tensor([[1.0], [0.5]])
    with torch.no_grad(), composable.composed(["all"], weights):
        actual = composable(input_ids=ids).logits
    assert_same(actual, dense_logits(base, [parts_of(folder, base)], weights, "mixture", ids), 1e-4)
