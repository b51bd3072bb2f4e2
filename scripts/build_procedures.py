"""Build the miniatures of the procedures: plans step by step and relations in two stages, with one base model for both.

    python scripts/build_procedures.py --out data/tiny-procedures

Writes rows and pools of both miniatures, the base model, the adapters, `record.json` and `README.md`. All texts are
generated. Everything follows from the seed. Parts that exist already are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from procedures.build_plans import by_phase
from tiny_benchmark.models import base_config, build_tokenizer, train_base, vocabulary_of
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from lora_retriever.data.plans import joined, plan_of
from lora_retriever.data.rows import Sample
from lora_retriever.data.triples import relations_of, text_of, triples_of
from lora_retriever.files import write_json, write_text
from lora_retriever.procedures.relations import EXTRACTION, extractions
from lora_retriever.procedures.steps import next_steps
from lora_retriever.training.adapter import train_adapter
from lora_retriever.training.curve import PLOT
from lora_retriever.training.detector import train_detector
from lora_retriever.training.lora import TrainingOptions

TEMPLATE = "{inputs}\nanswer:"
"""The template of the profiles `tiny-plans` and `tiny-relations`."""
TRAINED, HELD_OUT, TESTED, SAMPLES = 400, 40, 12, 16
"""Numbers of training examples, of examples for thresholds, of rows of each kind, and of samples of a pool's entry."""
BASE_STEPS = 900
OPTIONS = TrainingOptions(
    rank=4,
    alpha=8,
    targets=("q_proj", "v_proj", "o_proj", "down_proj"),
    dropout=0.0,
    epochs=2,
    learning_rate=3e-3,
    batch_size=16,
    max_tokens=224,
    template=TEMPLATE,
)

START = {"plans": "plans", "relations": f"relations_{EXTRACTION}"}
"""The adapters from which the other adapters of their kind go on.

The other adapters have few examples, and learn the template from these adapters.
"""

PLACES = {"CounterTop": "counter top", "Shelf": "shelf", "Desk": "desk", "Sofa": "sofa"}
TARGETS = {"SinkBasin": "sink basin", "Drawer": "drawer", "Box": "box", "Cabinet": "cabinet"}
THINGS = {"Mug": "mug", "Apple": "apple", "Book": "book", "Pen": "pen", "Plate": "plate", "Towel": "towel"}
PEOPLE = ("Anna", "Boris", "Clara", "David", "Emil", "Frida", "Greta", "Hugo")
CITIES = ("Arden", "Belmar", "Corvo", "Delta", "Elsin", "Fargo")
FIRMS = ("Acme", "Bolt", "Crate", "Dyno", "Ember", "Flint")
FACTS = {
    "LIVES_IN": ("{a} lives in {b}", PEOPLE, CITIES),
    "WORKS_FOR": ("{a} works for {b}", PEOPLE, FIRMS),
    "BASED_IN": ("{a} has its office in {b}", FIRMS, CITIES),
    "PARENT_OF": ("{a} is the parent of {b}", PEOPLE, PEOPLE),
}
NO_FACTS = ("{a} met {b} today", "{a} wrote to {b}", "{a} saw {b} again")


@dataclass(frozen=True)
class Case:
    """One example: the input, the target, and whether its room occurs in the training."""

    inputs: str
    targets: str
    seen: bool = True

    @property
    def sample(self) -> Sample:
        """The case as a sample."""
        return Sample(inputs=self.inputs, targets=self.targets)


