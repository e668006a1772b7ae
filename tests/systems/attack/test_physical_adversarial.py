"""Physical adversarial examples: equality with peers, the destruction rate by hand, sheets that come back, composition."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from cambrian.data import digits
from cambrian.errors import CapabilityError, ConfigError, DataError, ShapeError
from cambrian.inspect import Space, wrap
from cambrian.inspect.camera import MILD, Photo, PhotoConfig, photo, softened
from cambrian.inspect.fiducials import warp
from cambrian.systems.attack.physical_adversarial import (
    Config,
    Moves,
    Options,
    PhysicalAdversarial,
    Sheet,
    Survey,
    Through,
    bim,
    crop_photos,
    destruction_rate,
    illc,
    iterations,
    prefiltered,
    print_sheet,
    sweeps,
)
from cambrian.systems.attack.physical_adversarial.model import ATTACKS, blur, brightness, compression, contrast, noise


def net_of(channels: int = 1, side: int = 8, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2 * side * side, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def target():
    data = digits.load(valid=200)
    made = wrap(net_of(), space=Space.image((1, 8, 8)), classes=data.info["classes"], data=data)
    made.finetune(made.module, steps=45, lr=0.05, lr_scale=1.0, generator=torch.Generator().manual_seed(0))
    return made


@pytest.fixture(scope="module")
def samples(target):
    x, y, _ = next(target.batches("test", 100))
    return x, y


# -- attacks -------------------------------------------------------------------------------------------------------------


def test_number_of_iterations_is_the_papers():
    assert [iterations(eps / 255) for eps in (2, 4, 8, 16, 32)] == [2, 5, 10, 20, 36]
    assert iterations(0.0) == 1


def double(target):
    made = copy.copy(target)
    made.module = copy.deepcopy(target.module).double().eval()
    return made


@pytest.mark.parametrize("eps", [8 / 255, 32 / 255])
def test_equal_to_foolbox(target, samples, eps: float):
    foolbox = pytest.importorskip("foolbox")
    exact, (x, y) = double(target), (samples[0].double(), samples[1])
    model = foolbox.PyTorchModel(exact.module, bounds=(0, 1))
    attack = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=1 / 255, steps=iterations(eps), random_start=False)
    _, theirs, _ = attack(model, x, y, epsilons=eps)
    assert float((bim(exact, x, y, eps).x_adv - theirs).abs().max()) < 1e-6
    least = exact.logits(x).argmin(1)
    _, theirs, _ = attack(model, x, foolbox.criteria.TargetedMisclassification(least), epsilons=eps)
    assert float((illc(exact, x, y, eps).x_adv - theirs).abs().max()) < 1e-6


def test_equal_to_art(target, samples):
    pytest.importorskip("art")
    from art.attacks.evasion import BasicIterativeMethod
    from art.estimators.classification import PyTorchClassifier

    x, y = samples
    module = copy.deepcopy(target.module).eval()
    loss = nn.CrossEntropyLoss()
    model = PyTorchClassifier(module, loss=loss, input_shape=(1, 8, 8), nb_classes=10, clip_values=(0.0, 1.0))
    sizes = {"eps": 8 / 255, "eps_step": 1 / 255, "max_iter": iterations(8 / 255), "batch_size": 100}
    theirs = BasicIterativeMethod(model, verbose=False, **sizes).generate(x.numpy(), y.numpy())
    assert float((bim(target, x, y, 8 / 255).x_adv - torch.from_numpy(theirs)).abs().max()) < 1e-6
    least = target.logits(x).argmin(1)
    aimed = BasicIterativeMethod(model, targeted=True, verbose=False, **sizes).generate(x.numpy(), least.numpy())
    assert float((illc(target, x, y, 8 / 255).x_adv - torch.from_numpy(aimed)).abs().max()) < 1e-6


def test_least_likely_moves_towards_that_class_and_costs_no_extra_pass(target, samples):
    x, y = samples
    least = target.logits(x).argmin(1, keepdim=True)
    before = copy.deepcopy(target.module.state_dict())
    found = illc(target, x, y, 0.2)
    gain = target.logits(found.x_adv).log_softmax(1).gather(1, least) - target.logits(x).log_softmax(1).gather(1, least)
    assert bool((gain > 0).all()) and found.queries == {"forward": 5600, "backward": 5500}
    assert all(torch.equal(before[name], t) for name, t in target.module.state_dict().items())
    assert float(found.norms["linf"].max()) <= 0.2 + 1e-6


# -- the destruction rate ------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Answers read from a table: the first pixel names the row."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = (x[:, 0] * 10).round().long()
        return nn.functional.one_hot(self.answers[rows], 2).float()


def test_destruction_rate_equals_a_count_by_hand():
    #            clean     attacked  transformed
    answers = [0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0]
    target = wrap(Table(answers), space=Space.vector(1, 0.0, 1.0), classes="ab")
    x = torch.tensor([[0.0], [0.1], [0.2], [0.3]])  # answers 0 0 0 1, labels all 0: the last one is wrong already
    x_adv = torch.tensor([[0.4], [0.5], [0.6], [0.8]])  # 1 0 1 1: the second attack fails
    y = torch.zeros(4, dtype=torch.int64)
    after = {0.4: 0.7, 0.5: 0.7, 0.6: 0.9, 0.8: 1.0}  # 0 0 1 0
    change = lambda z: torch.tensor([[after.get(round(float(v), 1), float(v))] for v in z[:, 0]])  # noqa: E731
    assert destruction_rate(target, x, x_adv, y, change) == 0.5  # of the first and third, the first is right again
    rate = Survey(target, x, y, change).rate(x_adv)
    assert (rate.count, rate.accuracy, rate.clean, rate.lost) == (2, 0.75, 0.75, 0.0)
    only = Survey(target, x, y, change).rate(x_adv, keep=torch.tensor([False, True, True, True]))
    assert (only.rate, only.count) == (0.0, 1)
    assert destruction_rate(target, x, x_adv, y, lambda z: z) == 0.0
    assert destruction_rate(target, x, x, y, change) is None
    with pytest.raises(ShapeError):
        destruction_rate(target, x, x_adv[:2], y, change)
    with pytest.raises(CapabilityError, match="camera"):
        Survey(target, x, y, photo())


def test_prefiltered_pictures_are_the_confident_successes(target, samples):
    x, y = samples
    moved = bim(target, x, y, 0.2).x_adv
    kept = prefiltered(target, x, moved, y)
    clean, adversarial = target.logits(x).softmax(1), target.logits(moved).softmax(1)
    assert bool(kept.any()) and bool((clean[kept].gather(1, y[kept, None]) >= 0.8).all())
    assert bool((adversarial[kept].amax(1) >= 0.8).all()) and bool((adversarial[kept].argmax(1) != y[kept]).all())


def test_photographs_that_are_lost_do_not_count(target, samples, monkeypatch):
    x, y = samples
    moved = bim(target, x, y, 0.2).x_adv
    whole = Photo.shoot

    def half(self, pictures, index=None):
        shot = whole(self, pictures, index)
        shot.found[::2] = False
        return shot

    monkeypatch.setattr(Photo, "shoot", half)
    rate = Survey(target, x, y, photo(MILD, 1)).rate(moved)
    assert rate.lost == 0.5
    monkeypatch.undo()
    full = Survey(target, x, y, photo(MILD, 1)).rate(moved, keep=torch.arange(100) % 2 == 1)
    assert (rate.rate, rate.count) == (full.rate, full.count)


def test_artificial_transformations():
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(brightness(51)(x), (x + 0.2).clamp(0, 1)) and torch.equal(contrast(0.5)(x), x * 0.5)
    flat = torch.full((1, 3, 9, 9), 0.4)
    assert torch.allclose(blur(1.0)(flat), flat) and float(blur(1.0)(x).var()) < 0.5 * float(x.var())
    grey = torch.full((30, 1, 16, 16), 0.5)
    assert float((noise(16)(grey) - grey).std()) == pytest.approx(16 / 255, rel=0.05)
    assert torch.equal(noise(16)(grey)[:3], noise(16)(grey[:3]))
    assert float((compression(95)(flat) - flat).abs().max()) < 0.01


def test_sweeps_have_one_rate_per_strength(target, samples):
    x, y = samples
    found = sweeps(target, x, {"basic": bim(target, x, y, 0.2).x_adv}, y)
    assert set(found) == {"brightness", "contrast", "blur", "noise", "JPEG"}
    rates = [r.rate for r in found["blur"]["basic"]]
    assert len(rates) == 4 and all(0 <= r <= 1 for r in rates) and rates[-1] >= rates[0]


# -- through the camera ----------------------------------------------------------------------------------------------------


def test_an_attack_that_knows_the_camera_outlives_it_more_often(target, samples):
    x, y = samples[0][:40], samples[1][:40]
    blurred = replace(softened(PhotoConfig()), defocus=(1.0, 1.2), sampling=2.0)
    camera = photo(blurred, 0)
    plain, knowing = Moves("basic", 0.1)(target, x, y), Moves("basic", 0.1, camera, views=2)(target, x, y)
    assert knowing.queries["backward"] == 2 * plain.queries["backward"]
    lost = {}
    for name, moved in (("plain", plain), ("knowing", knowing)):
        seen = torch.stack([photo(blurred, seed)(moved.x_adv) for seed in (98, 99)]).clamp(0, 1)
        lost[name] = sum(float(nn.functional.cross_entropy(target.logits(one), y)) for one in seen)
    assert lost["knowing"] > lost["plain"] + 0.05
    behind = Through(target.module.eval(), camera, 2)
    assert torch.allclose(behind(x[:5]).exp().sum(1), torch.ones(5), atol=0.2)
    with pytest.raises(ConfigError, match="attack"):
        Moves("slow", 0.1)(target, x, y)


# -- sheets --------------------------------------------------------------------------------------------------------------


def photographed(folder, into, sheet: Sheet, view: list[list[float]], turn: int = 0) -> None:
    into.mkdir()
    (into / "sheet.json").write_bytes((folder / "sheet.json").read_bytes())
    for path in sorted(folder.glob("page-*.png")):
        page = torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).float() / 255
        height, width = (round(side * sheet.dots) for side in sheet.size)
        page = page.view(height, width, 3).permute(2, 0, 1)[None]
        seen = warp(page, torch.tensor(view)[None], (round(height * 0.9), round(width * 0.9)), fill=0.2)
        levels = (torch.rot90(seen[0], turn, (1, 2)).permute(1, 2, 0) * 255).round().to(torch.uint8)
        Image.fromarray(levels.contiguous().numpy()).save(into / f"IMG_{path.stem}.jpg", quality=92)


@pytest.mark.parametrize(("channels", "turn"), [(1, 0), (3, 1)])
def test_printed_sheets_come_back_from_photographs(tmp_path, channels: int, turn: int):
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.rand(7, channels, 4, 4, generator=generator), size=16, mode="bilinear")
    x_adv = (x + 0.2 * torch.rand(x.shape, generator=generator)).clamp(0, 1)
    sheet = print_sheet(x, x_adv, tmp_path / "sheet", columns=2, rows=3, dots=5)
    assert sheet.pages == 2 and (tmp_path / "sheet" / "sheet.pdf").stat().st_size > 1000
    assert Sheet.load(tmp_path / "sheet") == sheet
    photographed(
        tmp_path / "sheet", tmp_path / "photos", sheet, [[1.2, 0.05, -30], [-0.04, 1.22, -25], [3e-5, 5e-5, 1]], turn
    )
    clean, moved, found = crop_photos(tmp_path / "photos")
    assert bool(found.all())
    assert float((clean - x).abs().mean()) < 0.03 and float((moved - x_adv).abs().mean()) < 0.05


def test_foreign_or_missing_photographs_are_refused(tmp_path):
    x = torch.rand(3, 1, 8, 8)
    print_sheet(x, x, tmp_path)
    (tmp_path / "page-000.png").unlink()
    with pytest.raises(DataError, match="one photograph"):
        crop_photos(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match="photo.jpg"):
        crop_photos(tmp_path)
    Image.new("RGB", (300, 400)).save(tmp_path / "photo.jpg")
    assert not bool(crop_photos(tmp_path)[2].any())  # an empty page is lost, not an error
    for text in ("{", '{"channels": 1}', '{"channels": 7, "height": 8, "width": 8, "count": 3}', "[]"):
        (tmp_path / "sheet.json").write_text(text)
        with pytest.raises(DataError, match=r"sheet\.json"):
            Sheet.load(tmp_path)
    with pytest.raises(ShapeError):
        print_sheet(x, x[:2], tmp_path)


# -- the attacker --------------------------------------------------------------------------------------------------------


def test_attacker_reports_attacks_photographs_and_sheets(target, samples, tmp_path):
    x, y = samples[0][:40], samples[1][:40]
    options = {"eps": 0.15, "pairs": 6, "attack": "basic", "camera": "mild"}
    run = lambda **more: PhysicalAdversarial(Options(**options, **more)).attack(  # noqa: E731
        target, x, y, torch.Generator().manual_seed(0)
    )
    found = run(print_to=str(tmp_path / "sheet"))
    assert [row["method"] for row in found.rows] == ["basic", "fast", "least-likely"] and len(ATTACKS) == 3
    assert set(found.figures) == {"photographs", "sweeps"}
    assert all(0 <= row["clean photo accuracy"] <= 1 and row["successes photographed"] >= 0 for row in found.rows)
    sheet = Sheet.load(tmp_path / "sheet")
    photographed(tmp_path / "sheet", tmp_path / "photos", sheet, [[1.15, 0, -20], [0, 1.15, -20], [0, 0, 1]])
    again = run(from_photo=str(tmp_path / "photos"), reference=False, sweep=False)
    assert [row["method"] for row in again.rows] == ["basic", "basic on real photographs"]
    assert again.rows[1]["photographs lost"] == 0
    options["eps"] = 0.1
    with pytest.raises(ConfigError, match="other pictures"):
        run(from_photo=str(tmp_path / "photos"), reference=False, sweep=False)
    with pytest.raises(ConfigError):
        Config(networks=("alexnet",))
