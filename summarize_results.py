"""The table of a results folder. `python summarize_results.py [DIR] ...` is `lora-retriever summarize [DIR] ...`."""

import sys

from lora_retriever.cli import main

if __name__ == "__main__":
    sys.exit(main(["summarize", *sys.argv[1:]]))
