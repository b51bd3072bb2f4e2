# %% [markdown]
# # From a CSV file to a saved adapter
#
# You have a CSV file with questions and answers, and a base model. In a few minutes you train one adapter for each kind
# of question, let the project find the right adapters for new questions, see whether two methods differ, read the
# answers, and save a mixture of two adapters that any engine for LoRA can serve.
#
# Every step is one command of `lora-retriever`. `step("audit", …)` is what you would type as `lora-retriever audit …`.
#
# - `train.csv`: 120 questions of four kinds, with answers. `questions.csv`: 40 other questions of the same kinds.
# - Without further settings, the base model is the toy of the bundled miniature, which knows none of these words. So
#   the steps take a minute, and the scores mean nothing. **For real answers, set `BASE`** to the folder or the Hub id
#   of a small model, for example `BASE=google/gemma-3-270m`, and `EPOCHS` to 5.

# %%
import os
from pathlib import Path

import lora_retriever
from lora_retriever.cli import main

MINIATURE = Path(lora_retriever.__file__).parent / "profiles" / "tiny" / "base"
BASE = os.environ.get("BASE", str(MINIATURE))
BASE = str(Path(BASE).resolve()) if Path(BASE).exists() else BASE
EPOCHS = os.environ.get("EPOCHS", "1")
FILES = Path("examples") if Path("examples/train.csv").exists() else Path()
OUT = Path(os.environ.get("OUT", "results/tutorial"))
OUT.mkdir(parents=True, exist_ok=True)


def step(*arguments):
    """Run one command of lora-retriever, and stop if the command fails."""
    print("\n$ lora-retriever", *arguments)
    if main([str(argument) for argument in arguments]):
        raise SystemExit("this step failed")


# %% [markdown]
# ## 1. Look at the data
#
# The columns are named `question`, `answer` and `subject`. `--columns` says which field each column is, and
# `--defaults` gives what the files do not have: the metric (exact match) and a name for the domain. `audit` finds
# duplicates, and questions that stand in the training data, too.

# %%
COLUMNS = ["--columns", "inputs=question,targets=answer,task=subject", "--defaults", "domain=words,metric=em"]
step("audit", FILES / "questions.csv", "--pool", FILES / "train.csv", *COLUMNS)

# %% [markdown]
# ## 2. Train one adapter for each subject
#
# A stopped training goes on when you run the step again.

# %%
step(
    *("train", "--base", BASE, "--pool", FILES / "train.csv", *COLUMNS, "--out", OUT / "adapters"),
    *("--rank", "8", "--alpha", "16", "--epochs", EPOCHS, "--learning-rate", "1e-3", "--dtype", "float32"),
)

# %% [markdown]
# ## 3. Say where everything is
#
# A profile is a file that says everything an evaluation depends on. The pool describes each adapter by 20 of its
# training questions. The scorer `lexical` compares words, so no encoder is needed.

# %%
PROFILE = OUT / "tutorial.yaml"
PROFILE.write_text(
    f"""
base: {{location: "{BASE}"}}
adapters: {{location: "./adapters/{{adapter}}"}}
data:
  rows: {(FILES / "questions.csv").resolve()}
  pool: {{from: {(FILES / "train.csv").resolve()}, samples: 20, seed: 0}}
  columns: {{inputs: question, targets: answer, task: subject}}
  defaults: {{domain: words, metric: em}}
retrieval: {{scorer: lexical, k: 2}}
generation: {{max_prompt_tokens: 256, max_new_tokens: 8, batch_size: 8}}
dtype: float32
"""
)
step("doctor", "--profile", PROFILE)
step("prompts", "--profile", PROFILE, "--rows", "1")

# %% [markdown]
# ## 4. Answer the questions
#
# `base` uses no adapter. `selection` uses the adapter that fits a question best, `mixture` the two best.
# `best_selection` is told the subject: it always uses the adapter of the question's own subject.

# %%
RESULTS = OUT / "answers"
step("run", "--profile", PROFILE, "--only", "base,selection,mixture,best_selection", "--results", RESULTS)

# %% [markdown]
# ## 5. Is one method better?
#
# The first table shows the scores with 95 % intervals. The second compares every method with `selection`, row by row.
# `~` means that the questions do not show a difference.

# %%
step("summarize", RESULTS)
step("summarize", RESULTS, "--versus", "selection")

# %% [markdown]
# ## 6. Read the answers
#
# Open the page in a browser: every answer, with the adapters behind it.

# %%
step("report", RESULTS)

# %% [markdown]
# ## 7. Save a mixture
#
# A mixture of two adapters of rank 8 is one adapter of rank 16, an ordinary PEFT checkpoint.

# %%
ADAPTERS = [OUT / "adapters" / name for name in ("plurals", "past_tense")]
step("compose", "--base", BASE, *(f"--adapter={folder}=0.5" for folder in ADAPTERS), "--out", OUT / "mixture")
