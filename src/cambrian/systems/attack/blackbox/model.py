"""The victim that gives labels and nothing else, the substitute that is trained on them, and the attack through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.errors import CapabilityError, ConfigError, DataError
from cambrian.inspect.attack import ascend, random_start, sizes
from cambrian.inspect.results import AttackResult, Row
from cambrian.inspect.target import ModuleTarget, Space, wrap
from cambrian.nn import zoo
from cambrian.systems.attack.blackbox._saliency_map import jsma, outputs

LINEAR = ("linear", "svm")
ARCHITECTURES = (*LINEAR, *(name for name in zoo.NAMES if "imagenet" not in name))
AUGMENTATIONS = ("jacobian", "random", "none")
METHODS = ("fgsm", "jsma", "noise")
_SCORES = frozenset(
    [
        "logits",
        "features",
        "module",
        "forward",
        "layers",
        "predict_proba",
        "predict_log_proba",
        "decision_function",
        "score",
        "proba",
        "finetune",
    ]
)

# -- the victim --------------------------------------------------------------------------------------------------------


class Oracle:
    """Labels of a victim, one query for each input; scores, gradients and layers cannot be had.

    `source` is a `Target` or a fitted scikit-learn classifier, which gets flat inputs; its `space` is then that of a vector
    in [0, 1] unless given. `budget` is the number of inputs that may be asked for (None: no limit).
    """

    def __init__(self, source: Any, budget: int | None = None, *, space: Space | None = None) -> None:
        if budget is not None and budget < 1:
            raise ConfigError(f"a budget must be at least 1 query, not {budget}")
        self.budget, self.queries = budget, 0
        self._answer, self.space, self.classes = _answers(source, space)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The victim's labels `[B]` int64 for `x [B,...]`. Raises `ConfigError` before a budget would be exceeded."""
        self.space.check(x)
        self.afford(len(x))
        self.queries += len(x)
        return torch.cat([self._answer(part) for part in x.split(1024)])

    def afford(self, count: int) -> None:
        """Raise `ConfigError` unless `count` more queries are within the budget."""
        if self.budget is not None and self.queries + count > self.budget:
            raise ConfigError(
                f"{count} more label queries after {self.queries} exceed the budget of {self.budget}; take fewer seeds or rounds"
            )

    def __getattr__(self, name: str) -> Any:
        if name in _SCORES:
            raise CapabilityError(f"a black-box victim gives labels only, not {name}")
        raise AttributeError(name)


def _answers(source: Any, space: Space | None) -> tuple[Callable[[Tensor], Tensor], Space, list[str]]:
    if hasattr(source, "logits") and hasattr(source, "space"):
        return lambda x: source.logits(x).argmax(1), source.space, list(source.classes)
    if not (hasattr(source, "predict") and hasattr(source, "classes_")):
        raise CapabilityError(
            f"an oracle needs a target or a fitted classifier of scikit-learn, got {type(source).__name__}"
        )
    names = list(source.classes_)
    position = {name: i for i, name in enumerate(names)}

    def ask(x: Tensor) -> Tensor:
        found = source.predict(x.flatten(1).cpu().numpy())
        return torch.tensor([position[name] for name in found], device=x.device)

    return ask, space or Space.vector(int(source.n_features_in_), 0.0, 1.0), [str(name) for name in names]


# -- growing the set ---------------------------------------------------------------------------------------------------


def label_gradient(module: nn.Module, x: Tensor, labels: Tensor, scores: str = "logit") -> Tensor:
    """The Jacobian's row of each sample's own label, `[B,...]`: one forward and one backward pass for all of them."""
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(outputs(module, moved, scores).gather(1, labels[:, None]).sum(), moved)
    return grad


def full_jacobian(module: nn.Module, x: Tensor, scores: str = "logit") -> Tensor:
    """Every row of the Jacobian, `[B,K,...]`: what `label_gradient` saves computing."""

    def one(sample: Tensor) -> Tensor:
        return outputs(module, sample[None], scores)[0]

    return torch.func.vmap(torch.func.jacrev(one))(x)


def jacobian_augment(
    module: nn.Module, x: Tensor, labels: Tensor, lam: float, space: Space, scores: str = "logit", size: int = 512
) -> Tensor:
    """As many new points as `x [N,...]` has, each `lam` (fraction of the range, either sign) along the sign of its own
    label's gradient, in the box.
    """
    steps = [
        label_gradient(module, a, b, scores).sign() for a, b in zip(x.split(size), labels.split(size), strict=True)
    ]
    return (x + lam * space.width * torch.cat(steps)).clamp(space.lo, space.hi)


