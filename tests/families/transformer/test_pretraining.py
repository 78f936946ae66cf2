"""A whole run, from two files of lines to a directory that translates; the mean of its checkpoints; resuming."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import stemma
from stemma.cli import main
from stemma.errors import InputError
from stemma.finetuning.recipe import FineTuningRecipe, build_recipe
from stemma.finetuning.run import build, finetune, measure_directory, read_splits
from stemma.inference.sampling import Sampling
from stemma.training.pretrain import prepare_run, pretrain
from stemma.training.recipe import Recipe, load_recipe

GERMAN = ["eins", "zwei", "drei", "vier", "sechs", "sieben", "acht", "neun"]
ENGLISH = ["one", "two", "three", "four", "six", "seven", "eight", "nine"]


def write_corpus(folder: Path, name: str, count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 8, rng.integers(1, 5)) for _ in range(count)]
    for language, words in (("de", GERMAN), ("en", ENGLISH)):
        lines = (" ".join(words[index] for index in row) for row in rows)
        (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n")
    return f"{folder / name}.de,{folder / name}.en"


def recipe_for(folder: Path, *overrides: str) -> Recipe:
    train, dev = write_corpus(folder, "train", 1500, 0), write_corpus(folder, "dev", 40, 1)
    return load_recipe(
        "transformer/tiny",
        [
            f"data.source={train}",
            f"data.held_out={dev}",
            "tokenizer={kind: bpe, vocabulary: 300}",
            "model={preset: tiny, hidden: 64, heads: 2, layers: 1, feed_forward: 128, dropout: 0.0}",
            "training.epochs=null",
            "training.steps=200",
            "training.length=400",
            "training.learning_rate=0.005",
            "training.schedule.warmup=60",
            "objective.longest=40",
            "evaluation.every=100",
            "output={log_every: 20, save_every: 40, keep: 2}",
            "execution={device: cpu, precision: float32}",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_for(folder, "training.average=2")
    pretrain(recipe, folder / "out", cache=folder / "cache")
    return folder


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_to_what_smoothing_leaves(run: Path) -> None:
    logged = [line for line in metrics(run / "out") if "loss" in line]
    held_out = [line["held_out_loss"] for line in metrics(run / "out") if "held_out_loss" in line]
    assert logged[0]["loss"] > 3.5
    # The smoothed loss cannot fall below the entropy of its targets, which is that of 0.1 spread over 300 tokens...
    assert 0.8 < logged[-1]["loss"] < 1.2
    # ... but held-out loss is not smoothed.
    assert held_out[-1] < 0.2
    assert metrics(run / "out")[-1]["event"] == "mean of checkpoints"


def test_the_directory_holds_the_mean_of_the_last_checkpoints(run: Path) -> None:
    states = sorted((run / "out" / "training_state").glob("step-*"))
    assert [path.name for path in states] == ["step-00000160", "step-00000200"]
    one, other = (load_file(path / "tensors.safetensors") for path in states)
    assert not torch.equal(one["model.token_embedding.weight"], other["model.token_embedding.weight"])
    model = stemma.load(run / "out")
    for name, parameter in model.named_parameters():
        rows = slice(model.config.vocabulary) if name == "token_embedding.weight" else slice(None)
        expected = (one[f"model.{name}"] + other[f"model.{name}"]) / 2
        torch.testing.assert_close(parameter[rows].detach(), expected[rows], rtol=0, atol=1e-7)


def test_it_translates(run: Path) -> None:
    model, tokenizer = stemma.load(run / "out"), stemma.load_tokenizer(run / "out")
    sources = (run / "dev.de").read_text().splitlines()
    targets = (run / "dev.en").read_text().splitlines()
    for options in ({"temperature": 0}, {"beams": 4, "length_penalty": 0.6}):
        texts = stemma.generate(model, tokenizer, sources, max_new_tokens=30, **options)
        assert sum(text.text == target for text, target in zip(texts, targets, strict=True)) >= 34
        assert all(text.finish_reason == "end" for text in texts)
    assert stemma.predict(run / "out", sources[:8]) == [text.text for text in texts[:8]]
    engine = stemma.Engine(model, tokenizer)
    greedy = Sampling(temperature=0)
    requests = [stemma.Request(tokenizer.encode(source), max_new_tokens=30, sampling=greedy) for source in sources]
    found = [texts[0].stream.text for texts in engine.run(requests)]
    assert sum(text == target for text, target in zip(found, targets, strict=True)) >= 34


def test_transformers_translates_with_it(run: Path) -> None:
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(run / "out").eval()
    tokenizer, ours = stemma.load_tokenizer(run / "out"), stemma.load(run / "out")
    settings = theirs.generation_config
    assert settings.decoder_start_token_id == settings.pad_token_id == tokenizer.pad != tokenizer.separator
    text = "drei sieben eins"
    source = torch.tensor([[*tokenizer.encode(text), tokenizer.separator]])
    expected = theirs.generate(source, do_sample=False, num_beams=1, max_new_tokens=20)[0, 1:].tolist()
    assert stemma.generate(ours, tokenizer, text, max_new_tokens=20, temperature=0)[0].tokens == expected


def test_evaluate_prints_bleu_with_its_signature(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = f"{run / 'dev.de'},{run / 'dev.en'}"
    monkeypatch.setattr(sys, "argv", ["stemma", "evaluate", str(run / "out"), pairs, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 40 and found["metrics"]["bleu"] > 80
    assert "tok:13a" in found["signatures"]["bleu"]


def test_a_run_goes_on_exactly(run: Path, tmp_path: Path) -> None:
    short = ("training.steps=8", "training.average=2", "output={log_every: 1, save_every: 2, keep: 2}")
    cache = run / "cache"
    pretrain(recipe_for(tmp_path, *short), tmp_path / "whole", cache=cache)
    pretrain(recipe_for(tmp_path, *short, "training.steps=4"), tmp_path / "resumed", cache=cache)
    pretrain(recipe_for(tmp_path, *short), tmp_path / "resumed", resume=True, cache=cache)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fine_tuning_goes_on_from_it(run: Path, tmp_path: Path) -> None:
    def recipe(kind: str, **more: object) -> FineTuningRecipe:
        data = {"train": f"{run / 'train.de'},{run / 'train.en'}", "dev": f"{run / 'dev.de'},{run / 'dev.en'}"}
        given = {
            "model": str(run / "out"),
            "task": {"kind": kind},
            "data": data,
            "execution": {"device": "cpu"},
            **more,
        }
        overrides = ["training.epochs=null", "training.steps=20"]
        return build_recipe(given, overrides, family="transformer", parameters=10**5, examples=1500)

    _, results = finetune(recipe("text"), tmp_path / "tuned")
    before = measure_directory(run / "out", read_splits(recipe("text")).dev)
    assert results["dev"]["loss"] < before.loss and results["dev"]["metrics"]["bleu"] > 85
    assert stemma.predict(tmp_path / "tuned" / "best", ["acht"]) == ["eight"]
    for options, message in (
        ({"kind": "classification"}, "expected task.kind=text, not classification"),
        ({"kind": "text", "lora": {"rank": 2}}, "lora: a Transformer is trained whole"),
    ):
        wrong = recipe(**options)
        with pytest.raises(InputError, match=message):
            build(wrong, read_splits(recipe("text")).train)


def test_tokens_are_counted_as_they_are(tmp_path: Path) -> None:
    prepared = prepare_run(recipe_for(tmp_path, "training.batch=3"), cache=tmp_path / "cache")
    numbers = prepared.summary
    assert (numbers["documents"], numbers["held_out_documents"]) == (1500, 40)
    assert numbers["tokens_per_step"] == 1200
    assert prepared.task.model.config.padding == prepared.tokenizer.pad == 300
    assert prepared.task.held_out.bytes == len((tmp_path / "dev.en").read_text()) - 40
    assert "1,500 pairs of" in prepared.corpus.summary


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source=train.de", "two files of lines with a comma between"),
        ("data.held_out=1.5", "a share from 0 to below 1"),
        ("evaluation.tokens=100", r"evaluation\.tokens: 100, but pairs are all evaluated on"),
        ("objective.longest=500", r"training\.length: 400 tokens hold no pair of objective\.longest=500"),
        ("objective.longest=1", "2 or more tokens"),
        ("objective.label_smoothing=1", "from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare_run(recipe_for(tmp_path, override), cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.average=3", "output.keep is 2, less than the training.average of 3"),
        ("training={average: 2, ema: 0.9, batch: 1, steps: 2, learning_rate: 0.1}", "exclude each other"),
    ],
)
def test_means_that_cannot_be_taken_are_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        recipe_for(tmp_path, override)


def test_ctranslate2_translates_with_it(run: Path, tmp_path: Path) -> None:
    import ctranslate2

    ctranslate2.converters.TransformersConverter(str(run / "out")).convert(str(tmp_path / "converted"))
    translator = ctranslate2.Translator(str(tmp_path / "converted"), intra_threads=1, compute_type="float32")
    model, tokenizer = stemma.load(run / "out"), stemma.load_tokenizer(run / "out")
    sources = (run / "dev.de").read_text().splitlines()[:10]
    expected = stemma.generate(model, tokenizer, sources, max_new_tokens=30, temperature=0)
    rows = [[tokenizer.token(index) for index in [*tokenizer.encode(text), tokenizer.separator]] for text in sources]
    found = translator.translate_batch(rows, beam_size=1, max_decoding_length=30)
    texts = [tokenizer.decode(map(tokenizer.id, one.hypotheses[0])) for one in found]
    assert texts == [text.text for text in expected]
