"""Black-box attacks: the label-only victim and its budget, Jacobian rows against autograd, JSMA against a peer, the attack."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.systems.attack.blackbox import (
    Oracle,
    agreement,
    blackbox_attack,
    full_jacobian,
    jacobian_augment,
    jsma,
    label_gradient,
    planned_queries,
    random_sign,
    reservoir,
    saliency_map,
    train_substitute,
)
from cambrian.systems.attack.blackbox.model import balanced, make_network
from cambrian.systems.attack.blackbox.recipe import BlackBox, Options, estimator, seed_set

SPACE = Space.image((1, 8, 8))


@pytest.fixture(scope="module")
def victim():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    data = digits.load(valid=400)
    made = wrap(net, space=SPACE, classes=data.info["classes"], data=data)
    made.finetune(net, steps=60, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def samples(victim):
    x, y, _ = next(victim.batches("test", 120))
    return x, y


@pytest.fixture(scope="module")
def substitute(victim):
    oracle = Oracle(victim, 400)
    seeds = seed_set(victim, "valid", 50, torch.Generator().manual_seed(0))
    settings = {"arch": "mlp", "steps": 120, "lr": 3e-3}
    return train_substitute(oracle, seeds, rounds=3, generator=torch.Generator().manual_seed(0), **settings), oracle


# -- the victim ----------------------------------------------------------------------------------------------------------


def test_the_counter_is_the_number_of_inputs_asked_for_and_the_budget_is_never_exceeded(victim, samples):
    x, _ = samples
    oracle = Oracle(victim, 150)
    labels = oracle(x)
    assert oracle.queries == 120 and torch.equal(labels, victim.logits(x).argmax(1)) and not labels.requires_grad
    with pytest.raises(ConfigError, match="budget of 150"):
        oracle(x[:31])
    assert oracle.queries == 120 and len(oracle(x[:30])) == 30 and oracle.queries == 150
    with pytest.raises(ShapeError):
        Oracle(victim)(x[:, 0])
    with pytest.raises(ConfigError):
        Oracle(victim, 0)


@pytest.mark.parametrize("name", ["logits", "module", "features", "predict_proba", "decision_function", "layers"])
def test_scores_are_out_of_reach(victim, name: str):
    with pytest.raises(CapabilityError, match="labels only"):
        getattr(Oracle(victim), name)
    with pytest.raises(AttributeError):
        _ = Oracle(victim).nothing
    with pytest.raises(CapabilityError):
        Oracle("a service")


@pytest.mark.parametrize("kind", ["logistic", "svm", "tree", "knn"])
def test_any_classifier_of_scikit_learn_is_a_victim(victim, samples, kind: str):
    x, y = samples
    fitted = estimator(kind, victim, 400, 0)
    oracle = Oracle(fitted, space=SPACE)
    assert torch.equal(oracle(x), torch.from_numpy(fitted.predict(x.flatten(1).numpy())))
    assert float((oracle(x) == y).float().mean()) > 0.6 and oracle.queries == 240
    assert Oracle(fitted).space.shape == (64,)


def test_labels_of_an_estimator_are_positions_of_its_classes():
    from sklearn.neighbors import KNeighborsClassifier

    fitted = KNeighborsClassifier(1).fit([[0.0, 0.0], [1.0, 1.0]], ["no", "yes"])
    oracle = Oracle(fitted)
    assert oracle(torch.tensor([[0.9, 0.8], [0.1, 0.0]])).tolist() == [1, 0] and oracle.classes == ["no", "yes"]


# -- augmentation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["logit", "probability"])
def test_one_pass_gives_the_labels_row_of_the_full_jacobian(victim, samples, scores: str):
    x = samples[0][:12]
    labels = torch.arange(12) % 10
    with victim.quiet() as module:
        row = label_gradient(module, x, labels, scores)
        everything = full_jacobian(module, x, scores)
    assert everything.shape == (12, 10, 1, 8, 8)
    assert torch.allclose(row, everything[torch.arange(12), labels], atol=1e-5)


def test_augmentation_makes_as_many_points_a_step_away_in_the_box(victim, samples):
    x = samples[0] * 0.6 + 0.2
    labels = victim.logits(x).argmax(1)
    with victim.quiet() as module:
        new = jacobian_augment(module, x, labels, 0.1, SPACE, size=50)
        sign = label_gradient(module, x, labels).sign()
        back = jacobian_augment(module, x, labels, -0.1, SPACE)
    assert new.shape == x.shape and torch.allclose(new, x + 0.1 * sign, atol=1e-6)
    assert torch.allclose(back, x - 0.1 * sign, atol=1e-6)
    logits = [victim.logits(part).gather(1, labels[:, None]).mean() for part in (back, x, new)]
    assert logits[0] < logits[1] < logits[2]


def test_queries_are_doubled_each_round_or_grow_by_the_reservoir(victim):
    assert planned_queries(100, 6) == 6400 and planned_queries(100, 0) == 100
    assert planned_queries(100, 6, keep=400, after=3) == 800 + 3 * 400
    seeds = seed_set(victim, "valid", 20, torch.Generator().manual_seed(1))
    settings = {"arch": "linear", "steps": 5}
    for more, expected in (
        ({"rounds": 3}, 160),
        ({"rounds": 4, "keep": 30, "after": 1}, 130),
        ({"rounds": 3, "augmentation": "random", "period": 1}, 160),
        ({"rounds": 3, "augmentation": "none"}, 20),
    ):
        oracle = Oracle(victim, expected)
        made = train_substitute(oracle, seeds, generator=torch.Generator().manual_seed(0), **settings, **more)
        assert oracle.queries == expected == len(made.x) == len(made.labels)
        assert torch.equal(made.labels, Oracle(victim)(made.x)), "labels are the victim's, in order"
        assert made.rounds[-1]["label queries"] == expected


def test_a_budget_that_does_not_suffice_is_told_before_the_first_query(victim):
    oracle = Oracle(victim, 159)
    seeds = seed_set(victim, "valid", 20, torch.Generator())
    with pytest.raises(ConfigError, match="budget"):
        train_substitute(oracle, seeds, rounds=3, generator=torch.Generator())
    assert oracle.queries == 0


def test_reservoir_draws_every_position_equally_often():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([reservoir(12, 4, generator) for _ in range(1500)])
    assert all(len(set(row.tolist())) == 4 for row in draws[:50])
    counts = torch.bincount(draws.flatten(), minlength=12)
    assert float((counts - 500).abs().max()) < 90, "five standard deviations"
    assert reservoir(3, 5, generator).tolist() == [0, 1, 2]


def test_a_period_turns_the_step_around(victim):
    seeds = seed_set(victim, "valid", 20, torch.Generator().manual_seed(1)) * 0.4 + 0.3
    made = train_substitute(
        Oracle(victim), seeds, rounds=2, lam=0.05, period=1, arch="linear", steps=20, generator=torch.Generator()
    )
    first, second = made.x[20:40] - seeds, made.x[40:60] - seeds
    assert torch.allclose(first.abs().amax(), torch.tensor(0.05), atol=1e-6)
    alike = (first.sign() == second.sign()).float().mean()
    assert float(alike) < 0.5, "the second round goes the other way"


def test_seeds_hold_every_class_and_bad_ones_are_refused(victim):
    y = torch.tensor([0] * 50 + [1] * 3 + [2] * 2)
    assert torch.bincount(y[balanced(y, 6, torch.Generator().manual_seed(0))]).tolist() == [2, 2, 2]
    with pytest.raises(DataError, match="fewer"):
        seed_set(victim, "valid", 401, torch.Generator())
    oracle = Oracle(victim)
    with pytest.raises(DataError, match="one class"):
        train_substitute(oracle, torch.zeros(5, 1, 8, 8), generator=torch.Generator())
    for bad in ({"arch": "oak"}, {"augmentation": "wish"}, {"lam": 2.0}):
        with pytest.raises(ConfigError):
            train_substitute(oracle, torch.rand(8, 1, 8, 8), generator=torch.Generator(), **bad)
    with pytest.raises(ShapeError):
        train_substitute(oracle, torch.full((8, 1, 8, 8), float("nan")), generator=torch.Generator())
    with pytest.raises(CapabilityError, match="pictures"):
        make_network("lenet-5", Space.vector(5, 0, 1), 2, 0)


# -- the saliency-map attack ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.4, 1.0])
def test_jsma_equals_the_adversarial_robustness_toolbox(victim, samples, theta: float):
    pytest.importorskip("art")
    from art.attacks.evasion import SaliencyMapMethod
    from art.estimators.classification import PyTorchClassifier

    x, y = samples[0][:24], samples[1][:24]
    wanted = (y + 1) % 10
    network = copy.deepcopy(victim.module).eval()
    peer = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
    theirs = SaliencyMapMethod(peer, theta=theta, gamma=0.2, verbose=False).generate(x.numpy(), wanted.numpy())
    ours = jsma(victim, x, wanted, theta=theta, gamma=0.2, kind="gradient")
    assert torch.allclose(ours, torch.from_numpy(theirs), atol=1e-6)
    assert float((victim.logits(ours).argmax(1) == wanted).float().mean()) > 0.5


def test_the_map_is_the_papers_product_of_two_columns_of_the_jacobian(victim, samples):
    x, wanted = samples[0][:6], torch.arange(6)
    with victim.quiet() as module:
        found = saliency_map(module, x, wanted)
        rows = full_jacobian(module, x).flatten(2)
    for i in range(6):
        own = rows[i, wanted[i]]
        others = rows[i].sum(0) - own
        expected = [float(a * abs(b)) if a > 0 and b < 0 else 0.0 for a, b in zip(own, others, strict=True)]
        assert torch.allclose(found[i], torch.tensor(expected), atol=1e-5)


def test_jsma_touches_few_values_and_works_both_ways(victim, samples):
    x, y = samples[0][:40], samples[1][:40]
    before = copy.deepcopy(victim.module.state_dict())
    wanted = (y + 3) % 10
    for theta in (1.0, -1.0):
        moved = jsma(victim, x, wanted, theta=theta, gamma=0.25)
        changed = (moved != x).flatten(1).float().mean(1)
        assert float(changed.max()) <= 0.25 + 2 / 64 and float(moved.min()) >= 0 and float(moved.max()) <= 1
        assert bool(((moved - x) * theta >= 0).all())
    already = victim.logits(x).argmax(1)
    assert torch.equal(jsma(victim, x, already), x)
    assert all(torch.equal(before[k], v) for k, v in victim.module.state_dict().items())
    for bad in ({"theta": 0.0}, {"gamma": 0.0}, {"kind": "guess"}, {"scores": "odds"}):
        with pytest.raises(ConfigError):
            jsma(victim, x, wanted, **bad)


# -- the attack ----------------------------------------------------------------------------------------------------------


def test_a_substitute_learns_the_victims_labels_and_its_examples_transfer(victim, samples, substitute):
    x, y = samples
    made, oracle = substitute
    judge = Oracle(victim)
    assert oracle.queries == 400 and agreement(judge, made, x) > 0.7
    rates = {m: blackbox_attack(judge, made, x, 0.2, y=y, method=m).success for m in ("fgsm", "noise")}
    assert float(rates["fgsm"].float().mean()) > float(rates["noise"].float().mean()) + 0.2
    right = victim.logits(x).argmax(1) == y
    assert not bool((rates["fgsm"] & ~right).any())
    few = blackbox_attack(judge, made, x, 1.0, y=y, method="jsma", gamma=0.1)
    assert float((few.x_adv != x).flatten(1).float().mean(1).max()) <= 0.1 + 2 / 64
    with pytest.raises(ConfigError):
        blackbox_attack(judge, made, x, 0.1, method="bribe")


def test_without_labels_the_victim_says_what_is_right_and_every_judgement_is_a_query(victim, samples, substitute):
    x, _ = samples
    judge = Oracle(victim, 240)
    found = blackbox_attack(judge, substitute[0], x, 0.2)
    assert judge.queries == 240 == found.queries["labels"]
    assert torch.equal(found.success, victim.logits(found.x_adv).argmax(1) != victim.logits(x).argmax(1))
    assert float(found.norms["linf"].max()) <= 0.2 + 1e-6


def test_shuffled_labels_teach_nothing(victim, samples):
    seeds = seed_set(victim, "valid", 50, torch.Generator().manual_seed(0))
    settings = {"arch": "mlp", "steps": 120, "lr": 3e-3, "shuffle": True}
    made = train_substitute(Oracle(victim), seeds, rounds=2, generator=torch.Generator().manual_seed(0), **settings)
    assert agreement(Oracle(victim), made, samples[0]) < 0.4


def test_linear_substitutes_take_vectors_and_hinges():
    space = Space.vector(6, -1.0, 1.0)
    torch.manual_seed(0)
    truth = nn.Linear(6, 3)
    target = wrap(truth, space=space, classes="abc")
    seeds = torch.rand(60, 6) * 2 - 1
    for arch in ("linear", "svm"):
        made = train_substitute(
            Oracle(target), seeds, rounds=2, arch=arch, steps=150, lr=0.05, generator=torch.Generator().manual_seed(0)
        )
        assert agreement(Oracle(target), made, torch.rand(200, 6) * 2 - 1) > 0.85


def test_random_signs_have_the_size_asked_for():
    x = torch.full((4, 1, 8, 8), 0.5)
    moved = random_sign(x, 0.25, SPACE, torch.Generator().manual_seed(0))
    assert torch.allclose((moved - x).abs(), torch.tensor(0.25)) and 0.3 < float((moved > x).float().mean()) < 0.7


def test_the_attacker_reports_what_it_asked_and_leaves_the_victim_as_it_was(victim, samples):
    x, y = samples
    before = copy.deepcopy(victim.module.state_dict())
    options = Options(
        seeds=50, rounds=2, arch="mlp", steps=60, final=120, lr=3e-3, eps=0.2, budget=200, watched=50, cw_steps=30
    )
    found = BlackBox(options).attack(victim, x, y, torch.Generator().manual_seed(0))
    methods = [row["method"] for row in found.rows]
    assert methods == ["fgsm on mlp", "random sign", "fgsm on the victim", "carlini-wagner on the victim"]
    rates = [row["success"] for row in found.rows]
    assert rates[1] < rates[0] <= rates[2] + 0.05
    assert found.rows[0]["label queries"] == 200 and found.rows[1]["label queries"] == 0
    assert set(found.figures) == {"queries", "growth"}
    assert all(torch.equal(before[k], v) for k, v in victim.module.state_dict().items())
    with pytest.raises(ConfigError, match="budget"):
        BlackBox(Options(seeds=50, rounds=2, budget=199)).attack(victim, x, y, torch.Generator())
    with pytest.raises(DataError, match="split"):
        BlackBox(Options(split="elsewhere")).attack(victim, x, y, torch.Generator())
