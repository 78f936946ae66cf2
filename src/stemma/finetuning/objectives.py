"""Which objective a task has, in the formulation of its model's family."""

from dataclasses import replace
from typing import Any

from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.bert.model import BERT
from stemma.families.dispatch import with_article
from stemma.families.elmo.model import ELMo
from stemma.families.glm.model import GLM
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.families.unilm.model import SEGMENTS
from stemma.finetuning.answering import Spans
from stemma.finetuning.checkpoint import TaskDescription
from stemma.finetuning.choosing import GLMChoosing, HeadChoosing, T5Choosing
from stemma.finetuning.classification import HeadClassification, LabelGain, Pairs
from stemma.finetuning.cloze import ClozeClassification
from stemma.finetuning.patterns import check_pattern
from stemma.finetuning.reading import CLASSIFY, DELIMITER, START, reader_of
from stemma.finetuning.recipe import TaskRecipe
from stemma.finetuning.tagging import Tagging
from stemma.finetuning.text_labels import TextClassification
from stemma.finetuning.writers import GLMWriting, GPTWriting, T5Writing, UniLMWriting
from stemma.finetuning.writing import Writing


def formulation_of(model: Any, task: TaskRecipe) -> str:
    """Return the formulation of a task, the family's own where the recipe leaves it open.

    Raises:
        InputError: the family has no such formulation.
    """
    own = "text" if isinstance(model, T5) else "cloze" if isinstance(model, GLM) else "head"
    if isinstance(model, Transformer) and task.kind != "text":
        raise InputError(f"a Transformer learns to write texts: expected task.kind=text, not {task.kind}")
    if task.kind in ("regression", "tagging"):
        own = "head"
    if task.kind == "text":
        if isinstance(model, LSTM | ELMo) or isinstance(model, BERT) and not _is_unilm(model):
            expected = "a GPT, T5, Transformer, GLM or UniLM"
            raise InputError(f"{with_article(model)} does not write texts: expected {expected} for task.kind=text")
        own = "text"
    if task.kind == "answering" and isinstance(model, ELMo):
        raise InputError(
            "an ELMo reads words between white space, and answers begin inside of them: no task.kind=answering"
        )
    if task.kind == "answering" and isinstance(model, GLM):
        own = "text"
    wanted = own if task.formulation == "auto" else task.formulation
    known = ["text"] if task.kind == "text" else list(dict.fromkeys(["head", own]))
    if task.kind == "answering" and (isinstance(model, GPT) or _is_unilm(model)):
        known.append("text")
    if wanted not in known:
        raise InputError(
            f"task.formulation: {with_article(model)} has no '{wanted}' for {task.kind}, expected {' or '.join(known)}"
        )
    return wanted


def objective_of(model: Any, tokenizer: Tokenizer, task: TaskDescription, *, language_model: float = 0.0) -> Any:
    """Return the objective of a task; `model` is the backbone."""
    if task.formulation == "head":
        return _of_head(model, tokenizer, task, language_model if isinstance(model, GPT) else 0.0)
    if task.kind == "text":
        return _writing(model, tokenizer, task, "{text}", ("text",))
    if task.kind == "answering":
        # A GLM's blank, and what a GPT writes, stand behind the question.
        pattern = "question: {question} context: {context}" if isinstance(model, T5) else "{context} {question}"
        return _writing(model, tokenizer, task, pattern, ("question", "context"))
    if task.kind == "choice":
        pattern = task.pattern or "{question}"
        check_pattern(pattern, ("question",))
        return (T5Choosing if task.formulation == "text" else GLMChoosing)(tokenizer, pattern, task.longest)
    kind: Any = TextClassification if task.formulation == "text" else ClozeClassification
    return kind.of(tokenizer, task.words, task.longest, pattern=task.pattern, pair=task.pair)


def smoothed(objective: Any, task: TaskDescription, label_smoothing: float) -> Any:
    """Return an objective that spreads a share of each target over all classes, options or words; held-out losses stay.

    Raises:
        InputError: a task whose loss has no such targets.
    """
    if not label_smoothing:
        return objective
    if task.kind == "regression" or isinstance(objective, Spans):
        what = "numbers" if task.kind == "regression" else "the places of answers"
        raise InputError(f"task.label_smoothing: classes, options and words are smoothed, not {what}; expected 0")
    return replace(objective, label_smoothing=label_smoothing)


def with_label_gain(objective: Any, model: Any, task: TaskDescription) -> LabelGain:
    """Return an objective that predicts a text's class at each token of it; `model` is the backbone.

    Raises:
        InputError: anything but an LSTM that classifies single texts.
    """
    if not isinstance(model, LSTM) or task.kind != "classification" or task.pair:
        raise InputError("task.label_gain: is of an LSTM that classifies single texts")
    return LabelGain(objective.reader, outputs=objective.outputs, label_smoothing=objective.label_smoothing)


def _writing(model: Any, tokenizer: Tokenizer, task: TaskDescription, pattern: str, fields: tuple[str, ...]) -> Writing:
    pattern = task.pattern or pattern
    check_pattern(pattern, fields)
    context = getattr(model.config, "context", 1 << 30)
    shared: dict[str, Any] = {
        "tokenizer": tokenizer,
        "pattern": pattern,
        "fields": fields,
        "longest_target": min(task.longest_target, context // 2),
        "beams": task.beams,
        "length_penalty": task.length_penalty,
        "summaries": (task.metric or "").startswith("rouge"),
    }
    if isinstance(model, T5 | Transformer):
        return T5Writing(**shared, room=task.longest - 1, end=tokenizer.separator)
    if isinstance(model, GLM):
        return GLMWriting(**shared, room=task.longest - 3, in_text=True)
    # Source and target share the context.
    shared["room"] = min(task.longest, context - shared["longest_target"]) - 3
    if isinstance(model, GPT):
        start, delimiter, end = (tokenizer.id(name) for name in (START, DELIMITER, CLASSIFY))
        return GPTWriting(**shared, start=start, delimiter=delimiter, end=end)
    return UniLMWriting(**shared)


def _is_unilm(model: Any) -> bool:
    return isinstance(model, BERT) and model.config.segments > max(SEGMENTS["seq2seq"])


def _of_head(model: Any, tokenizer: Tokenizer, task: TaskDescription, language_model: float) -> Any:
    reader, causal = reader_of(model, tokenizer, task.longest), isinstance(model, GPT | LSTM)
    if task.kind == "choice":
        return HeadChoosing(reader, language_model)
    if task.kind == "answering":
        return Spans(reader, language_model, task.stride, causal, task.no_answer)
    if task.kind == "tagging":
        return Tagging(reader, language_model, "last" if causal else "first")
    pairs: Pairs = "together"
    if isinstance(model, LSTM):
        pairs = "apart"
    elif task.kind == "regression" and causal:
        pairs = "both orders"
    return HeadClassification(reader, language_model, len(task.label_names), pairs)
