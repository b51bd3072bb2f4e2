"""The table of a results folder. `python summarize_results.py [DIR] ...` is `lora-retriever summarize [DIR] ...`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = HERE / ".venv" / "bin" / "python"
"""The Python of the project's environment, which `make eval` makes."""

if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE / "peft")]
    try:
        from lora_retriever.cli import main
    except ModuleNotFoundError as error:
        if PYTHON.is_file() and Path(sys.prefix) != PYTHON.parents[1]:
            os.execv(PYTHON, [str(PYTHON), *sys.argv])
        print(
            f"summarize_results.py: the Python package {error.name!r} is not installed for {sys.executable}, and "
            f"{PYTHON} is not there; `make .venv/installed` makes it",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(main(["summarize", *sys.argv[1:]]))
