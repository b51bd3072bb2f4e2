"""`python -m lora_retriever`: the same as the command `lora-retriever`."""

import sys

try:
    from lora_retriever.cli import main
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("lora_retriever"):
        raise
    print(
        f"lora-retriever: the Python package {error.name!r} is not installed for {sys.executable}. In a checkout, "
        "`make .venv/installed` installs everything into .venv, and ./lora-retriever uses it",
        file=sys.stderr,
    )
    sys.exit(2)

sys.exit(main())
