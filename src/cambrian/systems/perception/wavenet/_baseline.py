"""What WaveNet is compared with: an LSTM over samples. Shapes: B batch, T samples, K classes."""

from __future__ import annotations

from torch import Tensor, nn

from cambrian.errors import ShapeError
from cambrian.nn.hub import Pretrained
from cambrian.systems.perception.wavenet.model import nll


class SampleLSTM(nn.Module, Pretrained):
    """One LSTM layer that reads embedded samples and predicts the next; the first `field` samples are not scored."""

    def __init__(self, *, classes: int = 256, hidden: int = 96, embedding: int = 32, field: int = 256) -> None:
        super().__init__()
        self.classes, self.field = classes, field
        self.embed = nn.Embedding(classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def receptive_field(self) -> int:
        """The samples that are read before the first scored one."""
        return self.field

    def forward(self, idx: Tensor) -> Tensor:
        """idx [B, T] -> logits [B, K, T] of the samples t + 1."""
        if idx.dim() != 2 or idx.is_floating_point():
            raise ShapeError(f"idx must be integers [B, T], not {idx.dtype} {tuple(idx.shape)}")
        return self.head(self.lstm(self.embed(idx))[0]).transpose(1, 2)

    def bits(self, idx: Tensor, g: None = None, y: None = None, *, start: int | Tensor = 0) -> Tensor:
        """-log2 p [B, T - field] of the samples from `field` on; it is told nothing else."""
        outputs = self.lstm(self.embed(idx[:, :-1]))[0][:, self.field - 1 :]
        return nll(self.head(outputs).transpose(1, 2), idx)
