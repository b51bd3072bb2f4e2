"""Hammer a server: many requests at once, of which a tenth is malformed and a tenth is cancelled by the client, while
the pool changes.

    python scripts/serving/hammer.py [--requests 2000] [--at-once 32]

Every good request must be answered, and with the answer that the same request had alone. At the end, the batch must
have no row, and the memory of the process must be within 5 % of the memory after the first tenth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from local_server import CHAT, LocalServer, chat, chat_body

from lora_retriever.data.rows import read_rows
from lora_retriever.experiment.profile import load_profile

MODELS = ("base", "selection", "fusion", "mixture", "calibrated", "ties", "uniform", "arrow")
MALFORMED: tuple[bytes, ...] = (
    b"", b"{", b"[" * 3000, b'{"model": 1}', b'{"model": "mixture", "messages": "no"}', b"\xff\xfe\x00",
    b'{"model": "mixture", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "mixture", "messages": [{"role": "user", "content": "x"}], "lora": {"k": -1}}',
    b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "mixture", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
)  # fmt: skip
ADDED = "added"
LARGEST_GROWTH = 1.05


class Hammer:
    """The requests, and their outcomes."""

    def __init__(self, server: LocalServer, texts: list[str], seed: int = 0) -> None:
        self.server = server
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._texts = texts
        self._random = random.Random(seed)
        self._expected = {
            (model, text): server.post(CHAT, **chat_body(model, text)).json()["choices"][0]["message"]["content"]
            for model in MODELS
            for text in texts
        }

    async def run(self, requests: int, at_once: int) -> None:
        """Send the requests, while an adapter comes and goes."""
        room = asyncio.Semaphore(at_once)
        limits = httpx.Limits(max_connections=at_once + 2)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=600, limits=limits) as client:
            changing = asyncio.create_task(self._change(client))

            async def send() -> None:
                async with room:
                    await self._one(client)

            await asyncio.gather(*(send() for _ in range(requests)))
            changing.cancel()
            await asyncio.gather(changing, return_exceptions=True)

    async def _one(self, client: httpx.AsyncClient) -> None:
        kind = self._random.random()
        model, text = self._random.choice(MODELS), self._random.choice(self._texts)
        if kind < 0.1:
            headers = {"content-type": "application/json"}
            response = await client.post(CHAT, content=self._random.choice(MALFORMED), headers=headers)
            self.counts[f"malformed: {response.status_code}"] += 1
            if not 400 <= response.status_code < 500:
                self.wrong.append(f"a malformed request: {response.status_code} {response.text}")
        elif kind < 0.2:
            await self._hang_up(client, model, text)
            self.counts["hung up"] += 1
        else:
            # The added adapter is excluded, so that the answer is the answer of the pool without this adapter.
            exclude: dict[str, Any] = {"lora": {"exclude": [ADDED]}} if model != "base" else {}
            try:
                answer = await chat(client, model, text, **exclude)
            except AssertionError as error:
                if "no adapter" not in str(error):
                    self.wrong.append(f"{model}: {error}")
                    return
                answer = await self._without(client, model, text)
            self.counts["answered"] += 1
            if answer != self._expected[model, text]:
                self.wrong.append(f"{model}: {text!r}: {answer!r} and not {self._expected[model, text]!r}")

    async def _without(self, client: httpx.AsyncClient, model: str, text: str) -> str:
        """The answer while the added adapter is not in the pool. If the adapter comes back at this moment, the answer
        is asked for again."""
        for _ in range(20):
            response = await client.post(CHAT, json=chat_body(model, text))
            lora = response.json().get("lora", {})
            names = {hit["name"] for hit in lora.get("retrieved", lora.get("adapters", []))}
            if response.status_code == 200 and ADDED not in names and lora.get("offered", 19) == 19:
                return str(response.json()["choices"][0]["message"]["content"])
            try:
                return await chat(client, model, text, lora={"exclude": [ADDED]})
            except AssertionError:
                continue
        raise AssertionError("the adapter came and went twenty times")

    async def _hang_up(self, client: httpx.AsyncClient, model: str, text: str) -> None:
        body = chat_body(model, text, stream=self._random.random() < 0.5)
        try:
            async with client.stream("POST", CHAT, json=body, timeout=self._random.random()) as response:
                async for _ in response.aiter_bytes():
                    break
        except httpx.TimeoutException:
            pass

    async def _change(self, client: httpx.AsyncClient) -> None:
        samples = [{"inputs": f"an added sample number {number}", "targets": "yes"} for number in range(5)]
        while True:
            added = await client.post("/v1/adapters", json={"name": ADDED, "samples": samples})
            removed = await client.delete(f"/v1/adapters/{ADDED}") if added.status_code == 201 else added
            self.counts[f"added: {added.status_code}, removed: {removed.status_code}"] += 1
            if added.status_code not in (201, 409) or removed.status_code not in (200, 409):
                self.wrong.append(f"the pool could not be changed: {added.text} {removed.text}")
            await asyncio.sleep(0.05)


def resident_bytes() -> int:
    """The memory of this process, in bytes. 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def hammered(requests: int, at_once: int, texts: int = 8, warm_up: int = 0) -> tuple[Hammer, float]:
    """Hammer a server of the miniature. Returns the outcomes of the requests, and the factor by which the memory
    grew."""
    profile = load_profile("tiny")
    with tempfile.TemporaryDirectory() as folder:
        location = profile.local_path(profile.adapter_location("people_qa"))
        assert location is not None
        shutil.copytree(location, Path(folder) / ADDED)
        changed = profile.model_copy(update={"serve": profile.serve.model_copy(update={"adapters": folder})})
        server = LocalServer(changed, allows_changes=True)
        rows = read_rows(profile.rows_source)
        hammer = Hammer(server, [row.inputs for row in rows[:: max(1, len(rows) // texts)]][:texts])
        asyncio.run(hammer.run(warm_up, at_once))
        before = resident_bytes()
        asyncio.run(hammer.run(requests, at_once))
        engine = server.serving.service.engine
        engine.call(lambda: None).result()
        if engine.open or server.serving.service.in_use:
            hammer.wrong.append(f"{engine.open} rows are left, and {server.serving.service.in_use} adapters in use")
        growth = resident_bytes() / max(before, 1)
        server.close()
    return hammer, growth


def main() -> int:
    """Hammer, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=32)
    args = parser.parse_args()
    hammer, growth = hammered(args.requests, args.at_once, warm_up=args.requests // 10)
    for what, count in sorted(hammer.counts.items()):
        print(f"{count:6d} {what}")
    print(f"memory × {growth:.3f}")
    print("\n".join(hammer.wrong[:20]) or "nothing lost, doubled or mixed up")
    return 1 if hammer.wrong or growth > LARGEST_GROWTH else 0


if __name__ == "__main__":
    raise SystemExit(main())
