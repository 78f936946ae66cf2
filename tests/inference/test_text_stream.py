"""Stop strings across token borders, text that is certain, characters that are whole."""

import random

from stemma.inference.text_stream import StopMatcher, TextStream


def brute_force(text: str, stops: list[str]) -> str:
    """Text up to the stop string that, reading character by character, is complete first."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def certain(text: str, stops: list[str]) -> str:
    """The longest beginning of `text` that will be passed on whatever follows."""
    for i in range(len(text)):
        if any(stop.startswith(text[i:]) or text.startswith(stop, i) for stop in stops):
            return text[:i]
    return text


def test_what_is_passed_on_is_what_is_certain():
    """Random texts over two letters, cut at random places, against the definitions."""
    source = random.Random(0)
    stopped = 0
    for _ in range(3000):
        stops = ["".join(source.choices("ab", k=source.randint(1, 4))) for _ in range(source.randint(0, 3))]
        text = "".join(source.choices("abc", weights=(4, 4, 1), k=source.randint(0, 14)))
        matcher, passed, place = StopMatcher(stops), "", 0
        while place < len(text):
            step = source.randint(1, 3)
            passed += matcher.push(text[place : place + step])
            place += step
            if matcher.matched:
                break
            assert passed == certain(text[:place], stops)
        passed += matcher.finish()
        assert passed == brute_force(text, stops)
        assert matcher.matched == any(stop in text for stop in stops)
        stopped += matcher.matched
    assert 500 < stopped < 2500


def test_a_stop_string_across_tokens(tokenizer):
    tokens = tokenizer.encode("the quick fox; laugh and sing")
    stream = TextStream(tokenizer, ["x; la"])
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    assert stream.stopped and "".join(pieces) == "the quick fo"


def test_held_back_text_comes_at_the_end(tokenizer):
    stream = TextStream(tokenizer, ["dogma"])
    assert "".join(stream.push(token) for token in tokenizer.encode("lazy dog")) == "lazy "
    assert stream.finish() == "dog" and stream.text == "lazy dog" and not stream.stopped


def test_characters_are_never_split(tokenizer):
    text = "你好 🙂 ñ"
    tokens = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens]
    assert len(tokens) > len(text.split()) and "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_an_incomplete_character_at_the_end_is_marked(tokenizer):
    tokens = [token for byte in "é".encode()[:1] for token in [tokenizer.backend.token_to_id("Ã")] if byte == 0xC3]
    stream = TextStream(tokenizer)
    assert stream.push(tokens[0]) == "" and stream.finish() == "\ufffd"
