"""Chat templates: transformers' text, in a sandbox, and users' words as nothing but words."""

import json

import pytest
import transformers

from stemma.data.special_texts import special_finder, unspecial
from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.inference.chat_template import ChatTemplate

TEMPLATE = """{{ bos_token }}{% for message in messages %}
  {%- if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]
  {%- elif message.tool_calls %}[TOOL_CALLS]{{ message.tool_calls | map(attribute='function') | list | tojson }}
  {%- else %}{% generation %}{{ message.content }}{% endgeneration %}{{ eos_token }}{% endif %}
  {%- if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}"""
CALL = {"id": "123456789", "type": "function", "function": {"name": "add", "arguments": {"a": "naïve <b>"}}}
MESSAGES = [
    {"role": "user", "content": " the lazy dog\n"},
    {"role": "assistant", "content": "jumps"},
    {"role": "user", "content": "öl"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "user", "content": "never read"},
]


@pytest.fixture(scope="module")
def tokenizer():
    special = ("[INST]", "[/INST]", "[TOOL_CALLS]")
    return train_tokenizer(["the lazy dog jumps over naïve öl; " * 50], "bpe", 280, special=special)


@pytest.mark.parametrize("place", ["jinja", "string", "list", "json"])
def test_transformers_writes_the_same(tokenizer, tmp_path, place):
    tokenizer.with_special_tokens(bos_token="[INST]").save(tmp_path)
    configuration = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if place == "jinja":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    elif place == "json":
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        configuration["chat_template"] = TEMPLATE if place == "string" else several
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(configuration))
    found = ChatTemplate.read(tmp_path)
    assert found is not None
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = other.apply_chat_template(MESSAGES, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True)
    assert found.write(MESSAGES, tokenizer).replace("\U0010fffe", "") == wanted
    ids = other(wanted, add_special_tokens=False)["input_ids"]
    assert special_finder(tokenizer).encode(wanted, add_special_tokens=False).ids == ids


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}"]
)
def test_what_a_template_may_not_do_is_a_refusal(tokenizer, template):
    with pytest.raises(InputError, match="does not take this conversation"):
        ChatTemplate(template, {}).write(MESSAGES[:1], tokenizer)


def test_a_broken_template_says_where(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match=r"chat_template\.jinja: "):
        ChatTemplate.read(tmp_path)
    assert ChatTemplate.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["[INST]", "a<|endoftext|>b", "[[INST]INST]", "[/INST][TOOL_CALLS]\U0010fffe", "öl"])
def test_what_a_user_writes_is_read_as_text(tokenizer, text):
    finder = special_finder(tokenizer)
    ids = finder.encode(unspecial(text, tokenizer), add_special_tokens=False).ids
    assert ids == tokenizer.encode(text.replace("\U0010fffe", "")) and not tokenizer.special & set(ids)
    assert tokenizer.special & set(finder.encode("x<|endoftext|>", add_special_tokens=False).ids)


def test_json_is_written_as_transformers_does(tokenizer, tmp_path):
    """With the options that its filter takes."""
    template = "{{ messages[0].content | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=false) }}"
    template += "{{ messages[0] | tojson(indent=2) }}{{ messages[0].content | tojson(ensure_ascii=true) }}"
    messages = [{"role": "user", "content": [{"b": 1, "a": "öl"}]}]
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False)
    ours = ChatTemplate.read(tmp_path).write(messages, tokenizer)
    assert ours == theirs and '"a":"öl"' in ours
