"""The training examples behind `instructions-gemma-270m.md`: how many of each task, and at which learning rate.

    python docs/results/instruction_examples.py data/instructions/train.json data/instructions/chosen

Writes one pool file for each learning rate, `train-RATE.json`, into the folder.
"""

import json
import sys
from pathlib import Path

USUAL = (320, "4e-3")
"""Number of examples of a task, and the learning rate."""
HARD = "synonym rhyme sum word_in_context common_sense german spanish french"
OTHERS = {
    **dict.fromkeys(HARD.split(), (192, "4e-3")),
    **dict.fromkeys(["similarity", "news_topic"], (256, "4e-3")),
    **dict.fromkeys(["starts_with", "negation", "alphabetically_first", "alphabetically_last"], (500, "4e-3")),
    **dict.fromkeys(["animals_of_list", "difference", "larger_animal", "letters_apart"], (470, "2e-3")),
    "sentiment": (320, "1e-3"),
}


def main() -> None:
    """Choose the first examples of every entry, and divide the entries by learning rate."""
    source, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    chosen = {rate: [] for _, rate in {USUAL, *OTHERS.values()}}
    for entry in json.loads(source.read_text("utf-8")):
        count, rate = OTHERS.get(entry["model_name"], USUAL)
        chosen[rate].append({**entry, "sample": entry["sample"][:count]})
    for rate, entries in chosen.items():
        (out / f"train-{rate}.json").write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
