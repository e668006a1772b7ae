"""What a trained VAE shows: samples, reconstructions, paths and maps of its codes. Shapes: N pictures, Z latent features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.data import pixels as files
from cambrian.data.images import unit
from cambrian.data.split import Batch
from cambrian.engine.recipe import Recipe, action
from cambrian.engine.samples import Gallery, Images, Plot, Sample, Table
from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.nn.latent import kl_diag
from cambrian.systems.likelihood.vae._config import Config
from cambrian.systems.likelihood.vae.model import VAE

SHOWN = 10
SPAN = 2.0  # how far traversals go, in standard deviations of the prior
MAPPED = 2000  # pictures behind the map of codes


class Pictures(Recipe[Config]):
    """The actions of a recipe with a `VAE` as `model`."""

    model: VAE
    classes: int

    def _given(self, batch: Batch) -> Tensor | None:
        raise NotImplementedError

    # -- samples ----------------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """n expected pictures from the prior, of all classes in turn where the model knows classes; reconstructions; and
        where there are two latent features the plane of them, where there are classes a row for each.
        """
        y = torch.arange(n, device=self.device) % self.classes if self.model.classes else None
        shown: dict[str, Sample] = {"samples": Images(self.model.sample(n, generator, y).cpu())}
        shown["reconstructions"] = self.reconstruct(min(SHOWN, len(self.data.split("test"))))
        if self.model.latent == 2:
            shown["manifold"] = self.manifold()
        if self.model.classes:
            shown["classes"] = self.class_grid()
        return Gallery(shown)

    @action
    @torch.no_grad()
    def gallery(self, n: int = 36, seed: int = 0) -> Gallery:
        """Samples (expected pictures, and draws of every pixel) and reconstructions, on one page."""
        model = self._eval()
        y = torch.arange(n, device=self.device) % self.classes if model.classes else None
        shown: dict[str, Sample] = {}
        for title, pixels in (("expected pictures", False), ("draws of every pixel", True)):
            made = model.sample(n, torch.Generator().manual_seed(seed), y, pixels=pixels)
            shown[title] = Images(made.cpu())
        return Gallery({**shown, "reconstructions": self.reconstruct()})

    @action
    @torch.no_grad()
    def reconstruct(self, n: int = SHOWN, picture: str = "") -> Images:
        """Test pictures above their reconstructions; or the picture in the file `picture`, beside its own."""
        model = self._eval()
        x, y = self._some(n) if not picture else self._from_file(Path(picture))
        return Images(torch.cat((x, model.reconstruct(x, y))).cpu(), columns=len(x))

    @action
    @torch.no_grad()
    def interpolate(self, rows: int = 5, n: int = SHOWN, seed: int = 0) -> Images:
        """Pairs of test pictures at the ends of each row, and between them what lies between their codes."""
        model = self._eval()
        x, y = self._some(2 * rows, torch.Generator().manual_seed(seed))
        lines = []
        for row in range(rows):
            a, b = x[2 * row], x[2 * row + 1]
            between = model.interpolate(a, b, n, None if y is None else y[2 * row : 2 * row + 1])
            lines += [a[None], between, b[None]]
        return Images(torch.cat(lines).cpu(), columns=n + 2)

    @action
    @torch.no_grad()
    def traverse(self, units: int = 8, n: int = SHOWN, index: int = 0) -> Images:
        """A row for each of the most informative features, moved from -2 to 2 from the code of test picture `index`."""
        model = self._eval()
        x, y = self._at(torch.tensor([index]))
        order = self._information()[0].argsort(descending=True)[:units]
        z = model.centres(x, y).repeat(len(order), n, 1)
        steps = torch.linspace(-SPAN, SPAN, n, device=self.device)
        for row, unit_number in enumerate(order.tolist()):
            z[row, :, unit_number] = steps
        made = model.decode(z.flatten(0, 1), None if y is None else y.expand(len(order) * n))
        return Images(made.cpu(), columns=n)

    @action
    @torch.no_grad()
    def manifold(self, n: int = 15, label: str = "") -> Images:
        """n x n expected pictures over the plane of the two most informative features, at equal steps of probability.

        The other features are 0; with latent=2 this is figure 4 of the paper. `label` is the class of a conditional
        model.
        """
        model = self._eval()
        if model.latent < 2:
            raise CapabilityError("a plane needs two latent features; this model has one")
        first, second = sorted(self._information()[0].argsort(descending=True)[:2].tolist())
        quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float().to(self.device)
        z = torch.zeros(n, n, model.latent, device=self.device)
        z[:, :, first], z[:, :, second] = quantiles[None, :], -quantiles[:, None]
        y = torch.full((n * n,), self._number(label), device=self.device) if model.classes else None
        return Images(model.decode(z.flatten(0, 1), y).cpu(), columns=n, scale=max(1, 48 // max(model.shape[1:])))

    @action
    @torch.no_grad()
    def class_grid(self, n: int = SHOWN, seed: int = 0) -> Images:
        """A row for each class, a column for each code: what the class changes, and what the code does."""
        model = self._eval()
        if not model.classes:
            raise CapabilityError("this model does not know classes; train with --set model=cvae or model=m2")
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(model.classes, device=self.device).repeat_interleave(n)
        noise = model.noise(1, n, generator)
        if model.prior is None and not model.second:
            z = noise[0].repeat(model.classes, 1)
        else:  # the prior is the class's own: each class has codes of its own
            z = model.codes(len(y), generator, y)
        return Images(model.decode(z, y).cpu(), columns=n)

    @action
    @torch.no_grad()
    def aggregate(self, seed: int = 0) -> Plot:
        """The aggregate posterior: a draw of q(z|x) for each of 2,000 test pictures, in the two most informative features, by
        class, beside the prior's circles; and all features' distributions against N(0, 1)."""
        from matplotlib.figure import Figure

        q, label = self._posteriors()
        information = kl_diag(q).mean(0).cpu()
        z = q.sample(torch.Generator().manual_seed(seed)).cpu()
        first, second = sorted(information.argsort(descending=True)[:2].tolist()) if z.shape[1] > 1 else (0, 0)
        figure = Figure(figsize=(8.0, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        dots = left.scatter(z[:, first], z[:, second], c=label, s=4, cmap="tab10")
        for radius in (1.0, 2.0):
            turn = torch.linspace(0, 2 * torch.pi, 100)
            left.plot(radius * turn.cos(), radius * turn.sin(), color="black", linewidth=0.7)
        left.set(xlabel=f"z{first}", ylabel=f"z{second}", title="draws of q(z|x), by class", aspect="equal")
        if label.max() > 0:
            figure.colorbar(dots, ax=left)
        right.bar(range(z.shape[1]), z.std(0).tolist(), color="tab:blue")
        right.axhline(1.0, color="black", linewidth=0.7)
        right.xaxis.get_major_locator().set_params(integer=True)
        right.set(xlabel="feature", ylabel="standard deviation", title="of the aggregate posterior")
        return Plot(figure)

    @action
    @torch.no_grad()
    def units(self) -> Table:
        """Each latent feature: nats it costs (mean KL on test), variance of its posterior mean, whether it is active."""
        information, variance = (part.tolist() for part in self._information())
        rows = [[f"z{j}", kl, var, var > 0.01] for j, (kl, var) in enumerate(zip(information, variance, strict=True))]
        return Table(["feature", "kl", "variance of E[z|x]", "active"], rows)

    @action
    @torch.no_grad()
    def likelihood(self, samples: int = 5000, rows: int = 200, seed: int = 0) -> Table:
        """L_K of the first `rows` test pictures for K = 1, 5, 50, ... `samples`: bounds on log p(x) that tighten, in nats."""
        model = self._eval()
        x, y = self._some(rows)
        out = []
        for k in sorted({k for k in (1, 5, 50, 500) if k < samples} | {samples}):
            nll = model.nll(x, torch.Generator().manual_seed(seed), k, y)
            out.append([k, -float(nll.mean()), float(nll.std() / len(x) ** 0.5)])
        return Table(["K", "L_K (<= log p)", "standard error over pictures"], out)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _eval(self) -> VAE:
        return self.model.eval()  # type: ignore[no-any-return]

    def _some(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """The first n test pictures (or n drawn by `generator`), and the classes that the model wants with them."""
        total = len(self.data.split("test"))
        if not 0 < n <= total:
            raise ConfigError(f"n must lie in 1..{total}, the number of test pictures, not {n}")
        return self._at(torch.arange(n) if generator is None else torch.randperm(total, generator=generator)[:n])

    def _at(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        split = self.data.split("test")
        if not (int(index.min()) >= 0 and int(index.max()) < len(split)):
            raise ConfigError(f"index must lie in 0..{len(split) - 1}, not {int(index.max())}")
        batch = {name: field.to(self.device) for name, field in split[index].items()}
        return unit(batch["image"]), self._given(batch)

    def _from_file(self, path: Path) -> tuple[Tensor, Tensor | None]:
        channels, height, width = self.model.shape
        if height != width:
            raise CapabilityError("a picture is cut square; this model takes others")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        image = torch.from_numpy(files.decode(content, path.name, size=height, channels=channels))[None]
        x = unit(image).to(self.device)
        x = (x > 0.5).to(x) if self.config.likelihood == "bernoulli" and self.config.binarise != "none" else x
        return x, self._given({"image": image.to(self.device), "label": torch.zeros(1, dtype=torch.int64)})

    def _posteriors(self) -> tuple[Any, Tensor]:
        """q(z|x) of test pictures, and their labels."""
        self._eval()
        split = self.data.split("test")
        index = torch.arange(min(MAPPED, len(split)))
        x, y = self._at(index)
        return self.model.encode(x, y), split[index]["label"]

    def _information(self) -> tuple[Tensor, Tensor]:
        """Mean divergence and variance of the posterior mean of each feature, [Z] both, over test pictures."""
        q, _ = self._posteriors()
        return kl_diag(q).mean(0), q.mean.var(0)

    def _number(self, label: str) -> int:
        classes = [str(name) for name in self.data.info["classes"]]
        if label and label not in classes:
            raise ConfigError(f"no class {label!r} in this data; classes: {', '.join(classes)}")
        return classes.index(label) if label else 0
