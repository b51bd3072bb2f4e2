"""How fast are texts encoded? `python scripts/retrieval/bench_encoding.py --encoder DIR_OR_ID --pool FILE`

The distinct inputs of a pool's samples are encoded by sentence-transformers alone, by our encoder, and by our encoder
with a filled cache. The three encoders take turns, and every encoder is compared with the first encoder round by round,
so that other work on the machine slows all three equally. With `--clock cpu`, other work does not count at all. Medians
are printed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.progress import track
from sentence_transformers import SentenceTransformer

from lora_retriever.data.rows import read_pool
from lora_retriever.files import write_json
from lora_retriever.hub import ENCODER_WANTED, folder_or_id
from lora_retriever.retrieval.embedding_cache import CachedEncoder, EmbeddingCache
from lora_retriever.retrieval.encoders import Embeddings, load_encoder

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", required=True, help="one that sentence-transformers loads: a folder or a Hub id")
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--texts", type=int, help="number of texts, drawn by chance (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch's on a CPU (default: 1)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = sorted({sample.inputs.strip() for entry in read_pool(args.pool) for sample in entry.sample})
    texts = random.Random(0).sample(texts, args.texts or len(texts))
    with tempfile.TemporaryDirectory() as folder:
        seconds, largest_difference = measure(
            ways(folder_or_id(args.encoder, ENCODER_WANTED), texts, args.batch_size, args.device, Path(folder)),
            args.rounds,
            CLOCKS[args.clock],
        )
    plain = next(iter(seconds.values()))
    figures = {
        name: {
            "seconds": round(median(taken), 4),
            "texts_per_second": round(len(texts) / median(taken), 1),
            "ratio": round(median(mine / its for mine, its in zip(taken, plain, strict=True)), 4),
            "largest_difference": largest_difference[name],
        }
        for name, taken in seconds.items()
    }
    print(
        f"{len(texts)} texts, {args.device}, {args.threads} threads, {args.clock} time, median of {args.rounds} rounds"
    )
    print(f"{'':<38}{'seconds':>9}{'texts/s':>10}{'time, ratio':>13}{'largest difference':>20}")
    for name, figure in figures.items():
        print(
            f"{name:<38}{figure['seconds']:>9.3f}{figure['texts_per_second']:>10.1f}{figure['ratio']:>13.3f}"
            f"{figure['largest_difference']:>20.1e}"
        )
    if args.json:
        named = ("rounds", "batch_size", "device", "threads", "clock")
        settings = {"texts": len(texts), **{name: getattr(args, name) for name in named}}
        write_json(args.json, {**settings, "ways": figures})


def ways(
    encoder: Path, texts: list[str], batch_size: int, device: str, cache: Path
) -> dict[str, Callable[[], Embeddings]]:
    """The encoders that are compared, by name. The other encoders are compared with the first."""
    ours = load_encoder(encoder, batch_size=batch_size, device=device)
    plain = SentenceTransformer(str(encoder), device=device, local_files_only=True)
    hit = CachedEncoder(lambda: ours, EmbeddingCache(cache), {})
    hit.encode(texts)
    return {
        f"sentence-transformers, batches of {batch_size}": lambda: plain.encode(texts, batch_size=batch_size),
        "sentence-transformers, its default": lambda: plain.encode(texts),
        f"ours, batches of {batch_size}": lambda: ours.encode(texts),
        "ours, out of the cache": lambda: hit.encode(texts),
    }


def measure(
    ways: dict[str, Callable[[], Embeddings]], rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """By name: the seconds of every round, and the largest difference between elements of the vectors and of the first
    encoder's vectors."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    vectors: dict[str, Embeddings] = {}
    for _ in track(range(rounds), description="encoding"):
        for name, encode in ways.items():
            begun = clock()
            vectors[name] = encode()
            seconds[name].append(clock() - begun)
    first = next(iter(vectors.values()))
    return seconds, {name: float(abs(found - first).max()) for name, found in vectors.items()}


if __name__ == "__main__":
    main()