def draw_plan(rng: random.Random, seen: bool = True) -> Case:
    """A goal with a table of six objects, and its plan. In unseen rooms, things lie in other places."""
    thing = rng.choice([*THINGS])
    where = [place for place in PLACES if (len(place) + len(thing)) % 3 != 0 or not seen]
    if not seen:
        where = [place for place in PLACES if (len(place) + len(thing)) % 3 == 0] or [*PLACES]
    place, target = rng.choice(where), rng.choice([*TARGETS])
    sides = {kind: rng.choice([-1.0, 1.0]) for kind in (*PLACES, *TARGETS)}
    other, further = rng.sample([name for name in THINGS if name != thing], 2)
    rows = [f"{thing} {sides[place]} 1.0 {place}", f"{target} {sides[target]} 1.0", f"{place} {sides[place]} 1.0"]
    rows += [
        f"{name} {sides[kind]} 1.0 {kind}"
        for name, kind in zip((other, further), rng.sample([*PLACES], 2), strict=True)
    ]
    side = {kind: "left" if value < 0 else "right" for kind, value in sides.items()}
    name = THINGS[thing]
    steps = [
        f"turn {side[place]} and go to the {PLACES[place]}",
        f"pick up the {name} on the {PLACES[place]}",
        f"turn {side[target]} and go to the {TARGETS[target]}",
        f"put the {name} in the {TARGETS[target]}",
    ]
    return Case(joined(f"put the {name} in the {TARGETS[target]}", "; ".join(rows)), plan_of(steps), seen)


def draw_sentence(rng: random.Random) -> Case:
    """A sentence of two clauses with the triples that it states; a clause may state none."""
    clauses, triples = [], []
    for kind in rng.sample([*FACTS, *NO_FACTS], 2):
        form, left, right = FACTS.get(kind, (kind, PEOPLE, PEOPLE))
        a = rng.choice(left)
        b = rng.choice([name for name in right if name != a])
        clauses.append(form.format(a=a, b=b))
        if kind in FACTS:
            triples.append((kind, a, b))
    return Case(f"{clauses[0]} and {clauses[1]}.", text_of(triples))


def distinct(draw: Iterator[Case], count: int, known: set[str]) -> list[Case]:
    """The first cases whose inputs are new. Their inputs are added to `known`."""
    found: list[Case] = []
    for case in draw:
        if case.inputs not in known:
            known.add(case.inputs)
            found.append(case)
        if len(found) == count:
            return found
    raise AssertionError("the stream of cases does not end")


def documents(seed: int) -> Iterator[str]:
    """The texts from which the base learns: questions of both procedures with their answers, without the words of the
    template."""
    rng = random.Random(f"documents/{seed}")
    while True:
        plan = rng.choice(next_steps(draw_plan(rng).sample))
        yield f"{plan.inputs} so [{plan.target}]"
        for _ in range(6):  # a plan with its table is as long as several sentences
            for example in extractions(draw_sentence(rng).sample):
                yield f"{example.inputs} so [{example.target}]"
        case = draw_sentence(rng)
        named = " ".join(sorted(relations_of(triples_of(case.targets)))) or "none"
        yield f"{case.inputs} so [{named}]"


