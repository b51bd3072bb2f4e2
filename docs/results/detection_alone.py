"""Stage one of the procedure `relations` alone, for the comparison of losses in `relations.md`.

Run with `--set procedure=detection_alone:ALONE` under a profile in this folder. The metric `triples` then gives the
precision, recall and F1 of the detected relations (`relation-f1`); its scores of triples are 0.
"""

from lora_retriever.data.rows import Row
from lora_retriever.data.triples import text_of
from lora_retriever.procedures import Detect, Procedure, Talk


def detect(row: Row) -> Talk:
    """Ask for the relations. The prediction has a triple without subject and object for each relation."""
    relations: tuple[str, ...] = yield Detect(row.inputs)
    return text_of((relation, "?", "?") for relation in relations)


ALONE = Procedure("detection", "the relations of a sentence alone", "this project", detect, detects=True)
