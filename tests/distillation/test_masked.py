"""BERTs taught by BERTs: the three losses of DistilBERT, written out as its authors do, and whole runs."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from small_runs import Interrupted
from tiny_models import WORDS, directory_of, model_of, tokenizer_of

from stemma import families
from stemma.alignment.recipe import build_recipe
from stemma.distillation.distil import distil_masked
from stemma.distillation.linear_divergence import SoftLoss
from stemma.distillation.masked import MaskedTeacher, TaughtMasked
from stemma.distillation.recipe import DistillationRecipe
from stemma.distillation.students import smaller
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.bert.objective import MaskedLanguageModel
from stemma.families.bert.tokens import BERTTokens

TOKENIZER = tokenizer_of("bert")
LOSS = SoftLoss(temperature=2.0, weight=5 / 7)


def items(lengths=(9, 20, 5, 14)):
    random = np.random.default_rng(0)
    plain = [index for index in range(TOKENIZER.vocabulary) if index not in TOKENIZER.special]
    first, last = (TOKENIZER.id(TOKENIZER.names[role]) for role in ("cls_token", "sep_token"))
    return [{"tokens": np.array([first, *random.choice(plain, length), last])} for length in lengths]


def taught(*teachers, masked=0.3, **options):
    members = [MaskedTeacher(one, one.masked_weight.detach(), one.masked_head.bias.detach()) for one in teachers]
    objective = MaskedLanguageModel(BERTTokens.of(TOKENIZER), "full_sentences", masked=masked)
    return TaughtMasked(objective, members, LOSS, **options)


def batch_of(objective, some):
    return objective.collate([objective.example(one, np.random.default_rng(i)) for i, one in enumerate(some)])


def published(model, folder):
    families.save(model, TOKENIZER, folder)
    return transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_loss_is_distilberts(tmp_path, everywhere):
    """The loss of the authors' code (distiller.py: weights 5, 2, 1) with transformers' models and padded batches."""
    teacher = model_of("bert", seed=1)
    student, kept = smaller(teacher, {"layers": 1})
    assert kept == [0]
    objective, some = taught(teacher, scale=7.0, hidden=1.0, everywhere=everywhere), items()
    loss, sums = objective.loss(student, batch_of(objective, some))
    loss.backward()

    theirs, thinking = published(student, tmp_path / "s"), published(teacher, tmp_path / "t")
    drawn = [objective.example(one, np.random.default_rng(number)) for number, one in enumerate(some)]
    width = max(len(one["tokens"]) for one in drawn)
    ids = torch.zeros(len(drawn), width, dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, one in enumerate(drawn):
        ids[row, : len(one["tokens"])] = torch.from_numpy(one["tokens"])
        attention[row, : len(one["tokens"])] = 1
        labels[row, torch.from_numpy(one["places"])] = torch.from_numpy(one["targets"])
    s = theirs(ids, attention_mask=attention, output_hidden_states=True)
    with torch.no_grad():
        t = thinking(ids, attention_mask=attention, output_hidden_states=True)
    at = attention.bool() if everywhere else labels > -1
    ce = F.kl_div((s.logits[at] / 2).log_softmax(-1), (t.logits[at] / 2).softmax(-1), reduction="batchmean") * 2**2
    mlm = F.cross_entropy(s.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    real = attention.bool()
    same = torch.ones(int(real.sum()))
    cos = F.cosine_embedding_loss(s.hidden_states[-1][real], t.hidden_states[-1][real], same)
    expected = 5.0 * ce + 2.0 * mlm + 1.0 * cos
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    count = sums["targets"]
    for name, value in {"soft": ce, "hard": mlm, "hidden": cos}.items():
        assert float(sums[name]) / count == pytest.approx(float(value), rel=1e-5), name
    expected.backward()
    pairs = [
        (student.blocks[0].attention.query.weight, theirs.bert.encoder.layer[0].attention.self.query.weight),
        (student.embeddings.token.weight, theirs.bert.embeddings.word_embeddings.weight),
        (student.masked_head.bias, theirs.cls.predictions.bias),
    ]
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad[: len(ours)], atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("everywhere", [False, True])
def test_micro_batches_add_up(everywhere):
    student, teachers = model_of("bert"), (model_of("bert", seed=1), model_of("bert", seed=2))
    objective, some = taught(*teachers, scale=7.0, hidden=1.0, everywhere=everywhere), items()
    drawn = [objective.example(one, np.random.default_rng(number)) for number, one in enumerate(some)]
    whole = objective.loss(student, objective.collate(drawn))[0]
    parts = [objective.collate(drawn[start : start + 2]) for start in (0, 2)]
    totals = {name: sum(objective.counts(part)[name] for part in parts) for name in ("targets", "tokens")}
    assert totals["tokens"] == sum(len(one["tokens"]) for one in some)
    assert float(sum(objective.loss(student, part, totals)[0] for part in parts)) == pytest.approx(
        float(whole), rel=1e-5
    )


def test_states_that_nothing_needs_are_not_computed():
    """Without hidden states the last layer is computed at masked places alone; the losses are the same."""
    student, some = model_of("bert"), items()
    with_states, without = (taught(model_of("bert", seed=1), scale=7.0, hidden=weight) for weight in (1.0, 0.0))
    ours, sums = without.loss(student, batch_of(without, some))
    _, all_sums = with_states.loss(student, batch_of(with_states, some))
    assert "hidden" not in sums
    assert all(float(sums[name]) == pytest.approx(float(all_sums[name]), rel=1e-5) for name in ("soft", "hard"))
    assert float(ours) * sums["targets"] == pytest.approx(5 * float(sums["soft"]) + 2 * float(sums["hard"]), rel=1e-5)


def test_tokens_in_another_order():
    student, teacher, moved = model_of("bert"), model_of("bert", seed=1), model_of("bert", seed=1)
    order = torch.arange(TOKENIZER.vocabulary).roll(7)
    with torch.no_grad():
        moved.embeddings.token.weight[order] = teacher.embeddings.token.weight
        moved.masked_head.bias[order] = teacher.masked_head.bias
    other = MaskedTeacher(moved, moved.masked_weight.detach()[order], moved.masked_head.bias.detach()[order], order)
    plain = taught(teacher, hidden=1.0)
    objective = TaughtMasked(plain.masked, [other], LOSS, hidden=1.0)
    some = items()
    ours, theirs = (one.loss(student, batch_of(one, some))[0] for one in (objective, plain))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


@pytest.fixture
def run(stemma, monkeypatch, tmp_path):
    """run(*arguments) -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    return partial(stemma, "distill")