def random_sign(x: Tensor, eps: float, space: Space, generator: torch.Generator) -> Tensor:
    """`x` moved by `eps` (fraction of the range) up or down in each value at random, in the box: the control."""
    return (x + random_start(x, eps * space.width, "inf", "sign", generator)).clamp(space.lo, space.hi)


def reservoir(count: int, keep: int, generator: torch.Generator) -> Tensor:
    """Positions of `keep` of `count` points, each equally likely, seen one after the other (Vitter's algorithm R)."""
    chosen = torch.arange(min(keep, count))
    for i in range(keep, count):
        place = int(torch.randint(i + 1, (1,), generator=generator))
        if place < keep:
            chosen[place] = i
    return chosen


def planned_queries(seeds: int, rounds: int, keep: int = 0, after: int = 0) -> int:
    """Label queries of `rounds` augmentations of `seeds` points: doubling, and `keep` new points a round from round
    `after` on when `keep` is positive.
    """
    total = seeds
    for r in range(rounds):
        total += min(keep, total) if keep and r >= after else total
    return total


# -- the substitute ----------------------------------------------------------------------------------------------------


@dataclass
class Substitute:
    """A network of the attacker's own, the points it was trained on with the victim's labels, and a row per round."""

    target: ModuleTarget
    x: Tensor
    labels: Tensor
    rounds: list[Row] = field(default_factory=list)


def make_network(arch: str, space: Space, classes: int, seed: int) -> nn.Module:
    """A fresh network for inputs of `space`: a name of the zoo, or "linear" / "svm" (one layer)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch in LINEAR:
            inputs = int(torch.tensor(space.shape).prod())
            return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
        if space.kind != "image":
            raise CapabilityError(f"{arch} takes pictures; for inputs of kind {space.kind} choose linear or svm")
        channels, height, width = space.shape
        if height != width:
            raise CapabilityError(f"{arch} takes square pictures, not {height}x{width}; choose linear or svm")
        middle, spread = (space.lo + space.hi) / 2, space.width / 4
        facts = {"mean": [middle] * channels, "std": [spread] * channels}
        return zoo.fitted(arch, classes=classes, channels=channels, size=height, **facts)


def fit(
    module: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    hinge: bool,
    generator: torch.Generator,
) -> None:
    """Train in place on the victim's labels: Adam on cross-entropy, or on the multi-class hinge loss."""
    optimiser = torch.optim.Adam(module.parameters(), lr=lr)
    loss = F.multi_margin_loss if hinge else F.cross_entropy
    module.train()
    for index in _draws(len(x), min(batch, len(x)), steps, generator):
        optimiser.zero_grad()
        loss(module(x[index]), labels[index]).backward()
        optimiser.step()
    module.eval()


