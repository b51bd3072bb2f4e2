"""A pool larger than its memory: the same answers, never more bytes than allowed, and threads that take turns."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from composition_cases import some_ids, tiny_llama, write_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from peft_composition import AdapterError, AdapterMemoryError, ComposableModel, pairs
from peft_composition.checkpoint import read_again

NAMES = [f"a{number}" for number in range(12)]
# Rank 4 on q_proj (16 → 16) and v_proj (16 → 8) of two layers, float32.
ADAPTER_BYTES = 2 * 4 * (16 + 16 + 16 + 8) * 4


@pytest.fixture(scope="module")
def alike(base: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twelve adapters of one size."""
    root = tmp_path_factory.mktemp("alike")
    return {name: write_adapter(root / name, base, seed=50 + place) for place, name in enumerate(NAMES)}


def loaded(folders: dict[str, Path], memory: int | None = None) -> ComposableModel:
    model = ComposableModel(tiny_llama(), memory)
    for name, folder in folders.items():
        model.load_adapter(folder, name=name)
    return model


def room_for(adapters: int) -> int:
    """Memory for this number of adapters, beside the empty slot."""
    return (adapters + 1) * ADAPTER_BYTES


def bytes_of(model: ComposableModel) -> int:
    return sum(stack.down.nbytes + stack.up.nbytes for stack in model._residency.stacks.values())


def logits(model: ComposableModel, names: Sequence[str], mode: str = "mixture") -> Tensor:
    """Two rows over some adapters, weighted differently."""
    weights = torch.linspace(0.2, 1, 2 * len(names)).view(2, len(names))
    with torch.no_grad(), model.composed(names, weights, mode=mode):
        return model(input_ids=some_ids(2)).logits


@pytest.mark.slow
def test_answers_do_not_depend_on_what_is_in_memory(alike: dict[str, Path]) -> None:
    everything, few = loaded(alike), loaded(alike, room_for(3))
    for mode in ("mixture", "fusion"):
        for start in (0, 5, 9, 0, 1, 6, 2):
            names = NAMES[start : start + 3]
            assert torch.equal(logits(few, names, mode), logits(everything, names, mode))
            assert len(few.resident_adapters) == 3
            assert bytes_of(few) <= room_for(3)
    assert few.adapters == NAMES


@pytest.mark.slow
def test_the_least_recently_used_makes_room(alike: dict[str, Path]) -> None:
    model = loaded(alike, room_for(4))
    assert model.resident_adapters == NAMES[:4]
    logits(model, ["a0", "a2"])
    logits(model, ["a7"])
    assert model.resident_adapters == ["a3", "a0", "a2", "a7"]
    with model.composed(["a1", "a0"], [[0.0, 1.0]]):  # an adapter of weight 0 is not brought into memory
        assert model.resident_adapters == ["a3", "a2", "a7", "a0"]


@pytest.mark.slow
def test_a_batch_that_wants_more_than_fits_is_refused_and_a_smaller_one_served(alike: dict[str, Path]) -> None:
    model = loaded(alike, room_for(3))
    with pytest.raises(AdapterMemoryError, match=r"4 adapters are to be composed .* hold 3; raise adapter_memory"):
        logits(model, NAMES[:4])
    assert torch.equal(logits(model, NAMES[:3]), logits(loaded(alike), NAMES[:3]))


@pytest.mark.slow
def test_an_adapter_that_cannot_fit_is_refused_when_it_is_loaded(
    alike: dict[str, Path], base: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = loaded(alike, room_for(3))
    large = write_adapter(tmp_path / "large", base, seed=1, r=64)
    with pytest.raises(AdapterError, match=r"adapter 'large': it does not fit into the \d+ bytes"):
        model.load_adapter(large, name="large")
    assert model.adapters == NAMES
    assert torch.equal(logits(model, NAMES[4:7]), logits(loaded(alike), NAMES[4:7]))


@pytest.mark.slow
def test_a_wider_adapter_leaves_room_for_fewer(alike: dict[str, Path], base: LlamaForCausalLM, tmp_path: Path) -> None:
    folders = {**alike, "wide": write_adapter(tmp_path / "wide", base, seed=1, r=8)}
    model = loaded(folders, room_for(7))
    with pytest.raises(AdapterMemoryError, match=r"hold 3"):
        logits(model, NAMES[:4])
    assert torch.equal(logits(model, ["a1", "wide", "a3"]), logits(loaded(folders), ["a1", "wide", "a3"]))
    assert bytes_of(model) <= room_for(7)
    model.unload_adapter("wide")
    logits(model, NAMES[:7])
    assert len(model.resident_adapters) == 7


@pytest.mark.slow
def test_a_base_cast_to_wider_numbers_keeps_to_the_memory(alike: dict[str, Path]) -> None:
    model = loaded(alike, room_for(7))
    logits(model, NAMES[:7])
    model.base.double()
    logits(model, NAMES[:3])
    assert bytes_of(model) <= room_for(7)
    with pytest.raises(AdapterMemoryError, match="hold 3"):
        logits(model, NAMES[:4])


@pytest.mark.slow
def test_what_was_read_ahead_is_used(alike: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in alike.items()}
    model, read = loaded(folders, room_for(3)), []

    def noted(header):  # type: ignore[no-untyped-def]
        read.append((header.name, threading.current_thread() is threading.main_thread()))
        return read_again(header)

    monkeypatch.setattr("peft_composition.residency.read_again", noted)
    model.prefetch(["a0", "a4", "a5"])
    expected = logits(loaded(alike), ["a0", "a4", "a5"])
    assert torch.equal(logits(model, ["a0", "a4", "a5"]), expected)
    assert sorted(read) == [("a4", False), ("a5", False)]  # a0 was in memory
    logits(model, ["a6"])
    assert read[2:] == [("a6", True)]


@pytest.mark.slow
def test_a_file_that_went_away_is_named(alike: dict[str, Path], tmp_path: Path) -> None:
    folders = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in alike.items()}
    model = loaded(folders, room_for(3))
    shutil.rmtree(folders["a8"])
    with pytest.raises(AdapterError, match=r"adapter 'a8': .*adapter_model.safetensors"):
        logits(model, ["a0", "a8"])
    assert torch.equal(logits(model, ["a0", "a9"]), logits(loaded(alike), ["a0", "a9"]))


