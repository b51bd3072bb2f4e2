"""Fetch the official benchmark. `python scripts/fetch_official.py ...` is `lora-retriever fetch ...`."""

import sys

from lora_retriever.cli import main

if __name__ == "__main__":
    sys.exit(main(["fetch", *sys.argv[1:]]))
