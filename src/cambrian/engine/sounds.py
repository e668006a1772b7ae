"""Sound as a sample: WAV files, a picture of waveform and spectrum, and players in the report.

Shapes: N clips, T samples.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cambrian.audio.files import encode_wav, write
from cambrian.audio.spectra import log_mel


@dataclass
class Audio:
    """Waveforms `waves` [N, T] in [-1, 1] at `rate` Hz, with a title each."""

    waves: Tensor
    rate: int
    titles: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.waves.ndim != 2:
            raise ValueError(f"Audio takes [N, T], not {tuple(self.waves.shape)}")

    def title(self, index: int) -> str:
        """The title of a clip, or its number."""
        return self.titles[index] if index < len(self.titles) else str(index)

    def figure(self) -> Any:
        """Waveform over log-mel spectrum, a column a clip."""
        from matplotlib.figure import Figure

        waves = self.waves.detach().cpu().float()
        n, seconds = len(waves), waves.shape[1] / self.rate
        loudest = max(1e-3, float(waves.abs().max()))
        bands = log_mel(waves, self.rate, bands=40 if self.rate >= 8000 else 24).transpose(1, 2).numpy()
        figure = Figure(figsize=(2.6 * n + 0.6, 3.2), layout="constrained")
        axes = figure.subplots(2, n, squeeze=False)
        time = [t / self.rate for t in range(waves.shape[1])]
        for i in range(n):
            axes[0, i].plot(time, waves[i].numpy(), linewidth=0.4)
            axes[0, i].set(xlim=(0, seconds), ylim=(-loudest, loudest), xticks=())
            axes[0, i].set_title(self.title(i), fontsize=8)
            axes[1, i].imshow(bands[i], origin="lower", aspect="auto", extent=(0, seconds, 0, len(bands[i])))
            axes[1, i].set_xlabel("s", fontsize=7)
        for axis in axes[:, 1:].flat:
            axis.set_yticks(())
        axes[1, 0].set_ylabel("mel band", fontsize=7)
        return figure

    def save(self, directory: Path, stem: str) -> list[Path]:
        """Write STEM-000.wav, ... and STEM.png."""
        paths = [write(directory / f"{stem}-{i:03d}.wav", wave, self.rate) for i, wave in enumerate(self.waves)]
        picture = directory / f"{stem}.png"
        self.figure().savefig(picture, dpi=110)
        return [*paths, picture]

    def html(self) -> str:
        """The picture, and a player for every clip."""
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=110)
        picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
        players = "".join(
            f"<figure><figcaption>{html.escape(self.title(i))}</figcaption><audio controls "
            f'src="data:audio/wav;base64,{base64.b64encode(encode_wav(wave, self.rate)).decode()}"></audio></figure>'
            for i, wave in enumerate(self.waves)
        )
        return f'{picture}<div class="sheet">{players}</div>'
