"""A small model whose logits depend on position and context, and its twin in transformers."""

from collections.abc import Callable

import pytest
import torch
import transformers

from stemma.data.tokenizers import Tokenizer, train_tokenizer
from stemma.families.gpt.checkpoint import to_published
from stemma.families.gpt.model import GPT, GPTConfig

WORDS = "the quick brown fox jumps over the lazy dog while naïve öl–ñandús sing 你好 and 🙂 laugh; "


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level BPE of 320 tokens: common words are one token, the smiley is several."""
    return train_tokenizer([WORDS * 20, "the lazy dog jumps fox " * 100], "bpe", 320)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPT]:
    """make_model(seed=0, scale=20, **config): random weights, large enough for position and context to decide what
    comes next. Logits have a standard deviation of about a tenth of `scale`."""

    def make(seed: int = 0, scale: float = 20.0, **changes: object) -> GPT:
        torch.manual_seed(seed)
        small = {"vocabulary": 320, "context": 64, "layers": 2, "hidden": 32, "heads": 4, "vocabulary_multiple": 1}
        model = GPT(GPTConfig(**{**small, **changes})).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.mul_(scale if name.startswith(("token_embedding", "output")) else 15)
        return model

    return make


@pytest.fixture(scope="session")
def twin_of() -> Callable[[GPT], transformers.PreTrainedModel]:
    """twin_of(model): the transformers model with the same weights."""

    def twin(model: GPT) -> transformers.PreTrainedModel:
        published, tensors = to_published(model)
        config = transformers.AutoConfig.for_model(**published)
        other = getattr(transformers, published["architectures"][0])(config)
        other.load_state_dict({name: tensor.clone() for name, tensor in tensors}, strict=False)
        other.tie_weights()
        other.generation_config.eos_token_id = None
        return other.eval()

    return twin
