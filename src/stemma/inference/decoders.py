"""Which decoder reads and goes on with the texts of which model."""

from typing import Any

from stemma.families.dispatch import by_family
from stemma.families.gpt.model import GPT
from stemma.families.lstm.model import LSTM
from stemma.families.mistral.model import Mistral
from stemma.families.t5.model import T5
from stemma.families.transformer.model import Transformer
from stemma.inference.decoder import Decoder
from stemma.inference.encoder_decoder import SourceDecoder
from stemma.inference.recurrent_decoder import RecurrentDecoder
from stemma.inference.rolling_decoder import RollingDecoder

_DECODERS: dict[type, type[Decoder]] = {
    GPT: Decoder, Mistral: RollingDecoder, LSTM: RecurrentDecoder, T5: SourceDecoder, Transformer: SourceDecoder
}  # fmt: skip


def decoder_of(model: Any) -> type[Decoder]:
    """Return the decoder for a model that writes on from its prompts, or about them.

    Raises:
        InputError: a model that does neither.
    """
    return by_family(model, _DECODERS, "does not write from a prompt")
