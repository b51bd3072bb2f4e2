"""The missing-label study: detection heads trained with 0 to 50 % of the triples dropped, under several losses.

    python scripts/procedures/missing_labels.py --knowledgenet FILE [--embeddings FILE.npz] --json results.json

One linear layer reads a frozen vector of each sentence, so a training takes a second. The vectors are TF-IDF of words
and pairs of words, reduced to 384 dimensions, or embeddings from a file (`emb` [sentences, dim]). Every fold of
KnowledgeNet is the test once. The fold before the test is the validation data: it keeps all labels, and the epoch and
the threshold are chosen on it. The other two folds are the training data. Each training triple is dropped with the
given probability. A sentence that is left without triples stays, or is removed as in the paper.

Scores: micro F1 and average precision of (sentence, relation) on the test folds with all their labels, and the area
under the ROC curve between relations that annotators marked and relations that they looked for and did not find.
Intervals: 95 %, bootstrap over sentences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import average_precision_score, roc_auc_score

from lora_retriever.files import write_json
from lora_retriever.training.detector import best_threshold
from lora_retriever.training.losses import LossName, loss_of

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `procedures` is
from procedures.relation_data import Sentence, read_knowledgenet

Array = NDArray[np.float64]
DIMENSIONS, EPOCHS, EVERY = 384, 300, 30
DRAWS = 1000
LOSSES: dict[str, tuple[LossName, float]] = {
    "cross-entropy": ("cross_entropy", 0.04),
    "nnPU": ("nnpu", 0.04),
    "collective, π = 0.04": ("collective_pu", 0.04),
    "collective, π = 0.5": ("collective_pu", 0.5),
}


@dataclass(frozen=True)
class Data:
    """The sentences with their labels y [sentences, relations], and by fold the vectors x [sentences, dim]."""

    sentences: Sequence[Sentence]
    relations: tuple[str, ...]
    x: dict[str, Array]
    y: Array


def labels_of(sentences: Sequence[Sequence[str]], relations: Sequence[str]) -> Array:
    """Which relations each sentence has, [sentences, relations]."""
    return np.array([[float(name in found) for name in relations] for found in sentences])


def vectors(sentences: Sequence[Sentence], train: Sequence[int]) -> Array:
    """TF-IDF vectors [sentences, dim], fitted on the training sentences."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    fitted = words.fit_transform([sentences[place].text for place in train])
    reduced = TruncatedSVD(DIMENSIONS, random_state=0).fit(fitted)
    found: Array = reduced.transform(words.transform([one.text for one in sentences]))
    return found * np.sqrt(found.shape[1])


def trained(
    x: Array,
    given: Array,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    held_x: Array,
    held_y: Array,
    rate: float,
) -> tuple[torch.nn.Linear, float]:
    """The head of the epoch with the highest average precision on the validation data, and the best threshold there."""
    torch.manual_seed(0)
    head = torch.nn.Linear(x.shape[1], given.shape[1])
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.constant_(head.bias, -2.0)
    inputs, labels = torch.tensor(x).float(), torch.tensor(given).float()
    held = torch.tensor(held_x).float()
    optimizer = torch.optim.Adam(head.parameters(), lr=rate, weight_decay=1e-5)
    best, kept = -1.0, {name: value.clone() for name, value in head.state_dict().items()}
    for epoch in range(1, EPOCHS + 1):
        optimizer.zero_grad()
        loss(head(inputs), labels).backward()
        optimizer.step()
        if epoch % EVERY == 0:
            with torch.no_grad():
                score = average_precision_score(held_y.ravel(), head(held).numpy().ravel())
            if score > best:
                best, kept = score, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    with torch.no_grad():
        return head, best_threshold(head(held).sigmoid().double().numpy(), held_y)


def dropped(sentences: Sequence[Sentence], places: Sequence[int], share: float, seed: int) -> list[list[str]]:
    """The relations of the training sentences after every triple was dropped with this probability."""
    draw = np.random.default_rng(seed)
    return [[one[0] for one in sentences[place].triples if draw.random() >= share] for place in places]


def divided(parts: NDArray[np.str_], fold: str) -> tuple[Any, Any, Any]:
    """The sentences to train on (places), to validate and to test (truth values), if this fold is the test."""
    folds = sorted(set(parts))
    held, test = parts == folds[folds.index(fold) - 1], parts == fold
    return np.flatnonzero(~held & ~test), held, test


