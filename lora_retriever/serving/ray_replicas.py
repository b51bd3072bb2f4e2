"""Replicas of the server as a deployment of Ray Serve: any number of GPUs and machines.

    clients ─► Front (this process) ─► Ray Serve ─► the replica with the fewest requests ─► messages of the response

Each replica has a service of its own: base, adapters, encoder and index. Ray Serve starts a replica again that died or
whose device is broken. Every machine needs the package, and the profile's folders at the same paths.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.types import Message

from lora_retriever.errors import UserError, one_line_of
from lora_retriever.experiment.profile import Profile
from lora_retriever.serving.errors import ApiError
from lora_retriever.serving.front import LostError
from lora_retriever.serving.replica import Replica

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
except ImportError as error:
    raise UserError("serve --backend ray needs the extras serve and ray: pip install -e '.[serve,ray]'") from error

from lora_retriever.backends.ray import connect, plan_workers
from lora_retriever.backends.signals import keeping_handlers

NAME = "lora-retriever"
HEALTH = 5.0
"""Time between two looks at a replica's health, in seconds."""
MORE = 64
"""Number of requests that a replica gets beyond its limit of waiting answers, so that the replica refuses some."""


class RayReplicas:
    """The replicas, with the interface that `Front` uses."""

    def __init__(self, handle: Any) -> None:
        """`handle`: Ray Serve's own, for the deployment."""
        self._respond = handle.options(stream=True).respond

    async def respond(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """See `front.Replicas`."""
        parts = self._respond.remote(scope, body)
        try:
            async for part in parts:
                for message in part:
                    yield message
        except RayTaskError:  # an error of the replica's own code, and the replica lives
            raise
        except BackPressureError as error:
            raise ApiError(429, "too many requests wait", code="overloaded", headers={"Retry-After": "5"}) from error
        except (RayError, DeploymentUnavailableError) as error:
            raise LostError(one_line_of(error)) from error
        finally:
            parts.cancel()


@contextmanager
def replicas_of(profile: Profile, results: Path | None = None) -> Iterator[tuple[RayReplicas, int]]:
    """The replicas of a profile, loaded, and their number. At the end of the `with` block the replicas end.

    Args:
        results: the results folder that has the learned folders, the same for all replicas.

    Raises:
        UserError: there is no such cluster, the cluster has no room for the replicas, or a replica cannot load the
            profile.
    """
    device = profile.torch_device.partition(":")[0]  # Ray shows each replica only the GPUs that the replica may use
    given = profile.model_copy(update={"backend": "local", "device": device, "folder": profile.folder.resolve()})
    owns_cluster = connect(profile.ray)
    try:
        count, resources = plan_workers(profile.ray, on_gpus=device != "cpu")
        options: dict[str, Any] = {
            "name": NAME,
            "num_replicas": count,
            "ray_actor_options": resources,
            "max_ongoing_requests": profile.serve.waiting + MORE,
            "max_queued_requests": profile.serve.waiting,
            "max_constructor_retry_count": 1,
            "health_check_period_s": HEALTH,
        }
        yield RayReplicas(_started(given, results, options)), count
    finally:
        with suppress(Exception):  # Ray itself may be gone
            serve.delete(NAME)
            if owns_cluster:
                serve.shutdown()
        if owns_cluster:
            ray.shutdown()


def _started(profile: Profile, results: Path | None, options: Mapping[str, Any]) -> Any:
    """The handle of the deployment, whose replicas are loaded.

    Raises:
        UserError: a replica cannot load the profile.
    """
    try:
        with keeping_handlers():
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            replicas = serve.deployment(**options)(Replica).bind(profile, results)
            return serve.run(replicas, name=NAME, route_prefix=None)
    except (RuntimeError, RayError) as error:
        raise UserError(f"backend: ray: {_reason(str(error))}") from error


def _reason(text: str) -> str:
    """The last error that a message of Ray Serve shows, without the traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [line for line in lines if "Error" in line.partition(":")[0]]
    return (found or lines or ["a replica could not be started"])[-1]
