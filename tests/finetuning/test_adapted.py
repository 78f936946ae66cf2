"""LoRA: adapters and head alone are trained and written; PEFT loads them onto the same base, and so do we."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_runs import ROWS, Interrupted, table
from tiny_models import FAMILIES, directory_of, recipe_of, tokenizer_of

import stemma
from stemma import families
from stemma.data.tokenizers import load_tokenizer
from stemma.errors import InputError
from stemma.families.bert.model import BERT, BERTConfig
from stemma.families.gpt.model import GPT, GPTConfig
from stemma.finetuning.checkpoint import load_finetuned
from stemma.finetuning.measuring import scores_of
from stemma.finetuning.objectives import objective_of
from stemma.finetuning.recipe import LoRARecipe, build_recipe
from stemma.finetuning.run import finetune, read_splits
from stemma.training.lora import lora_layers

TEXTS = [row["text"] for row in ROWS]


def recipe(folder: Path, family: str, task: dict[str, Any] | None = None, *, lora: Any = None, **training: Any) -> Any:
    directory = folder / family if (folder / family).exists() else directory_of(family, folder)
    path = table(folder)
    made = recipe_of(directory, task or {}, {"train": path, "dev": path}, **training)
    return made.model_copy(update={"lora": lora or LoRARecipe(rank=4)})


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt", "gpt 1", "gpt untied"])
@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_peft_gives_our_logits(family: str, kind: str, tmp_path: Path) -> None:
    if family == "gpt 1" and kind == "tagging":
        pytest.skip("transformers has no such class")
    name, _, form = family.partition(" ")
    if form:
        torch.manual_seed(0)
        changes: Any = {"norm": "post"} if form == "1" else {"tie_output": False}
        shape: Any = {
            "vocabulary": tokenizer_of("gpt").vocabulary,
            "layers": 2,
            "hidden": 32,
            "heads": 4,
            "context": 64,
        }
        families.save(GPT(GPTConfig(**shape, **changes)), tokenizer_of("gpt"), tmp_path / "gpt")
    settings = recipe(tmp_path, name, {"kind": kind}, steps=20, learning_rate=1e-2)
    if kind == "tagging":
        (tmp_path / "t.conll").write_text("\n\n".join(f"{w} B-X\nsees O\n{w} O" for w in ("dog", "Anna", "red")))
        data = {"train": str(tmp_path / "t.conll"), "dev": str(tmp_path / "t.conll")}
        settings = settings.model_copy(update={"data": settings.data.model_copy(update=data)})
    finetune(settings, tmp_path / "run")
    best = tmp_path / "run" / "best"
    model, tokenizer, task = load_finetuned(best)
    objective = objective_of(model.backbone, tokenizer, task)
    example = objective.encode(read_splits(settings).train, tokenizer)[3 if kind == "classification" else 1]
    kinds = {"classification": "SequenceClassification", "tagging": "TokenClassification"}
    twin = getattr(transformers, f"AutoModelFor{kinds[kind]}").from_pretrained(
        tmp_path / name, num_labels=len(task.label_names)
    )
    if name == "gpt":
        twin.resize_token_embeddings(len(transformers.AutoTokenizer.from_pretrained(best)), mean_resizing=False)
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    wrapped = peft.PeftModel.from_pretrained(twin, best).eval()
    inside = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    stored = load_file(best / "adapter_model.safetensors")
    assert stored.keys() == inside.keys()
    with torch.no_grad():
        theirs = wrapped(input_ids=torch.tensor(example["tokens"]).unsqueeze(0)).logits[0]
        ours = model(objective.collate([example]))
    same(theirs[example["read"]] if kind == "tagging" else theirs.unsqueeze(0), ours)
    # Nothing of the base is in the folder.
    assert not (best / "config.json").exists() and not (best / "model.safetensors").exists()
    for key, tensor in stored.items():
        assert not any(value.shape == tensor.shape and torch.equal(value, tensor) for value in before.values()), key


def test_an_lstm_has_nothing_to_adapt(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lora: the blocks of this model have no linear layers to adapt"):
        finetune(recipe(tmp_path, "lstm", lora=LoRARecipe(rank=8)), tmp_path / "run")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "lstm"])
def test_every_family_learns_by_its_adapters(family: str, tmp_path: Path) -> None:
    settings = recipe(tmp_path, family, steps=90, learning_rate=1e-2, lora=LoRARecipe(rank=8, dropout=0.0))
    said: list[str] = []
    display = Interrupted(0)
    display.say = said.append  # type: ignore[method-assign]
    _, results = finetune(settings, tmp_path / "run", display=display)
    assert any("trained: LoRA of rank 8)" in line for line in said)
    assert results is not None and results["dev"]["metrics"]["accuracy"] == 1.0
    assert stemma.predict(tmp_path / "run" / "best", TEXTS) == [row["label"] for row in ROWS]
    base = dict(families.load(tmp_path / family).named_parameters())
    state = load_file(tmp_path / "run" / "training_state/step-00000090/tensors.safetensors")
    trained = {name.split(".", 2)[2] for name in state if name.startswith("optimizer.")}
    assert trained and all(name.endswith((".a", ".b")) or not name.startswith("backbone.blocks") for name in trained)
    for name, tensor in base.items():
        for frozen in (f"model.{name}", f"model.backbone.{name}"):
            if frozen in state and frozen.removeprefix("model.") not in trained and state[frozen].shape == tensor.shape:
                assert torch.equal(state[frozen], tensor), name


def test_a_killed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    settings = recipe(tmp_path, "bert", {"dropout": 0.1}, steps=7, batch=3, lora=LoRARecipe(rank=2, dropout=0.1))
    settings = settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"every": 2})})
    _, whole = finetune(settings, tmp_path / "whole")
    assert finetune(settings, tmp_path / "killed", display=Interrupted(3))[1] is None
    _, results = finetune(settings, tmp_path / "killed")
    assert results == whole
    for part in (".", "best"):
        one, other = (load_file(tmp_path / name / part / "adapter_model.safetensors") for name in ("whole", "killed"))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="lora.rank: 3, 2"):
        finetune(settings.model_copy(update={"lora": LoRARecipe(rank=3, dropout=0.1)}), tmp_path / "whole")


@pytest.mark.parametrize(
    ("family", "targets"), [("gpt", ("query", "value")), ("t5", ("query",)), ("glm", "all-linear")]
)
def test_what_is_written_comes_back(family: str, targets: Any, tmp_path: Path) -> None:
    """A text is written by a GPT with tokens that its base does not have; T5 and GLM have no output layer."""
    rows = [{"source": row["text"], "target": row["label"]} for row in ROWS[:4]]
    settings = recipe(tmp_path, family, {"kind": "text"}, steps=3, lora=LoRARecipe(rank=2, targets=targets))
    data = {"train": table(tmp_path, rows), "dev": table(tmp_path, rows), "longest_target": 8}
    settings = settings.model_copy(update={"data": settings.data.model_copy(update=data)})
    finetune(settings, tmp_path / "run")
    model, tokenizer, task = load_finetuned(tmp_path / "run" / "best")
    names = {name.rpartition(".")[2] for name in lora_layers(model)}
    assert names == ({"query", "key", "value", "output", "up", "down"} if targets == "all-linear" else set(targets))
    if family == "gpt":
        assert tokenizer.vocabulary == model.config.vocabulary == tokenizer_of("gpt").vocabulary + 3
    state = load_file(tmp_path / "run" / "training_state/step-00000003/tensors.safetensors")
    for name, tensor in model.state_dict().items():
        if f"model.{name}" in state:
            same(tensor, state[f"model.{name}"])


def test_a_base_without_a_pooler(tmp_path: Path) -> None:
    """It is drawn anew, so that it must be trained and written."""
    torch.manual_seed(0)
    model = BERT(BERTConfig(tokenizer_of("bert").vocabulary, layers=2, hidden=32, heads=4, context=64))
    families.save(model, tokenizer_of("bert"), tmp_path / "whole")
    twin = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "whole")
    twin.save_pretrained(tmp_path / "bert")
    load_tokenizer(tmp_path / "whole").save(tmp_path / "bert")
    settings = recipe(tmp_path, "bert", steps=3)
    finetune(settings, tmp_path / "run")
    stored = load_file(tmp_path / "run" / "best" / "adapter_model.safetensors")
    assert "base_model.model.bert.pooler.dense.weight" in stored
    scores = []
    for _ in range(2):
        loaded, tokenizer, task = load_finetuned(tmp_path / "run" / "best")
        objective = objective_of(loaded.backbone, tokenizer, task)
        scores.append(scores_of(loaded, objective, objective.encode(read_splits(settings).train, tokenizer)))
    same(*scores)


def test_the_section_of_the_recipe(tmp_path: Path) -> None:
    def build(*overrides: str, **given: Any) -> Any:
        content = {"model": "m", "data": {"train": "t"}, **given}
        return build_recipe(content, overrides, family="bert", parameters=1 << 30, examples=1 << 20)

    assert build().lora is None and build().training.learning_rate == 3e-5
    assert build("lora.rank=4").lora == LoRARecipe(rank=4)
    assert build("lora.rank=4").training.learning_rate == build(lora={}).training.learning_rate == 3e-4
    assert build("lora.rank=4", "training.lr=1e-5").training.learning_rate == 1e-5
    assert build("lora=null", lora={}).training.learning_rate == 3e-5
    assert build("lora.targets=[query, value]").lora.targets == ("query", "value")
    with pytest.raises(InputError, match="lora.rnk: unknown key .did you mean 'rank'"):
        build("lora.rnk=4")
    settings = recipe(tmp_path, "bert", lora=LoRARecipe(targets=("querry",)))
    with pytest.raises(InputError, match="no linear layer 'querry' in the blocks"):
        finetune(settings, tmp_path / "run")
    with pytest.raises(InputError, match="initialize=true forgets them"):
        finetune(recipe(tmp_path, "bert").model_copy(update={"initialize": True}), tmp_path / "run")


def test_adapters_without_their_base_are_one_line(tmp_path: Path) -> None:
    finetune(recipe(tmp_path, "bert", steps=1), tmp_path / "run")
    best = tmp_path / "run" / "best"
    assert json.loads((best / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "bert")
    (tmp_path / "bert").rename(tmp_path / "moved")
    with pytest.raises(
        InputError, match="adapter_config.json: the base of these adapters: no checkpoint folder"
    ) as error:
        load_finetuned(best)
    assert "\n" not in str(error.value)