def _draws(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    queue = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(queue) < batch:
            queue = torch.randperm(count, generator=generator)
        yield queue[:batch]
        queue = queue[batch:]


def train_substitute(
    oracle: Oracle,
    seeds: Tensor,
    *,
    rounds: int = 6,
    lam: float = 0.1,
    arch: str = "lenet-5",
    generator: torch.Generator,
    augmentation: str = "jacobian",
    scores: str = "logit",
    period: int = 0,
    keep: int = 0,
    after: int = 0,
    steps: int = 150,
    final: int | None = None,
    batch: int = 64,
    lr: float = 1e-3,
    shuffle: bool = False,
    watch: Callable[[ModuleTarget], Row] | None = None,
) -> Substitute:
    """Label, train, augment, `rounds` times, then label and train once more; each time from a fresh initialisation.

    `seeds [N,...]` are the attacker's own inputs, of every class. `augmentation="random"` takes random signs instead of the
    Jacobian's and needs no network before the last; "none" stays with the seeds. With a `period` the step changes
    its sign every so many rounds; with `keep` only so many points, drawn by reservoir sampling, are added from round
    `after` on. `steps` is the training of a round, `final` that of the last. `shuffle` permutes the labels before training (a control). `watch(target)` adds columns to each round's row.
    Raises `ConfigError` before the first query when the budget does not suffice.
    """
    _check(oracle, seeds, augmentation, arch, lam)
    oracle.afford(len(seeds) if augmentation == "none" else planned_queries(len(seeds), rounds, keep, after))
    x, labels, rows = seeds, oracle(seeds), []
    if labels.unique().numel() < 2:
        raise DataError(f"the victim takes all {len(seeds)} seeds for one class; give some of every class")
    settings = {"batch": batch, "lr": lr, "hinge": arch == "svm", "generator": generator}
    for r in range(1 if augmentation == "none" else rounds + 1):
        last = augmentation == "none" or r == rounds
        if augmentation != "random" or last:
            network = make_network(arch, oracle.space, len(oracle.classes), _seed(generator))
            order = torch.randperm(len(x), generator=generator) if shuffle else torch.arange(len(x))
            fit(network, x, labels[order], steps=final if final and last else steps, **settings)
            made = wrap(network, space=oracle.space, classes=oracle.classes)
            rows.append({"round": r, "label queries": oracle.queries, **(watch(made) if watch else {})})
        if last:
            break
        chosen = reservoir(len(x), keep, generator) if keep and r >= after else slice(None)
        step = lam * (-1) ** (r // period) if period else lam
        if augmentation == "random":
            new = random_sign(x[chosen], step, oracle.space, generator)
        else:
            new = jacobian_augment(network, x[chosen], labels[chosen], step, oracle.space, scores)
        x, labels = torch.cat([x, new]), torch.cat([labels, oracle(new)])
    return Substitute(made, x, labels, rows)


def _check(oracle: Oracle, seeds: Tensor, augmentation: str, arch: str, lam: float) -> None:
    if augmentation not in AUGMENTATIONS:
        raise ConfigError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, not {augmentation!r}")
    if arch not in ARCHITECTURES:
        raise ConfigError(f"no substitute {arch!r}; choose one of {', '.join(ARCHITECTURES)}")
    if not -1 <= lam <= 1:
        raise ConfigError(f"lam must be a fraction of the input range, not {lam}")
    if oracle.space.kind == "tokens":
        raise CapabilityError("a substitute is attacked through input gradients; tokens have none")
    oracle.space.check(seeds)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (1,), generator=generator))


# -- the attack --------------------------------------------------------------------------------------------------------


def blackbox_attack(
    oracle: Oracle,
    substitute: Substitute | ModuleTarget,
    x: Tensor,
    eps: float,
    *,
    y: Tensor | None = None,
    method: str = "fgsm",
    gamma: float = 0.1,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Inputs that fool the substitute, judged by the victim: a success changes the label of an input that it had right.

    `y [B]` is what the inputs are; None takes the victim's own answers for that. Judging asks `oracle` twice for each
    input: give it a fresh one when the budget belongs to the training. "fgsm" moves by `eps`; "jsma" changes values by
    `eps`, at most the share `gamma` of them, towards the substitute's second choice; "noise" moves by random signs.
    """
    target = substitute.target if isinstance(substitute, Substitute) else substitute
    target.check(x, y)
    generator = generator or torch.Generator().manual_seed(0)
    clean = oracle(x)
    true = clean if y is None else y
    count = {"forward": 0, "backward": 0}
    if method == "fgsm":
        found = ascend(target, x, true, eps=eps)
        moved, count = found.x_adv, dict(found.queries)
    elif method == "jsma":
        with torch.no_grad():
            second = target.logits(x).scatter(1, true[:, None], float("-inf")).argmax(1)
        moved = jsma(target, x, second, theta=eps, gamma=gamma)
    elif method == "noise":
        moved = random_sign(x, eps, target.space, generator)
    else:
        raise ConfigError(f"the method must be one of {', '.join(METHODS)}, not {method!r}")
    success = (clean == true) & (oracle(moved) != true)
    norms = sizes(x, moved, target.space, None if method == "jsma" else eps)
    return AttackResult(moved, success, norms, {**count, "labels": 2 * len(x)}, [])


@torch.no_grad()
def agreement(oracle: Oracle, substitute: Substitute | ModuleTarget, x: Tensor, parts: int = 512) -> float:
    """Share of inputs that victim and substitute give the same label; one query for each."""
    target = substitute.target if isinstance(substitute, Substitute) else substitute
    guess = torch.cat([target.logits(part).argmax(1) for part in x.split(parts)])
    return float((guess == oracle(x)).float().mean())


def balanced(y: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Positions of `count` samples drawn so that classes are as equally frequent as `y [N]` allows."""
    order = torch.randperm(len(y), generator=generator)
    seen: dict[int, int] = {}
    rank = torch.empty(len(y), dtype=torch.int64)
    labels: Sequence[int] = y[order].tolist()
    for place, label in enumerate(labels):
        rank[place] = seen[label] = seen.get(label, -1) + 1
    return order[rank.argsort(stable=True)[:count]]
