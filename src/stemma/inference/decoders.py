"""Which decoder reads and goes on with the texts of which model."""

from typing import Any

from stemma.families.dispatch import by_family
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.inference.decoder import Decoder
from stemma.inference.recurrent_decoder import RecurrentDecoder
from stemma.inference.rolling_decoder import RollingDecoder

_DECODERS: dict[type, type[Decoder]] = {GPT: Decoder, Mistral: RollingDecoder, LSTM: RecurrentDecoder}


def decoder_of(model: Any) -> type[Decoder]:
    """Return the decoder for a model whose texts go on with their prompts.

    Raises:
        InputError: a model of which they do not.
    """
    return by_family(model, _DECODERS, "does not go on with a prompt")
