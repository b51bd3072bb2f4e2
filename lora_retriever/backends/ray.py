"""The backend of any number of GPUs or machines: a Ray Data pipeline over actors, each with a model of its own.

    windows ─► Ray Data ─► desk ─► the first free worker ─► outcomes, in any order

Every run is a dataset of its windows. A worker answers a window as the local backend does: rows join the batch as other
rows end. The windows are smaller than the windows of the local backend, and do not depend on the number of workers, so
a run that goes on with other workers repeats the same windows.

The pools of actors that Ray Data itself offers end with their dataset (Ray's issue 46479), and would load the base
model anew for each method. Therefore the workers live as long as the backend, outside the pipeline. The one step of the
pipeline asks the desk, and the desk gives the window to the first free worker. Ray starts a worker that died again, and
its window goes to another worker.

Every machine of a cluster needs the package and the folders of the models, at the same paths. This process encodes,
plans and writes, and decides the device for all workers.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from traceback import clear_frames
from typing import Any

from lora_retriever.backends.base import BackendError, Outcome
from lora_retriever.backends.signals import keeping_handlers
from lora_retriever.errors import UserError
from lora_retriever.experiment.benchmark import Benchmark, model_source
from lora_retriever.experiment.profile import Profile, RaySection
from lora_retriever.generation.batches import SHARED_WINDOW, Request, plan_windows, unfinished
from lora_retriever.generation.generator import Generator
from lora_retriever.generation.loading import ModelSource, load_generator
from peft_composition import Composer, Gate

try:
    import ray
    import ray.data
    from ray.exceptions import GetTimeoutError, RayError

    from lora_retriever.backends.ray_actors import RESTARTS, Desk, Worker, reason_of
except ImportError as error:
    raise UserError("backend: ray needs the ray extra: pip install -e '.[ray]'") from error

LOADING_TIME = 3600.0
"""Maximum time that all workers together may take to start and load their models, in seconds."""
CONNECTION_TIME = 10.0
"""Maximum time that the address of a cluster may take to answer, in seconds."""
ENDING_TIME = 30.0
"""Maximum time that the threads of an interrupted pipeline may take to end, in seconds."""
PIPELINE_THREADS = ("StreamingExecutor", "iter_threaded")
"""Ray Data executes a pipeline, and reads its blocks, in threads whose names begin with these texts."""


class RayBackend:
    """Answers with the models of a cluster's workers."""

    def __init__(self, workers: Sequence[Any], source: ModelSource, owns_cluster: bool) -> None:
        """`source` is the model into which methods may look. Loaded beside the workers, when first asked for."""
        self.workers = list(workers)
        self._source = source
        self._owns_cluster = owns_cluster  # whether this process started Ray or joined the cluster
        self._blocks: Any = None  # the generator of the latest pipeline's answers
        # The run has a progress bar of its own. Errors of Ray Data are raised, so they need no log as well.
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.raise_original_map_exception = False, True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        desk: Any = ray.remote(Desk).options(num_cpus=0, max_concurrency=1000)
        self._desk = desk.remote(*self.workers)

    def answers(
        self, requests: Sequence[Request], mode: str | Composer, done: Collection[int], gate: Gate | None = None
    ) -> Iterator[Outcome]:
        """Yield each outcome when a worker has computed the outcome. This process and its workers alone write pickles.

        Raises:
            BackendError: Ray itself failed.
        """
        windows = unfinished(plan_windows(requests, self._source.generation, SHARED_WINDOW), done)
        if not windows:
            return
        desk, how = self._desk, pickle.dumps((mode, gate))

        def ask(item: dict[str, Any]) -> dict[str, Any]:
            outcome, failure = ray.get(desk.answer.remote(item["window"], how))
            return {"index": item["index"], "outcome": outcome, "failure": failure}

        items = [{"index": index, "window": pickle.dumps(window)} for index, window in enumerate(windows)]
        # The desk is asked once more than there are workers, so that a free worker need not wait for the pipeline.
        at_once = ray.data.TaskPoolStrategy(size=min(len(self.workers) + 1, len(items)))
        pipeline = ray.data.from_items(items, override_num_blocks=len(items)).map(ask, compute=at_once, num_cpus=0)
        # Blocks that are fetched in advance would be written to disk later.
        self._blocks = iter(pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for block in self._blocks:
                for answered in block.to_pylist():
                    if answered["failure"]:
                        failed = windows[answered["index"]]
                        yield Outcome(failures={request.id: answered["failure"] for request in failed})
                    else:
                        yield pickle.loads(answered["outcome"])
        except BaseException as error:
            clear_frames(error.__traceback__)  # their variables would keep the pipeline's threads alive
            if isinstance(error, RayError):
                raise BackendError(
                    f"backend: ray: {reason_of(error)}; start the run again: the rows done so far are on disk"
                ) from error
            raise

    def generator(self) -> Generator:
        """A model in this process, in addition to the models of the workers.

        Raises:
            UserError: the model cannot be loaded.
        """
        return load_generator(self._source)

    def close(self) -> None:
        """End the workers. Also end Ray if this process started Ray for the workers."""
        self._end_pipeline()
        for actor in (self._desk, *self.workers):
            with suppress(RayError):
                ray.kill(actor)
        if self._owns_cluster:
            ray.shutdown()

    def _end_pipeline(self) -> None:
        """End the threads that an interrupted pipeline leaves in this process.

        Ray ends the whole process with status 1 if one of its threads uses Ray, or drops a reference, after
        `ray.shutdown`. Ray Data itself waits two seconds for one of the two threads, and not at all for the other.
        """
        if self._blocks is None:
            return
        self._blocks.close()
        patience = time.monotonic() + ENDING_TIME
        for thread in threading.enumerate():
            if thread.name.startswith(PIPELINE_THREADS):
                thread.join(max(0.0, patience - time.monotonic()))


def load(profile: Profile, benchmark: Benchmark) -> RayBackend:
    """The workers of a profile, each with its model loaded.

    Raises:
        UserError: there is no such cluster, the cluster has no room for the workers, or a worker cannot load its model.
    """
    device = profile.torch_device.partition(":")[0]  # Ray shows each worker only the GPUs that the worker may use
    source = model_source(profile, benchmark)
    own_methods = tuple(name for name in profile.methods if ":" in name)
    owns_cluster = connect(profile.ray)
    workers: list[Any] = []
    try:
        count, resources = plan_workers(profile.ray, on_gpus=device != "cpu")
        actors = ray.remote(Worker).options(**resources, max_restarts=RESTARTS)
        given = replace(source, device=device)
        workers += [actors.remote(given, own_methods, profile.folder) for _ in range(count)]
        ray.get([worker.load.remote() for worker in workers], timeout=LOADING_TIME)
        return RayBackend(workers, source, owns_cluster)
    except BaseException as error:
        for worker in workers:
            with suppress(RayError):
                ray.kill(worker)
        if owns_cluster:
            ray.shutdown()
        if isinstance(error, GetTimeoutError):
            raise UserError(
                f"backend: ray: the workers were not ready within {LOADING_TIME / 60:.0f} minutes; the cluster may "
                "be in use by others: lower ray.workers, or try again later"
            ) from error
        if isinstance(error, RayError):
            raise UserError(reason_of(error)) from error
        raise


def connect(settings: RaySection) -> bool:
    """See that Ray runs. Returns whether this process had to start Ray, or join the cluster.

    Raises:
        UserError: there is no such cluster.
    """
    host, _, port = (settings.address or "").removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTION_TIME).close()
        if ray.is_initialized():
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray reports its use to its makers
        with keeping_handlers():
            ray.init(
                address=settings.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
    except (OSError, ValueError, RuntimeError, RayError) as error:
        what = f"no cluster at {settings.address!r}" if settings.address else "Ray could not be started here"
        raise UserError(f"backend: ray: {what}: {reason_of(error)}") from error
    return True


def plan_workers(settings: RaySection, on_gpus: bool) -> tuple[int, dict[str, float]]:
    """The number of workers, and the resources of the cluster for each worker.

    Raises:
        UserError: the cluster has fewer resources, so that some workers would never start.
    """
    gpus = float(on_gpus) if settings.gpus is None else settings.gpus
    wanted = [(name, each) for name, each in (("CPU", settings.cpus), ("GPU", gpus)) if each]
    # A worker runs on one machine. 2 CPUs have room for 5 workers of 0.4 CPUs.
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    rooms = [int(min((machine.get(name, 0) / each for name, each in wanted), default=1) + 1e-6) for machine in machines]
    count = settings.workers or (max(1, sum(rooms)) if gpus else 1)
    if wanted and count > sum(rooms):
        there = ray.cluster_resources()
        raise UserError(
            f"backend: ray: {count} workers with {settings.cpus:g} CPUs and {gpus:g} GPUs each are wanted, but the "
            f"cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs on {len(machines)} machines, "
            f"room for {sum(rooms)}; lower ray.workers, ray.cpus or ray.gpus"
        )
    return count, {"num_cpus": settings.cpus, "num_gpus": gpus}
