"""Servers under clients that leave, wait too long or ask too much, and how they end."""

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

# Every step takes this long, so that there is time to do something to a running request.
STEP = 0.05
SLOW = f"""
import time
from stemma.inference.engine import Engine
quick = Engine.step
Engine.step = lambda self: (time.sleep({STEP}), quick(self))[1]
"""
LONG = {"prompt": "the lazy dog", "max_tokens": 100, "temperature": 0, "ignore_eos": True}
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def slow(start):
    """Two texts at a time, none waiting, three seconds a request."""
    options = ["--texts", "2", "--queue", "0", "--deadline", "3", "--header-seconds", "1", "--body-bytes", "5000"]
    return start(*options, program=SLOW).ready()


@pytest.fixture(scope="module")
def locked(start):
    return start(program=SLOW, STEMMA_API_KEY="another-secret").ready()


def test_a_client_that_leaves_frees_its_place_within_a_step(slow):
    for stream in (True, False):
        left = httpx.Client(timeout=httpx.Timeout(5, read=5 if stream else 0.5))
        request = left.build_request("POST", f"{slow.url}/v1/completions", json=LONG | {"stream": stream})
        if stream:
            left.send(request, stream=True)
            assert slow.metric("open_texts") == 1
        else:
            with pytest.raises(httpx.ReadTimeout):
                left.send(request)
        left.close()
        began = time.monotonic()
        for name in ("open_texts", "running_texts", "cache_blocks_used"):
            slow.wait_for(name, 0)
        assert time.monotonic() - began < 1.5  # of the five seconds that the text would take


def test_a_full_queue_is_429(slow):
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(slow.post, "/v1/completions", LONG | {"n": 2, "max_tokens": 15})
        slow.wait_for("open_texts", 2)
        refused = slow.post("/v1/completions", LONG)
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"] == {
            "message": "too many requests wait, try again later",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        assert running.result().status_code == 200
    assert slow.post("/v1/completions", LONG | {"max_tokens": 2}).status_code == 200


def test_a_deadline_is_504(slow):
    answer = slow.post("/v1/completions", LONG)
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
    with httpx.stream("POST", f"{slow.url}/v1/completions", json=LONG | {"stream": True}, timeout=10) as stream:
        events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert len(events) > 1 and json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
    slow.wait_for("running_texts", 0)


def test_a_body_too_large_is_413(slow):
    for body in (b'{"prompt": "' + b"x" * 6000 + b'"}', (part for part in [b"x" * 4000, b"y" * 4000])):
        answer = httpx.post(f"{slow.url}/v1/completions", content=body)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_a_connection_that_sends_nothing_is_closed(slow):
    host, port = slow.url.removeprefix("http://").split(":")
    parts = (b"", b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea")
    for part in parts:
        with socket.create_connection((host, int(port)), timeout=8) as connection:
            connection.sendall(part)
            began = time.monotonic()
            while connection.recv(4096):
                pass
            assert 0.5 < time.monotonic() - began < 4, part
    body = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{"
    with socket.create_connection((host, int(port)), timeout=8) as connection:
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_other_paths_methods_and_types_are_errors_in_the_same_form(slow):
    for method, path, status in [
        ("GET", "/v2", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/completions", 400),
    ]:
        answer = httpx.request(method, slow.url + path, content=b"{" if method == "POST" else None)
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_key_is_asked_for(locked):
    assert locked.post("/v1/completions", LONG).status_code == 401
    wrong = locked.post("/v1/completions", LONG, headers=KEY)
    assert wrong.status_code == 401 and wrong.json()["error"]["type"] == "authentication_error"
    right = {"authorization": "Bearer another-secret"}
    assert locked.post("/v1/completions", {"prompt": "swordfish"}, headers=right).status_code == 200
    assert httpx.get(f"{locked.url}/v1/models", headers=right).status_code == 200
    assert httpx.get(f"{locked.url}/metrics").status_code == 401
    assert httpx.get(f"{locked.url}/health").status_code == 200
    log = "".join(locked.lines)
    assert '"path": "/v1/completions", "status": 200' in log and "secret" not in log and "swordfish" not in log


def test_sigterm_lets_running_requests_finish(locked):
    """The last test of this server."""
    right = {"authorization": "Bearer another-secret"}
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(locked.post, "/v1/completions", LONG | {"max_tokens": 30}, headers=right)
        body = LONG | {"max_tokens": 30, "stream": True}
        with httpx.stream("POST", f"{locked.url}/v1/completions", json=body, headers=right, timeout=20) as stream:
            lines = stream.iter_lines()
            next(lines)
            while "stemma_open_texts 2" not in locked.client.get(f"{locked.url}/metrics", headers=right).text:
                time.sleep(0.01)
            locked.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{locked.url}/health")
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert whole.result().json()["usage"]["completion_tokens"] == 30
    assert locked.process.wait(30) == 0


def test_after_the_grace_running_requests_are_told(start):
    server = start("--grace", "0.3", program=SLOW.replace(str(STEP), "0.3")).ready()
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(server.post, "/v1/completions", LONG)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=20) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            assert json.loads([line for line in lines if line][-1][6:])["error"]["code"] == "draining"
        assert whole.result().status_code == 503
    assert server.process.wait(30) == 0


def test_the_second_interrupt_kills(start):
    server = start(program=SLOW.replace(str(STEP), "1")).ready()
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=20):
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(5) == 130


def test_while_it_loads_it_answers_503_and_a_dead_model_thread_ends_it(start):
    program = """
import time
import stemma.serving.served as served
from stemma.inference.engine import Engine
load, step = served.load, Engine.step
served.load = lambda *arguments, **options: (time.sleep(2), load(*arguments, **options))[1]
def dying_step(self):
    if self.running == 2:
        raise RuntimeError("a bad day")
    time.sleep(0.05)
    return step(self)
Engine.step = dying_step
"""
    server = start(program=program)
    answer = httpx.get(f"{server.url}/health")
    assert answer.status_code == 503 and answer.json() == {"status": "loading"}
    answer = server.post("/v1/completions", LONG)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "loading"
    server.ready()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/completions", LONG), range(2)))
    assert [answer.status_code for answer in answers] == [500, 500]
    assert answers[0].json()["error"]["code"] == "engine_failed"
    assert server.process.wait(30) == 1
    assert "a bad day" in "".join(server.lines)


def test_a_model_that_cannot_be_loaded_is_one_line(start, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    server = start(model_directory=tmp_path)
    assert server.process.wait(60) == 2
    assert [line for line in server.lines if line.startswith("error: ")] and "Traceback" not in "".join(server.lines)


def test_a_port_that_is_taken_is_one_line(start, slow):
    server = start("--port", slow.url.rpartition(":")[2])
    assert server.process.wait(60) == 2
    assert any(line.startswith("error: cannot listen") for line in server.lines)
