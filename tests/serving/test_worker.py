"""The thread with a queue: no item of the queue is lost, and the order stays."""

from __future__ import annotations

import threading

from lora_retriever.serving.worker import Worker


def test_what_waits_is_worked_on_together_in_its_order() -> None:
    begun, go, seen = threading.Event(), threading.Event(), []

    def work(items: list[int]) -> bool:
        begun.set()
        go.wait(5)
        seen.append(items)
        return False

    worker: Worker[int] = Worker("test", work)
    assert worker.put(1) and begun.wait(5)
    assert worker.put(2, 3) and worker.put(4)
    go.set()
    worker.close()
    assert seen == [[1], [2, 3, 4]]
    assert not worker.put(5) and seen == [[1], [2, 3, 4]]


def test_work_goes_on_without_items_until_it_says_that_it_is_done() -> None:
    done, calls = threading.Event(), []

    def work(items: list[str]) -> bool:
        calls.append(items)
        if len(calls) == 3:
            done.set()
        return len(calls) < 3

    worker: Worker[str] = Worker("test", work)
    worker.put("a")
    assert done.wait(5)
    worker.close()
    assert calls == [["a"], [], []]


def test_the_end_is_in_the_thread_and_after_the_last_item() -> None:
    order: list[str] = []
    worker: Worker[str] = Worker(
        "mine", lambda items: bool(order.extend(items)), lambda: order.append(threading.current_thread().name)
    )
    worker.put("last")
    worker.close()
    assert order == ["last", "mine"]
