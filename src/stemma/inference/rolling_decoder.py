"""`Decoder` for models with rolling caches: prompts of any length are read in pieces."""

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from stemma.inference import decoder
from stemma.inference.decoder import Decoder
from stemma.inference.rolling_cache import RollingCache


class RollingDecoder(Decoder):
    """The texts in hand of a model such as `Mistral`; memory for attention follows the piece, not the prompt."""

    cache: RollingCache  # type: ignore[assignment]

    def new_cache(self, rows: int, capacity: int) -> RollingCache:  # type: ignore[override]
        """Return an empty cache for the model."""
        return RollingCache.for_model(self.model, rows, capacity)

    @torch.inference_mode()
    def read_prompts(self) -> Tensor:
        """Read each prompt once, without padding; return float32 [rows, vocabulary], the logits of the next tokens."""
        self.cache.begin(sum(self.copies))
        first_rows = [0, *accumulate(self.copies)]
        logits = []
        for pieces in self._pieces_of_prompts():
            view = self.cache.pieces([first_rows[number] for number, _, _ in pieces], [b - a for _, a, b in pieces])
            tokens = [token for number, start, stop in pieces for token in self.prompts[number][start:stop]]
            hidden = self.model.hidden(torch.tensor([tokens], device=self.device), cache=view)
            ended = torch.tensor([stop == len(self.prompts[number]) for number, _, stop in pieces])
            if ended.any():
                logits.append(self.model.logits(hidden[0, view.last[ended]]).float())
        self.cache.spread(self.copies)
        return torch.cat(logits).repeat_interleave(torch.tensor(self.copies, device=self.device), dim=0)

    def _pieces_of_prompts(self) -> Iterator[list[tuple[int, int, int]]]:
        """Yield number, start and stop of what to read together: at most `PIECE_TOKENS` tokens."""
        pieces: list[tuple[int, int, int]] = []
        room = decoder.PIECE_TOKENS
        for number, prompt in enumerate(self.prompts):
            start = 0
            while start < len(prompt):
                stop = min(len(prompt), start + room)
                pieces.append((number, start, stop))
                room -= stop - start
                start = stop
                if room == 0:
                    yield pieces
                    pieces, room = [], decoder.PIECE_TOKENS
        if pieces:
            yield pieces
