"""A teacher behind an endpoint: what it tells is what the same weights think here; and what goes wrong."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import uvicorn
from endpoints import serving
from tiny_models import directory_of, model_of, tokenizer_of

from stemma.alignment.reading import reading_of
from stemma.data.tokenizers import train_tokenizer
from stemma.distillation.distil import think
from stemma.distillation.linear_divergence import SoftLoss
from stemma.distillation.records import IDS, LIKELIEST, REST
from stemma.distillation.served import ServedTeacher
from stemma.distillation.teachers import Teacher
from stemma.distillation.tokens import Taught
from stemma.errors import InputError
from stemma.inference import endpoint
from stemma.serving.application import application
from stemma.serving.context import Context
from stemma.serving.engine_thread import EngineThread
from stemma.serving.limits import Limits
from stemma.serving.served import load_served
from stemma.training.progress import Silent

TOKENIZER = tokenizer_of("gpt")


@contextmanager
def server_of(directory):
    """Yield the address of what `stemma serve` answers with, of a directory; in a thread of this process."""
    engine = EngineThread(lambda: load_served(str(directory)), queue=256, on_failure=lambda error: None)

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            engine.start()

    server = Server(uvicorn.Config(application(Context(engine, Limits())), lifespan="off", log_config=None))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while engine.state != "ok":
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        engine.stop()


def items():
    random = np.random.default_rng(0)
    lengths = [(1, 20), (5, 9), (7, 2), *((1, 12) for _ in range(8))]
    return [{"tokens": random.integers(3, 250, sum(both)), "prompt": both[0]} for both in lengths]


def asked(url, kept=5):
    teacher = ServedTeacher(url, TOKENIZER, kept)
    teacher.connect(Silent())
    return teacher


def test_a_served_teacher_is_the_same_as_one_from_its_directory(stemma, tmp_path):
    directory, model = directory_of("gpt", tmp_path), model_of("gpt")
    reading = reading_of(model, TOKENIZER)
    local = Taught(reading, TOKENIZER, [Teacher(model, reading, model.output_weight.detach())], SoftLoss())
    with server_of(directory) as url:
        teacher = asked(url, 7)
        assert teacher.name == "gpt"
        told, records = teacher.log_probabilities(items()), teacher.think(items())
        for item, (ids, likeliest) in zip(items(), told, strict=True):
            with torch.inference_mode():
                logits = model(torch.from_numpy(item["tokens"])[None])[0, item["prompt"] - 1 : -1]
            values, places = logits[:, : TOKENIZER.vocabulary].log_softmax(-1).topk(7)
            assert torch.equal(ids, places)
            torch.testing.assert_close(likeliest, values, atol=1e-4, rtol=0)
        for ours, theirs in zip(records, think(local, items(), 7, 4), strict=True):
            assert torch.equal(ours[IDS], theirs[IDS])
            for name in (LIKELIEST, REST):  # rounded to 16 bits
                torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=2e-3)

        # A whole run learns from both alike; afterwards the server may be gone.
        rows = [{"prompt": f"who sees {n}", "response": f" the {n} one"} for n in ("dog", "cat", "fox", "Anna", "red")]
        (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
        few = ("training.steps=3", "training.epochs=null", "training.batch=2", "data.dev=0.4", "--json")
        losses = []
        for name in (url, directory):
            out = tmp_path / f"o{len(losses)}"
            given = ("--teacher", name, "--cache", 7, "--train", tmp_path / "d.jsonl", "--out", out)
            code, said, error = stemma("distill", "tokens", directory, *given, *few)
            assert code == 0, error
            losses.append(json.loads(said)["held_out"]["loss"])
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_another_tokenizer_is_refused(tmp_path):
    directory = directory_of("gpt", tmp_path)
    train_tokenizer(["other words altogether " * 9], "bpe", 300).save(directory)
    with server_of(directory) as url, pytest.raises(InputError, match="reads token .* otherwise than the student"):
        asked(url)


def stand_in(models=("small",), answer=None, detokenize=True):
    """An answer to each body: a server of some models."""

    def reply(body):
        if "tokens" in body:
            return (200, {"prompt": TOKENIZER.decode(body["tokens"], False)}) if detokenize else (404, {})
        if "prompt" in body:
            return answer(body)
        return 200, {"data": [{"id": name} for name in models]}

    return reply


def echo(body):
    places = [[None, *({f"token_id:{t}": -1.0 - t / 9 for t in range(6)} for _ in p[1:])] for p in body["prompt"]]
    return 200, {"choices": [{"index": n, "logprobs": {"top_logprobs": one}} for n, one in enumerate(places)]}


def test_what_is_asked_and_what_is_read(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(stand_in(("a", "b"), echo)) as (url, requests):
        with pytest.raises(InputError, match=f"serves a, b; expected --teacher {url[:-3]}#NAME"):
            asked(url)
        teacher = asked(f"{url}#b", 2)
        (record,) = teacher.think(items()[1:2])
    assert requests[-1]["model"] == "b" and requests[-1]["key"] == "Bearer secret"
    assert requests[-1]["prompt"] == [items()[1]["tokens"].tolist()]
    assert record[IDS].tolist() == [[0, 1]] * 9
    rest = np.log(1 - np.exp(-1) - np.exp(-1 - 1 / 9))
    assert record[REST].tolist() == pytest.approx([rest] * 9, abs=1e-3)
    said = []
    monkeypatch.setattr(Silent, "say", lambda self, line: said.append(line))
    teacher.warn(Silent())
    assert "the 2 likeliest tokens have 70 % of the probability" in said[0]


def test_a_busy_server_is_asked_again(monkeypatch):
    waited, left = [], [(503, {}), (429, {})]
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    with serving(stand_in(answer=lambda body: left.pop() if left else echo(body))) as (url, _):
        assert len(asked(url, 2).think(items()[1:2])) == 1
    assert waited == [1.0, 2.0]
    with pytest.raises(InputError, match="no answer of a teacher"):
        asked("http://127.0.0.1:9", 2)
    assert waited[2:] == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: (400, {"error": "no"}), "the teacher answered 400"),
        (lambda body: (200, {"choices": []}), "expected the 2 likeliest tokens at each place"),
        (lambda body: (200, {}), "expected the 2 likeliest tokens at each place"),
    ],
)
def test_answers_that_say_nothing(answer, message):
    with serving(stand_in(answer=answer, detokenize=False)) as (url, _), pytest.raises(InputError, match=message):
        asked(url, 2).think(items()[1:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "cache: http://x tells the likeliest tokens; expected how many to keep, such as 20"),
        (("--cache", "5", "--temperature", "2"), "temperature: http://x tells the likeliest tokens as they are"),
        (("--cache", "5", "--teacher", "y"), "tells the likeliest tokens alone; expected no others beside it"),
    ],
)
def test_settings_that_need_more_of_a_teacher(stemma, tmp_path, arguments, message):
    directory = directory_of("gpt", tmp_path)
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"prompt": "a", "response": str(n)}) for n in range(9)))
    given = ("--teacher", "http://x", "--train", tmp_path / "d.jsonl", *arguments, "--out", tmp_path / "o")
    code, _, error = stemma("distill", "tokens", directory, *given)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
