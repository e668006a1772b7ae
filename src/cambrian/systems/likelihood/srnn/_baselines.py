"""The models that srnn is compared with: a plain RNN, STORN (Bayer, Osendorfer 2014, arXiv 1411.7610) and VRNN (Chung et
al. 2015, arXiv 1506.02216), with the same embedding and output nets. Shapes as in `_parts`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.likelihood.srnn._parts import Bound, FrameModel, State, gru, mlp, noise, within
from cambrian.systems.likelihood.srnn.model import floored_logvar


class RNN(FrameModel):
    """d_t = GRU(d_{t-1}, x_{t-1}), x_t ~ p(. | d_t): no latent, so the bound is log p(x) itself."""

    def __init__(
        self,
        *,
        x_dim: int,
        d: int = 64,
        embed: int = 64,
        width: int = 64,
        likelihood: str = "gauss",
        mixtures: int = 20,
    ) -> None:
        super().__init__(
            x_dim=x_dim, hidden=d, embed=embed, width=width, output_in=d, likelihood=likelihood, mixtures=mixtures
        )
        self.deterministic = gru(embed, d)

    def start(self, batch: int, like: Tensor) -> State:
        return {"d": like.new_zeros(batch, self.hidden), "x": like.new_zeros(batch, self.x_dim)}

    def elbo(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Bound:
        """Exact log-likelihood; nothing is drawn."""
        self.check(x, lengths)
        state = state or self.start(len(x), x)
        d, last = self.deterministic(self.embedded(x, state["x"])[0], state["d"][None])
        log_px = self.log_px(self.output(d), x) * within(x.shape[1], lengths, x)
        return Bound(log_px, torch.zeros_like(log_px), {"d": last[0].detach(), "x": x[:, -1].detach()})

    def extend(self, x: Tensor, state: State, generator: torch.Generator, temperature: float) -> tuple[Tensor, State]:
        d, last = self.deterministic(self.embed(x)[:, None], state["d"][None])
        return self.draw(self.output(d[:, 0]), generator, temperature), {"d": last[0], "x": x}


class STORN(FrameModel):
    """z_t ~ N(0, I) at every step, an input of the RNN beside x_{t-1}; q(z_t | x_1..t) from a forward RNN."""

    def __init__(
        self, *, x_dim: int, z: int = 16, d: int = 64, a: int = 64, embed: int = 64, width: int = 64,
        likelihood: str = "gauss", mixtures: int = 20,
    ) -> None:  # fmt: skip
        super().__init__(
            x_dim=x_dim, hidden=d, embed=embed, width=width, output_in=d, likelihood=likelihood, mixtures=mixtures
        )
        self.z_dim = z
        self.generative, self.reader = gru(embed + z, d), gru(embed, a)
        self.code = mlp(a, width, 2 * z, layers=1, small=True)

    def start(self, batch: int, like: Tensor) -> State:
        zero, reader = like.new_zeros, self.reader.hidden_size
        return {"d": zero(batch, self.hidden), "a": zero(batch, reader), "x": zero(batch, self.x_dim)}

    def elbo(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Bound:
        self.check(x, lengths)
        state = state or self.start(len(x), x)
        before, here = self.embedded(x, state["x"])
        a, last_a = self.reader(here, state["a"][None])
        mean, logvar = self.code(a).chunk(2, 2)
        posterior = DiagGaussian(mean, logvar)
        z = mean + posterior.std * noise(tuple(mean.shape), x, generator)
        d, last_d = self.generative(torch.cat((before, z), 2), state["d"][None])
        inside = within(x.shape[1], lengths, x)
        after = {"d": last_d[0].detach(), "a": last_a[0].detach(), "x": x[:, -1].detach()}
        log_px, kl = self.log_px(self.output(d), x) * inside, kl_diag(posterior).sum(-1) * inside
        return Bound(log_px, kl, after, z, DiagGaussian.standard(mean), posterior)

    def extend(self, x: Tensor, state: State, generator: torch.Generator, temperature: float) -> tuple[Tensor, State]:
        z = noise((len(x), self.z_dim), x, generator)
        d, last = self.generative(torch.cat((self.embed(x), z), 1)[:, None], state["d"][None])
        frame = self.draw(self.output(d[:, 0]), generator, temperature)
        return frame, {"d": last[0], "a": state["a"], "x": x}


class VRNN(FrameModel):
    """h_t = GRU(h_{t-1}, [x_t, z_t]); prior, posterior and output all read h_{t-1}: one recurrence carries both, so nothing
    can be computed before the loop but the embeddings."""

    def __init__(
        self, *, x_dim: int, z: int = 16, d: int = 64, embed: int = 64, width: int = 64, likelihood: str = "gauss",
        mixtures: int = 20,
    ) -> None:  # fmt: skip
        super().__init__(
            x_dim=x_dim,
            hidden=d,
            embed=embed,
            width=width,
            output_in=embed + d,
            likelihood=likelihood,
            mixtures=mixtures,
        )
        self.z_dim = z
        self.code_z = mlp(z, embed, layers=1)
        self.prior_net = mlp(d, width, 2 * z, layers=1, small=True)
        self.posterior_net = mlp(embed + d, width, 2 * z, layers=1, small=True)
        self.cell = nn.GRUCell(2 * embed, d)
        for gate in self.cell.weight_hh.data.chunk(3):
            nn.init.orthogonal_(gate)

    def start(self, batch: int, like: Tensor) -> State:
        return {"d": like.new_zeros(batch, self.hidden), "x": like.new_zeros(batch, self.x_dim)}

    def elbo(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Bound:
        self.check(x, lengths)
        h = (state or self.start(len(x), x))["d"]
        here = self.embed(x)
        eps = noise((x.shape[1], len(x), self.z_dim), x, generator)
        rows: list[tuple[Tensor, ...]] = []
        for seen, draw in zip(here.unbind(1), eps.unbind(0), strict=True):
            prior_mean, prior_logvar = self.prior_net(h).chunk(2, 1)
            mean, logvar = self.posterior_net(torch.cat((seen, h), 1)).chunk(2, 1)
            z = mean + torch.exp(0.5 * logvar) * draw
            code = self.code_z(z)
            rows.append((torch.cat((code, h), 1), z, prior_mean, prior_logvar, mean, logvar))
            h = self.cell(torch.cat((seen, code), 1), h)
        inputs, z, prior_mean, prior_logvar, mean, logvar = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        prior, posterior = DiagGaussian(prior_mean, floored_logvar(prior_logvar)), DiagGaussian(mean, logvar)
        inside = within(x.shape[1], lengths, x)
        log_px, kl = self.log_px(self.output(inputs), x) * inside, kl_diag(posterior, prior).sum(-1) * inside
        return Bound(log_px, kl, {"d": h.detach(), "x": x[:, -1].detach()}, z, prior, posterior)

    def extend(self, x: Tensor, state: State, generator: torch.Generator, temperature: float) -> tuple[Tensor, State]:
        """The state holds h before x was read and the code of x's latent, unless x is the start's blank frame."""
        h = state["d"]
        if "code" in state:
            h = self.cell(torch.cat((self.embed(x), state["code"]), 1), h)
        mean, logvar = self.prior_net(h).chunk(2, 1)
        z = mean + torch.exp(0.5 * floored_logvar(logvar)) * noise((len(x), self.z_dim), x, generator)
        code = self.code_z(z)
        frame = self.draw(self.output(torch.cat((code, h), 1)), generator, temperature)
        return frame, {"d": h, "code": code, "x": x}
