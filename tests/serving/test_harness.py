"""lm-evaluation-harness against the server: its scores are the model's own, question by question."""

import json
import os
import subprocess
import sys

import pytest
import torch

from stemma.prompting import evaluating as prompting
from stemma.prompting.models import Endpoint, LocalModel
from stemma.prompting.tasks import load_task

QUESTIONS = [
    ("the quick brown", ["fox", "dog", "sing"], 0),
    ("the lazy", ["dog", "fox jumps", "over"], 0),
    ("jumps over the", ["laugh", "lazy dog", "brown naïve fox"], 1),
]


def evaluate(server, folder, kind, url, *options):
    """Run the harness in a process of its own; return its samples by task."""
    arguments = [f"model=small,base_url={server.url}{url},num_concurrent=1,max_retries=1,tokenized_requests=True"]
    subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", arguments[0]),
            *("--include_path", str(folder), "--output_path", str(folder / kind), "--log_samples", *options),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")},
        check=True,
        timeout=240,
        capture_output=True,
    )
    samples = {}
    for path in (folder / kind).rglob("samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        samples[path.name.split("_")[1]] = sorted(rows, key=lambda row: row["doc_id"])
    return samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    rows = [{"context": context, "choices": choices, "answer": answer} for context, choices, answer in QUESTIONS]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path}/data.jsonl}}}}\ntest_split: test\n"
    common += 'doc_to_text: "{{context}}"\n'
    choice = "task: foxchoice\noutput_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"
    (path / "choice.yaml").write_text(common + choice)
    writing = 'task: foxwriting\noutput_type: generate_until\ndoc_to_target: "{{choices[0]}}"\n'
    writing += "generation_kwargs: {until: ['zz'], max_gen_toks: 6, temperature: 0}\n"
    (path / "writing.yaml").write_text(common + writing + "metric_list: [{metric: exact_match}]\n")
    return path


@pytest.mark.slow
def test_completions_are_scored_and_written(server, folder, model, tokenizer):
    from stemma.inference.generate import generate

    samples = evaluate(server, folder, "local-completions", "/v1/completions", "--tasks", "foxchoice,foxwriting")
    for asked in (LocalModel(model, tokenizer), Endpoint(f"{server.url}/v1", "small")):
        ours = prompting.evaluate(asked, load_task(folder / "choice.yaml"))
        theirs = [[float(score) for ((score, _),) in row["resps"]] for row in samples["foxchoice"]]
        assert [[option["log_probability"] for option in record["options"]] for record in ours.records] == [
            pytest.approx(scores, abs=1e-4) for scores in theirs
        ]
        for metric in ("acc", "acc_norm"):
            assert ours.metrics[metric].mean == pytest.approx(sum(r[metric] for r in samples["foxchoice"]) / 3)
    for row, (context, choices, _) in zip(samples["foxchoice"], QUESTIONS, strict=True):
        for choice, ((score, is_greedy),) in zip(choices, row["resps"], strict=True):
            start, whole = tokenizer.encode(context), tokenizer.encode(f"{context} {choice}")
            assert whole[: len(start)] == start
            rows = model(torch.tensor([whole]))[0].log_softmax(-1)
            pairs = [(rows[place - 1], whole[place]) for place in range(len(start), len(whole))]
            assert float(score) == pytest.approx(sum(values[token].item() for values, token in pairs), abs=1e-3)
            assert str(is_greedy) == str(all(values.argmax().item() == token for values, token in pairs))
    for row, (context, _, _) in zip(samples["foxwriting"], QUESTIONS, strict=True):
        wanted = generate(model, tokenizer, context, max_new_tokens=6, temperature=0, stop=["zz", "<|endoftext|>"])
        assert row["resps"][0][0] == wanted[0].text


@pytest.mark.slow
def test_chat_writes(server, folder):
    samples = evaluate(
        server,
        folder,
        "local-chat-completions",
        "/v1/chat/completions",
        *("--apply_chat_template", "--tasks", "foxwriting"),
    )
    for row, (context, _, _) in zip(samples["foxwriting"], QUESTIONS, strict=True):
        body = {"messages": [{"role": "user", "content": context}], "temperature": 0, "max_tokens": 6, "stop": ["zz"]}
        wanted = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        assert row["resps"][0][0] == wanted


def test_its_requests_by_hand(server, model, tokenizer):
    """What local-completions sends and reads, without its minute of start-up."""
    names = server.client.get(f"{server.url}/tokenizer_info").json()
    assert names["eos_token"] == "<|endoftext|>" and "INST" in names["chat_template"]
    body = {"prompt": names["eos_token"], "add_special_tokens": False}
    assert server.post("/tokenize", body).json()["tokens"] == [tokenizer.separator]
    ids = [server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"] for text in (
        "the quick brown fox", "lazy", "jumps over the lazy dog")]  # fmt: skip
    assert ids[0] == tokenizer.encode("the quick brown fox")
    assert server.post("/detokenize", {"tokens": ids[0]}).json() == {"prompt": "the quick brown fox"}
    body = {
        "model": "small",
        "prompt": ids,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    choices = server.post("/v1/completions", body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for choice, tokens in zip(choices, ids, strict=True):
        values, likeliest = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(values) == len(likeliest) == len(tokens) + 1 and values[0] is None
        rows = model(torch.tensor([tokens]))[0].log_softmax(-1)
        for place in range(1, len(tokens)):
            value, best = values[place], max(likeliest[place].values())
            assert value == pytest.approx(rows[place - 1][tokens[place]].item(), abs=1e-4)
            assert (best == value) == (rows[place - 1].argmax().item() == tokens[place])
