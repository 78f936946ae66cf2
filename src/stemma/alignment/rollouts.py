"""Responses of the policy as it is now, written by the inference engine: batched, cached, reproducible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from stemma import families
from stemma.alignment.conversations import Prompt, Renderer
from stemma.alignment.prompts import PromptRow, rendered
from stemma.alignment.reading import reading_of
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.inference.chat_template import ChatTemplate
from stemma.inference.engine import Engine
from stemma.inference.requests import Request
from stemma.inference.sampling import Sampling
from stemma.training.batches import derived_seed

AT_ONCE = 256  # responses that a loaded policy writes
LEAST_BUDGET = 512  # tokens that a step of the engine reads


@dataclass(frozen=True)
class Response:
    """What the policy wrote.

    Args:
        tokens: with the one that ended it. text: without. ended: whether the policy ended it, or a stop string did.
        log_probabilities: of each token as the engine computed it, at temperature 1.
    """

    tokens: list[int]
    text: str
    ended: bool
    log_probabilities: list[float]


def write_responses(
    model: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    longest: Sequence[int],
    temperature: float = 1.0,
    stop: Sequence[str] = (),
    samples: int = 1,
) -> list[list[Response]]:
    """Return `samples` responses to each prompt, drawn from the policy's whole distribution.

    No filter cuts that distribution: the log-probabilities that the policy is updated with would not be those of what
    was drawn.

    Args:
        model: in eval mode; nothing of it is kept, so that the next rollout is by the weights that it then has.
        seeds: one for each prompt; the same seed and prompt give the same responses.
        longest: most tokens of a response to each prompt.
    Raises:
        InputError: a prompt that leaves no room for a response, or see `Engine.submit`.
    """
    rows = len(prompts) * samples
    engine = Engine(model, tokenizer, most_texts=rows, budget=max(LEAST_BUDGET, 2 * rows))
    sampling = Sampling(temperature=temperature)
    written = engine.run(
        Request(prompt, most, sampling=sampling, stop=stop, samples=samples, seed=seed, log_probabilities=0)
        for prompt, seed, most in zip(prompts, seeds, longest, strict=True)
    )
    return [
        [Response(text.new, text.text, text.finish_reason in ("end", "stop"), text.log_probabilities) for text in group]
        for group in written
    ]


class LoadedPolicy:
    """A checkpoint that answers prompts.

    Raises:
        InputError: no such checkpoint, or a model that writes no text.
    """

    def __init__(self, path_or_hub_id: str, device: torch.device | None = None) -> None:
        directory = resolve(path_or_hub_id)
        self.model, self.tokenizer = families.load(directory, device=device), load_tokenizer(directory)
        end = reading_of(self.model, self.tokenizer).end
        self.renderer = Renderer(self.model, self.tokenizer, end, ChatTemplate.read(directory))

    def write(
        self,
        rows: Sequence[PromptRow],
        *,
        longest: int,
        seed: int,
        temperature: float = 1.0,
        stop: Sequence[str] = (),
        samples: int = 1,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Response]]:
        """Return responses to each prompt (see `write_responses`), a few prompts at a time.

        Args:
            report: is told how many prompts are answered, and how many there are.
        Raises:
            InputError: a prompt that leaves no room for a response, or that the chat template does not take.
        """
        prompts = [prompt.tokens for prompt in rendered(rows, self.renderer)]
        require_room(self.model, prompts, longest)
        size = max(AT_ONCE // samples, 1)
        found: list[list[Response]] = []
        for start in range(0, len(prompts), size):
            report(start, len(prompts))
            part = prompts[start : start + size]
            seeds = [derived_seed(seed, number) for number in range(start, start + len(part))]
            found += write_responses(
                self.model,
                self.tokenizer,
                part,
                seeds=seeds,
                longest=[longest] * len(part),
                temperature=temperature,
                stop=stop,
                samples=samples,
            )
        return [
            [replace(one, text=content_of(one.text, row.prompt)) for one in group]
            for row, group in zip(rows, found, strict=True)
        ]


def content_of(text: str, prompt: Prompt) -> str:
    """Return what a policy wrote as the content of a message, without the blank that templates have before it, where it
    answers in a conversation; else as it is."""
    return text if isinstance(prompt, str) else text.strip()


def require_room(model: Any, prompts: Sequence[Sequence[int]], longest: int) -> None:
    """Check that a response of the length asked for fits behind every prompt.

    Raises:
        InputError: it does not.
    """
    context = getattr(model.config, "context", None)
    most = max(len(prompt) for prompt in prompts)
    if context is not None and most + longest > context:
        raise InputError(
            f"a prompt of {most} tokens and a response of {longest} (rollout.longest) are more than the model's "
            f"context of {context}"
        )
