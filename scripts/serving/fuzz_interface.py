"""Try the server's own OpenAPI description with schemathesis: no request may end in a status of 500 or more.

    pip install schemathesis==4.32.5
    python scripts/serving/fuzz_interface.py [--examples 50]

A server of the miniature runs in this process, and clients may add and remove adapters in an empty folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from local_server import LocalServer

from lora_retriever.experiment.profile import load_profile


def main() -> int:
    """Run schemathesis, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50, help="requests of each kind for each path (default: 50)")
    args = parser.parse_args()
    profile = load_profile("tiny")
    limits = profile.generation.model_copy(update={"max_new_tokens": 4})
    with tempfile.TemporaryDirectory() as folder:
        serve = profile.serve.model_copy(update={"adapters": folder, "max_new_tokens": 8})
        server = LocalServer(profile.model_copy(update={"serve": serve, "generation": limits}), allows_changes=True)
        command = [
            sys.executable, "-c", "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())",
            "run", f"{server.url}/openapi.json", "--checks", "not_a_server_error", "--exclude-path", "/metrics",
            "--max-examples", str(args.examples), "--seed", "1",
        ]  # fmt: skip
        status = subprocess.run(command, check=False).returncode
        server.close()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
