"""Supervised fine-tuning: the loss of transformers, whatever is packed, and samples that are cut."""

import numpy as np
import pytest
import torch
import transformers
from tiny_models import model_of, tokenizer_of

from stemma import families
from stemma.alignment.conversations import Renderer
from stemma.alignment.dialogues import Dialogue
from stemma.alignment.reading import IGNORED, reading_of
from stemma.alignment.sft import Demonstrations, encode
from stemma.errors import InputError
from stemma.training.batches import Batches, Plan

ROWS = [("the quick", " brown fox"), ("who sees", " the lazy dog in Paris"), ("a", " cat"), ("red or blue", " green .")]
DIALOGUES = [Dialogue(*row) for row in ROWS]
MESSAGES = [
    {"role": "user", "content": "the dog"},
    {"role": "assistant", "content": "jumps"},
    {"role": "user", "content": "and the cat"},
    {"role": "assistant", "content": "sings to Anna"},
]


def parts(family, **options):
    model, tokenizer = model_of(family), tokenizer_of(family)
    reading = reading_of(model, tokenizer, **options)
    return model, tokenizer, reading, Renderer(model, tokenizer, reading.end)


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_the_loss_is_that_of_transformers(tmp_path, loss_on):
    model, tokenizer, reading, renderer = parts("gpt")
    examples = encode([*DIALOGUES, Dialogue(messages=MESSAGES)], renderer, reading, loss_on).examples
    objective = Demonstrations(reading)
    ours = objective.loss(model, objective.collate(examples))[0].item()
    families.save(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    nll = count = 0.0
    for example in examples:
        tokens = torch.from_numpy(example["tokens"])[None]
        labels = torch.full_like(tokens, IGNORED)
        places = torch.from_numpy(example["read"]) + 1
        labels[0, places] = tokens[0, places]
        nll += float(theirs(tokens, labels=labels).loss) * len(places)
        count += len(places)
    assert ours == pytest.approx(nll / count, abs=1e-6)
    if loss_on == "all":
        assert count == sum(len(example["tokens"]) - 1 for example in examples)


@pytest.mark.parametrize("family", ["gpt", "mistral", "glm", "t5"])
def test_packing_and_accumulation_change_no_loss_and_no_gradient(family):
    results = []
    for packing, micro in ((True, None), (False, None), (True, 1), (False, 3)):
        model, _, reading, renderer = parts(family, packing=packing)
        examples = encode([*DIALOGUES, Dialogue(messages=MESSAGES)], renderer, reading).examples
        objective = Demonstrations(reading)
        sequences = type("Sequences", (), {"sequence": lambda self, index, rows=examples: rows[index]})()
        batches = Batches(sequences, objective, Plan(len(examples)), seed=0, micro_batch=micro).micro_batches(0)
        totals = {"targets": sum(objective.counts(batch)["targets"] for batch in batches)}
        loss = sum(objective.loss(model, batch, totals)[0] for batch in batches)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        results.append((float(loss), float(norm)))
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)


def test_a_conversation_is_one_example_or_one_a_turn():
    for family, count in (("gpt", 1), ("mistral", 1), ("glm", 2), ("t5", 2)):
        _, _, reading, renderer = parts(family)
        assert len(encode([Dialogue(messages=MESSAGES)], renderer, reading).examples) == count


@pytest.mark.parametrize("family", ["gpt", "t5", "glm"])
def test_what_is_too_long_is_cut_and_what_is_lost_is_dropped(family):
    _, _, free, renderer = parts(family)
    long = Dialogue("the lazy dog " * 3, "sings")
    sizes = [len(renderer.sample(*row)) for row in (*ROWS, (long.prompt, long.response))]
    _, _, reading, renderer = parts(family, longest=max(sizes[:4]) - 2)
    assert len(renderer.prompt(long.prompt)) > reading.longest
    whole, cut = (encode([*DIALOGUES, long], renderer, one) for one in (free, reading))
    assert (whole.cut, whole.dropped, len(whole.examples)) == (0, 0, 5)
    assert (cut.cut, cut.dropped, len(cut.examples)) == (2, 1, 4)
    lost = [
        int((a["targets"] != IGNORED).sum() - (b["targets"] != IGNORED).sum())
        for a, b in zip(whole.examples, cut.examples, strict=False)
    ]
    assert sorted(lost) == [0, 0, 0, 2]
    assert np.isin(renderer.end, whole.examples[0]["targets"])
    with pytest.raises(InputError, match="no response begins within"):
        encode([long], renderer, reading)


def test_only_those_who_go_on_learn_prompts():
    _, _, reading, renderer = parts("t5")
    with pytest.raises(InputError, match=r"objective\.loss_on"):
        encode(DIALOGUES, renderer, reading, "all")
