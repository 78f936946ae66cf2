"""What is learned of a conversation is what the assistant says, to the token."""

import pytest
import transformers
from tiny_models import WORDS, model_of, tokenizer_of

from stemma.alignment.conversations import DEFAULT_TEMPLATE, Renderer, checked_messages
from stemma.data.tokenizers import train_tokenizer
from stemma.errors import InputError
from stemma.inference.chat_template import ChatTemplate

# transformers finds what to learn by its own marks.
CHATML = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
SAID = ["jumps over the dog", "naïve öl 🙂", "", "\n\nred\n", "<|im_end|> blue <|endoftext|>"]


def conversation(turns):
    messages = [{"role": "system", "content": "be good"}]
    for number in range(turns):
        messages.append({"role": "user", "content": f"who sees {number}"})
        messages.append({"role": "assistant", "content": SAID[number]})
    return messages


@pytest.fixture(scope="module")
def chatml():
    return train_tokenizer([WORDS * 20], "bpe", 300, special=("<|im_start|>", "<|im_end|>"))


def renderer(tokenizer, template=None, family="gpt"):
    chat = None if template is None else ChatTemplate(template, tokenizer.names)
    return Renderer(model_of(family), tokenizer, tokenizer.separator, chat)


def stretches(tokenizer, tokens, learned):
    """Return the texts of the stretches that are learned."""
    found, open_ = [], False
    for token, own in zip(tokens, learned, strict=True):
        if own and not open_:
            found.append([])
        if own:
            found[-1].append(token)
        open_ = own
    return [tokenizer.decode(stretch, skip_special=False) for stretch in found]


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("template", [None, CHATML], ids=["plain", "chatml"])
def test_what_is_learned_is_what_the_assistant_says_and_its_end(chatml, template, turns):
    tokens, learned = renderer(chatml, template).whole(conversation(turns))
    begin, end = (" ", "<|endoftext|>") if template is None else ("", "<|im_end|>")
    assert stretches(chatml, tokens, learned) == [f"{begin}{text}{end}" for text in SAID[:turns]]
    assert tokens[-1] == chatml.id(end) and learned[-1]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_transformers_masks_the_same_tokens(chatml, turns, tmp_path):
    chatml.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = conversation(turns)
    options = {"chat_template": CHATML, "return_dict": True, "tokenize": True}
    wanted = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
    tokens, learned = renderer(chatml, CHATML).whole(messages)
    # Ours end with the last word of the assistant, theirs with the line's end behind it.
    assert tokens == wanted["input_ids"][: len(tokens)] and len(wanted["input_ids"]) == len(tokens) + 1
    assert [int(own) for own in learned] == wanted["assistant_masks"][: len(tokens)]
    asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)
    assert renderer(chatml, CHATML).prompt(messages[:-1]) == asked["input_ids"]


@pytest.mark.parametrize("family", ["gpt", "glm", "t5"])
def test_each_turn_is_a_sample_with_the_prompt_that_the_model_is_asked(family):
    tokenizer = tokenizer_of(family)
    end = tokenizer.id("<|endofpiece|>") if family == "glm" else tokenizer.separator
    writer = Renderer(model_of(family), tokenizer, end)
    messages = conversation(2)[:4] + [{"role": "assistant", "content": "the cat sings"}]
    samples = writer.turns(messages)
    assert [sample.prompt for sample in samples] == [writer.prompt(messages[:2]), writer.prompt(messages[:4])]
    said = [tokenizer.decode(sample.response[:-1]).strip() for sample in samples]
    assert said == [SAID[0], "the cat sings"]
    assert [sample.response[-1] for sample in samples] == [end, end]
    if family == "gpt":  # the last turn is what the whole conversation ends with
        tokens, learned = writer.whole(messages)
        assert tokens == [*samples[1].prompt, *samples[1].response]
        assert [token for token, own in zip(tokens, learned, strict=True) if own][-len(samples[1].response) :] == list(
            samples[1].response
        )


@pytest.mark.parametrize(
    ("prompt", "response"), [("the ans", "wer is red"), ("say ", "the dog"), ("the\n", "\ndog"), ("", "the dog")]
)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_token_reaches_across_the_border(kind, prompt, response):
    tokenizer = train_tokenizer([WORDS * 20, "the answer\n\nis " * 40], kind, 380 if kind == "unigram" else 330)
    sample = renderer(tokenizer).sample(prompt, response)
    assert sample.prompt == tokenizer.encode(prompt)
    assert sample.response[-1] == tokenizer.separator
    whole = tokenizer.decode([*sample.prompt, *sample.response[:-1]])
    assert whole == prompt + response if kind == "bpe" else whole.split() == (prompt + response).split()


def test_special_tokens_in_texts_are_text(chatml):
    sample = renderer(chatml).sample("a <|im_start|>", "<|endoftext|> b")
    assert not {*sample.prompt, *sample.response[:-1]} & chatml.special


def test_a_plain_template_is_saved_only_if_it_was_needed(chatml):
    plain = renderer(chatml)
    plain.sample("a", "b")
    assert plain.used_template is None
    plain.whole(conversation(1))
    assert plain.used_template.source == DEFAULT_TEMPLATE


def test_a_template_that_rewrites_the_beginning_is_refused(chatml):
    template = "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(InputError, match="differently once more is said"):
        renderer(chatml, template).whole(conversation(1))


@pytest.mark.parametrize("value", ["hello", [], [{"role": "user"}], [3], [{"role": "user", "content": None}]])
def test_messages_that_are_none(value):
    with pytest.raises(InputError, match="row 3: (expected a list of messages|a message is)"):
        checked_messages(value, "row 3")
