"""What `sure` makes of answers that others released: `selection`'s answer where retrieval is sure, else `mixture`'s.

    python docs/results/sure_on_answers.py POOL ROWS ENCODER ANSWERS OUT

ANSWERS is a folder with selection.json, mixture.json, selection_ood.json and mixture_ood.json, which have the rows of
ROWS in their order. OUT gets copies of these files, and the files of `sure` and `sure_ood` with two scorers.
"""

import json
import sys
from pathlib import Path

from lora_retriever.data.rows import read_pool, read_rows
from lora_retriever.methods.sure import Sure
from lora_retriever.retrieval.encoders import load_encoder
from lora_retriever.retrieval.index import AdapterIndex

INSTRUCTION = "Represent the sentence for similar task retrieval: "


def main() -> None:
    """Search for every row, with its own adapter in the pool and masked, and choose between the answers."""
    pool_file, rows_file, encoder_folder, answers, out = map(Path, sys.argv[1:])
    pool, rows = read_pool(pool_file), read_rows(rows_file)
    encoder = load_encoder(encoder_folder, instruction=INSTRUCTION)
    texts, inputs = [row.inputs for row in rows], [[sample.inputs for sample in entry.sample] for entry in pool]
    samples, queries = [encoder.encode(listed) for listed in inputs], encoder.encode(texts)
    names, tasks = [entry.model_name for entry in pool], [row.task for row in rows]
    out.mkdir(parents=True, exist_ok=True)
    for kind, masked in (("", None), ("_ood", tasks)):
        given = {
            name: json.loads((answers / f"{name}{kind}.json").read_text("utf-8")) for name in ("selection", "mixture")
        }
        for listed in given.values():
            for row, task in zip(listed, tasks, strict=True):
                row["task"] = task  # the authors' names have a suffix
        for scorer in ("hybrid", "joint"):
            index = AdapterIndex.from_embeddings(names, samples, scorer, inputs)
            hits = index.search(queries, 8, masked, texts)
            weights = Sure().weights(hits.probabilities, index.presence(hits), k=3)
            pairs = zip(weights[:, 0] == 1, given["selection"], given["mixture"], strict=True)
            given[f"sure-{scorer}"] = [one if alone else average for alone, one, average in pairs]
            print(f"sure{kind}, {scorer}: {(weights[:, 0] == 1).mean():.1%} of the rows get one adapter")
        for name, listed in given.items():
            (out / f"{name}{kind}.json").write_text(json.dumps(listed), "utf-8")


if __name__ == "__main__":
    main()
