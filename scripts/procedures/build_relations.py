"""Build rows, pools and training examples of relations in two stages, from KnowledgeNet or Re-DocRED.

    python scripts/procedures/build_relations.py --knowledgenet FILE --fold 4 --out data/knowledgenet
    python scripts/procedures/build_relations.py --redocred DIR --out data/redocred

Writes into OUT: `test.json` (rows), `detect.json` (a pool of one entry, for `train_loras.py --detect`; its last
`--validation` samples are the validation data), `extract.json` (one entry, the pairs of all relations), `each.json`
(one entry for each relation) and, of KnowledgeNet, `groups.json` (one entry for each group of relations, `GROUPS`). A
run needs the entries of both stages: `pool_extract.json`, `pool_each.json` and `pool_groups.json` have them.

Of KnowledgeNet one fold is the test, and the fold before it the validation data. Of Re-DocRED, `test_revised` is the
test, and `dev_revised` is divided. `--drop` drops triples of the training sentences, and of no others; a sentence that
is left without triples stays.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_retriever.data.rows import Sample
from lora_retriever.errors import UserError
from lora_retriever.files import write_json, writing
from lora_retriever.procedures.relations import EXTRACTION, adapter_of, extractions

sys.path.append(str(Path(__file__).resolve().parent.parent))  # where `procedures` is
from procedures.relation_data import Sentence, read_knowledgenet, read_redocred

DOMAIN = "relation extraction"
GROUPS = {
    "DATES": "DATE_FOUNDED DATE_OF_BIRTH DATE_OF_DEATH",
    "ORGANISATIONS": "EDUCATED_AT EMPLOYEE_OR_MEMBER_OF POLITICAL_AFFILIATION SUBSIDIARY_OF",
    "PEOPLE": "CEO CHILD_OF FOUNDED_BY SPOUSE",
    "PLACES": "HEADQUARTERS NATIONALITY PLACE_OF_BIRTH PLACE_OF_RESIDENCE",
}
"""The 15 relations of KnowledgeNet, grouped by the kind of their objects."""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--knowledgenet", type=Path, help="file of KnowledgeNet's passages")
    source.add_argument("--redocred", type=Path, help="folder of Re-DocRED's files and relation_names.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the benchmark")
    parser.add_argument("--fold", type=int, default=4, choices=[1, 2, 3, 4], help="KnowledgeNet's test fold")
    parser.add_argument("--train", type=int, help="number of training sentences, drawn (default: all)")
    parser.add_argument("--validation", type=int, default=200, help="number of validation sentences, drawn")
    parser.add_argument("--rows", type=int, help="number of test sentences, drawn (default: all)")
    parser.add_argument("--drop", type=float, default=0, help="share of the training triples to drop (default: 0)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        parts = knowledgenet(args.knowledgenet, args.fold) if args.knowledgenet else redocred(args.redocred)
        task = "knowledgenet" if args.knowledgenet else "redocred"
        draw = random.Random(args.seed)
        counts = (args.train, args.validation, args.rows)
        chosen = [drawn(part, count, draw) for part, count in zip(parts, counts, strict=True)]
        chosen[0] = without_some(chosen[0], args.drop, draw)
        for name, content in files_of(task, *chosen).items():
            with writing(args.out / name):
                write_json(args.out / name, content)
    except UserError as error:
        print(f"build_relations: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {', '.join(str(len(part)) for part in chosen)} sentences to train, validate and test")
    return 0


def knowledgenet(path: Path, fold: int) -> list[list[Sentence]]:
    """The passages for training, validation and test."""
    passages = read_knowledgenet(path)
    validation = str((fold - 2) % 4 + 1)
    rest = [one for one in passages if one.part not in (validation, str(fold))]
    return [rest, *([one for one in passages if one.part == part] for part in (validation, str(fold)))]


def redocred(folder: Path) -> list[list[Sentence]]:
    """The sentences to train, to validate and to test; every fifth document's worth of `dev_revised` validates."""
    names = json.loads((folder / "relation_names.json").read_text(encoding="utf-8"))
    train = read_redocred(folder / "dev_revised.json", names)
    cut = len(train) * 4 // 5
    return [train[:cut], train[cut:], read_redocred(folder / "test_revised.json", names)]


def drawn(sentences: Sequence[Sentence], count: int | None, draw: random.Random) -> list[Sentence]:
    """Some sentences, in their order. None: all."""
    if count is None or count >= len(sentences):
        return [*sentences]
    return [sentences[place] for place in sorted(draw.sample(range(len(sentences)), count))]


def without_some(sentences: Sequence[Sentence], share: float, draw: random.Random) -> list[Sentence]:
    """The sentences after each of their triples was dropped with the probability `share`."""
    return [replace(one, triples=tuple(kept for kept in one.triples if draw.random() >= share)) for one in sentences]


def group_of(relation: str) -> str | None:
    """The group of a relation of KnowledgeNet. None: the relation is in no group."""
    return next((name for name, listed in GROUPS.items() if relation in listed.split()), None)


def files_of(
    task: str, train: Sequence[Sentence], validation: Sequence[Sentence], test: Sequence[Sentence]
) -> dict[str, Any]:
    """The content of each file."""
    pairs = [pair for one in train for pair in extractions(Sample(inputs=one.text, targets=one.targets))]
    detect = entry(task, [Sample(inputs=one.text, targets=one.targets) for one in (*train, *validation)])
    extracting = {
        "extract.json": [entry(f"{task}_{EXTRACTION}", pairs)],
        "each.json": parted(pairs, task, lambda relation: relation),
        "groups.json": parted(pairs, task, group_of),
    }
    kind = {"task": task, "domain": DOMAIN, "metric": "triples"}
    return {
        "test.json": [{"inputs": one.text, "targets": one.targets, **kind} for one in test],
        "detect.json": [detect],
        **{name: entries for name, entries in extracting.items() if entries},
        **{f"pool_{name}": [detect, *entries] for name, entries in extracting.items() if entries},
    }


def parted(pairs: Sequence[Sample], task: str, part_of: Callable[[str], str | None]) -> list[dict[str, Any]]:
    """A pool entry for each part of the extraction samples, by their relations. Relations of no part are left out."""
    parts: dict[str, list[Sample]] = {}
    for pair in pairs:
        if (part := part_of(pair.inputs.partition(" |")[0])) is not None:
            parts.setdefault(adapter_of(task, part, True), []).append(pair)
    return [entry(name, samples) for name, samples in sorted(parts.items())]


def entry(name: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """A pool entry."""
    listed = [{"inputs": sample.inputs, "targets": sample.target} for sample in samples]
    return {"model_name": name, "domain": DOMAIN, "sample": listed}


if __name__ == "__main__":
    sys.exit(main())
