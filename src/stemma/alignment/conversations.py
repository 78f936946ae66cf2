"""Prompts, responses and whole conversations as token ids, and which of these the model is to learn.

What users write never becomes a special token. A text is cut where the assistant begins to speak, and no token reaches
across: a prompt has the same tokens here as when the model is asked.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from stemma.alignment.reading import Sample
from stemma.data.readers import check_unicode
from stemma.data.special_texts import special_finder, unspecial
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.glm.model import GLM
from stemma.families.t5.model import T5
from stemma.families.t5.tokens import encode_source
from stemma.inference.chat_template import ChatTemplate

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""A text that the response goes on with, or a conversation in which the assistant speaks next."""

# For models without a template of their own; it is saved with them.
DEFAULT_TEMPLATE = """\
{%- for message in messages %}
{{- message.role | capitalize }}: {{ message.content }}
{%- if message.role == "assistant" %}{{ eos_token }}{% endif %}
{{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}"""


class Renderer:
    """Writes prompts, responses and conversations as a model reads them.

    Args:
        model: which is to read them. end: id that ends a response.
        template: of conversations; None: the default one, where there are any.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, end: int, template: ChatTemplate | None = None) -> None:
        self.tokenizer, self.end, self._given = tokenizer, end, template
        self._model = type(model)
        self._finder = special_finder(tokenizer)
        self._closing = tokenizer.special - {tokenizer.unknown}
        self._special = sorted((tokenizer.token(token) for token in tokenizer.special), key=len, reverse=True)

    @cached_property
    def template(self) -> ChatTemplate:
        """The template that conversations are written with.

        Raises:
            InputError: Jinja is not installed.
        """
        return self._given or ChatTemplate(DEFAULT_TEMPLATE, self.tokenizer.names)

    @property
    def used_template(self) -> ChatTemplate | None:
        """The template that belongs to the model: its own, or the default one if a conversation was written with it."""
        return vars(self).get("template", self._given)

    @property
    def separate(self) -> bool:
        """Whether a response is a text of its own for the model, which does not go on with the prompt."""
        return issubclass(self._model, T5 | GLM)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, up to where the assistant speaks.

        Raises:
            InputError: the template does not take the conversation.
        """
        if not isinstance(prompt, str):
            return self._ids(self.template.write(prompt, self.tokenizer))
        if issubclass(self._model, T5):  # <extra_id_0> and so on are its gaps
            return encode_source(self.tokenizer, prompt)
        return self._ids(unspecial(prompt, self.tokenizer))

    def sample(self, prompt: Prompt, response: str) -> Sample:
        """Return a prompt and a whole response to it, with the token that ends it.

        Raises:
            InputError: the template does not take the conversation, or writes its beginning differently later.
        """
        if isinstance(prompt, str):
            before, behind = unspecial(prompt, self.tokenizer), unspecial(response, self.tokenizer)
        else:
            before = self.template.write(prompt, self.tokenizer)
            behind = self._behind(before, [*prompt, {"role": "assistant", "content": response}])
        own = self._ids(behind) if self.separate else self._continued(before, behind)
        content, closing = self._divided(own)
        return Sample(self.prompt(prompt), [*content, self.end if self.separate or closing is None else closing])

    def turns(self, messages: Sequence[Message]) -> list[Sample]:
        """Return a sample for each time that the assistant speaks."""
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        return [self.sample(messages[:place], messages[place]["content"]) for place in places]

    def whole(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Return the token ids of a conversation up to the assistant's last word, and which of them are its words, or
        end them.

        Raises:
            InputError: see `sample`.
        """
        tokens: list[int] = []
        learned: list[bool] = []
        done = ""  # the text so far
        places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for place in places:
            before = self.template.write(messages[:place], self.tokenizer)
            between = self._continued(done, self._rest(done, before))
            behind = self._behind(before, messages[: place + 1])
            own = self._continued(before, behind)
            content, closing = self._divided(own)
            if place == places[-1]:
                own = [*content, self.end if closing is None else closing]
            words = len(content) + (closing is not None or place == places[-1])
            tokens += [*between, *own]
            learned += [False] * len(between) + [number < words for number in range(len(own))]
            done = before + behind
        return tokens, learned

    def _behind(self, before: str, messages: Sequence[Message]) -> str:
        """Return what the template writes of the last message behind `before`."""
        return self._rest(before, self.template.write(messages, self.tokenizer, reply=False))

    def _rest(self, begun: str, text: str) -> str:
        if not text.startswith(begun):
            raise InputError(
                "the chat template writes the beginning of a conversation differently once more is said, so that it "
                "cannot be told what the assistant says; expected one that goes on with what it wrote before"
            )
        return text[len(begun) :]

    def _divided(self, own: Sequence[int]) -> tuple[list[int], int | None]:
        """Return what the assistant says without the special token that closes it, and that token (None: none does)."""
        last = max((place for place, token in enumerate(own) if token in self._closing), default=None)
        return (list(own), None) if last is None else (list(own[:last]), own[last])

    def _continued(self, before: str, text: str) -> list[int]:
        """Return the token ids of a text behind another one, which some tokenizers write differently than by itself."""
        anchor = next((name for name in self._special if before.endswith(name)), self._neutral) if before else ""
        begun, ids = self._ids(anchor), self._ids(anchor + text)
        return ids[len(begun) :] if ids[: len(begun)] == begun else self._ids(text)

    @cached_property
    def _neutral(self) -> str:
        """What to write before a text so that no blank is put before it: nothing if none is."""
        alone = self._ids("x")
        return "" if self._ids("\nx")[-len(alone) :] == alone else "\n"

    def _ids(self, text: str) -> list[int]:
        return list(self._finder.encode(text, add_special_tokens=False).ids)


def checked_messages(value: Any, origin: str) -> list[Message]:
    """Return a list of messages as it is.

    Raises:
        InputError: it is none, or one has no role or no text.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{origin}: expected a list of messages, found {str(value)[:40]!r}")
    for message in value:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f'{origin}: a message is {str(message)[:60]!r}, expected {{"role": ..., "content": ...}}')
        check_unicode(message["content"], origin)
    return value
