"""`lora-retriever serve`: answer requests in OpenAI's interface, and show a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from lora_retriever.commands.arguments import add_profile, profile_of
from lora_retriever.errors import UserError

HELP = "serve the methods and adapters of a profile in OpenAI's interface, with a page to try them"
EXAMPLES = """
lora-retriever serve                                               # the bundled miniature; then open the page
lora-retriever serve --profile mine.yaml --host 0.0.0.0 --api-key-file keys.txt
lora-retriever serve --profile mine.yaml --api-key-file keys.txt --allow-changes
lora-retriever serve --profile mine.yaml --backend vllm --set generation.batch_size=64
lora-retriever serve --profile mine.yaml --backend ray --set ray.workers=4
"""
LARGEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_profile(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, help="port; 0 takes a free one (default: 8000)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="keys, one on each line; clients must send one of them"
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="let clients add and remove adapters; needs --api-key-file and the profile's serve.adapters",
    )
    parser.add_argument(
        "--backend",
        choices=("local", "vllm", "ray"),
        help="what makes answers: the project's own engine, vLLM, or replicas of Ray Serve (default: the profile's)",
    )
    parser.add_argument("--results", type=Path, help="folder of what methods learn (default: results/PROFILE)")
    parser.add_argument("--no-access-log", action="store_true", help="write no line for each request")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command and return the exit status."""
    from lora_retriever.serving.server import serve

    if args.allow_changes and args.api_key_file is None:
        raise UserError("--allow-changes needs --api-key-file: without a key, anybody could change the pool")
    profile = profile_of(args)
    if args.backend is not None:
        profile = profile.model_copy(update={"backend": args.backend})
    serve(
        profile,
        args.host,
        args.port,
        console,
        args.api_key_file,
        args.allow_changes,
        not args.no_access_log,
        args.results,
    )
    return 0


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"must be 0 to {LARGEST_PORT}")
    return port
