"""The stochastic recurrent network: a state-space layer on a deterministic one. Shapes: B batch, T time, X features,
H deterministic state, A inference state, E embedding, Z latent, W width of the transition nets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cambrian.errors import ConfigError
from cambrian.nn.latent import DiagGaussian, kl_diag
from cambrian.systems.likelihood.srnn._parts import Bound, FrameModel, State, backwards, gru, mlp, noise, within

FLOOR = 1e-6  # added to every variance, as the authors' code does


class Transition(nn.Module):
    """Prior and posterior of z_t given z_{t-1}, side by side: each layer of both nets is one product.

    What d_t and a_t contribute to the first layers does not depend on z, so it is multiplied for all steps at once.
    """

    def __init__(self, *, z_dim: int, context: int, inference: int, width: int, residual: bool, linear: bool) -> None:
        super().__init__()
        self.z_dim, self.residual, self.linear = z_dim, residual, linear
        self.from_z = nn.Linear(z_dim, 2 * width, bias=False)
        self.from_context = nn.Linear(max(context, 1), width)
        self.from_inference = nn.Linear(inference, width)
        self.weight = nn.Parameter(torch.empty(2, width, 2 * z_dim).uniform_(-1e-3, 1e-3))
        self.bias = nn.Parameter(torch.zeros(2, 1, 2 * z_dim))

    def project(self, context: Tensor, inference: Tensor | None) -> Tensor:
        """d [T, B, H] and a [T, B, A] -> [T, B, 2W] (without a: [T, B, W], the prior alone)."""
        prior = self.from_context(context)
        return prior if inference is None else torch.cat((prior, self.from_inference(inference)), -1)

    def both(self, projected: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means and log-variances [B, Z] of prior and posterior, from projected [B, 2W] and z_{t-1} [B, Z]."""
        hidden = self.squash(projected + self.from_z(z)).unflatten(1, (2, -1)).transpose(0, 1)
        prior, posterior = torch.baddbmm(self.bias, hidden, self.weight).unbind(0)
        prior_mean, prior_logvar = prior.chunk(2, 1)
        mean, logvar = posterior.chunk(2, 1)
        return prior_mean, prior_logvar, mean + prior_mean if self.residual else mean, logvar

    def prior(self, projected: Tensor, z: Tensor) -> DiagGaussian:
        """p(z_t | z_{t-1}, d_t) from projected [B, W]."""
        width = projected.shape[1]
        hidden = self.squash(projected + z @ self.from_z.weight[:width].T)
        mean, logvar = (hidden @ self.weight[0] + self.bias[0]).chunk(2, 1)
        return DiagGaussian(mean, floored_logvar(logvar))

    def squash(self, x: Tensor) -> Tensor:
        """The clipped leaky rectifier, or nothing for the linear model."""
        return x if self.linear else nn.functional.leaky_relu(x, 1 / 3).clamp(-3.0, 3.0)


