"""The Ray backend: the same rows as the local backend, whichever process dies; clear errors; no process is left."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import reduce
from operator import or_
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from forked import Forked
from places import TINY
from tiny_runs import QUIET, tiny_profile, write_profile

from lora_retriever.backends.base import Outcome
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import open_benchmark
from lora_retriever.experiment.profile import Profile
from lora_retriever.generation.answer import Answer
from lora_retriever.generation.batches import Request
from lora_retriever.generation.loading import ModelSource
from lora_retriever.generation.prompt import Prompt
from lora_retriever.generation.settings import GenerationSection
from lora_retriever.methods import Composition, registered
from lora_retriever.running.evaluate import evaluate
from lora_retriever.running.plan import configuration
from lora_retriever.running.run_file import Line, RunFile

ray = pytest.importorskip("ray", reason="the ray extra is not installed")
pytest.importorskip("ray.data", reason="the ray extra is not installed")
from clusters import small_cluster  # noqa: E402
from ray.data._internal.execution.streaming_executor import StreamingExecutor  # noqa: E402
from ray.exceptions import ActorDiedError, ActorUnavailableError  # noqa: E402

from lora_retriever.backends.ray import RayBackend, load  # noqa: E402
from lora_retriever.backends.ray_actors import ATTEMPTS, Desk  # noqa: E402

pytestmark = pytest.mark.long

IN_THREES = {"generation": {"batch_size": 3}}


def ray_profile(folder: Path, **changes: Any) -> Profile:
    """Batches of 3 rows on two workers of Ray. The workers leave a part of two CPUs to other processes."""
    return tiny_profile(folder, **{"backend": "ray", "ray": {"workers": 2, "cpus": 0.4}, **IN_THREES, **changes})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of Ray that runs already, as on a user's machine."""
    with small_cluster():
        yield


def worker_processes(doing: str = "") -> list[int]:
    """The process ids of Ray's workers that hold a model. With `doing`, only workers that run this method now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            if title.startswith(f"ray::Worker{doing}") and started_here(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def kill_a_busy_worker(may_kill: threading.Event, killed: list[int]) -> None:
    """Wait for the event, and kill the first worker that is seen to answer a batch."""
    may_kill.wait()
    while not killed:
        for pid in worker_processes(doing=".answer"):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            return


def started_here(pid: int) -> bool:
    """Whether a process descends from this process: a test must not touch the clusters of other users."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_a_signal_ends_a_run_on_ray_as_it_ends_any_run(tmp_path: Path) -> None:
    """Ray installs its own signal handlers, which abort.

    This test runs first, because a fork cannot use its parent's Ray.
    Ray ends a process with status 1 if one of its threads uses Ray, or drops a reference, after `ray.shutdown`. At the
    signal, a thread of Ray Data is slower than the two seconds that Ray Data itself waits.
    """
    step, shutdown, is_slow = StreamingExecutor._scheduling_loop_step, ray.shutdown, tmp_path / "slow"

    def slow_step(self: StreamingExecutor, topology: Any) -> bool:
        if is_slow.exists():
            time.sleep(3)
        return step(self, topology)

    def shutdown_and_tell() -> None:
        names = sorted(thread.name for thread in threading.enumerate())
        os.write(2, f"threads at the shutdown: {names}\n".encode())
        shutdown()

    def prepare() -> None:
        StreamingExecutor._scheduling_loop_step = slow_step  # type: ignore[method-assign]
        ray.shutdown = shutdown_and_tell

    write_profile(tmp_path, **IN_THREES, backend="ray", ray={"address": "local", "workers": 1, "cpus": 0.4})
    results = tmp_path / "results"
    run = ["run", "--profile", str(tmp_path / "mine.yaml"), "--only", "base", "--results", str(results)]
    with Forked(run, tmp_path, before=prepare) as process:
        process.wait_for(results / "base.jsonl.partial", timeout=300)
        is_slow.touch()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 143, process.errors
    threads = process.errors.partition("threads at the shutdown: ")[2].splitlines()[0]
    assert "MainThread" in threads
    assert "iter_threaded" not in threads
    assert "StreamingExecutor" not in threads
    assert "stopped by SIGTERM; what is done so far is on disk" in process.errors
    assert "Traceback" not in process.errors
    lines = (results / "base.jsonl.partial").read_bytes().count(b"\n")
    assert 0 < lines < 570


