"""Make the notebook of a tutorial from its script, so that both have the same steps.

    python scripts/make_notebook.py examples/tutorial.py    # writes examples/tutorial.ipynb

A cell of the script begins with a line `# %%`, and a cell of text with `# %% [markdown]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

CELL = "# %%"
TEXT = "# %% [markdown]"


def notebook_of(script: str) -> dict[str, Any]:
    """The notebook with the cells of a script, without outputs."""
    cells: list[dict[str, Any]] = []
    for part in script.split(f"\n{CELL}"):
        head, _, body = (part if part.startswith(CELL) else CELL + part).partition("\n")
        lines = body.strip("\n").split("\n")
        common: dict[str, Any] = {"id": f"cell-{len(cells)}", "metadata": {}}
        if head == TEXT:
            source = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
            cells.append({"cell_type": "markdown", **common, "source": source.splitlines(keepends=True)})
        else:
            source = "\n".join(lines)
            code = {"execution_count": None, "outputs": [], "source": source.splitlines(keepends=True)}
            cells.append({"cell_type": "code", **common, **code})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text_of(notebook: dict[str, Any]) -> str:
    """A notebook as the text of its file."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write the notebook beside the script."""
    parser = argparse.ArgumentParser(description="Make the notebook of a tutorial from its script.")
    parser.add_argument("script", type=Path)
    script: Path = parser.parse_args().script
    notebook = notebook_of(script.read_text(encoding="utf-8"))
    script.with_suffix(".ipynb").write_text(text_of(notebook), encoding="utf-8")


if __name__ == "__main__":
    main()
