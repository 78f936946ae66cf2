"""The two-layer LSTM of "Deep contextualized word representations" (Peters et al. 2018, section 3.4)."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from stemma.layers.packed_rows import PackedRows
from stemma.layers.projected_lstm import LSTMState, ProjectedLSTM

if TYPE_CHECKING:
    from stemma.families.elmo.model import ELMoConfig

States = list[LSTMState]


class RecurrentContext(nn.Module):
    """Layers of LSTMs, from the second on with a residual connection round each (outside of the recurrence)."""

    def __init__(self, config: "ELMoConfig") -> None:
        super().__init__()
        self.residual = config.residual
        self.layers = nn.ModuleList(
            ProjectedLSTM(
                config.projection,
                config.cell,
                config.projection,
                cell_clip=config.cell_clip,
                projection_clip=config.projection_clip,
            )
            for _ in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor, states: States | None = None) -> tuple[list[Tensor], States]:
        """Map float [2, batch, length, projection], the second direction from the end of each row, to that of each
        layer; return also the states after each row's last step.

        Args:
            lengths: int64 [batch]. states: of each layer before the first step; default: zeros.
        """
        rows = PackedRows.of(lengths, x.shape[2])
        packed, outputs, after = rows.pack(x), [], []
        for number, layer in enumerate(self.layers):
            packed = self.dropout(packed)
            hidden, state = layer(packed, rows, None if states is None else states[number])
            packed = hidden + packed if self.residual and number else hidden
            outputs.append(rows.pad(packed, x))
            after.append(state)
        return outputs, after