def test_a_model_that_cannot_be_loaded_is_a_users_error_and_ends_ray(tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    shutil.copytree(TINY / "adapters", adapters)
    (adapters / "animal_qa" / "adapter_model.safetensors").write_bytes(b"damaged")
    ray_settings = {"address": "local", "cpus": 0.4}
    profile = ray_profile(tmp_path, adapters={"location": f"{adapters}/{{adapter}}"}, ray=ray_settings)
    with pytest.raises(UserError, match="'animal_qa'") as error:
        evaluate(profile, ["best_selection"], tmp_path / "results", limit=1, console=QUIET)
    assert "Traceback" not in str(error.value)
    assert not ray.is_initialized()
    patience = time.monotonic() + 20
    while worker_processes() and time.monotonic() < patience:
        time.sleep(0.1)
    assert worker_processes() == []


def test_a_killed_workers_rows_are_done_again_and_all_are_the_local_backends(
    cluster: None, runs_in_threes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["selection", "mixture_ood", "fusion"]
    append, seen, killed, may_kill = RunFile.append, [], [], threading.Event()

    def append_and_look(run: RunFile, lines: Sequence[Line]) -> None:
        append(run, lines)
        seen.append(set(worker_processes()))
        may_kill.set()

    monkeypatch.setattr(RunFile, "append", append_and_look)
    killer = threading.Thread(target=kill_a_busy_worker, args=(may_kill, killed), daemon=True)
    killer.start()
    evaluate(ray_profile(tmp_path), methods, tmp_path / "ray", limit=2, console=QUIET)
    assert len(killed) == 1
    assert len(seen[0]) == 2
    assert seen[0] - set(killed) <= seen[-1]  # the same worker in the last run as in the first
    for name in methods:
        of_ray, of_local = ((results / f"{name}.jsonl").read_text() for results in (tmp_path / "ray", runs_in_threes))
        assert of_ray == of_local
        meta = json.loads((tmp_path / "ray" / f"{name}.meta.json").read_text())
        assert meta["finished"] is True
        assert meta["configuration"]["backend"] == "ray"
    assert ray.is_initialized()  # it was there before


# A user's file beside the profile. No worker finds this file on Python's own path.
OWN = """
    from dataclasses import dataclass

    from lora_retriever.methods import Method, registered
    from peft_composition.modes import MODES


    @dataclass(frozen=True)
    class Whole:
        mode: str = "fusion"

        def __call__(self, stack, active):
            return MODES[self.mode](stack, active)


    @dataclass(frozen=True)
    class Even:
        share: float = 0.25

        def prepare(self, offered):
            return None

        def weights(self, prepared, tokens):
            return tokens.offered[:, None] * tokens.x.new_full((*tokens.x.shape[:2], 1), self.share)


    NEAREST = registered()["mixture"]
    DECLARED = {"reads": NEAREST.reads, "settings": NEAREST.settings}
    METHODS = [
        Method("own_composer", "as fusion", "nobody 2026", NEAREST.router, Whole(), **DECLARED),
        Method("own_gate", "each alike", "nobody 2026", NEAREST.router, gate=Even(), **DECLARED),
    ]
"""


def test_a_users_own_composer_and_gate_reach_the_workers(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "own_of_ray.py").write_text(dedent(OWN))
    methods = {"methods": ["own_of_ray:METHODS"]}
    try:
        evaluate(tiny_profile(tmp_path, **IN_THREES, **methods), None, tmp_path / "local", limit=1, console=QUIET)
        evaluate(ray_profile(tmp_path, **methods), None, tmp_path / "ray", limit=1, console=QUIET)
    finally:
        sys.modules.pop("own_of_ray", None)
    for name in ("own_composer", "own_gate"):
        of_ray, of_local = ((tmp_path / results / f"{name}.jsonl").read_text() for results in ("ray", "local"))
        assert of_ray == of_local
        assert '"adapters": []' not in of_local


REQUESTS = [Request(id, Prompt([0], 0), Composition()) for id in range(1, 6)]


def test_an_error_fails_its_window_alone_and_a_window_that_is_done_is_not_asked_again(cluster: None) -> None:
    class Toy:  # within a function, because Ray's processes cannot import the tests
        def answer(self, window: bytes, how: bytes) -> bytes:
            ids = [request.id for request in pickle.loads(window)]
            if 4 in ids:
                raise LookupError("nobody knows 4\nnor why")
            mode, gate = pickle.loads(how)
            return pickle.dumps(Outcome({id: Answer(f"{id} by {mode} and {gate}", 1) for id in ids}))

    toy: Any = ray.remote(Toy)
    source = ModelSource(Path(), {}, GenerationSection(batch_size=1))
    with closing(RayBackend([toy.remote()], source, owns_cluster=False)) as backend:
        gate: Any = "a gate"
        outcome = reduce(or_, backend.answers(REQUESTS, "mixture", done=[1, 5], gate=gate))
        assert {id: answer.text for id, answer in outcome.answers.items()} == {
            id: f"{id} by mixture and a gate" for id in (1, 2)
        }
        assert outcome.failures == {3: "nobody knows 4", 4: "nobody knows 4"}
        assert list(backend.answers(REQUESTS, "fusion", done=[1, 2, 3, 4, 5])) == []


class FakeWorker:
    """A stand-in for a worker.

    The window "deadly" kills the worker; after `lives` such deaths, the worker stays dead.
    """

    def __init__(self, lives: int) -> None:
        self.lives = lives
        self.answer = self.load = self
        self.asked: list[bytes] = []

    def options(self, max_task_retries: int) -> FakeWorker:
        return self

    async def remote(self, batch: bytes = b"", how: bytes = b"") -> bytes:
        self.asked.append(batch)
        if self.lives == 0:
            raise ActorDiedError
        if batch == b"deadly":
            self.lives -= 1
            raise ActorUnavailableError("it is being started again", None)
        return batch.upper()


def at_desk(workers: Sequence[FakeWorker], *batches: bytes) -> list[tuple[bytes, str]]:
    """The outcomes of windows that a desk gets one after the other."""

    async def ask() -> list[tuple[bytes, str]]:
        desk = Desk(*workers)
        return [await desk.answer(batch, b"mode and gate") for batch in batches]

    return asyncio.run(ask())


KILLED = (b"", "its worker died: killed, out of memory, or with a broken device")


def test_a_window_goes_to_the_next_worker_when_one_died_of_it_and_is_given_up_in_the_end() -> None:
    workers = [FakeWorker(lives=9) for _ in range(4)]
    assert at_desk(workers, b"one", b"deadly", b"two") == [(b"ONE", ""), KILLED, (b"TWO", "")]
    assert [worker.lives for worker in workers] == [9, 8, 8, 8]


def test_a_worker_that_died_comes_back() -> None:
    worker = FakeWorker(lives=ATTEMPTS + 1)
    assert at_desk([worker], b"deadly", b"one") == [KILLED, (b"ONE", "")]


def test_a_worker_that_cannot_come_back_is_asked_no_more() -> None:
    lost, well = FakeWorker(lives=0), FakeWorker(lives=9)
    assert at_desk([lost, well], b"one", b"two", b"three") == [(b"ONE", ""), (b"TWO", ""), (b"THREE", "")]
    assert lost.asked == [b"one", b""]  # first the batch; then the desk asks whether the model can be loaded


def test_without_workers_all_windows_fail() -> None:
    assert at_desk([FakeWorker(lives=0)], b"one", b"two") == [KILLED, (b"", "all workers have died")]


def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster: None, tmp_path: Path) -> None:
    profile = ray_profile(tmp_path, ray={"workers": 6, "cpus": 0.4})
    with pytest.raises(UserError, match=r"6 workers with 0\.4 CPUs and 0 GPUs each .* has 2 CPUs and 0 GPUs"):
        load(profile, open_benchmark(profile, limit=1))


def test_an_address_without_a_cluster_is_named(tmp_path: Path) -> None:
    profile = ray_profile(tmp_path, ray={"address": "127.0.0.1:1"})
    with pytest.raises(UserError, match=r"no cluster at '127\.0\.0\.1:1': .*refused"):
        load(profile, open_benchmark(profile, limit=1))


def test_how_the_work_is_divided_is_no_part_of_a_runs_configuration(tmp_path: Path) -> None:
    profiles = [ray_profile(tmp_path, ray={"workers": count}) for count in (1, 2)]
    one, two = (configuration(profile, open_benchmark(profile, 1), registered()["fusion"]) for profile in profiles)
    assert one == two
    assert one["backend"] == "ray"


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lora_retriever.backends.ray")
    with pytest.raises(UserError, match=r"pip install -e '\.\[ray\]'"):
        importlib.import_module("lora_retriever.backends.ray")