@pytest.mark.slow
def test_a_file_that_was_written_anew_is_not_taken_for_the_old_one(
    alike: dict[str, Path], base: LlamaForCausalLM, tmp_path: Path
) -> None:
    folders = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in alike.items()}
    model = loaded(folders, room_for(3))
    write_adapter(folders["a8"], base, seed=99)
    with pytest.raises(AdapterError, match=r"adapter 'a8': .* has changed since it was loaded"):
        logits(model, ["a8"])


@pytest.mark.slow
def test_an_adapter_for_which_there_is_no_room_is_verified_all_the_same(
    alike: dict[str, Path], base: LlamaForCausalLM, tmp_path: Path
) -> None:
    model = ComposableModel(tiny_llama().half(), room_for(1) // 2)
    model.load_adapter(alike["a0"], name="a0")
    folder = write_adapter(tmp_path / "large", base, seed=1)
    file = folder / "adapter_model.safetensors"
    save_file({key: 1e6 * tensor for key, tensor in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match=r"adapter 'large', .* overflow in torch.float16"):
        model.load_adapter(folder, name="large")
    assert model.adapters == model.resident_adapters == ["a0"]


@pytest.mark.slow
def test_memory_that_runs_out_while_a_stack_grows_leaves_it_as_it_was(
    alike: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, enlarged, calls = ComposableModel(tiny_llama()), pairs._enlarged, iter(range(100))

    def refused_once(*args: object) -> Tensor:
        if next(calls) == 1:  # B of the first stack, after A has grown
            raise torch.OutOfMemoryError("out of memory")
        return enlarged(*args)  # type: ignore[arg-type]

    model.load_adapter(alike["a0"], name="a0")
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "_enlarged", refused_once)
        with pytest.raises(torch.OutOfMemoryError):
            model.load_adapter(alike["a1"], name="a1")
    for name in ("a1", "a2"):
        model.load_adapter(alike[name], name=name)
    assert torch.equal(logits(model, NAMES[:3]), logits(loaded(alike), NAMES[:3]))


@pytest.mark.slow
def test_a_thread_without_a_composition_does_not_reach_into_anothers(alike: dict[str, Path]) -> None:
    model, done = loaded(alike), threading.Event()

    def keep() -> None:
        model.keep_rows(torch.tensor([0]))
        done.set()

    with torch.no_grad(), model.composed(["a0"], [[1.0]] * 3):
        thread = threading.Thread(target=keep)
        thread.start()
        assert not done.wait(0.2)
        assert model(input_ids=some_ids(3)).logits.shape[0] == 3
    thread.join()
    assert done.is_set()


@pytest.mark.slow
def test_threads_take_turns(alike: dict[str, Path]) -> None:
    """Eight threads compose, read ahead, load and unload on one model that holds three adapters at a time."""
    everything, shared = loaded(alike), loaded(alike, room_for(3))
    chosen = [[NAMES[(start + step) % 10] for step in (0, 1, 3)] for start in range(8)]
    expected = [logits(everything, names) for names in chosen]
    wrong: list[str] = []

    def work(place: int) -> None:
        for turn in range(6):
            try:
                shared.prefetch(chosen[(place + turn) % 8])
                if not torch.equal(logits(shared, chosen[place]), expected[place]):
                    wrong.append(f"thread {place}, turn {turn}: other logits")
                own = f"own{place}"
                shared.load_adapter(alike["a11"], name=own)
                shared.unload_adapter(own)
            except Exception as error:
                wrong.append(f"thread {place}, turn {turn}: {error!r}")

    threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shared.adapters == NAMES
