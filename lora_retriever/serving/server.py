"""The server's process: load, listen, answer, and end when a signal says so."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from lora_retriever.errors import UserError
from lora_retriever.escaping import for_rich
from lora_retriever.experiment.profile import Profile

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

INSTALL = "the server needs its extra: pip install -e '.[serve]'"


def serve(
    profile: Profile,
    host: str,
    port: int,
    console: Console,
    keys: Path | None = None,
    allow_changes: bool = False,
    access_log: bool = True,
    results: Path | None = None,
) -> None:
    """Serve a profile until SIGINT or SIGTERM. Requests that run then are finished, and new requests are refused.

    Args:
        port: 0 takes a free port.
        keys: the file of the keys that clients may send. None: no key is needed.
        allow_changes: whether clients may add and remove adapters.
        access_log: whether a line of JSON is written to standard output for each request.
        results: the results folder that has the learned folders. None: `results/PROFILE`.

    Raises:
        UserError: something cannot be loaded, the backend cannot be served, or the address is taken.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn

        from lora_retriever.serving.guard import read_keys, to_standard_output
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("fastapi", "uvicorn", "prometheus_client", "starlette"):
            raise UserError(INSTALL) from error
        raise
    if profile.backend not in APPS:
        raise UserError(f"backend: {profile.backend} is not served (served: {', '.join(APPS)})")
    if allow_changes and profile.backend == "ray":
        raise UserError(f"backend: {profile.backend} serves a pool that is fixed: leave --allow-changes out")
    known = frozenset() if keys is None else read_keys(keys)
    log = to_standard_output if access_log else None
    options = Options(known, allow_changes, log, (results or Path("results") / profile.name).resolve())
    with (
        closing(_listening(host, port)) as listening,
        APPS[profile.backend](profile, console, options) as (app, state, served),
    ):
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=int(profile.serve.seconds) + 5,
            server_header=False,
        )
        server = uvicorn.Server(config)
        server.capture_signals = partial(_stopping_by_signals, server, state)  # type: ignore[method-assign]
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        listening.listen(config.backlog)  # a client that reads "ready" can connect
        console.print(for_rich(f"ready: {address} serves {served}; Ctrl-C ends"), soft_wrap=True)
        server.run(sockets=[listening])


@dataclass(frozen=True)
class Options:
    """The options for the app of every backend; see `serve`.

    Attributes:
        keys: the SHA-256 of each key.
        log: is given one line for each request. None: no access log.
    """

    keys: Collection[bytes]
    allow_changes: bool
    log: Callable[[str], object] | None
    results: Path


class State(Protocol):
    """The state that a signal changes."""

    ending: bool


App = tuple["ASGIApp", State, str]
"""An app, its state, and a description of the served profile."""


@contextmanager
def _local_app(profile: Profile, console: Console, options: Options) -> Iterator[App]:
    """The app of a service in this process."""
    from lora_retriever.serving.app import make_app
    from lora_retriever.serving.changes import Changing
    from lora_retriever.serving.loading import load_service, settle
    from lora_retriever.serving.metrics import Metrics
    from lora_retriever.serving.prompts import Prompts
    from lora_retriever.serving.state import Serving

    metrics = Metrics()
    with closing(load_service(profile, console, metrics.step, options.results)) as service:
        changing = Changing(service) if options.allow_changes else None
        serving = Serving(service, Prompts(service.codec), metrics, changing)
        settle()
        served = f"{len(service.offered)} methods and {len(service.pool.current.entries)} adapters"
        yield make_app(serving, options.keys, options.log), serving, served


@contextmanager
def _ray_app(profile: Profile, console: Console, options: Options) -> Iterator[App]:
    """The app that lets replicas answer."""
    from lora_retriever.serving.front import Front
    from lora_retriever.serving.guard import Guard
    from lora_retriever.serving.metrics import Metrics
    from lora_retriever.serving.ray_replicas import replicas_of

    with ExitStack() as stack:
        with console.status("starting the replicas"):
            replicas, count = stack.enter_context(replicas_of(profile, options.results))
        metrics = Metrics()
        front = Front(replicas, metrics)
        guard = Guard(front, options.keys, int(profile.serve.body), lambda: front.ending, metrics, options.log)
        yield guard, front, f"{count} replicas"


APPS = {"local": _local_app, "vllm": _local_app, "ray": _ray_app}
"""The functions that make the app, by the name of the backend."""


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is bound already, so that a port that is taken is known before anything is loaded.

    Raises:
        UserError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.set_inheritable(True)
    except OSError as error:
        listening.close()
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from error
    return listening


@contextmanager
def _stopping_by_signals(server: uvicorn.Server, state: State) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the server in an orderly way, the second at once.

    uvicorn's own handlers would raise the signal again when everything is finished, so that the exit status would say
    that the server was killed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        server.force_exit = state.ending
        state.ending = server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
