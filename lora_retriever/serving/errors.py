"""Errors that a client sees, in the form of OpenAI's interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_retriever.escaping import visible

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""OpenAI's names of kinds of errors, by status. Other statuses below 500 are `invalid_request_error`."""


class ApiError(Exception):
    """Why a request is not answered.

    Attributes:
        status: the HTTP status.
        message: what is wrong, and what to do.
        param: the field at fault, such as `lora.k`.
        code: OpenAI's short name of the error, such as `model_not_found`.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The body of the error's response."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else visible(self.param)
        return {"error": {"message": visible(self.message), "type": kind, "param": param, "code": self.code}}
