"""Items from many threads reach the event loop. No item is lost, and the items of one thread stay in their order."""

from __future__ import annotations

import asyncio
import threading

import pytest

from lora_retriever.serving.mailbox import Mailbox

THREADS, ITEMS = 4, 500


@pytest.mark.slow
def test_nothing_is_lost_or_changes_its_order() -> None:
    async def receive() -> list[tuple[int, int]]:
        queue: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        mailbox = Mailbox.of_running_loop()
        assert Mailbox.of_running_loop() is mailbox

        def send(sender: int) -> None:
            for number in range(ITEMS):
                mailbox.put(queue, (sender, number))

        threads = [threading.Thread(target=send, args=[sender]) for sender in range(THREADS)]
        for thread in threads:
            thread.start()
        found = [await asyncio.wait_for(queue.get(), 10) for _ in range(THREADS * ITEMS)]
        assert queue.empty()
        return found

    found = asyncio.run(receive())
    for sender in range(THREADS):
        assert [number for who, number in found if who == sender] == list(range(ITEMS))


def test_a_loop_that_has_ended_takes_nothing_and_disturbs_nobody() -> None:
    async def mailbox_of() -> tuple[Mailbox, asyncio.Queue[int]]:
        return Mailbox.of_running_loop(), asyncio.Queue()

    mailbox, queue = asyncio.run(mailbox_of())
    mailbox.put(queue, 1)
    assert queue.empty()
