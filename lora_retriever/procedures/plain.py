"""`plain`: one prompt, whose answer is the prediction. Rows are answered by this procedure unless another is named."""

from __future__ import annotations

from lora_retriever.data.rows import Row
from lora_retriever.procedures.base import Ask, Procedure, Talk


def one_answer(row: Row) -> Talk:
    """Ask the row's inputs. (`running` answers plain rows without stages; the results are the same.)"""
    answer: str = yield Ask(row.inputs)
    return answer


PROCEDURES = (Procedure("plain", "one prompt, whose answer is the prediction", "LoraRetriever", one_answer),)
