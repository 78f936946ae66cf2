"""Text from a language model: prompts in, continuations out, all at once or piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stemma.inference.job import Generation, Job
from stemma.inference.sampling import Sampling

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

__all__ = ["Generation", "generate", "stream"]


def generate(
    model: Any,
    tokenizer: "Tokenizer",
    prompt: str | Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    samples: int = 1,
    beams: int = 1,
    length_penalty: float = 1.0,
    log_probabilities: bool = False,
    truncate: bool = False,
    compiled: bool = False,
    on_text: Callable[[int, int, str], None] | None = None,
) -> list[Generation]:
    """Continue one or several prompts; return `samples` continuations of each, in the order of the prompts.

    A text depends on the model, its prompt, its number among the samples and the seed, not on what else is in the
    batch, except where two tokens are equally likely up to rounding.

    Args:
        model: a language model of `stemma.load`, in eval mode. tokenizer: the model's.
        prompt: an empty one begins a new text. An encoder-decoder (T5, Transformer) writes about its prompt instead of
            going on with it; a T5 reads <extra_id_0>, <extra_id_1>, ... in it as its gaps.
        max_new_tokens: a continuation ends there at the latest; a Transformer's after 50 tokens more than its prompt.
        temperature: 0 takes the most likely token each time; 1 is the model's own distribution; less is safer.
        top_k, top_p, min_p, repetition_penalty: see `inference.sampling.Sampling`.
        stop: strings that end a text, also across tokens. seed: default a new one, to be found in the result.
        beams: more than 1 searches the likeliest texts instead of drawing them, with `length_penalty`, and returns the
            best `samples`. A score is a sum of log-probabilities / length ** length_penalty; a Transformer's, as its
            paper has it, / ((5 + length) / 6) ** length_penalty.
        truncate: of a prompt that does not fit, keep the end, leaving room for the new tokens in the context (half of
            it at least stays with the prompt).
        compiled: run the steps as compiled code, for long texts on a GPU: the first step takes a minute, the next ones
            are CUDA graphs (see `inference.compiled_step`). On a CPU it takes the place of prepacked weights.
        on_text: called as on_text(prompt, sample, piece) as soon as a piece of text is certain.
    Raises:
        InputError: a prompt longer than the context, an option out of its range, or a compiled encoder-decoder.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    job = Job(
        model,
        tokenizer,
        [prompt] if isinstance(prompt, str) else prompt,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        stop=[stop] if isinstance(stop, str) else stop,
        seed=seed,
        samples=samples,
        log_probabilities=log_probabilities,
        truncate=truncate,
        compiled=compiled,
    )
    if beams != 1:
        job.search(beams, length_penalty)
        return job.results()
    for text, piece in job.run():
        if on_text is not None:
            on_text(text.prompt, text.sample, piece)
    return job.results()


def stream(
    model: Any,
    tokenizer: "Tokenizer",
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    truncate: bool = False,
) -> Iterator[str]:
    """Continue one prompt; yield the text of `generate` with the same options in pieces, each as soon as it is certain.

    The model must not be trained between the pieces. Raises InputError as `generate` does.
    """
    job = Job(
        model,
        tokenizer,
        [prompt],
        sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
        max_new_tokens=max_new_tokens,
        stop=[stop] if isinstance(stop, str) else stop,
        seed=seed,
        truncate=truncate,
    )
    return (piece for _, piece in job.run())
