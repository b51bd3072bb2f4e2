"""Training the retriever: one pair a task in a batch, recorded tasks, resuming, and figures against loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_retriever as script
from places import TINY
from safetensors.torch import load_file
from transformers import TrainerCallback

from lora_retriever.data.rows import PoolEntry, Row
from lora_retriever.errors import UserError
from lora_retriever.experiment.profile import INSTRUCTION
from lora_retriever.files import hash_path
from lora_retriever.retrieval.encoders import load_encoder
from lora_retriever.training import retriever as retriever_training
from lora_retriever.training.retriever import (
    RetrieverOptions,
    choose_tasks,
    contrastive_trainer,
    evaluate_retriever,
    held_out_shares,
    train_retriever,
    trainable,
    training_pairs,
)

OPTIONS = RetrieverOptions(epochs=2, learning_rate=1e-3)
ENCODER, POOL, ROWS = TINY / "encoder", TINY / "pool.json", TINY / "test.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder trained with `OPTIONS` without any disturbance."""
    out = tmp_path_factory.mktemp("retriever") / "trained"
    train_retriever(ENCODER, POOL, OPTIONS, out)
    return out


@pytest.fixture(scope="module")
def record(trained: Path) -> dict[str, Any]:
    """The record of the trained encoder, with the comparison with its base."""
    evaluate_retriever(ENCODER, trained, POOL, ROWS)
    return json.loads((trained / "training.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All parameters of an encoder, by the module's folder and the parameter's name."""
    return {
        f"{file.parent.relative_to(folder)}/{name}": tensor
        for file in folder.rglob("model.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_a_share_of_the_tasks_is_drawn_with_the_seed(tiny_pool: list[PoolEntry]) -> None:
    names = [entry.model_name for entry in tiny_pool]
    choice = choose_tasks(tiny_pool, OPTIONS)
    assert len(choice.seen) == 8 == round(0.4 * len(names))
    assert sorted([*choice.seen, *choice.unseen]) == sorted(names)
    assert choice == choose_tasks(tiny_pool, OPTIONS)
    assert choice != choose_tasks(tiny_pool, RetrieverOptions(seed=1))


def test_tasks_held_out_are_among_the_chosen_and_not_trained_on(tiny_pool: list[PoolEntry]) -> None:
    """Options are chosen by the tasks held out. The unseen tasks must not depend on the number of tasks held out."""
    whole, part = (choose_tasks(tiny_pool, RetrieverOptions(validation=held_out)) for held_out in (0, 3))
    assert part.unseen == whole.unseen
    assert [*part.seen, *part.validation] == whole.seen
    assert len(part.validation) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["people_qa", "nothing"]}, "no task nothing"),
        ({"tasks": ["people_qa"]}, "at least two must be left"),
        ({"validation": 7}, "8 of 19 tasks are chosen and 7 of them held out"),
        ({"validation": 12}, "8 of 19 tasks are chosen and 12 of them held out"),
    ],
)
def test_a_choice_that_cannot_be_trained_on_is_refused(
    tiny_pool: list[PoolEntry], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_tasks(tiny_pool, RetrieverOptions(**options))


def test_every_sample_is_an_anchor_once_an_epoch_with_ever_other_partners(tiny_pool: list[PoolEntry]) -> None:
    entry = tiny_pool[0].model_copy(update={"sample": tiny_pool[0].sample[:4]})
    pairs = training_pairs([entry], RetrieverOptions(epochs=3))
    texts = [sample.inputs for sample in entry.sample]
    found = [(pair["anchor"], pair["positive"]) for pair in pairs]
    assert sorted(found) == sorted((anchor, partner) for anchor in texts for partner in texts if anchor != partner)


def test_a_task_of_one_sample_is_refused(tiny_pool: list[PoolEntry]) -> None:
    entry = tiny_pool[0].model_copy(update={"sample": tiny_pool[0].sample[:1]})
    with pytest.raises(UserError, match="people_qa has one sample only"):
        training_pairs([entry], OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [3, 8, 100])
def test_no_batch_holds_two_pairs_of_one_task_nor_a_text_twice(
    tiny_pool: list[PoolEntry], tmp_path: Path, batch_size: int
) -> None:
    """Otherwise samples of one task would be negatives of each other."""
    # A text that two tasks share, as some of the official pool do.
    shared = tiny_pool[1].model_copy(update={"sample": (*tiny_pool[1].sample[1:], tiny_pool[0].sample[0])})
    pairs = training_pairs([tiny_pool[0], shared, *tiny_pool[2:8]], OPTIONS)
    model = load_encoder(ENCODER).model
    trainer = contrastive_trainer(model, pairs, RetrieverOptions(epochs=2, batch_size=batch_size), tmp_path)
    batches = list(trainer.get_train_dataloader().batch_sampler)  # type: ignore[arg-type]
    assert len(batches) == len(pairs) // min(batch_size, 8)
    for batch in batches:
        labels, anchors, positives = (pairs[batch][column] for column in ("label", "anchor", "positive"))
        assert len(set(labels)) == len(labels) == min(batch_size, 8)
        assert len({*anchors, *positives}) == 2 * len(batch)


@pytest.mark.slow
def test_the_loss_is_a_softmax_of_the_partner_against_all_other_texts(
    tiny_pool: list[PoolEntry], tmp_path: Path
) -> None:
    """sentence-transformers' loss with the project's settings, against loops over cosines divided by temperature."""
    encoder = load_encoder(ENCODER, instruction=INSTRUCTION)
    pairs = training_pairs(tiny_pool[:4], RetrieverOptions(epochs=1, samples=2))
    trainer = contrastive_trainer(encoder.model, pairs, RetrieverOptions(temperature=0.1), tmp_path)
    (batch, *_) = trainer.get_train_dataloader()
    encoder.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(encoder.model, batch)

    (chosen, *_) = trainer.get_train_dataloader().batch_sampler  # type: ignore[misc]
    anchors, positives = (encoder.encode(pairs[chosen][column]) for column in ("anchor", "positive"))
    by_hand = []
    for i in range(len(chosen)):
        partner = np.exp(anchors[i] @ positives[i] / 0.1)
        others = [j for j in range(len(chosen)) if j != i]
        negatives = sum(
            np.exp(anchors[i] @ positives[j] / 0.1)
            + np.exp(anchors[i] @ anchors[j] / 0.1)
            + np.exp(positives[i] @ anchors[j] / 0.1)
            + np.exp(positives[i] @ positives[j] / 0.1)
            for j in others
        )
        # Seen from both sides, the pair itself stands twice in the sum.
        by_hand.append(-np.log(partner / (2 * partner + negatives)))
    assert float(loss) == pytest.approx(float(np.mean(by_hand)), abs=1e-4)


@pytest.mark.long
def test_an_interrupted_training_ends_with_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that stops in the second epoch goes on from the end of the first, in order, dropout and optimiser."""

    class Interruption(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 30:
                raise KeyboardInterrupt

    def interrupted(*arguments: Any) -> Any:
        trainer = contrastive_trainer(*arguments)
        trainer.add_callback(Interruption())
        return trainer

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(retriever_training, "contrastive_trainer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_retriever(ENCODER, POOL, OPTIONS, out)
    assert not out.exists()
    with pytest.raises(UserError, match=r"out\.partial was trained with other settings: options\.seed: 0 → 1"):
        train_retriever(ENCODER, POOL, OPTIONS.model_copy(update={"seed": 1}), out)

    record = train_retriever(ENCODER, POOL, OPTIONS, out)
    assert record["steps"] == 40
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    expected, found = weights(trained), weights(out)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_finished_training_is_left_alone_and_other_settings_are_refused(trained: Path, tmp_path: Path) -> None:
    before = hash_path(trained)
    train_retriever(ENCODER, POOL, OPTIONS, trained)
    assert hash_path(trained) == before
    with pytest.raises(UserError, match=r"options\.temperature: 0\.05 → 0\.1"):
        train_retriever(ENCODER, POOL, OPTIONS.model_copy(update={"temperature": 0.1}), trained)
    with pytest.raises(UserError, match="was not made by this training"):
        train_retriever(ENCODER, POOL, OPTIONS, tmp_path)


@pytest.mark.slow
def test_the_record_says_what_was_trained_on_what(record: dict[str, Any], tiny_pool: list[PoolEntry]) -> None:
    assert record["configuration"]["options"] == OPTIONS.model_dump(mode="json")
    assert record["configuration"]["base_hash"] == hash_path(ENCODER)
    assert record["tasks"]["seen"] == choose_tasks(tiny_pool, OPTIONS).seen
    assert record["losses"][1] < record["losses"][0]
    assert record["evaluation"]["rows"] == {"seen": 240, "unseen": 330, "all": 570}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_seen_and_unseen_tasks_are_counted_apart(
    when: str, trained: Path, record: dict[str, Any], tiny_pool: list[PoolEntry], tiny_rows: list[Row]
) -> None:
    """Figures against a loop over rows that compares one query with one mean at a time."""
    encoder = load_encoder(ENCODER if when == "before" else trained, instruction=INSTRUCTION)
    means = {e.model_name: encoder.encode([s.inputs for s in e.sample]).mean(axis=0) for e in tiny_pool}
    hits: dict[str, list[bool]] = {"seen": [], "unseen": []}
    for row, query in zip(tiny_rows, encoder.encode([row.inputs for row in tiny_rows]), strict=True):
        best = max(means, key=lambda name: query @ means[name] / np.linalg.norm(means[name]))
        hits["seen" if row.task in record["tasks"]["seen"] else "unseen"].append(best == row.task)
    for group, found in hits.items():
        assert record["evaluation"][when]["cosine"][group]["top1"] == round(100 * np.mean(found), 2)


@pytest.mark.slow
def test_a_held_out_sample_does_not_describe_its_own_adapter(tiny_pool: list[PoolEntry]) -> None:
    encoder = load_encoder(ENCODER, instruction=INSTRUCTION)
    entry = tiny_pool[3]
    hits = []
    for left_out in range(len(entry.sample)):
        means = {
            e.model_name: encoder.encode(
                [s.inputs for place, s in enumerate(e.sample) if e is not entry or place != left_out]
            ).mean(axis=0)
            for e in (tiny_pool[2], entry)
        }
        (query,) = encoder.encode([entry.sample[left_out].inputs])
        best = max(means, key=lambda name: query @ means[name] / np.linalg.norm(means[name]))
        hits.append(best == entry.model_name)
    found = held_out_shares(encoder, [tiny_pool[2], entry], [entry.model_name])
    assert found["top1"] == round(100 * np.mean(hits), 2)
    assert found["top3"] == 100


@pytest.mark.slow
def test_only_the_topmost_layers_are_trained_if_asked(tmp_path: Path) -> None:
    train_retriever(ENCODER, POOL, RetrieverOptions(epochs=1, learning_rate=1e-3, layers=1), tmp_path / "out")
    before, after = weights(ENCODER), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".block.1." in name or "2_Dense" in name}
    with pytest.raises(UserError, match="the topmost 9 cannot be trained"):
        train_retriever(ENCODER, POOL, RetrieverOptions(layers=9), tmp_path / "other")
    assert not (tmp_path / "other.partial").exists()


@pytest.mark.slow
def test_an_added_linear_layer_starts_as_the_identity_and_is_all_that_changes(tmp_path: Path) -> None:
    texts = ["where does Karl live ?", "a review of the film"]
    options = RetrieverOptions(epochs=1, learning_rate=1e-3, layers=0)
    encoder = load_encoder(ENCODER, instruction=INSTRUCTION)
    before = encoder.encode(texts)
    encoder.model = trainable(encoder.model, options)
    assert np.abs(encoder.encode(texts) - before).max() < 1e-6

    train_retriever(ENCODER, POOL, options, tmp_path / "out")
    base, out = weights(ENCODER), weights(tmp_path / "out")
    assert all(torch.equal(out[name], tensor) for name, tensor in base.items())
    assert out.keys() - base.keys() == {"3_Dense/linear.weight"}
    after = load_encoder(tmp_path / "out", instruction=INSTRUCTION).encode(texts)
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.slow
def test_the_script_trains_compares_and_goes_on(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--base", str(ENCODER), "--pool", str(POOL), "--inputs", str(ROWS), "--device", "cpu"]
    options = ["--learning-rate", "1e-3", "--out", str(trained)]
    assert script.main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    assert "8 tasks seen, 0 held out, 11 unseen; 40 steps" in printed
    assert "mean_ip  all           570" in printed
    assert "cosine, unseen tasks, top 1:" in printed
    assert script.main([*arguments, *options, "--temperature", "0.1"]) == 2
    assert "options.temperature" in capsys.readouterr().err
    assert script.main([*arguments, "--out", str(tmp_path / "new"), "--temperature", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err
