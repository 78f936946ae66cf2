"""Continuous batching: requests come and go, and every step of the model serves all that are there.

One step reads the next token of each text that is being written and, with what is left of a budget of tokens, pieces of
the prompts of new ones (Agrawal et al. 2023, "Sarathi"), so that a long prompt does not hold up the others. Keys and
values lie in blocks (`inference.paged_cache`); prompts that begin alike are read once.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stemma.errors import InputError
from stemma.families.dispatch import with_article
from stemma.inference.drafts import Drafter
from stemma.inference.paged_cache import PagedCache
from stemma.inference.prepacked import prepacked
from stemma.inference.ragged import FEW, Piece
from stemma.inference.readers import reader_of
from stemma.inference.requests import Request, RunningText, Scored, Update
from stemma.inference.sampling_rows import choose

if TYPE_CHECKING:
    from stemma.data.tokenizers import Tokenizer

CACHE_BYTES = 2**30


class Engine:
    """A model and the texts that it is writing.

    Not safe for use by several threads at once. `submit` takes a request, `step` serves all of them once and tells what
    is new; between steps requests may come and be cancelled.

    A text depends on the model, its request and nothing else, except where two tokens are equally likely up to
    rounding: products of other sizes add up in another order. No text waits for ever: what one step cannot serve comes
    first in the next.

    Args:
        model: of `stemma.load`, in eval mode: a GPT, Mistral or Mixtral goes on with its prompt, a GLM writes what
            follows it, a T5 about it. tokenizer: the model's.
        memory: bytes for keys and values. budget: tokens that one step reads at most. most_texts: at a time.
        share_prefixes: whether prompts that begin alike share what was computed.
        drafter: guesses what comes next, so that one step can write several tokens of a text (see `inference.drafts`);
            the texts are the same.
    Raises:
        InputError: a model that writes no text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "Tokenizer",
        *,
        memory: int = CACHE_BYTES,
        budget: int = 512,
        most_texts: int = 64,
        share_prefixes: bool = True,
        drafter: Drafter | None = None,
    ) -> None:
        if model.training:
            raise InputError("the model is in training mode, where dropout is random: call model.eval() first")
        self.model, self.tokenizer, self.budget, self.most_texts = model, tokenizer, budget, most_texts
        self.reader = reader_of(model, tokenizer, memory)
        self.share_prefixes, self.drafter = share_prefixes and self.reader.shares_prefixes, drafter
        self.guessed = self.guessed_right = 0  # tokens
        self._waiting: deque[RunningText] = deque()
        self._running: list[RunningText] = []  # the oldest first
        self._numbers = self._turns = 0
        self._news: list[Update] = []
        windows = [group.window for group in self.cache.groups if group.window is not None]
        self._sure_piece = min([*windows, budget])  # so long a piece finds blocks when its text is alone

    @property
    def cache(self) -> PagedCache:
        """Keys and values of the texts."""
        return self.reader.cache

    @property
    def busy(self) -> bool:
        """Whether there is work for `step`."""
        return bool(self._waiting or self._running or self._news)

    @property
    def waiting(self) -> int:
        """Texts that have not begun."""
        return sum(1 + len(text.siblings) for text in self._waiting)

    @property
    def running(self) -> int:
        """Texts that are being read or written."""
        return len(self._running)

    def submit(self, request: Request) -> int:
        """Take a request; return its number.

        Raises:
            InputError: a prompt that is empty, too long for the model, or has tokens that it does not know.
        """
        self._check(request)
        number, self._numbers = self._numbers, self._numbers + 1
        first, *others = [
            RunningText(number, request, sample, self.reader, self.tokenizer) for sample in range(request.samples)
        ]
        first.siblings = others
        self._waiting.append(first)
        return number

    def cancel(self, request: int) -> None:
        """Forget a request, at once; nothing is told about it any more."""
        for text in [text for text in self._running if text.number == request]:
            self._leave(text)
        self._waiting = deque(text for text in self._waiting if text.number != request)
        self._news = [update for update in self._news if update.request != request]

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Serve every running text once; return what is new."""
        self._schedule()
        if self._pieces:
            self._forward()
        news, self._news = self._news, []
        return news

    def run(self, requests: Iterable[Request]) -> list[list[RunningText]]:
        """Serve requests to their end; return the texts of each.

        Raises:
            InputError: see `submit`; then none of them is served.
        """
        texts, requests = [], list(requests)
        for request in requests:
            self._check(request)
            self.reader.begin(request.tokens)
        for request in requests:
            self.submit(request)
            texts.append([self._waiting[-1], *self._waiting[-1].siblings])
        with self.fast_products():
            while self.busy:
                self.step()
        return texts

    def fast_products(self) -> AbstractContextManager[None]:
        """Return a context in which `step` multiplies faster on a CPU (see `prepacked`), for many steps."""
        return prepacked(self.model, min(self.most_texts, 8))

    def _check(self, request: Request) -> None:
        vocabulary = self.model.config.vocabulary
        if not request.tokens:
            raise InputError("the prompt is empty, expected at least one token")
        if (request.prompt_log_probabilities or not request.max_new_tokens) and not self.reader.scores_prompts:
            raise InputError(f"{with_article(self.model)} does not read prompts from left to right: no scores of them")
        if not 0 <= min(request.tokens) <= max(request.tokens) < vocabulary:
            raise InputError(f"the prompt has a token outside 0 to {vocabulary - 1}")
        if any(not 0 <= token < vocabulary for token in request.preferences.bias):
            raise InputError(f"a bias is given to a token outside 0 to {vocabulary - 1}")
        if request.samples < 1 or request.max_new_tokens < 0 or request.seed < 0 or "" in request.stop:
            raise InputError(
                "expected at least one sample, max_new_tokens and a seed of 0 or more, and no empty stop string"
            )
        if not 0 <= (request.log_probabilities or 0) <= vocabulary:
            raise InputError(f"log_probabilities is {request.log_probabilities}, expected 0 to {vocabulary}")

    def _schedule(self) -> None:
        """Decide what is read in this step: first for the running texts, then pieces of prompts that wait."""
        self._pieces: list[tuple[RunningText, Piece]] = []
        budget = self.budget
        writing = [text for text in self._running if text.unread == 1]
        guesses = dict(zip(writing, self._guesses(writing, budget), strict=True))
        for text in self._in_turn(writing):
            if text not in self._running:  # an older one took its blocks
                continue
            if text in guesses:
                budget -= self._add_next(text, guesses[text], budget)
            elif count := self._reserve_prompt(text, budget):
                self._add(text, count)
                budget = max(budget - count, 0)
        while budget and self._waiting and self._places < self.most_texts:
            text = self._waiting[0]
            self._open(text)
            count = self._reserve_prompt(text, budget)
            if not count or not self.reader.open(text):  # in this order: a T5 reads its source there
                self._close(text)
                break
            self._add(text, count)
            self._waiting.popleft()
            self._running.append(text)
            budget = max(budget - count, 0)
        self._pieces.sort(key=lambda pair: not pair[1].is_short)

    @property
    def _places(self) -> int:
        """Texts that are running, and those that will be when these have read their common prompt."""
        return sum(1 + len(text.siblings) for text in self._running)

    def _in_turn(self, writing: Sequence[RunningText]) -> list[RunningText]:
        """Return the running texts in the order in which they are served: single tokens, then prompts, the oldest
        first; where the budget is not even enough for the single tokens, all that were not served longest first."""
        if len(writing) < self.budget:
            return [*writing, *(text for text in self._running if text.unread > 1)]
        return sorted(self._running, key=lambda text: text.served)

    def _add_next(self, text: RunningText, drafts: Sequence[int], budget: int) -> int:
        """Let a text's last token be read, and guesses after it if there is room; return how many tokens those are."""
        assert text.pages is not None
        if not budget:
            return 0
        if drafts and (len(drafts) >= budget or not self.cache.reserve(text.pages, 1 + len(drafts))):
            drafts = []
        if not drafts and not self._reserve(text, 1):
            return 0
        self._add(text, 1, drafts)
        return 1 + len(drafts)

    def _reserve_prompt(self, text: RunningText, budget: int) -> int:
        """Get blocks for a piece of a prompt; return its length, 0 if there is no place for it."""
        assert text.pages is not None
        if not budget:
            return 0
        at_once = text.pages.length < text.whole
        count = text.whole if at_once else min(text.unread, budget)
        if self.cache.reserve(text.pages, count):
            return count
        if not at_once:
            count = min(count, self._sure_piece)
        found = self._reserve(text, count) if text in self._running else self.cache.reserve(text.pages, count)
        return count if found else 0

    def _add(self, text: RunningText, count: int, drafts: Sequence[int] = ()) -> None:
        assert text.pages is not None
        self._turns += 1
        text.served = self._turns
        start = text.pages.length
        tokens = [*text.tokens[start : start + count], *drafts]
        self._pieces.append((text, Piece(text.pages, tokens, len(drafts), causal=start >= text.whole)))

    def _guesses(self, texts: Sequence[RunningText], budget: int) -> list[list[int]]:
        """Return what may come next in each text; nothing where the choice depends on more than the logits."""
        found: list[list[int]] = [[] for _ in texts]
        if self.drafter is None or len(texts) * 2 > budget:
            return found
        # Not while others wait to go on from the same prompt: they would share the blocks of the guesses.
        rows = [row for row, text in enumerate(texts) if text.is_plain and text.left > 1 and not text.siblings]
        most = min(FEW - 1, budget // max(len(texts), 1) - 1)
        drafts = self.drafter.propose([texts[row] for row in rows], [min(most, texts[row].left - 1) for row in rows])
        for row, tokens in zip(rows, drafts, strict=True):
            found[row] = list(takewhile(lambda token: token < self.model.config.vocabulary, tokens))
        return found

    def _reserve(self, text: RunningText, count: int) -> bool:
        """Get blocks for a running text, if need be from the youngest, which will be read again later."""
        assert text.pages is not None
        while not self.cache.reserve(text.pages, count):
            youngest = self._running[-1]
            self._preempt(youngest)
            if youngest is text:
                return False
        return True

    def _preempt(self, text: RunningText) -> None:
        self._leave(text)
        self._pieces = [pair for pair in self._pieces if pair[0] is not text]
        self._waiting.appendleft(text)

    def _open(self, text: RunningText) -> None:
        shares = self.share_prefixes and not self._scores_prompt(text)
        text.pages = self.cache.open(text.tokens, text.chain) if shares else self.cache.open()
        text.reused = text.pages.length

    def _close(self, text: RunningText) -> None:
        self.reader.close(text)
        if text.pages is not None:
            self.cache.close(text.pages)
            text.pages = None

    def _leave(self, text: RunningText) -> None:
        self._running = [other for other in self._running if other is not text]
        self._close(text)

    def _scores_prompt(self, text: RunningText) -> bool:
        return text.request.prompt_log_probabilities and len(text.prompt_scores) < text.prompt_length

    def _forward(self) -> None:
        texts, pieces = zip(*self._pieces, strict=True)
        hidden, step = self.reader.hidden(texts, pieces)  # [total, hidden]
        wanted: list[tuple[RunningText, int, Sequence[int]]] = []  # text, where its last token stands, guesses after it
        for (text, piece), end in zip(self._pieces, step.ends.tolist(), strict=True):
            assert text.pages is not None
            if self._scores_prompt(text):
                self._score_prompt(text, piece, hidden[end - len(piece.tokens) : end])
            known = len(piece.tokens) - piece.drafts
            self.cache.written(text.pages, text.tokens, text.pages.length + known)
            if not text.unread:
                wanted.append((text, end - 1 - piece.drafts, piece.tokens[known:]))
        places: list[int] = []
        drafts: list[tuple[RunningText, Sequence[int]]] = []
        for text, place, guesses in wanted:
            if text.request.max_new_tokens == 0:
                self._finish_scored(text)
                continue
            family = [text, *self._begun(text)]
            drafts += [(member, guesses) for member in family]
            places += [place + offset for _ in family for offset in range(len(guesses) + 1)]
        if drafts:
            self._write(drafts, self.model.logits(hidden[places]).float())

    def _begun(self, text: RunningText) -> list[RunningText]:
        """Let the other samples of a prompt begin, now that it is read, as many as there is place for; return them."""
        assert text.pages is not None
        room = self.most_texts - self.running
        begun, rest, text.siblings = text.siblings[:room], text.siblings[room:], []
        for sibling in begun:
            sibling.pages = self.cache.fork(text.pages)
            self.reader.open(sibling)
            sibling.prompt_scores, sibling.reused = text.prompt_scores, text.reused
        self._running += begun
        if rest:  # they read the end of the prompt again when their turn comes
            rest[0].siblings, rest[0].prompt_scores = rest[1:], text.prompt_scores
            self._waiting.appendleft(rest[0])
        return begun

    def _write(self, drafts: Sequence[tuple[RunningText, Sequence[int]]], logits: Tensor) -> None:
        """Choose the next tokens of each text: one, and another one for each guess that it confirms.

        Args:
            logits: float32 [rows, vocabulary]: for each text after its last token and after each guess.
        """
        if logits.shape[-1] > self.tokenizer.vocabulary:
            logits[:, self.tokenizer.vocabulary :] = -torch.inf  # ids that no text stands behind
        texts = [text for text, guesses in drafts for _ in range(len(guesses) + 1)]
        offsets = [offset for _, guesses in drafts for offset in range(len(guesses) + 1)]
        chosen = choose(logits, [text.row(offset) for text, offset in zip(texts, offsets, strict=True)])
        scored = iter(self._scored(texts, logits, chosen))
        for text, guesses in drafts:
            own = [next(scored) for _ in range(len(guesses) + 1)]
            right = 0
            while not self._accept(text, own[right]) and right < len(guesses) and own[right].token == guesses[right]:
                right += 1
                assert text.pages is not None
                self.cache.written(text.pages, text.tokens, len(text.tokens))
            self.guessed, self.guessed_right = self.guessed + len(guesses), self.guessed_right + right

    def _accept(self, text: RunningText, token: Scored) -> bool:
        """Add a token to a text and tell; return whether that ends it."""
        first = len(text.tokens) == text.prompt_length
        ends = token.token in self.reader.ends and not text.request.ignore_end
        piece = text.accept(token, ends)
        prompt = text.prompt_scores if first and text.request.prompt_log_probabilities else None
        self._news.append(
            Update(text.number, text.sample, token, piece, text.finish_reason, prompt, text.reused if first else 0)
        )
        if text.finish_reason:
            self._leave(text)
        return text.finish_reason is not None

    def _finish_scored(self, text: RunningText) -> None:
        for sibling in [text, *text.siblings]:
            sibling.finish_reason = "length"
            self._news.append(Update(text.number, sibling.sample, None, "", "length", text.prompt_scores, text.reused))
        self._leave(text)

    def _scored(self, texts: Sequence[RunningText], logits: Tensor, chosen: Tensor) -> list[Scored]:
        tokens = chosen.tolist()
        asked = [row for row, text in enumerate(texts) if text.request.log_probabilities is not None]
        found = [Scored(token, None) for token in tokens]
        if asked:
            most = max(texts[row].request.log_probabilities or 0 for row in asked)
            scores = _scores(logits[asked], chosen[asked], most)
            for row, score in zip(asked, scores, strict=True):
                count = texts[row].request.log_probabilities or 0
                found[row] = Scored(score.token, score.log_probability, score.likeliest[:count])
        return found

    def _score_prompt(self, text: RunningText, piece: Piece, hidden: Tensor) -> None:
        """Score the tokens after those of a piece, as far as they belong to the prompt."""
        if piece.start == 0:
            text.prompt_scores = [Scored(text.tokens[0], None)]
        following = text.tokens[piece.start + 1 : min(piece.start + len(piece.tokens) + 1, text.prompt_length)]
        targets = torch.tensor(following, dtype=torch.int64, device=hidden.device)
        for part, tokens in zip(hidden[: len(following)].split(64), targets.split(64), strict=True):
            text.prompt_scores += _scores(self.model.logits(part).float(), tokens, text.request.log_probabilities or 0)


def _scores(logits: Tensor, tokens: Tensor, most: int) -> list[Scored]:
    log_probabilities = logits.log_softmax(-1)
    own = log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = log_probabilities.topk(most, dim=-1)
    return [
        Scored(token, value, list(zip(row_ids, row_values, strict=True)))
        for token, value, row_ids, row_values in zip(tokens.tolist(), own, ids.tolist(), values.tolist(), strict=True)
    ]
