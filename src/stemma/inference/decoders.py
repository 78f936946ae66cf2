"""Which decoder reads and goes on with the texts of which model."""

from typing import Any

from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.inference.decoder import Decoder
from stemma.inference.recurrent_decoder import RecurrentDecoder
from stemma.inference.rolling_decoder import RollingDecoder


def decoder_of(model: Any) -> type[Decoder]:
    """Return the decoder for a model whose texts go on with their prompts."""
    if isinstance(model, LSTM):
        return RecurrentDecoder
    return RollingDecoder if isinstance(model, Mistral) else Decoder
