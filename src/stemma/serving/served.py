"""What a server serves: a model with its tokenizer, its engine and its chat template."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.data.special_texts import special_finder
from stemma.data.tokenizers import Tokenizer, load_tokenizer
from stemma.errors import InputError
from stemma.families import FAMILIES, load
from stemma.families.bert.model import BERT
from stemma.families.directory import resolve
from stemma.families.t5.model import T5
from stemma.families.t5.tokens import encode_source
from stemma.inference.chat_template import ChatTemplate
from stemma.inference.drafts import drafter_named
from stemma.inference.embeddings import sentence_settings
from stemma.inference.engine import CACHE_BYTES, Engine
from stemma.inference.quantization import Kind, quantize_
from stemma.inference.readers import LONGEST
from stemma.inference.text_stream import beginning_of_text
from stemma.serving.token_texts import TokenTexts

if TYPE_CHECKING:
    import tokenizers
    import torch


@dataclass
class Served:
    """A model and what belongs to it.

    Args:
        engine: None: the model writes no text. template: None: it is no chat model.
        context: in tokens; None: without bound. embedding: options of `inference.embeddings.embed`.
    """

    name: str
    model: Any
    tokenizer: Tokenizer
    engine: Engine | None
    template: ChatTemplate | None
    embedding: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.tokenizer)
        self.finder: tokenizers.Tokenizer = special_finder(self.tokenizer)
        self.context: int | None = getattr(self.model.config, "context", None)
        self.vocabulary: int = min(self.model.config.vocabulary, self.tokenizer.vocabulary)

    @property
    def family(self) -> str:
        """Our name of the model's family."""
        return next((name for name, family in FAMILIES.items() if isinstance(self.model, family.model)), "unknown")

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the engine reads."""
        assert self.engine is not None
        reader: Any = self.engine.reader
        return int(getattr(reader, "context", LONGEST))

    @property
    def goes_on(self) -> bool:
        """Whether the model goes on with its prompt, so that each token of that has a probability too."""
        return self.engine is not None and self.engine.reader.scores_prompts

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return prompts as tokens, as `inference.generate` reads them; an empty one begins where texts begin."""
        if isinstance(self.model, T5):  # <extra_id_0> and so on are its gaps
            return [encode_source(self.tokenizer, text) for text in texts]
        return [tokens or self.prefix for tokens in self.tokenizer.encode_batch(texts)]

    @property
    def prefix(self) -> list[int]:
        """What a text begins with that has no other beginning: the token that begins texts, else what separates."""
        try:
            return [beginning_of_text(self.tokenizer)]
        except InputError:
            return []


def load_served(
    path_or_hub_id: str,
    *,
    name: str | None = None,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | None" = None,
    memory: int = CACHE_BYTES,
    budget: int = 512,
    most_texts: int = 64,
    template: Path | None = None,
    guess: str | None = None,
    quantize: str | None = None,
) -> Served:
    """Load what `stemma serve` serves; options as in `Engine`.

    Args:
        name: by which clients call the model; default: the last part of its path. template: file of a chat template.
        guess: see `drafter_named`. quantize: see `quantize_`.
    Raises:
        InputError: no such checkpoint, or its files are broken.
    """
    if quantize is not None:
        Kind.named(quantize)  # a wrong one is told before the model is loaded
    directory = resolve(path_or_hub_id)
    model, tokenizer = load(directory, dtype=dtype, device=device), load_tokenizer(directory)
    if quantize is not None:
        quantize_(model, quantize)
    engine = None
    if not isinstance(model, BERT):
        drafter = None if guess is None else drafter_named(guess, tokenizer, dtype=dtype, device=device)
        engine = Engine(model, tokenizer, memory=memory, budget=budget, most_texts=most_texts, drafter=drafter)
    return Served(
        name=name or Path(path_or_hub_id).name,
        model=model,
        tokenizer=tokenizer,
        engine=engine,
        template=ChatTemplate.read(directory, template),
        embedding=sentence_settings(directory),
    )
