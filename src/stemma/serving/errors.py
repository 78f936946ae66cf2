"""What goes wrong with a request, told in OpenAI's error format."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP; 499: the client has left and nobody reads the answer.
        parameter: the field of the request that is wrong. code: a name for programs. retry_after: seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        parameter: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.parameter, self.code = status, message, parameter, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI writes it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.parameter, "code": self.code}}

    def response(self) -> Response:
        """Return the answer."""
        # In ASCII: a message may quote halves of surrogate pairs, which UTF-8 cannot hold.
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def wrong(parameter: str | None, message: str, code: str | None = None) -> APIError:
    """Return a 400: the value of a field is wrong."""
    return APIError(400, message, parameter=parameter, code=code)


# Fields that OpenAI knows and nobody serves here; they are refused rather than ignored.
UNSUPPORTED = {
    *("audio", "function_call", "functions", "modalities"),
    *("prediction", "reasoning_effort", "verbosity", "web_search_options"),
}


def validation_error(errors: Sequence[Any]) -> APIError:
    """Return a 400 for what Pydantic found wrong with a request; only the first mistake is told."""
    first: Mapping[str, Any] = errors[0]
    places = [str(place) for place in first["loc"] if place not in ("body", "path", "query")]
    field = ".".join(places) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return APIError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', message)}")
    if first["type"] == "extra_forbidden":
        known = places[-1] in UNSUPPORTED
        message = f"'{field}' is not supported here" if known else f"Unrecognized request argument supplied: {field}"
        return wrong(field, message, "unsupported_parameter" if known else "unknown_parameter")
    if field is None:
        return APIError(400, f"the body is wrong: {message}, expected a JSON object")
    return wrong(field, f"{field}: {message}", "missing_required_parameter" if first["type"] == "missing" else None)
