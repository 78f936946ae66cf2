"""The dictionary of families, and the directories that pass between the verbs: model and tokenizer together."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import stemma
from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.errors import InputError
from stemma.families import FAMILIES, family, save
from stemma.families.gpt.model import GPT, PRESETS, GPTConfig

TEXT = "the family tree of language models, every branch of it running; a stemma is a tree of texts. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 20], "bpe", vocabulary=300)


def model_for(tokenizer: Tokenizer, **options: object) -> GPT:
    torch.manual_seed(0)
    config = replace(PRESETS["tiny"], vocabulary=tokenizer.vocabulary, layers=2, hidden=32, heads=4, context=64)
    model = GPT(replace(config, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.2
    return model


def test_families_are_found_by_name_and_by_model_type() -> None:
    assert family("gpt") is family("gpt2") is family("openai-gpt") is FAMILIES["gpt"]
    with pytest.raises(
        InputError, match=r"no model family 'gtp' \(did you mean 'gpt'\?\), expected one of gpt, .*gpt2"
    ):
        family("gtp")
    types = [model_type for branch in FAMILIES.values() for model_type in branch.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_builds_its_presets(name: str) -> None:
    branch = FAMILIES[name]
    for config in branch.presets.values():
        assert isinstance(config, branch.config)
    assert all(hasattr(objective, "loss") for objective in branch.objectives.values())


def test_a_published_directory_says_the_same_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    model = model_for(tokenizer)
    save(model, tokenizer, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["bos_token_id"] == config["eos_token_id"] == tokenizer.separator

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("a tree of models")
    assert their_tokenizer("a tree of models")["input_ids"] == ids
    assert their_tokenizer.eos_token_id == tokenizer.separator
    expected = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20)[0].tolist()

    again, our_tokenizer = stemma.load(tmp_path), stemma.load_tokenizer(tmp_path)
    tokens = our_tokenizer.encode("a tree of models")
    with torch.no_grad():
        while len(tokens) < len(expected):
            tokens.append(int(again(torch.tensor([tokens]))[0, -1].argmax()))
    assert tokens == expected
    assert our_tokenizer.decode(tokens) == their_tokenizer.decode(expected, skip_special_tokens=True)


def test_the_tokenizer_of_a_directory_of_our_own_type_still_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    import transformers

    save(model_for(tokenizer, attention_pattern=("dense", "banded"), band=8), tokenizer, tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == tokenizer.encode(TEXT)
    assert stemma.load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_tokenizer_without_a_separator(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """OpenAI's GPT-1 has none: null in the configuration, not the 50256 that transformers would assume."""
    save(model_for(tokenizer), Tokenizer(tokenizer.backend, {}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["bos_token_id"] is None and config["eos_token_id"] is None


def test_a_model_of_no_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot tell the family of a Linear"):
        save(nn.Linear(2, 2), None, tmp_path)


def test_load_says_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        stemma.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bort"}')
    with pytest.raises(InputError, match="no model family 'bort'"):
        stemma.load(tmp_path)
    save(GPT(GPTConfig(vocabulary=64, context=8, layers=1, hidden=8, heads=2)), None, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        stemma.load(tmp_path)
