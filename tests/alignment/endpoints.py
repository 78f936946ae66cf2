"""A server that stands in for an OpenAI-compatible endpoint."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def serving(answer: Callable[[dict], tuple[int, Any]]) -> Iterator[tuple[str, list[dict]]]:
    """Yield the URL of a server whose answer to a body is `answer(body)`, a status and JSON or bytes, and what it was
    asked, with path and key."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(body)

        def do_GET(self):
            self.reply({})

        def reply(self, body):
            asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            status, content = answer(body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
