"""Asking an OpenAI-compatible endpoint over HTTP."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from stemma.errors import InputError

_SECONDS = 120
_PASSING = {408, 429, 500, 502, 503, 504}  # what may be over a moment later


class EndpointError(InputError):
    """What is wrong with an endpoint. status: that it answered with; None: no answer, or none in JSON."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def ask_endpoint(
    url: str,
    path: str,
    content: Mapping[str, Any] | None,
    *,
    key: str | None = None,
    who: str = "model",
    attempts: int = 1,
) -> Any:
    """Post JSON to `url`/`path`; return the answer.

    Args:
        url: of the endpoint, up to "/v1". content: None: get instead of posting.
        key: default: the environment's OPENAI_API_KEY, if there is one. who: what it is called in errors; the noun.
        attempts: how often it is asked where it does not answer or is busy, after 1 second, then 2, 4 and so on.
    Raises:
        EndpointError: it does not answer, answers with an error, or with something that is not JSON.
    """
    for attempt in range(attempts - 1):
        try:
            return _ask(url, path, content, key, who)
        except EndpointError as error:
            if error.status is not None and error.status not in _PASSING:
                raise
        time.sleep(2.0**attempt)
    return _ask(url, path, content, key, who)


def _ask(url: str, path: str, content: Mapping[str, Any] | None, key: str | None, who: str) -> Any:
    key = key or os.environ.get("OPENAI_API_KEY")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    body = None if content is None else json.dumps(content).encode()
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/{path}", body, headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read()[:200].decode(errors="replace")
        raise EndpointError(f"{url}: the {who} answered {error.code}: {said}", error.code) from error
    except (OSError, ValueError) as error:
        raise EndpointError(f"{url}: no answer of a {who} ({error}), expected an OpenAI-compatible endpoint") from error
