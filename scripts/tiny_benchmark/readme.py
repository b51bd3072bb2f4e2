"""The README of the bundled miniature, written from the record of its build."""

from __future__ import annotations

from statistics import mean
from typing import Any

from tiny_benchmark.tasks import TASKS

_TEXT = """# The bundled miniature benchmark

A toy with everything the real benchmark has: a base model, {tasks} LoRA adapters (one per task, {domains} domains, all
three metrics), a sentence encoder in Instructor's layout, a pool of {pool_samples} samples per adapter and {test_rows}
test rows. It is here so that every command and every test runs within minutes, offline, on a laptop's CPU.

**It shows the machinery, not the paper's claims.** Texts are about an invented world of 500 words, the base model is
a Llama of {parameters} parameters that has seen nothing else, and tasks were designed to be learnable at that size.
Differences between methods here say nothing about Llama-2 or FLAN.

| file | what it is |
| --- | --- |
| `base/` | `LlamaForCausalLM`, float32, word-level tokenizer, trained on declarative text without any instruction |
| `adapters/TASK/` | a PEFT checkpoint: LoRA, r = {rank}, alpha = {alpha:g}, all linear layers, float32 |
| `encoder/` | sentence-transformers: T5 encoder, mean pooling without the instruction, dense, normalise |
| `test.json`, `pool.json` | rows and pool entries, in the official files' layout |
| `record.json` | how all this was made, and what was measured |

No test row's case (question, passage, sentence, record, options) occurs in its task's training rows, under any prompt
template; pool samples are training rows. Names, facts and rows are generated; no text was taken from elsewhere.

## How it was made

    python scripts/build_tiny.py --out data/tiny --seed {seed}

on {processor} ({cores} cores, shared with other work; one thread used), torch {torch}, transformers {transformers},
peft {peft}. It took {minutes:.0f} minutes: {stages}.

- The base learns facts, passages, parallel sentences and so on as plain statements; its loss is taken on the words that
  can be known (`scripts/tiny_benchmark/corpus.py` marks them).
- All adapters go on from one LoRA trained on {start_rows} rows of all tasks ({start_epochs:g} epochs), then each on
  {train_rows} rows of its own task ({epochs:g} epochs). Adapters of this size that were trained apart did not survive a
  mixture, where each of three has a weight of one third. So each has seen a little of every task, and "ood" below means
  only that the task's own adapter is masked.
- The encoder is trained by contrast on {encoder_tasks} of the {tasks} tasks.

## Scores

Own adapter, best other adapter of the same domain, and retrieval by cosine with the encoder above; exact match (em),
BLEU or ROUGE-1 in percent, {rows_per_task} rows a task. "ood": the own adapter is masked. 95 % half-widths on a task
near 50 % are about 18 points. Not learned, their own adapters included (below 60): {not_learned}.

{table}

Retrieval, share of rows whose own adapter is found, in percent: {retrieval}.
"""


def readme(record: dict[str, Any]) -> str:
    """The text, from the record of a complete build."""
    stages = record["stages"]
    minutes = {name: stage["seconds"] / 60 for name, stage in stages.items()}
    return _TEXT.format(
        tasks=len(TASKS),
        domains=len({task.domain for task in TASKS}),
        pool_samples=stages["data"]["pool_samples"],
        test_rows=stages["data"]["test_rows"],
        rows_per_task=stages["data"]["test_rows"] // len(TASKS),
        parameters=f"{stages['base']['parameters'] / 1e6:.1f}M",
        rank=stages["adapters"]["options"]["rank"],
        alpha=stages["adapters"]["options"]["alpha"],
        seed=record["seed"],
        start_rows=stages["adapters"]["start_rows"],
        start_epochs=stages["adapters"]["start"]["epochs"],
        train_rows=stages["adapters"]["train_rows"],
        epochs=stages["adapters"]["options"]["epochs"],
        encoder_tasks=len(stages["encoder"]["tasks"]),
        minutes=sum(minutes.values()),
        stages=", ".join(f"{name} {value:.1f}" for name, value in minutes.items()),
        table=_table(stages["check"]),
        not_learned=", ".join(name for name, score in stages["check"]["runs"]["best_selection"].items() if score < 60)
        or "none",
        retrieval="; ".join(
            f"{scorer} {shares['top1']} (top 1), {shares['top3']} (top 3)"
            for scorer, shares in stages["check"]["retrieval"].items()
        ),
        **record["machine"],
        **record["versions"],
    )


def _table(check: dict[str, Any]) -> str:
    columns = {
        "base": check["runs"]["base"], "own adapter": check["runs"]["best_selection"],
        "best sibling": check["best_sibling"],
        **{name: scores for name, scores in check["runs"].items() if name not in ("base", "best_selection")},
    }  # fmt: skip
    lines = [
        "| domain | task | metric | " + " | ".join(columns) + " |",
        "| --- | --- | --- |" + " ---: |" * len(columns),
    ]
    for task in TASKS:
        scores = " | ".join(f"{scores[task.name]:.1f}" for scores in columns.values())
        lines.append(f"| {task.domain} | {task.name} | {task.metric} | {scores} |")
    exact = [task.name for task in TASKS if task.metric == "em"]
    means = " | ".join(f"{mean(scores[name] for name in exact):.1f}" for scores in columns.values())
    lines.append(f"| | **mean of the {len(exact)} em tasks** | | {means} |")
    return "\n".join(lines)
