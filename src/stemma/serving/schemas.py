"""What clients send: OpenAI's request bodies, our own, and their checks.

A field that is null counts as not given, as OpenAI's clients mean it. Unknown fields are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from stemma.serving.limits import BIAS_ENTRIES, STOP_CHARACTERS, STOP_STRINGS

Token = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Tokens = list[Token]
Text = Annotated[str, StringConstraints(strict=True)]
StopString = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=STOP_CHARACTERS)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _prompt(value: Any) -> Any:
    if isinstance(value, str) or (
        isinstance(value, list)
        and value
        and (
            all(isinstance(entry, str) for entry in value)
            or all(_is_token(entry) for entry in value)
            or all(isinstance(entry, list) and all(map(_is_token, entry)) for entry in value)
        )
    ):
        return value
    raise ValueError("expected a text, a list of texts, a list of token ids, or a list of such lists; none empty")


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _one_text(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list) and all(map(_is_token, value))):
        return value
    raise ValueError("expected a text or a list of token ids")


def _stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > STOP_STRINGS
        or not all(isinstance(stop, str) and 0 < len(stop) <= STOP_CHARACTERS for stop in stops)
    ):
        raise ValueError(f"expected at most {STOP_STRINGS} texts of 1 to {STOP_CHARACTERS} characters")
    return stops


def _bias(value: Any) -> Any:
    """Return {token: bias}; JSON's keys are texts."""
    expected = f"expected at most {BIAS_ENTRIES} token ids, each with a number from -100 to 100"
    if not isinstance(value, dict) or len(value) > BIAS_ENTRIES:
        raise ValueError(expected)
    found = {}
    for key, bias in value.items():
        known = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
        if not known or isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise ValueError(expected)
        found[int(key)] = float(bias)
    return found


Prompt = Annotated[Text | list[Text] | Tokens | list[Tokens], BeforeValidator(_prompt)]
OneText = Annotated[Text | Tokens, BeforeValidator(_one_text)]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class OpenAIBody(Body):
    """What all of OpenAI's bodies have; these fields change nothing here."""

    user: Text | None = None
    metadata: JsonValue = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None


class StreamOptions(BaseModel):
    """Options of a stream. `include_obfuscation` changes nothing here."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class Generating(OpenAIBody):
    """How texts are written; `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are not OpenAI's."""

    temperature: Number = Field(1.0, ge=0, le=2)
    top_p: Number = Field(1.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=128, strict=True)
    stop: Annotated[list[StopString] | StopString, BeforeValidator(_stop)] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, strict=True)
    presence_penalty: Number = Field(0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[Any, Number], BeforeValidator(_bias)] = Field(default_factory=dict)
    stream: bool = Field(False, strict=True)
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=-1, lt=2**31, strict=True)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number = Field(1.0, ge=0.01, le=100)
    ignore_eos: bool = Field(False, strict=True)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the counts of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_belong_to_a_stream(self) -> "Generating":
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream' to be true")
        return self


class CompletionBody(Generating):
    """`POST /v1/completions`; `return_tokens_as_token_ids` is not OpenAI's: log-probabilities name a token 7 by
    "token_id:7", as vLLM does, so that no two tokens share a name."""

    prompt: Prompt
    max_tokens: int = Field(16, ge=0, lt=2**31, strict=True)
    best_of: int | None = Field(None, ge=1, le=128, strict=True)
    logprobs: int | None = Field(None, ge=0, le=20, strict=True)
    echo: bool = Field(False, strict=True)
    suffix: Text | None = None
    return_tokens_as_token_ids: bool = Field(False, strict=True)


class TextPart(BaseModel):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class FunctionCall(BaseModel):
    """What an assistant has called; the arguments are JSON."""

    name: Text
    arguments: Text


class ToolCall(BaseModel):
    """A call of a tool by an assistant."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(BaseModel):
    """One turn of a conversation. What clients send back of an answer beside this is ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("a message has 'content', or 'tool_calls' if it is the assistant's")
        return self

    def text(self) -> str:
        """Return the content, parts each on a line."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class Function(BaseModel):
    """A function that the assistant may call; `parameters` is a JSON schema."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: Text | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the assistant may use."""

    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """The name of a function."""

    name: Text


class NamedTool(BaseModel):
    """The tool that the assistant must use."""

    type: Literal["function"]
    function: FunctionName


class JSONSchema(BaseModel):
    """A JSON schema with its name."""

    model_config = ConfigDict(populate_by_name=True)

    name: Text
    description: Text | None = None
    schema_: dict[str, JsonValue] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' is given exactly when 'type' is \"json_schema\"")
        return self


class ChatBody(Generating):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31, strict=True)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, strict=True)
    logprobs: bool = Field(False, strict=True)
    top_logprobs: int | None = Field(None, ge=0, le=20, strict=True)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _fields_belong_together(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs' to be true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("'tool_choice' needs 'tools'")
        return self


class EmbeddingBody(OpenAIBody):
    """`POST /v1/embeddings`."""

    input: Prompt
    dimensions: int | None = Field(None, ge=1, strict=True)
    encoding_format: Literal["float", "base64"] = "float"


class InfillBody(Body):
    """`POST /v1/infill`: texts with [MASK] in them."""

    text: Text | Annotated[list[Text], Field(min_length=1)]
    top_k: int = Field(5, ge=1, le=32, strict=True)
    max_piece_tokens: int = Field(16, ge=1, le=512, strict=True)


class ScoreBody(Body):
    """`POST /v1/score`: how likely each continuation is after a context."""

    context: OneText = ""
    continuations: list[OneText] = Field(min_length=1)


class TokenizeBody(Body):
    """`POST /tokenize`; the names of special tokens are read as these tokens."""

    prompt: Text
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: Tokens
