"""Train one LoRA for each entry of a pool. `python scripts/train_loras.py ...` is `lora-retriever train ...`."""

import sys

from lora_retriever.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
