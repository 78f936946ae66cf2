"""How well a model does a task that it is only told of in its prompt (in-context learning; Brown et al. 2020)."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stemma.errors import InputError
from stemma.files import write_whole
from stemma.inference.sampling import Sampling
from stemma.prompting.extraction import RULES, Rule, rule_named
from stemma.prompting.filters import filtered, is_exact
from stemma.prompting.models import Asked, Score, Writing
from stemma.prompting.prompts import Prompt, draw_shots, prompt_of
from stemma.prompting.reasoning import REASONINGS, Reasoning, Reply, replies
from stemma.prompting.records import Record, Records
from stemma.prompting.task_files import Filter, Filters, Metric
from stemma.prompting.tasks import Question, Task
from stemma.prompting.voting import vote

AT_ONCE = 32  # questions, after which the records are written
VOTES = (1, 5, 10, 20, 40)  # for which accuracies are told


@dataclass(frozen=True)
class Protocol:
    """How a task is asked.

    Args:
        shots: solved examples; None: as many as the task's file says. seed: of their draw and of samples.
        reasoning: see `reasoning`. votes: samples of which the most common answer counts; 1: the likeliest text.
    Raises:
        InputError: no such way of reasoning.
    """

    shots: int | None = None
    seed: int = 1
    reasoning: Reasoning = "direct"
    votes: int = 1

    def __post_init__(self) -> None:
        if self.reasoning not in REASONINGS:
            raise InputError(f"--reasoning {self.reasoning}: expected one of {', '.join(REASONINGS)}")


@dataclass(frozen=True)
class Share:
    """A mean over the questions, and its standard error (of the sample, as lm-evaluation-harness has it)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Share":
        """Return it of values, one a question."""
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
        return cls(mean, math.sqrt(spread / len(values)))


