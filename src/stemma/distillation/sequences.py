"""Sequence-level distillation: students of any vocabulary learn what the teacher writes (Kim and Rush 2016)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma import families
from stemma.alignment.conversations import Renderer
from stemma.alignment.dialogues import prompt_of, text_of
from stemma.alignment.reading import reading_of
from stemma.data.tables import read_rows
from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError
from stemma.families.directory import resolve
from stemma.files import write_whole
from stemma.inference.chat_template import ChatTemplate
from stemma.inference.generate import generate
from stemma.training.batches import derived_seed
from stemma.training.objective import Display

_AT_ONCE = 32  # prompts


@dataclass(frozen=True)
class Search:
    """How a teacher writes: the likeliest text of `beams`, or, with a `temperature`, one that is drawn with `seed`.

    longest: most tokens of a text.
    """

    beams: int = 5
    longest: int = 128
    temperature: float | None = None
    seed: int = 1


def write_sequences(
    teacher: str, prompts: str, out: Path, search: Search, *, prompt: str, reference: str | None, display: Display
) -> int:
    """Write the rows of a table with what a teacher says to each prompt, as `response`; return how many.

    Args:
        prompt: column of texts or of conversations. reference: column of right answers: of the beams, the one that is
            nearest to it by BLEU is kept (section 3.3, "sequence-level interpolation").
    Raises:
        InputError: no such model, a row without a prompt, or one that leaves no room; a reference for what is drawn.
        OSError: the file could not be written; what was there is untouched.
    """
    if reference is not None and search.temperature is not None:
        raise InputError("--reference: chooses among beams; expected no --temperature")
    directory = resolve(teacher)
    model: Any = families.load(directory)
    tokenizer = load_tokenizer(directory)
    renderer = Renderer(model, tokenizer, reading_of(model, tokenizer).end, ChatTemplate.read(directory))
    rows = list(read_rows(Path(prompts)))
    if not rows:
        raise InputError(f"{prompts}: no rows; expected at least one prompt")
    asked = [prompt_of(row, prompt, origin) for row, origin in rows]
    right = [None if reference is None else text_of(row, reference, origin) for row, origin in rows]
    texts = [one if isinstance(one, str) else renderer.template.write(one, tokenizer) for one in asked]
    samples = 1 if reference is None else search.beams
    with display.preparing() as report, write_whole(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for start in range(0, len(rows), _AT_ONCE):
            report("writing", start, len(rows))
            part = slice(start, start + _AT_ONCE)
            written = generate(
                model,
                tokenizer,
                texts[part],
                max_new_tokens=search.longest,
                temperature=1.0 if search.temperature is None else search.temperature,
                seed=derived_seed(search.seed, start),
                samples=samples,
                beams=1 if search.temperature is not None else search.beams,
            )
            for number, (row, _) in enumerate(rows[part]):
                candidates = [one.text for one in written[number * samples : (number + 1) * samples]]
                content = {**row, prompt: row[prompt], "response": _nearest(candidates, right[start + number])}
                file.write(json.dumps(content, ensure_ascii=False) + "\n")
    return len(rows)


def _nearest(candidates: list[str], reference: str | None) -> str:
    """Return the candidate that is nearest to a reference by BLEU of sentences; the first one without a reference."""
    if reference is None:
        return candidates[0]
    try:
        from sacrebleu import sentence_bleu
    except ImportError:
        raise InputError('--reference needs sacrebleu: pip install "stemma-lm[evaluation]"') from None
    return max(candidates, key=lambda text: sentence_bleu(text, [reference]).score)