def text_in(folder):
    (folder / "t.txt").write_text("".join(f"{word} {WORDS}\n\n" for word in WORDS.split()))
    return folder / "t.txt"


FEW = ("training.steps=3", "training.epochs=null", "training.batch=4", "data.documents=paragraph", "data.longest=16")


def test_from_teacher_to_student(run, tmp_path):
    teacher, text = directory_of("bert", tmp_path), text_in(tmp_path)
    small = tmp_path / "small"
    assert run("student", teacher, "layers=1", "--out", small)[0] == 0
    texts = ("--teacher", teacher, "--train", text, "--text", "text", *FEW)
    code, said, error = run("tokens", small, *texts, "--out", tmp_path / "o", "--json")
    assert code == 0, error
    held_out = json.loads(said)["held_out"]
    assert held_out["perplexity"] > 1 and 0 < held_out["hidden_distance"] < 1
    assert "forward KL at temperature 2, weights 5, of the truth 2, of hidden states 1" in error
    parts = 5 * held_out["divergence"] + 2 * np.log(held_out["perplexity"]) + held_out["hidden_distance"]
    assert held_out["loss"] == pytest.approx(parts, rel=1e-4)
    assert families.load(tmp_path / "o").config.layers == 1
    for arguments, message in {
        (): "data.text: a BERT learns from whole texts",
        ("--text", "text", "--cache", "8"): "hidden states are not cached",
        ("--text", "text", "--cache", "8", "objective.terms.hidden=0"): "masks are drawn anew each time; expected null",
        ("--text", "text", "--on-policy", "0.5"): "objective.on_policy: a BERT writes none",
        ("--text", "text", "--weight", "0.5"): "weight and terms both weigh the losses",
    }.items():
        code, _, error = run(
            "tokens", small, "--teacher", teacher, "--train", text, *arguments, "--out", tmp_path / "p"
        )
        assert code == 2 and message in error and len(error.strip().splitlines()) == 1, error
    directory_of("gpt", tmp_path)
    code, _, error = run("tokens", small, *texts[2:], "--teacher", tmp_path / "gpt", "--out", tmp_path / "p")
    assert code == 2 and "gpt is a GPT" in error
    wide = BERT(BERTConfig(TOKENIZER.vocabulary, 64, layers=1, hidden=16, heads=2))
    families.save(wide, TOKENIZER, tmp_path / "narrow")
    code, _, error = run("tokens", tmp_path / "narrow", *texts, "--out", tmp_path / "p")
    assert code == 2 and "the student's states are 16 wide" in error and "expected one width" in error
    assert run("tokens", tmp_path / "narrow", *texts, "objective.terms.hidden=0", "--out", tmp_path / "p")[0] == 0


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path, monkeypatch):
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    directory = directory_of("bert", tmp_path)
    data = {"train": str(text_in(tmp_path)), "text": "text", "documents": "paragraph", "longest": 16}
    given = {
        "model": str(directory),
        "data": data,
        "dropout": 0.1,
        "objective": {"teachers": [str(directory)]},
        "training": {"batch": 4, "schedule": {"name": "constant"}},
    }
    recipe = build_recipe(
        DistillationRecipe, "distill/masked-tiny", given, ["training.steps=5", "training.epochs=null"]
    )
    distil_masked(recipe, tmp_path / "whole")
    assert distil_masked(recipe, tmp_path / "killed", display=Interrupted(2))[0].reason == "interrupted"
    assert distil_masked(recipe, tmp_path / "killed")[0].reason == "finished"
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
