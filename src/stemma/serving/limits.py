"""What one client can ask for at most, so that all the others are served too."""

from dataclasses import dataclass

STOP_STRINGS, STOP_CHARACTERS = 4, 256
BIAS_ENTRIES = 300
SCHEMA_BYTES, SCHEMA_DEPTH = 2**16, 32


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Args:
        body: bytes of a request. queue: texts that wait beside those that are written. texts: of one request (prompts
            times samples). deadline: seconds for a request, its time in the queue included. header_seconds: for a
            connection to send a request's headers, and then for each part of its body. grace: seconds that running
            requests get after SIGTERM.
    """

    body: int = 4 * 2**20
    queue: int = 256
    texts: int = 128
    deadline: float = 600.0
    header_seconds: float = 10.0
    grace: float = 30.0
