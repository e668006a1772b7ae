"""Options and the claim of wavenet."""

from __future__ import annotations

from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.errors import ConfigError


@config
class Config:
    """Options of wavenet."""

    steps: int = option(1000, "training steps", low=1)
    batch: int = option(2, "crops per step", low=1)
    crop: int = option(2000, "scored samples of a crop, after those that only give it a past", low=1)
    network: str = option("wavenet", "what predicts samples", choices=("wavenet", "lstm"))
    task: str = option("generate", "predict samples, or samples and the phones of frames", choices=("generate", "recognise"))  # fmt: skip
    condition: str = option("all", "what the gates are told, where the data has it: speaker or tags, and phones and pitch", choices=("all", "speaker", "none"))  # fmt: skip
    permute: bool = option(False, "give each clip of a batch another one's speaker, phones and pitch (a check)")
    residual: int = option(32, "residual and gate channels", low=1)
    skip: int = option(64, "skip channels", low=1)
    blocks: int = option(2, "how often the dilations start again at 1", low=1)
    layers: int = option(7, "layers of a block, dilations 1, 2, 4, ...", low=1, high=16)
    kernel: int = option(2, "taps of a convolution", low=2)
    dilated: bool = option(True, "off: every dilation is 1")
    inputs: str = option("onehot", "how the network reads samples", choices=("onehot", "scalar"))
    classes: int = option(256, "mu-law bins", low=2, high=65536)
    contexts: tuple[int, ...] = option((), "context stacks: layers, width and pooled samples, three numbers each")
    hidden: int = option(96, "cells of the LSTM baseline", low=1)
    sample_weight: float = option(0.5, "recogniser: weight of the next-sample loss beside the phones'", low=0.0)
    lr: float = option(3e-3, "Adam's learning rate at the start", low=0.0)
    lr_final: float = option(3e-4, "and at the end, falling geometrically", low=0.0)
    ema: float = option(0.999, "decay of the averaged weights that are evaluated", low=0.0, high=0.99999)
    rate: int = option(4000, "Hz that sound is made at, or resampled to", low=2000)
    seconds: float = option(2.0, "length of a clip", low=0.1)
    clips: int = option(90, "training clips of the embedded worlds", low=2)
    held: int = option(20, "clips of validation and of test, and the most that an evaluation reads", low=1)
    noise_db: float = option(-70.0, "white noise in the world of phones", high=0.0)
    temperature: float = option(1.0, "of samples; below 1 they are likelier ones", low=0.0)
    top_p: float = option(1.0, "samples come from the fewest values with this share of the probability", low=0.01, high=1.0)  # fmt: skip

    def check(self) -> None:
        """Whole context stacks; no baseline that cannot do the task."""
        if len(self.contexts) % 3 or any(c < 1 for c in self.contexts):
            raise ConfigError(f"contexts are triples layers,width,pool of positive numbers, not {self.contexts}")
        if self.task == "recognise" and (self.network != "wavenet" or self.contexts):
            raise ConfigError("the recogniser is a wavenet without context stacks")


CLAIM = Claim(
    name="dilation",
    statement="After equally many updates the dilated stack (2 x 7 layers, 256 samples) takes at least 0.10 bits less per "
    "held-out sample of clean 4 kHz speech than the same stack with every dilation 1 (16 samples). Nobody is conditioned.",
    metric="bits",
    direction="lower",
    margin=0.10,
    paper="table 1, subjective 5-scale MOS: WaveNet 4.21 / 4.08, LSTM-RNN parametric 3.67 / 3.79; likelihood stands in",
    arms={
        "dilated": Arm({"condition": "none"}),
        "undilated": Arm({"condition": "none", "dilated": False}),
    },
    system="dilated",
    baselines=("undilated",),
    sabotage=Arm({"condition": "none", "dilated": False}),
)
