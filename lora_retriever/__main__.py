"""`python -m lora_retriever`: the same as the command `lora-retriever`."""

import sys

from lora_retriever.cli import main

sys.exit(main())