def measure(data: Data, share: float, keeps_emptied: bool, seeds: int, rate: float) -> dict[str, dict[str, Array]]:
    """Per loss: counts [sentences, 3] (right, given, wanted) summed over seeds, and probabilities [seeds, n, r]."""
    parts = np.array([one.part for one in data.sentences])
    counts = {name: np.zeros((len(parts), 3)) for name in LOSSES}
    chances = {name: np.zeros((seeds, *data.y.shape)) for name in LOSSES}
    for fold, x in data.x.items():
        train, held, test = divided(parts, fold)
        for seed in range(seeds):
            left = dropped(data.sentences, train, share, seed)
            had = [bool(data.sentences[one].triples) for one in train]
            stays = [keeps_emptied or bool(now) or not before for now, before in zip(left, had, strict=True)]
            given = labels_of(left, data.relations)[stays]
            for name, (loss, pi) in LOSSES.items():
                # the share of missing labels is not known in practice; the paper assumes 5 %
                function = loss_of(loss, float(given.mean()), pi, 0.05)
                head, threshold = trained(x[train][stays], given, function, x[held], data.y[held], rate)
                with torch.no_grad():
                    p = head(torch.tensor(x[test]).float()).sigmoid().double().numpy()
                found, truth = p >= threshold, data.y[test] > 0
                counts[name][test] += np.stack([(found & truth).sum(1), found.sum(1), truth.sum(1)], axis=1)
                chances[name][seed, test] = p
    return {name: {"counts": counts[name], "chances": chances[name]} for name in LOSSES}


def f1(counts: Array) -> Array:
    """F1 × 100 from sums [..., 3]."""
    return np.asarray(200 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1))


def summarized(data: Data, found: dict[str, dict[str, Array]]) -> dict[str, Any]:
    """Scores with intervals, and each loss's difference of F1 to cross-entropy, on the same draws of sentences."""
    draw = np.random.default_rng(0)
    n = len(data.sentences)
    draws = draw.integers(0, n, size=(DRAWS, n))
    negative = labels_of([one.negatives for one in data.sentences], data.relations) > 0
    marked = (data.y > 0) | negative
    base = f1(found["cross-entropy"]["counts"][draws].sum(axis=1))
    result = {}
    for name, one in found.items():
        drawn = f1(one["counts"][draws].sum(axis=1))
        difference = drawn - base
        p = one["chances"]
        result[name] = {
            "f1": float(f1(one["counts"].sum(axis=0))),
            "f1_interval": np.percentile(drawn, [2.5, 97.5]).tolist(),
            "difference": float(f1(one["counts"].sum(axis=0)) - f1(found["cross-entropy"]["counts"].sum(axis=0))),
            "difference_interval": np.percentile(difference, [2.5, 97.5]).tolist(),
            "precision": float(100 * one["counts"][:, 0].sum() / max(one["counts"][:, 1].sum(), 1)),
            "recall": float(100 * one["counts"][:, 0].sum() / max(one["counts"][:, 2].sum(), 1)),
            "average_precision": float(np.mean([100 * average_precision_score(data.y.ravel(), q.ravel()) for q in p])),
            "auc_annotated": float(np.mean([100 * roc_auc_score(data.y[marked] > 0, q[marked]) for q in p])),
        }
    return result


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, print a table, and keep the finished measurements in the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--knowledgenet", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, help="file of numpy with `emb` [sentences, dim]")
    parser.add_argument("--seeds", type=int, default=1, help="number of draws of missing labels")
    parser.add_argument("--shares", default="0,0.1,0.2,0.3,0.4,0.5", help="shares of dropped triples")
    parser.add_argument("--rate", type=float, default=0.03, help="learning rate of the heads (default: 0.03)")
    parser.add_argument("--json", type=Path, required=True, help="file of the results; a stopped study goes on")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sentences = read_knowledgenet(args.knowledgenet)
    relations = tuple(sorted({one[0] for sentence in sentences for one in sentence.triples}))
    y = labels_of([[one[0] for one in sentence.triples] for sentence in sentences], relations)
    parts = np.array([one.part for one in sentences])
    if args.embeddings:
        embeddings = np.load(args.embeddings)["emb"].astype(np.float64)
        x = dict.fromkeys(sorted(set(parts)), embeddings * np.sqrt(embeddings.shape[1]))
    else:
        x = {fold: vectors(sentences, divided(parts, fold)[0]) for fold in sorted(set(parts))}
    data = Data(sentences, relations, x, y)
    done = json.loads(args.json.read_text()) if args.json.exists() else {}
    for share in map(float, args.shares.split(",")):
        for keeps in (True, False):
            key = f"{share:g} {'kept' if keeps else 'removed'}"
            if key not in done and (share or keeps):
                done[key] = summarized(data, measure(data, share, keeps, args.seeds if share else 1, args.rate))
                write_json(args.json, done)
            for name, scores in done.get(key, {}).items():
                low, high = scores["difference_interval"]
                print(
                    f"{key:12} {name:22} F1 {scores['f1']:.1f} [{scores['f1_interval'][0]:.1f}, "
                    f"{scores['f1_interval'][1]:.1f}] difference {scores['difference']:+.1f} [{low:+.1f}, {high:+.1f}] "
                    f"AP {scores['average_precision']:.1f} AUC {scores['auc_annotated']:.1f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
