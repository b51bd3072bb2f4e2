"""Responses of JSON, and the response for an error."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Response

from lora_retriever.serving.errors import ApiError


class Json(Response):
    """A response of JSON in ASCII, which holds any text: also half of a surrogate pair in a message."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The content as JSON. NaN, which JSON lacks, is an error of the program."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_response(error: ApiError) -> Json:
    """The response for an error."""
    return Json(error.body, status_code=error.status, headers=error.headers)
