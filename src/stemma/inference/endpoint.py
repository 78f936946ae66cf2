"""Asking an OpenAI-compatible endpoint over HTTP."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from stemma.errors import InputError

_SECONDS = 120


def ask_endpoint(url: str, path: str, content: Mapping[str, Any], *, key: str | None = None, who: str = "model") -> Any:
    """Post JSON to `url`/`path`; return the answer.

    Args:
        url: of the endpoint, up to "/v1". key: default: the environment's OPENAI_API_KEY, if there is one.
        who: what it is called in errors; the noun.
    Raises:
        InputError: it does not answer, answers with an error, or with something that is not JSON.
    """
    key = key or os.environ.get("OPENAI_API_KEY")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        request = urllib.request.Request(f"{url.rstrip('/')}/{path}", json.dumps(content).encode(), headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read()[:200].decode(errors="replace")
        raise InputError(f"{url}: the {who} answered {error.code}: {said}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{url}: no answer of a {who} ({error}), expected an OpenAI-compatible endpoint") from error
