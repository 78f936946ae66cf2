"""`stemma chat`, in this process but through the real entry point."""

import pytest
import torch

from stemma.data.tokenizers import train_tokenizer
from stemma.families import save
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.inference.engine import Engine
from stemma.inference.generate import generate
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling

TEMPLATE = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the lazy dog jumps over the quick brown fox " * 50], "bpe", 289)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = GPT(GPTConfig(vocabulary=289, context=64, layers=2, hidden=32, heads=4)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return network


@pytest.fixture
def talk(stemma, tmp_path, model, tokenizer):
    """talk(lines, *arguments, template=) -> (exit code, standard output, standard error)."""

    def call(lines: str, *arguments: str, template: str | None = None) -> tuple[int, str, str]:
        save(model, tokenizer, tmp_path / "small")
        if template:
            (tmp_path / "small" / "chat_template.jinja").write_text(template)
        return stemma("chat", tmp_path / "small", "--temperature", "0", *arguments, stdin=lines.encode())

    return call


def test_what_was_said_is_remembered(talk, model, tokenizer):
    options = {"temperature": 0, "max_new_tokens": 8}
    first = generate(model, tokenizer, "[user]fox", **options)[0].text
    second = generate(model, tokenizer, f"[user]fox[assistant]{first.strip()}[user]dog", **options)[0].text
    again = generate(model, tokenizer, "[user]dog", **options)[0].text
    code, output, _ = talk("fox\n\ndog\n/new\ndog\n/quit\nfox\n", "-n", "8", template=TEMPLATE)
    assert code == 0 and output == f"{first}\n{second}\n{again}\n"


def test_a_model_without_a_template_goes_on_with_a_transcript(talk, model, tokenizer):
    prompt = "sing\nUser: fox\nAssistant:"
    request = Request([tokenizer.separator, *tokenizer.encode(prompt)], 8, Sampling(temperature=0), stop=["\nUser:"])
    (text,) = Engine(model, tokenizer).run([request])[0]
    assert talk("fox\n", "-n", "8", "--system", "sing")[1] == text.stream.text + "\n"


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(talk):
    code, output, errors = talk("the lazy dog\n" * 6, "-n", "8", template=TEMPLATE)
    assert code == 0 and len(output.splitlines()) >= 6 and "of the oldest turns forgotten" in errors


def test_a_text_that_is_too_long_is_one_line(talk):
    code, _, errors = talk("the lazy dog " * 100 + "\n", template=TEMPLATE)
    assert code == 2 and errors.startswith("error: the prompt has")
