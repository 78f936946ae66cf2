"""Writing a target for a source: each family's loss in closed form, what the search writes, and what is learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import directory_of, model_of, recipe_of, tokenizer_of

from stemma.errors import InputError
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.patterns import fill_pattern
from stemma.finetuning.predicting import predict
from stemma.finetuning.reading import prepared
from stemma.finetuning.recipe import DataRecipe
from stemma.finetuning.run import TaskDescription, finetune, measure_directory, read_splits
from stemma.finetuning.task_data import Examples, read_examples
from stemma.layers.masks import Mask

WRITERS = ("gpt", "t5", "glm", "unilm")
PAIRS = {
    "the quick fox": "red dog",
    "one two": "three",
    "what is blue": "the lazy cat sings",
    "Anna": "Boris",
    "Paris or London": "good film",
    "a bad film": "who",
    "green": "four five six",
    "the dog jumps over the cat": "the cat jumps",
}


def set_up(family: str, **options):
    model, tokenizer = prepared(model_of(family), tokenizer_of(family))
    task = TaskDescription("text", "text", (), False, 40, longest_target=24, **options)
    return model, tokenizer, objective_of(model, tokenizer, task)


def data_of(pairs) -> Examples:
    return Examples([(source,) for source in pairs], list(pairs.values()), ())


def target_nll(family: str, model, tokenizer, source: str, target: str) -> list[torch.Tensor]:
    """The negative log-likelihood of each token of a target and of its end, from the model alone."""
    s, t = tokenizer.encode_batch([source, f" {target}" if family == "glm" else target])
    if family == "t5":
        logits = model(torch.tensor([[*s, tokenizer.separator]]), torch.tensor([[*t, tokenizer.separator]]))[0]
        learned = [*t, tokenizer.separator]
    elif family == "gpt":
        start, delimiter, end = (tokenizer.id(name) for name in ("_start_", "_delimiter_", "_classify_"))
        logits = model(torch.tensor([[start, *s, delimiter, *t]]))[0, len(s) + 1 :]
        learned = [*t, end]
    else:
        begin, mask, start, end = (
            tokenizer.id(name) for name in ("[CLS]", "[MASK]", "<|startofpiece|>", "<|endofpiece|>")
        )
        context = [begin, *s, mask, tokenizer.separator]
        tokens = torch.tensor([[*context, start, *t]])
        first = [*range(len(context)), *[len(context) - 2] * (len(t) + 1)]
        second = [*[0] * len(context), *range(1, len(t) + 2)]
        seen = Mask(causal=True, prefix_lengths=torch.tensor([len(context)]))
        logits = model.logits(model.hidden(tokens, torch.tensor([[first, second]]), seen))[0, len(context) :]
        learned = [*t, end]
    return list(-logits.log_softmax(-1).gather(1, torch.tensor(learned).unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("family", ["gpt", "t5", "glm"])
def test_loss_is_the_targets_alone(family: str) -> None:
    model, tokenizer, objective = set_up(family)
    batch = objective.collate(objective.encode(data_of(PAIRS), tokenizer))
    expected = torch.stack([nll for pair in PAIRS.items() for nll in target_nll(family, model, tokenizer, *pair)])
    loss, sums = objective.loss(model, batch)
    assert int(sums["targets"]) == len(expected)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-5, atol=1e-5)


def test_unilm_predicts_masked_tokens_of_the_target_with_its_end() -> None:
    model, tokenizer, objective = set_up("unilm")
    encoded = objective.encode(data_of(PAIRS), tokenizer)
    examples = [objective.example(example, np.random.default_rng(number)) for number, example in enumerate(encoded)]
    ends = 0
    for raw, example in zip(encoded, examples, strict=True):
        written = [*raw["target"], tokenizer.id("[SEP]")]
        begin = len(raw["source"]) + 2
        assert example["places"].min() >= begin
        assert [written[place - begin] for place in example["places"]] == example["targets"].tolist()
        assert len(example["places"]) == max(1, round(0.7 * len(raw["target"])))
        ends += tokenizer.id("[SEP]") in example["targets"]
    assert ends > 0
    alone = [objective.loss(model, objective.collate([example]))[1] for example in examples]
    together = objective.loss(model, objective.collate(examples))[1]
    torch.testing.assert_close(sum(one["nll"] for one in alone), together["nll"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt", "t5", "glm"])
def test_the_likeliest_token_is_written_each_time_and_the_batch_does_not_matter(family: str) -> None:
    model, tokenizer, objective = set_up(family)
    examples = objective.encode(data_of(PAIRS), tokenizer)
    written = objective.predict(model, examples)
    assert written == [objective.predict(model, [example])[0] for example in examples]
    ids = objective.write(model, [examples[0]["prompt"]])[0]
    assert 0 < len(ids) <= 24
    greedy = []
    while len(greedy) < 24:
        logits = next_logits(family, model, tokenizer, examples[0]["prompt"], greedy)
        token = int(logits.argmax())
        if token == tokenizer.id({"t5": "</s>", "gpt": "_classify_", "glm": "<|endofpiece|>"}[family]):
            break
        greedy.append(token)
    assert ids == greedy


def next_logits(family: str, model, tokenizer, prompt: list[int], written: list[int]) -> torch.Tensor:
    with torch.no_grad():
        if family == "gpt":
            return model(torch.tensor([[*prompt, *written]]))[0, -1]
        if family == "t5":
            return model(torch.tensor([prompt]), torch.tensor([[*written, 0]]))[0, -1]
        tokens = torch.tensor([[*prompt, tokenizer.id("<|startofpiece|>"), *written]])
        first = [*range(len(prompt)), *[len(prompt) - 2] * (len(written) + 1)]
        second = [*[0] * len(prompt), *range(1, len(written) + 2)]
        seen = Mask(causal=True, prefix_lengths=torch.tensor([len(prompt)]))
        return model.logits(model.hidden(tokens, torch.tensor([[first, second]]), seen))[0, -1]


@pytest.mark.parametrize("family", WRITERS)
def test_learns_eight_pairs_by_heart_and_goes_to_disk_and_back(family: str, tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    table.write_text("\n".join(json.dumps({"source": s, "target": t}) for s, t in PAIRS.items()))
    data = {"train": str(table), "dev": str(table), "longest_target": 16}
    steps = 200 if family == "unilm" else 120
    recipe = recipe_of(directory_of(family, tmp_path), {"kind": "text", "metric": "exact_match"}, data, steps=steps)
    _, results = finetune(recipe, tmp_path / "run")
    assert results is not None and results["dev"]["metrics"]["exact_match"] == 1.0, results
    assert results["dev"]["metrics"]["rougeL"] == pytest.approx(1.0)
    best = tmp_path / "run" / "best"
    assert predict(best, list(PAIRS)) == list(PAIRS.values())
    assert measure_directory(best, data_of(PAIRS)).metrics["exact_match"] == 1.0


@pytest.mark.parametrize("family", ["gpt", "t5", "glm"])
def test_beams_find_a_text_that_is_at_least_as_likely(family: str) -> None:
    likelihoods = []
    for beams in (1, 6):
        model, tokenizer, objective = set_up(family, beams=beams, length_penalty=0.0)
        prompt = objective.encode(data_of({"the quick fox": ""}), tokenizer)[0]["prompt"]
        written, total = objective.write(model, [prompt])[0], 0.0
        for place, token in enumerate(written):
            scores = next_logits(family, model, tokenizer, prompt, written[:place]).log_softmax(-1)
            total += float(scores[token])
        likelihoods.append((len(written), total))
    assert likelihoods[1][1] >= likelihoods[0][1] - 1e-4


def test_a_long_source_is_cut_and_its_pattern_is_not() -> None:
    tokenizer = tokenizer_of("gpt")
    (whole,) = fill_pattern(
        "question: {question} context: {context}", [{"question": "who", "context": "Anna"}], tokenizer, 99
    )
    assert tokenizer.decode(whole) == "question: who context: Anna"
    with pytest.warns(UserWarning, match="1 of 1 inputs are cut to 30 tokens"):
        (cut,) = fill_pattern("question: {text} end", [{"text": "the dog " * 50}], tokenizer, 30)
    assert (
        len(cut) == 30
        and tokenizer.decode(cut).startswith("question: the dog")
        and tokenizer.decode(cut).endswith(" end")
    )
    model, tokenizer, objective = set_up("gpt")
    with pytest.warns(UserWarning, match=r"1 of 1 targets are cut to 24 tokens \(data.longest_target\)"):
        (example,) = objective.encode(data_of({"dog " * 100: "cat " * 100}), tokenizer)
    assert len(example["tokens"]) <= model.config.context


def test_files_of_lines_and_dev_of_limited_size(tmp_path: Path) -> None:
    for name, texts in (("a", PAIRS), ("b", PAIRS.values())):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts))
    path = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    assert read_examples(path, "text", DataRecipe(train="")) == data_of(PAIRS)
    recipe = recipe_of(tmp_path / "gpt", {"kind": "text"}, {"train": path, "dev": path, "measured": 4})
    assert read_splits(recipe).dev.texts == [(source,) for source in list(PAIRS)[::2]]


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    table = tmp_path / "train.jsonl"
    table.write_text('{"source": "a", "target": ""}\n')
    with pytest.raises(InputError, match="line 1: field 'target' is ''; expected a text in every row"):
        read_examples(str(table), "text", DataRecipe(train=""))
    with pytest.raises(InputError, match="no field 'targe'|'targe'"):
        read_examples(str(table), "text", DataRecipe(train="", target="targe"))
    table.write_text('{"source": "a", "target": "b"}\n')
    directory = directory_of("bert", tmp_path)
    recipe = recipe_of(directory, {"kind": "text"}, {"train": str(table), "dev": str(table)})
    with pytest.raises(InputError, match="a BERT does not write texts: expected a GPT, T5, Transformer, GLM or UniLM"):
        finetune(recipe, tmp_path / "run")
    recipe = recipe_of(
        directory_of("t5", tmp_path), {"kind": "text", "pattern": "{txt}"}, {"train": str(table), "dev": str(table)}
    )
    with pytest.raises(InputError, match="pattern '{txt}': expected {text} in it, once"):
        finetune(recipe, tmp_path / "run2")