class LinearBackwards(nn.Module):
    """a_t = W a_{t+1} + U x_t + b, from the end of x [B, T, E] to its beginning: [B, T, A]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, hidden)
        self.recurrent = nn.Parameter(0.5 * torch.eye(hidden))

    def forward(self, x: Tensor) -> Tensor:
        steps = self.input(x).unbind(1)
        rows = [steps[-1]]
        for step in reversed(steps[:-1]):
            rows.append(step + rows[-1] @ self.recurrent)
        return torch.stack(rows[::-1], 1)


def floored_logvar(logvar: Tensor) -> Tensor:
    """log(exp(v) + 1e-6)."""
    return torch.logaddexp(logvar, torch.full_like(logvar, FLOOR).log())


class SRNN(FrameModel):
    """Stochastic recurrent neural network over frames x [B, T, X].

    `inference` "smooth" reads past and future, "filter" the past; `resq` learns the posterior's mean as a correction of the
    prior's. `use_latent=False` gives the output net zeros for z. `d=0` leaves the deterministic layer out, `linear` all
    nonlinearities: together a linear-Gaussian state-space model.
    """

    def __init__(
        self, *, x_dim: int, z: int = 16, d: int = 64, a: int = 64, embed: int = 64, width: int = 64,
        inference: str = "smooth", resq: bool = True, likelihood: str = "gauss", mixtures: int = 20,
        use_latent: bool = True, linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            x_dim=x_dim, hidden=d, embed=embed, width=width, output_in=d + z, likelihood=likelihood, mixtures=mixtures
        )
        if inference not in ("smooth", "filter"):
            raise ConfigError(f"inference must be smooth or filter, not {inference!r}")
        self.z_dim, self.inference, self.use_latent = z, inference, use_latent
        self.deterministic = gru(embed, d) if d else None
        self.reader = gru(d + embed, a) if inference == "smooth" else mlp(d + embed, a, layers=2)
        if linear:
            self.embed, self.output = nn.Linear(x_dim, embed), nn.Linear(d + z, self.n_params)
            self.reader = LinearBackwards(d + embed, a) if inference == "smooth" else nn.Linear(d + embed, a)
        self.transition = Transition(z_dim=z, context=d, inference=a, width=width, residual=resq, linear=linear)

    def start(self, batch: int, like: Tensor) -> State:
        """The state before the first frame: zeros."""
        zero = like.new_zeros
        return {"d": zero(batch, self.hidden), "z": zero(batch, self.z_dim), "x": zero(batch, self.x_dim)}

    def elbo(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        generator: torch.Generator | None = None,
    ) -> Bound:
        """The bound (equation 12), its divergence analytic in each step; smoothing looks no further than this x."""
        self.check(x, lengths)
        state = state or self.start(len(x), x)
        before, here = self.embedded(x, state["x"])
        d = self._run(before, state["d"])
        a = self._read(torch.cat((d, here), 2), lengths)
        eps = noise((x.shape[1], len(x), self.z_dim), x, generator)
        z, prior, posterior = self._infer(d, a, state["z"], eps)
        params = self.output(torch.cat((d, z if self.use_latent else torch.zeros_like(z)), 2))
        inside = within(x.shape[1], lengths, x)
        kl = kl_diag(posterior, prior).sum(-1) * inside
        after = {"d": d[:, -1].detach(), "z": z[:, -1].detach(), "x": x[:, -1].detach()}
        return Bound(self.log_px(params, x) * inside, kl, after, z, prior, posterior)

    def _run(self, before: Tensor, d: Tensor) -> Tensor:
        """d_1..T [B, T, H]: the deterministic path, which never sees z."""
        if self.deterministic is None:
            return before.new_zeros(*before.shape[:2], 0)
        return self.deterministic(before, d[None])[0]

    def _read(self, seen: Tensor, lengths: Tensor | None) -> Tensor:
        """a_1..T [B, T, A] of [d_t, x_t]: by a GRU that runs backwards, or frame by frame."""
        if isinstance(self.reader, nn.GRU):
            return backwards(self.reader, seen, lengths)
        return self.reader(seen)

    def _infer(self, d: Tensor, a: Tensor, z: Tensor, eps: Tensor) -> tuple[Tensor, DiagGaussian, DiagGaussian]:
        """The sampled path [B, T, Z] with both distributions along it: the only loop over time."""
        projected = self.transition.project(self._context(d).transpose(0, 1), a.transpose(0, 1))
        rows: list[tuple[Tensor, ...]] = []
        for now, draw in zip(projected.unbind(0), eps.unbind(0), strict=True):
            prior_mean, prior_logvar, mean, logvar = self.transition.both(now, z)
            z = mean + torch.exp(0.5 * logvar) * draw
            rows.append((z, prior_mean, prior_logvar, mean, logvar))
        path, prior_mean, prior_logvar, mean, logvar = (torch.stack(part, 1) for part in zip(*rows, strict=True))
        return path, DiagGaussian(prior_mean, floored_logvar(prior_logvar)), DiagGaussian(mean, logvar)

    def _context(self, d: Tensor) -> Tensor:
        return d if d.shape[-1] else d.new_zeros(*d.shape[:-1], 1)

    def extend(self, x: Tensor, state: State, generator: torch.Generator, temperature: float) -> tuple[Tensor, State]:
        """One frame [B, X] after x [B, X]: d_t, then z_t from the prior, then x_t."""
        d = self._run(self.embed(x)[:, None], state["d"])
        prior = self.transition.prior(self.transition.project(self._context(d)[:, 0], None), state["z"])
        z = prior.mean + prior.std * noise((len(x), self.z_dim), x, generator)
        params = self.output(torch.cat((d[:, 0], z if self.use_latent else torch.zeros_like(z)), 1))
        return self.draw(params, generator, temperature), {"d": d[:, 0], "z": z, "x": x}
