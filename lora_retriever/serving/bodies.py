"""The JSON of a request's body. A field that is there more than once is refused, because its value is unclear."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from lora_retriever.data.objects import bounded_integer, without_repeats


class BodyRoute(APIRoute):
    """A route that reads bodies as this module does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return answer


class _Request(Request):
    async def json(self) -> Any:
        try:
            return json.loads(await self.body(), object_pairs_hook=without_repeats, parse_int=bounded_integer)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise  # the body is no JSON
        except (ValueError, RecursionError) as error:
            reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise HTTPException(400, f"the body: {reason}") from error
