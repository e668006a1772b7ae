"""What the VGG paper does with a trained network beside training it: dense and multi-crop evaluation, pre-initialisation
from a shallower network, localisation; and reading weights in torchvision's layout.

Shapes: B batch, C channels, H W pixels, K classes, Q the shorter side at a test scale.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cambrian.codec import tensors
from cambrian.errors import CapabilityError, CheckpointError, ConfigError, ShapeError
from cambrian.nn.zoo.vgg import VGG

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect


def vgg(
    plan: str = "D", *, bn: bool = False, width: float = 1.0, classes: int = 1000, head: str = "fc", **arguments: object
) -> VGG:
    """A network of the family by its letter: `vgg("D")` is VGG-16; `arguments` as in `cambrian.nn.zoo.VGG`."""
    return VGG(plan=plan, bn=bn, width=width, classes=classes, head=head, **arguments)  # type: ignore[arg-type]


def to_fully_conv(model: VGG) -> nn.Sequential:
    """A copy that slides over any larger image: `[B, C, H, W]` -> score map `[B, K, h, w]`.

    The first FC layer becomes a convolution with a kernel of the map's size, the others 1x1 (section 3.2). The flattened
    order is channel, row, column, so the weights are only viewed anew: at the trained size both nets are the same.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(normalise=copy.deepcopy(model.normalise))
    layers.update((name, copy.deepcopy(layer)) for name, layer in model.body.named_children())
    kernel = model.final_size if model.head == "fc" else 1
    for name, layer in model.classifier.named_children():
        if isinstance(layer, nn.Linear):
            conv = nn.Conv2d(layer.in_features // kernel**2, layer.out_features, kernel)
            conv.weight = nn.Parameter(layer.weight.detach().view_as(conv.weight).clone())
            conv.bias = nn.Parameter(layer.bias.detach().clone())
            layers[name], kernel = conv, 1
        elif isinstance(layer, nn.ReLU | nn.Dropout):
            layers[name] = copy.deepcopy(layer)
    return nn.Sequential(layers).train(model.training)


def rescale(x: Tensor, side: int) -> Tensor:
    """Bring the shorter side to `side` pixels, keeping the aspect ratio (bilinear, antialiased)."""
    height, width = x.shape[2:]
    factor = side / min(height, width)
    size = (round(height * factor), round(width * factor))
    return x if size == (height, width) else F.interpolate(x, size, mode="bilinear", antialias=True)


@torch.no_grad()
def dense_predict(model: VGG, x: Tensor, *, scales: Sequence[int] | None = None, flips: bool = True) -> Tensor:
    """Class probabilities `[B, K]` of whole images `[B, C, H, W]` in [0, 1], H and W free (section 3.2).

    At each scale Q the fully convolutional network slides over the whole image, its score map is averaged over space, and
    the soft-max posteriors are averaged over scales and mirror images, which go through the network as one batch.
    `scales` are sizes of the shorter side (default: the trained size).
    """
    _check_scales(scales, model.size)
    network = to_fully_conv(model).eval()
    total: list[Tensor] = []
    for side in scales or (model.size,):
        views = rescale(x, side)
        both = torch.cat([views, views.flip(-1)]) if flips else views
        total += network(both).mean((2, 3)).softmax(1).split(len(x))
    return torch.stack(total).mean(0)


@torch.no_grad()
def multi_crop_predict(
    model: VGG, x: Tensor, *, scales: Sequence[int] | None = None, grid: int = 5, flips: bool = True
) -> Tensor:
    """Class probabilities `[B, K]`, averaged over a regular `grid` x `grid` of crops at each scale and their mirror images.

    The paper's 50 crops a scale; its best figures average this with `dense_predict` (table 5).
    """
    _check_scales(scales, model.size)
    training, size, total = model.training, model.size, []
    model.eval()
    for side in scales or (size,):
        views = rescale(x, side)
        tops = torch.linspace(0, views.shape[2] - size, grid).round().long().unique().tolist()
        lefts = torch.linspace(0, views.shape[3] - size, grid).round().long().unique().tolist()
        for top, left in ((top, left) for top in tops for left in lefts):
            crop = views[:, :, top : top + size, left : left + size]
            both = torch.cat([crop, crop.flip(-1)]) if flips else crop
            total += model(both).softmax(1).split(len(x))
    model.train(training)
    return torch.stack(total).mean(0)


def _check_scales(scales: Sequence[int] | None, size: int) -> None:
    if scales is not None and (not scales or min(scales) < size):
        raise ConfigError(f"scales must be sides of at least the trained {size} pixels, not {tuple(scales)}")


@torch.no_grad()
def init_from(shallow: VGG, deep: VGG) -> list[str]:
    """Start a deep net from a trained shallow one: its first four convolutions and its FC layers, by name (section 3.1).

    Batch norms go with their convolutions. Returns the copied layers' names; raises `CapabilityError` where a shape differs.
    """
    convs = [name for name, layer in shallow.body.named_children() if isinstance(layer, nn.Conv2d)][:4]
    names = [f"body.{name}" for name in convs]
    names += [f"body.{name.replace('conv', 'bn')}" for name in convs if name.replace("conv", "bn") in dict(shallow.body.named_children())]  # fmt: skip
    names += [
        f"classifier.{name}" for name, layer in shallow.classifier.named_children() if isinstance(layer, nn.Linear)
    ]
    own, given = deep.state_dict(), shallow.state_dict()
    for key, value in given.items():
        if key.rpartition(".")[0] not in names:
            continue
        if key not in own or own[key].shape != value.shape:
            found = list(own[key].shape) if key in own else "nothing"
            raise CapabilityError(
                f"{key}: the shallow net has {list(value.shape)}, the deep one {found}; use equal widths"
            )
        own[key].copy_(value)
    return names


def import_torchvision(model: VGG, weights: str | Path | Mapping[str, Tensor], *, bgr: bool = False) -> None:
    """Load weights in the layout `features.0.weight ... classifier.6.bias` into a full VGG, in place.

    `weights` is a state dict, a .safetensors file, or a folder with model.safetensors; nothing is downloaded. Build the
    model with the normalisation that they were trained with (torchvision: `mean=IMAGENET_MEAN, std=IMAGENET_STD`); `bgr`
    turns the first layer for weights of networks that saw blue first (Caffe's: mean (123.68, 116.78, 103.94) / 255 in RGB
    order and std 1 / 255). A convolution's bias under batch norm is absorbed exactly into the running mean.
    Raises `CheckpointError` naming the first tensor that is missing, left over or of another shape.
    """
    given = dict(weights) if isinstance(weights, Mapping) else tensors.load(_weight_file(Path(weights)))
    names = _torchvision_names(model)
    own = model.state_dict()
    found = {names[key]: value for key, value in given.items() if key in names}
    unknown = sorted(set(given) - set(names))
    biases = {key: value for key, value in given.items() if key in unknown and _under_norm(model, key)}
    for key in sorted(set(unknown) - set(biases)):
        raise CheckpointError(f"tensor {key!r} does not belong to VGG {model.plan}; build the plan the weights are of")
    for key, value in own.items():
        if key not in found and not key.endswith("num_batches_tracked"):
            raise CheckpointError(f"the weights lack {key!r} of VGG {model.plan}; build the plan the weights are of")
        if key in found and found[key].shape != value.shape:
            raise CheckpointError(f"{key}: the weights have {list(found[key].shape)}, the model {list(value.shape)}")
    for key, bias in biases.items():
        mean = names[f"features.{int(key.split('.')[1]) + 1}.running_mean"]
        found[mean] = found[mean] - bias
    if bgr:
        found["body.conv1_1.weight"] = found["body.conv1_1.weight"].flip(1)
    model.load_state_dict(found, strict=False)


def _weight_file(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def _torchvision_names(model: VGG) -> dict[str, str]:
    """Torchvision's key for each of the model's own."""
    layers = [name for name, layer in model.body.named_children() if not isinstance(layer, nn.LocalResponseNorm)]
    place = {f"body.{name}": f"features.{number}" for number, name in enumerate(layers)}
    place |= {"classifier.fc6": "classifier.0", "classifier.fc7": "classifier.3", "classifier.fc8": "classifier.6"}
    keys = (key.rpartition(".") for key in model.state_dict())
    return {f"{place[layer]}.{field}": f"{layer}.{field}" for layer, _, field in keys if layer in place}


def _under_norm(model: VGG, key: str) -> bool:
    """Whether a key is the bias of a convolution that is followed by batch norm."""
    parts = key.split(".")
    layers = [layer for _, layer in model.body.named_children()]
    if len(parts) != 3 or parts[0] != "features" or parts[2] != "bias" or not parts[1].isdecimal():
        return False
    number = int(parts[1])
    return number + 1 < len(layers) and isinstance(layers[number + 1], nn.BatchNorm2d)


def to_localiser(model: VGG, *, per_class: bool = True) -> VGG:
    """A copy that gives boxes instead of scores: `[B, 4 K]` (one box a class) or `[B, 4]` (section A.1, per-class regression).

    A box is centre x, centre y, width, height as fractions of the picture; the last layer starts at its middle.
    """
    model = copy.deepcopy(model)
    last = model.classifier.fc8
    boxes = last.out_features if per_class else 1
    model.classifier.fc8 = nn.Linear(last.in_features, 4 * boxes)
    nn.init.normal_(model.classifier.fc8.weight, 0.0, 0.01)
    with torch.no_grad():
        model.classifier.fc8.bias.copy_(torch.full((4 * boxes,), 0.5))
    return model


def boxes_of(output: Tensor, label: Tensor) -> Tensor:
    """The boxes `[B, 4]` of classes `label` [B] in a localiser's output `[B, 4 K]`, or its only box `[B, 4]`."""
    if output.ndim != 2 or output.shape[1] % 4 or len(output) != len(label):
        raise ShapeError(
            f"boxes [B, 4 K] and labels [B] are expected, not {list(output.shape)} and {list(label.shape)}"
        )
    boxes = output.view(len(output), -1, 4)
    return boxes[:, 0] if boxes.shape[1] == 1 else boxes[torch.arange(len(label), device=label.device), label]


def box_loss(output: Tensor, label: Tensor, box: Tensor) -> Tensor:
    """Squared Euclidean distance between the predicted and the true box `[B, 4]`, mean over the batch."""
    return (boxes_of(output, label) - box).square().sum(1).mean()