@dataclass(frozen=True)
class Evaluated:
    """What came out.

    Args:
        metrics: by name. costs: means over the questions, by name: tokens read and written, and how many solved
            examples there was room for. records: of each question.
    """

    task: str
    questions: int
    metrics: dict[str, Share]
    costs: dict[str, float]
    records: list[Record]

    def save(self, folder: Path) -> None:
        """Write `folder`/results.json; the records are there already."""
        import json

        content = {key: value for key, value in asdict(self).items() if key != "records"}
        with write_whole(folder / "results.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def evaluate(
    asked: Asked,
    task: Task,
    protocol: Protocol | None = None,
    *,
    out: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Evaluated:
    """Ask a model all questions of a task.

    Args:
        out: folder for `records.jsonl`, a line a question, and `results.json`; with records of the same model, task and
            protocol it goes on with them. report: called with the number of questions just done.
    Raises:
        InputError: `out` holds another run's records, or the task cannot be asked like this.
    """
    protocol = protocol or Protocol()
    shots = task.file.num_fewshot if protocol.shots is None else protocol.shots
    protocol = replace(protocol, shots=shots)
    way = _Choosing(asked, task) if task.file.output_type == "multiple_choice" else _writing(asked, task, protocol)
    if not isinstance(way, _Answering) and (protocol.reasoning != "direct" or protocol.votes > 1):
        raise InputError(f"{task.file.task}: --reasoning and --votes are for tasks whose answers are written")
    header = {"model": asked.fingerprint, "task": _hash(task.file.model_dump_json()), **asdict(protocol)}
    records = Records(None if out is None else out / "records.jsonl", header)
    todo = [question for question in task.questions if question.id not in records.found]
    report(len(task.questions) - len(todo))
    for start in range(0, len(todo), AT_ONCE):
        part = todo[start : start + AT_ONCE]
        prompts = [_prompt(asked, task, question, protocol, way) for question in part]
        made = way.ask(part, prompts)
        for record, question, prompt in zip(made, part, prompts, strict=True):
            record |= {"id": question.id, "shots": list(prompt.shots), "prompt": _hash(prompt.text)}
            record |= {"gold": question.gold if question.index is None else question.index}
        records.add(made)
        report(len(part))
    every = [records.found[question.id] for question in task.questions]
    costs = {"shots": sum(len(record["shots"]) for record in every) / len(every)}
    for name in every[0]["costs"]:
        costs[name] = sum(record["costs"][name] for record in every) / len(every)
    found = Evaluated(task.file.task, len(every), way.metrics(every), costs, every)
    if out is not None:
        found.save(out)
    return found


def _prompt(asked: Asked, task: Task, question: Question, protocol: Protocol, way: "_Way") -> Prompt:
    shots = draw_shots(task, question, protocol.shots or 0, protocol.seed)
    room, more = way.room(question)
    return prompt_of(task, question, shots, asked, reasoning=protocol.reasoning == "few-shot", room=room, more=more)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _Choosing:
    """The likeliest of given choices."""

    def __init__(self, asked: Asked, task: Task) -> None:
        self.asked, self.file = asked, task.file

    def room(self, question: Question) -> tuple[str, int]:
        return self.file.target_delimiter + max(question.choices, key=len), 0

    def ask(self, questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[Record]:
        delimiter, context = self.file.target_delimiter, self.file.stemma.unconditional
        pairs = [
            (prompt.text, delimiter + choice)
            for prompt, question in zip(prompts, questions, strict=True)
            for choice in question.choices
        ]
        alone = list(dict.fromkeys((context, choice) for _, choice in pairs))
        scores = self.asked.score([*pairs, *alone])
        unconditional = dict(zip(alone, scores[len(pairs) :], strict=True))
        rest = iter(scores)
        return [
            self._record(
                question, [(next(rest), unconditional[context, delimiter + choice]) for choice in question.choices]
            )
            for question in questions
        ]

    def _record(self, question: Question, scores: Sequence[tuple[Score, Score]]) -> Record:
        options = [
            {
                "log_probability": score.log_probability,
                "unconditional": alone.log_probability,
                "tokens": score.tokens,
                "characters": len(choice),
                "bytes": len(choice.encode()),
                "merged": score.merged,
            }
            for choice, (score, alone) in zip(question.choices, scores, strict=True)
        ]
        ways = {
            "acc": lambda option: option["log_probability"],
            "acc_norm": lambda option: option["log_probability"] / max(option["characters"], 1),
            "acc_bytes": lambda option: option["log_probability"] / max(option["bytes"], 1),
            "acc_tokens": lambda option: option["log_probability"] / option["tokens"],
            "acc_unconditional": lambda option: option["log_probability"] - option["unconditional"],
        }
        chosen = {
            name: max(range(len(options)), key=lambda place, value=value: value(options[place]))  # type: ignore[misc]
            for name, value in ways.items()
        }
        read = max(score.read for score, _ in scores)
        merged = sum(option["merged"] for option in options)
        return {"options": options, "chosen": chosen, "costs": {"prompt tokens": read, "merged options": merged}}

    def metrics(self, records: Sequence[Record]) -> dict[str, Share]:
        return {
            name: Share.of([float(record["chosen"][name] == record["gold"]) for record in records])
            for name in records[0]["chosen"]
        }


class _Continuing:
    """One given answer: how likely it is, and whether the model would say it."""

    def __init__(self, asked: Asked, task: Task) -> None:
        self.asked, self.file = asked, task.file

    def room(self, question: Question) -> tuple[str, int]:
        return self.file.target_delimiter + question.target, 0

    def ask(self, questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[Record]:
        targets = [self.file.target_delimiter + question.target for question in questions]
        scores = self.asked.score([(prompt.text, target) for prompt, target in zip(prompts, targets, strict=True)])
        return [
            {
                "log_probability": score.log_probability,
                "is_greedy": score.is_greedy,
                "costs": {"prompt tokens": score.read, "merged options": int(score.merged)},
            }
            for score in scores
        ]

    def metrics(self, records: Sequence[Record]) -> dict[str, Share]:
        mean = Share.of([record["log_probability"] for record in records])
        perplexity = math.exp(-mean.mean)
        found = {
            "perplexity": Share(perplexity, perplexity * mean.error)
        }  # of a whole answer; the error to first order
        if all(record["is_greedy"] is not None for record in records):
            found["acc"] = Share.of([float(record["is_greedy"]) for record in records])
        return found


class _Answering:
    """Answers in words, found in what was written by a rule, or by the harness's filters."""

    def __init__(self, asked: Asked, task: Task, protocol: Protocol) -> None:
        self.asked, self.file, self.protocol = asked, task.file, protocol
        generation, ours, votes = task.file.generation_kwargs, task.file.stemma, protocol.votes
        stop = generation.until if generation.until is not None else task.file.fewshot_delimiter
        stops = [one for one in ([stop] if isinstance(stop, str) else stop) if one]
        if votes > 1:
            sampling = Sampling(ours.vote_temperature, ours.vote_top_k)
        elif generation.do_sample:
            sampling = Sampling(generation.temperature, None, generation.top_p)
        else:
            sampling = Sampling(0.0)
        samples = votes if votes > 1 else task.file.repeats
        self.how = Writing(generation.max_gen_toks, stops, sampling, samples, protocol.seed)
        self.filters = task.file.filter_list or [Filters(name="none", filter=[Filter(function="take_first")])]
        self.metric = next(
            (metric for metric in task.file.metric_list if metric.metric == "exact_match"), Metric(metric="exact_match")
        )
        self.rules: dict[str, Rule] = {}
        if ours.answer is not None:
            examples = bool(protocol.shots)
            self.rules = {
                name: rule_named(name, ours.answer, examples=examples, choices=ours.choices, fractions=ours.fractions)
                for name in RULES
            }
        elif votes > 1:
            raise InputError(f"{task.file.task}: votes need the key stemma.answer, which says what the answers are")
        elif protocol.reasoning != "direct":
            raise InputError(
                f"{task.file.task}: reasoning needs the key stemma.answer, which says what the answers are"
            )

    def room(self, question: Question) -> tuple[str, int]:
        return "", self.how.most

    def ask(self, questions: Sequence[Question], prompts: Sequence[Prompt]) -> list[Record]:
        texts = [prompt.text for prompt in prompts]
        found = replies(self.asked, texts, self.how, self.protocol.reasoning, self.file.stemma)
        return [self._record(question, own) for question, own in zip(questions, found, strict=True)]

    def _record(self, question: Question, own: Sequence[Reply]) -> Record:
        record: Record = {"texts": [reply.text for reply in own], "reasoning": [reply.reasoning for reply in own]}
        record["log_probabilities"] = [reply.log_probability for reply in own]
        record["costs"] = {
            "prompt tokens": sum(reply.read for reply in own),
            "written tokens": sum(reply.tokens for reply in own),
            "cut": sum(reply.cut for reply in own) / len(own),
        }
        right: dict[str, bool] = {}
        if not self.rules:
            for filters in self.filters:
                answers = filtered(record["texts"], filters.filter)
                right[f"exact_match,{filters.name}"] = is_exact(answers[0], question.gold, self.metric)
        for name, rule in self.rules.items():
            right |= self._judged(name, rule, question, own, record)
        return record | {"right": right}

    def _judged(
        self, name: str, rule: Rule, question: Question, own: Sequence[Reply], record: Record
    ) -> dict[str, bool]:
        answers = [self._answer(reply, name, rule) for reply in own]
        record[f"answers, {name}"] = answers
        if name == "robust":
            record["costs"]["without an answer"] = answers.count(None) / len(answers)
        if len(own) == 1:
            return {f"accuracy, {name}": rule.is_right(answers[0], question.gold)}
        right, scores = {}, [reply.log_probability for reply in own]
        for count in sorted({*(votes for votes in VOTES if votes < len(own)), len(own)}):
            chosen = vote(answers[:count], scores[:count], rule.same)
            right[f"vote of {count}, {name}"] = rule.is_right(chosen.answer, question.gold)
        if name == "robust":
            record["costs"]["tied votes"] = float(chosen.tied)
            means = [math.exp(reply.log_probability / max(reply.tokens, 1)) for reply in own]
            weighted = vote(answers, scores, rule.same, means)
            right[f"vote of {len(own)} weighted by likelihood, {name}"] = rule.is_right(weighted.answer, question.gold)
        return right

    def _answer(self, reply: Reply, name: str, rule: Rule) -> str | None:
        if self.protocol.reasoning in ("zero-shot", "least-to-most") and name == "robust":
            # The answer was asked for: the text as a whole stands behind "the answer is".
            return rule.extract(f"The answer is {reply.text}")
        return rule.extract(reply.text)

    def metrics(self, records: Sequence[Record]) -> dict[str, Share]:
        return {name: Share.of([float(record["right"][name]) for record in records]) for name in records[0]["right"]}


_Way = _Choosing | _Continuing | _Answering


def _writing(asked: Asked, task: Task, protocol: Protocol) -> _Continuing | _Answering:
    if task.file.output_type == "loglikelihood":
        return _Continuing(asked, task)
    return _Answering(asked, task, protocol)
