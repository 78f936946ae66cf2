"""Chat templates: Jinja programs that come with a tokenizer and write a conversation as the text that a model reads.

A template comes from whoever published the model, so it runs in a sandbox; what users write in a conversation is data
to it, and never becomes a special token.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stemma.data.special_texts import unspecial
from stemma.data.tokenizers import Tokenizer
from stemma.errors import InputError
from stemma.families.directory import read_json
from stemma.files import write_whole


class ChatTemplate:
    """A template, ready to be filled in.

    Raises:
        InputError: it is no Jinja template.
    """

    def __init__(self, source: str, names: Mapping[str, str], where: str = "the chat template") -> None:
        try:
            import jinja2
            from jinja2.ext import Extension
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise InputError("chat templates need Jinja: pip install jinja2") from None

        class Generation(Extension):
            """transformers' {% generation %}, which marks what an assistant has said; here it changes nothing."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.source, self._names, self._error = source, dict(names), jinja2.TemplateError
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def read(cls, directory: Path, file: Path | None = None) -> "ChatTemplate | None":
        """Return the template of a checkpoint directory, or of a file instead; None if there is none.

        Raises:
            InputError: a file that cannot be read, or is broken.
        """
        configuration = _content(directory / "tokenizer_config.json")
        names = {role: _name(value) for role, value in configuration.items() if role.endswith("_token")}
        texts = {role: text for role, text in names.items() if text is not None}
        path = file or directory / "chat_template.jinja"
        if file or path.is_file():
            try:
                return cls(path.read_text(encoding="utf-8"), texts, str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path}: not a template that can be read ({error})") from error
        found = configuration.get("chat_template") or _content(directory / "chat_template.json").get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get(
                "default"
            )
        return cls(found, texts, str(directory)) if isinstance(found, str) else None

    def save(self, directory: Path) -> None:
        """Write the template where `read`, and transformers, look for it."""
        with write_whole(directory / "chat_template.jinja") as temporary:
            temporary.write_text(self.source, encoding="utf-8")

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        tools: Sequence[Any] | None = None,
        *,
        reply: bool = True,
    ) -> str:
        """Return the conversation up to where the assistant speaks next (`reply`; else up to its end), for
        `special_texts.special_finder` to encode.

        Raises:
            InputError: the template refuses the conversation (Mistral's wants user and assistant in turn, ...).
        """
        safe = _unspecial({"messages": messages, "tools": tools}, tokenizer)
        try:
            return self._template.render(**self._names, **safe, add_generation_prompt=reply)
        except (self._error, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise InputError(f"the chat template does not take this conversation: {error}") from error


def _unspecial(value: Any, tokenizer: Tokenizer) -> Any:
    if isinstance(value, str):
        return unspecial(value, tokenizer)
    if isinstance(value, Mapping):
        return {_unspecial(key, tokenizer): _unspecial(entry, tokenizer) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [_unspecial(entry, tokenizer) for entry in value]
    return value


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _name(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _content(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
