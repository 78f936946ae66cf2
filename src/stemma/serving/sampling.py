"""From a client's options to the engine's."""

import secrets
from collections.abc import Sequence

from stemma.inference.requests import Constraint, Request
from stemma.inference.sampling import Sampling
from stemma.inference.sampling_rows import Preferences
from stemma.serving.errors import wrong
from stemma.serving.limits import Limits
from stemma.serving.schemas import Generating
from stemma.serving.served import Served

# Below these, numbers lose their digits in float32 and mean the same: always the likeliest token.
_LEAST_TEMPERATURE, _LEAST_TOP_P = 1e-4, 1e-6


def engine_requests(
    body: Generating,
    prompts: Sequence[Sequence[int]],
    served: Served,
    limits: Limits,
    *,
    max_tokens: int | None,
    samples: int,
    log_probabilities: int | None,
    prompt_log_probabilities: bool = False,
    constraint: Constraint | None = None,
) -> list[Request]:
    """Return a request to the engine for each prompt.

    Args:
        max_tokens: None: as many as the context holds.
    Raises:
        APIError: 400, a field has a wrong value.
    """
    parameter = "messages" if hasattr(body, "messages") else "prompt"
    if served.engine is None:
        raise wrong("model", f"a {served.family} model writes no text", "unsupported_model")
    if len(prompts) * samples > limits.texts:
        message = f"{len(prompts)} prompts times {samples} samples; one request may ask for {limits.texts} texts"
        raise wrong("n", message)
    if (prompt_log_probabilities or max_tokens == 0) and not served.goes_on:
        field = "echo" if prompt_log_probabilities else "max_tokens"
        raise wrong(field, f"a {served.family} model does not go on with its prompt: no scores of that")
    context = served.longest
    for tokens in prompts:
        check_tokens(tokens, served, parameter)
        if len(tokens) > context or (len(tokens) == context and max_tokens != 0 and (max_tokens or 2) > 1):
            message = f"the prompt has {len(tokens)} tokens, and the model's context of {context} leaves no room"
            raise wrong(parameter, message, "context_length_exceeded")
    for token in body.logit_bias:
        if not 0 <= token < served.vocabulary:
            raise wrong("logit_bias", f"token {token} is not below the vocabulary's size {served.vocabulary}")
    sampling = Sampling(
        temperature=body.temperature if body.temperature >= _LEAST_TEMPERATURE else 0.0,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        top_p=max(body.top_p, _LEAST_TOP_P),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
    )
    seed = secrets.randbits(32) if body.seed is None else body.seed & (2**64 - 1)
    return [
        Request(
            tokens=tokens,
            max_new_tokens=context if max_tokens is None else max_tokens,
            sampling=sampling,
            preferences=Preferences(body.presence_penalty, body.frequency_penalty, body.logit_bias),
            stop=body.stop,
            samples=samples,
            seed=seed,
            log_probabilities=None if log_probabilities is None else min(log_probabilities, served.vocabulary),
            prompt_log_probabilities=prompt_log_probabilities,
            ignore_end=body.ignore_eos,
            constraint=constraint,
        )
        for tokens in prompts
    ]


def check_tokens(tokens: Sequence[int], served: Served, parameter: str) -> None:
    """Refuse token ids that the model does not know, and a prompt without any.

    Raises:
        APIError: 400.
    """
    if not tokens:
        raise wrong(parameter, "the prompt is empty, expected at least one token")
    if max(tokens) >= served.model.config.vocabulary or min(tokens) < 0:
        raise wrong(parameter, f"a token id is not between 0 and {served.model.config.vocabulary - 1}")
