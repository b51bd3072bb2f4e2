"""Relations by heads on TF-IDF vectors, as runs of a results folder, for `relations.md`.

    PYTHONPATH=.:peft:scripts python docs/results/tfidf_relations.py data/knowledgenet 150 results/relations

The heads are those of `missing_labels.py`. They are trained on the passages of `detect.json`, except the last 150, on
which epoch and threshold are chosen. A prediction has a triple without subject and object for each relation.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from procedures.missing_labels import DIMENSIONS, labels_of, trained
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.data.triples import relations_of, text_of, triples_of
from lora_retriever.training.losses import loss_of

RATE = 0.003
LOSSES = {"tfidf_cross_entropy": ("cross_entropy", 0.04), "tfidf_collective": ("collective_pu", 0.5)}
"""The loss and π of each run."""


def main() -> None:
    """Train a head by each loss, and write the runs."""
    data, validation, results = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    samples, rows = read_pool(data / "detect.json")[0].sample, read_rows(data / "test.json")
    count = len(samples) - validation
    relations = [sorted(relations_of(triples_of(one.target))) for one in samples]
    names = tuple(sorted({name for found in relations[:count] for name in found}))
    y = labels_of(relations, names)  # [samples, relations]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    fitted = words.fit_transform([one.inputs for one in samples[:count]])
    dimensions = min(DIMENSIONS, min(fitted.shape) - 1)
    reduced = TruncatedSVD(dimensions, random_state=0).fit(fitted)
    x = reduced.transform(words.transform([one.inputs for one in [*samples, *rows]])) * np.sqrt(dimensions)
    for run, (loss, pi) in LOSSES.items():
        function = loss_of(loss, float(y[:count].mean()), pi, 0.05)
        held = x[count : len(samples)]
        head, threshold = trained(x[:count], y[:count], function, held, y[count:], RATE)
        with torch.no_grad():
            chances = head(torch.tensor(x[len(samples) :]).float()).sigmoid().numpy()
        lines = []
        for row, found in zip(rows, chances >= threshold, strict=True):
            answer = text_of((name, "?", "?") for name, there in zip(names, found, strict=True) if there)
            lines.append(json.dumps({**row.model_dump(), "predicted_answer": answer}) + "\n")
        (results / f"{run}.jsonl").write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    main()
