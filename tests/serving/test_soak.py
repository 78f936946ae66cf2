"""Many clients at once, of which some leave, some change their mind and some send nonsense."""

import asyncio
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from stemma.inference.engine import Engine
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling, uniforms

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "sing", "and", "laugh"]
NONSENSE = [
    *(b"", b"{", b"[]", b"null", b'{"prompt": 5}', b'{"prompt": "x", "n": 0}', b'{"prompt": "\\ud800"}', b"\xff\xfe"),
    *(b'{"prompt": "x", "max_tokens": 1e9}', b'{"prompt": "x", "temperature": NaN}', b'{"prompt": [[1], "x"]}'),
    *(b'{"prompt": "x", "logit_bias": {"x": 1}}', b'{"prompt": "x", "model": "other"}', b'{"prompt": [-1]}'),
]


def ordinary(chance):
    """A request, and what the engine alone is asked for."""
    prompt = " ".join(chance.choices(WORDS, k=chance.randrange(1, 30)))
    temperature = chance.choice([0, 0, 0.7])
    body = {"prompt": prompt, "max_tokens": chance.randrange(1, 25), "temperature": temperature, "ignore_eos": True}
    return body | {"seed": chance.randrange(1000), "n": chance.choice([1, 1, 3]), "stream": chance.random() < 0.5}


async def whole(client, body):
    """The texts of an answer."""
    texts = [""] * body["n"]
    if not body["stream"]:
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        for choice in answer.json()["choices"]:
            texts[choice["index"]] = choice["text"]
        return texts
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        last = ""
        async for line in answer.aiter_lines():
            last = line or last
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["text"]
        assert last == "data: [DONE]"
    return texts


async def leave(client, body, chance):
    """Go away in the middle."""
    try:
        async with asyncio.timeout(chance.random() * 0.3):
            await whole(client, body)
    except TimeoutError:
        pass


async def soak(url, count, seed):
    chance, at_once = random.Random(seed), asyncio.Semaphore(32)
    found = []

    async def one(kind, body):
        async with at_once:
            if kind < 0.55:
                found.append((body, await whole(client, body)))
            elif kind < 0.75:
                await leave(client, body, chance)
            elif kind < 0.9:
                content = chance.choice(NONSENSE)
                headers = {"content-type": "application/json"}
                answer = await client.post("/v1/completions", content=content, headers=headers)
                assert answer.status_code in (400, 404), (content, answer.text)
            elif kind < 0.95:
                answer = await client.post("/v1/embeddings", json={"input": body["prompt"]})
                assert answer.status_code == 200
            else:  # half a request
                host, port = url.removeprefix("http://").split(":")
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
                await writer.drain()
                writer.close()

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(one(chance.random(), ordinary(chance)) for _ in range(count)))
    return found


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_nothing_is_left_behind_and_every_answer_is_the_engines(server, model, tokenizer, count):
    found = asyncio.run(soak(server.url, count, seed=count))
    for name in ("open_texts", "running_texts", "queue_length", "cache_blocks_used"):
        server.wait_for(name, 0)
    assert server.process.poll() is None and "Traceback" not in "".join(server.lines)
    assert len(found) > count / 3
    alone = Engine(model, tokenizer, share_prefixes=False, most_texts=1, memory=2**22)
    requests = [
        Request(
            tokenizer.encode(body["prompt"]),
            body["max_tokens"],
            Sampling(temperature=body["temperature"]),
            samples=body["n"],
            seed=body["seed"],
            ignore_end=True,
        )
        for body, _ in found
    ]
    clear = 0
    for (body, texts), wanted in zip(found, alone.run(requests), strict=True):
        for text, own in zip(texts, wanted, strict=True):
            is_clear = least_margin(model, own) > 2e-5
            clear += is_clear
            assert text == own.stream.text or not is_clear, body
    assert clear > 0.9 * sum(len(texts) for _, texts in found)


@torch.inference_mode()
def least_margin(model, text):
    """How far the closest choice in a text was from another token: rounding depends on what else is in a step."""
    request, new = text.request, torch.tensor(text.new)
    logits = model(torch.tensor([text.tokens[:-1]]))[0, len(request.tokens) - 1 :]
    if request.sampling.greedy:
        best = logits.topk(2).values
        return (best[:, 0] - best[:, 1]).min().item()
    ends = (logits / request.sampling.temperature).double().softmax(-1).cumsum(-1)
    ends = torch.nn.functional.pad(ends, (1, 0))
    drawn = torch.from_numpy(uniforms(request.seed, text.sample, request.tokens, len(new)))
    low, high = (ends.gather(1, (new + offset).unsqueeze(1)).squeeze(1) for offset in (0, 1))
    return torch.minimum(drawn - low, high - drawn).min().item()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_request_of_the_published_schema_is_a_5xx(server, tmp_path):
    """schemathesis makes requests from the OpenAPI document, good ones and bad ones."""
    document = server.client.get(f"{server.url}/openapi.json").json()
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"const": "small"}  # or hardly a request would come further than a 404
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document).replace(str(2**31), "328"))  # token ids that the model knows
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--seed", "1"]
    options += ["--max-examples", "15", "--request-timeout", "60", "--url", server.url]
    command = [program, "run", str(path), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=850, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-5000:]
    answered = server.client.get(f"{server.url}/metrics").text
    for status in ("200", "400"):
        assert f'path="/v1/completions",status="{status}"' in answered
    failed = set(re.findall(r'path="([^"]*)",status="5', answered))
    assert failed <= {"/health"} and server.process.poll() is None  # which was asked while the model was loaded
    server.wait_for("open_texts", 0)