def entries(seed: int) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[Sample]], list[Sample]]:
    """The files of rows and pools by name, the training examples by adapter, and the examples for thresholds."""
    rng = random.Random(seed)
    known: set[str] = set()

    def plans(seen: bool) -> Iterator[Case]:
        return (draw_plan(rng, seen) for _ in itertools.count())

    tests = [*distinct(plans(True), TESTED, known), *distinct(plans(False), TESTED, known)]
    plan_cases = distinct(plans(True), TRAINED // 4, known)
    sentences = (draw_sentence(rng) for _ in itertools.count())
    sentence_tests = distinct(sentences, 2 * TESTED, known)
    sentence_cases = distinct(sentences, TRAINED, known)
    held_out = [case.sample for case in distinct(sentences, HELD_OUT, known)]

    whole = [case.sample for case in plan_cases]
    steps = [example for sample in whole for example in next_steps(sample)]
    phases = by_phase([{"inputs": sample.inputs, "targets": sample.target} for sample in whole])
    pairs = [pair for case in sentence_cases for pair in extractions(case.sample)]
    training = {
        "plans": steps,
        **{f"plans_{name}": [Sample(**one) for one in found] for name, found in phases.items() if found},
        "relations": [case.sample for case in sentence_cases],
        f"relations_{EXTRACTION}": pairs,
        **{f"relations_{name}": [one for one in pairs if one.inputs.startswith(name)] for name in FACTS},
    }
    shown = {**training, "plans": whole}
    files = {
        "plans.json": [row(case, "plans", "planning", "kas") for case in tests],
        "plans-pool.json": [entry(name, shown[name], "planning") for name in training if name.startswith("plans")],
        "relations.json": [row(case, "relations", "extraction", "triples") for case in sentence_tests],
        "relations-pool.json": [
            entry(name, shown[name], "extraction") for name in training if name.startswith("relations")
        ],
    }
    return files, training, held_out


def row(case: Case, task: str, domain: str, metric: str) -> dict[str, Any]:
    """A row of a miniature."""
    content = {"inputs": case.inputs, "targets": case.targets, "task": task, "domain": domain, "metric": metric}
    return {**content, "rooms": "seen" if case.seen else "unseen"} if task == "plans" else content


def entry(name: str, samples: Sequence[Sample], domain: str) -> dict[str, Any]:
    """An entry of a miniature's pool."""
    shown = [{"inputs": sample.inputs, "targets": sample.target} for sample in samples[:SAMPLES]]
    return {"model_name": name, "domain": domain, "sample": shown}


def build(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Build the parts that do not exist yet. Returns the record."""
    files, training, held_out = entries(seed)
    for name, content in files.items():
        write_json(folder / name, content)
    if not (folder / "base" / "config.json").exists():
        texts = [
            TEMPLATE,
            *(text for samples in training.values() for one in samples for text in (one.inputs, one.target)),
        ]
        texts += itertools.islice(documents(seed), 2000)
        texts += [one["inputs"] for name in ("plans.json", "relations.json") for one in files[name]]
        made = build_tokenizer(vocabulary_of(text.replace("[", "").replace("]", "") for text in texts))
        config = base_config(made, hidden=64, layers=3)
        model, loss = train_base(config, made, documents(seed), seed, steps)
        model.save_pretrained(folder / "base")
        made.save_pretrained(folder / "base")
        write_json(folder / "base.json", {"steps": steps, "loss": round(loss, 4)})
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    base.config.name_or_path = base.name_or_path = "data/tiny-procedures/base"  # the base that the adapters name
    options = OPTIONS.model_copy(update={"seed": seed})
    for name, samples in training.items():
        out = folder / "adapters" / name
        if out.exists():
            continue
        if name == "relations":
            detecting = options.model_copy(update={"detect": "cross_entropy", "epochs": 6.0})
            record = train_detector(base, tokenizer, samples, detecting, out, held_out)
        else:
            start = START.get(name.partition("_")[0], name)
            initial = None if start == name else folder / "adapters" / start
            record = train_adapter(base, tokenizer, samples, options, out, initial=initial)
        (out / PLOT).unlink(missing_ok=True)
        print(f"  {name}: {len(samples)} examples, losses {record['losses']}, {record['seconds']} s", flush=True)
    return {"seed": seed, "rows": {name: len(files[name]) for name in ("plans.json", "relations.json")}}


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/tiny-procedures"), help="folder of the miniatures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-steps", type=int, default=BASE_STEPS, help="training steps of the base model")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # between transformers and PEFT
    torch.set_num_threads(1)  # the order of sums, and so the result, depends on this number
    record = build(args.out, args.seed, args.base_steps)
    write_json(args.out / "record.json", record)
    write_text(args.out / "README.md", README.format(**record["rows"] | {"seed": args.seed}))
    return 0


README = """# The miniatures of the procedures

Rows, pools, a base model and adapters for the profiles `tiny-plans` and `tiny-relations`. They show the machinery of
procedures, and no claim of a paper. All texts are generated; no text was taken from elsewhere.

| file | what it is |
| --- | --- |
| `plans.json`, `plans-pool.json` | goals with short object tables, in seen and unseen rooms, and plans of four steps |
| `relations.json`, `relations-pool.json` | sentences of two clauses, and the triples that the clauses state |
| `base/` | `LlamaForCausalLM`, float32, word-level tokenizer |
| `adapters/plans`, `adapters/plans_PHASE` | next steps of all kinds, and by what the next step does |
| `adapters/relations` | a LoRA with a detection head, `head.safetensors`; the threshold comes from other sentences |
| `adapters/relations_extract`, `adapters/relations_RELATION` | pairs of all relations, and of one relation |

In unseen rooms, things lie where they never lie in training.

    python scripts/build_procedures.py --out data/tiny-procedures --seed {seed}
"""


if __name__ == "__main__":
    sys.exit(main())
