"""Sheets to print, and photographs of them: pairs of clean and attacked pictures between four ring marks.

A folder holds `sheet.json` (what stands where), `page-000.png` ..., and `sheet.pdf` with all pages. Photographs come back
as one image file per page, in page order; see `crop_photos`.

Lengths are in picture pixels, from the sheet's top left corner. Shapes: N pictures, C H W one picture.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cambrian.codec import files
from cambrian.errors import CambrianError, DataError, ShapeError
from cambrian.inspect.camera import LUMA
from cambrian.inspect.fiducials import homography, locate, mark, warp

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
FRACTIONS = (1.0, 0.87, 0.75, 0.65, 0.56, 0.48, 0.41, 0.35)  # of a photograph that the sheet may fill
LOOK = 900  # pixels along the longer side at which marks are looked for


@dataclass(frozen=True)
class Sheet:
    """Where `count` pairs of pictures `[channels, height, width]` stand, `columns` x `rows` pairs to a page."""

    channels: int
    height: int
    width: int
    count: int
    columns: int = 3
    rows: int = 6
    dots: int = 8  # printed dots per picture pixel
    fingerprint: str = ""  # of the pictures

    @property
    def gap(self) -> float:
        """Between pictures."""
        return self.width / 4

    @property
    def border(self) -> float:
        """Between the edge of the page and the pictures: room for the marks."""
        return max(self.size_inside) / 7

    @property
    def size_inside(self) -> tuple[float, float]:
        """Height and width of the block of pictures."""
        across = 2 * self.columns * (self.width + self.gap) - self.gap
        return self.rows * (self.height + self.gap) - self.gap, across

    @property
    def size(self) -> tuple[float, float]:
        """Height and width of a page."""
        height, width = self.size_inside
        return height + 2 * self.border, width + 2 * self.border

    @property
    def radius(self) -> float:
        """Of a mark."""
        return self.border / 5

    @property
    def pages(self) -> int:
        """How many pages all pairs take."""
        return math.ceil(self.count / (self.columns * self.rows))

    def marks(self) -> Tensor:
        """Centres `[1, 4, 2]`, clockwise from the top left."""
        edge, (h, w) = self.border / 2, self.size
        return torch.tensor([[edge, edge], [w - edge, edge], [w - edge, h - edge], [edge, h - edge]])[None]

    def place(self, pair: int, attacked: bool) -> tuple[int, float, float]:
        """Page, left and top of one picture."""
        page, rest = divmod(pair, self.columns * self.rows)
        row, column = divmod(rest, self.columns)
        left = self.border + (2 * column + attacked) * (self.width + self.gap)
        return page, left, self.border + row * (self.height + self.gap)

    def save(self, folder: Path) -> None:
        files.replace_json(folder / "sheet.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Sheet:
        """Read `sheet.json` of a folder. Raises `DataError` for a missing or foreign file."""
        path = folder / "sheet.json"
        try:
            read = cls(**files.load_json(path))
            sizes = [read.channels, read.height, read.width, read.count, read.columns, read.rows, read.dots]
            if not all(isinstance(size, int) and 1 <= size <= 10_000 for size in sizes) or read.channels not in (1, 3):
                raise DataError("its sizes are out of range")
            return read
        except (OSError, TypeError, ValueError, CambrianError) as problem:
            raise DataError(f"{path} is not the description of a printed sheet: {problem}") from problem


def print_sheet(x: Tensor, x_adv: Tensor, folder: Path, *, columns: int = 3, rows: int = 6, dots: int = 8) -> Sheet:
    """Write sheets of pairs `x`, `x_adv [N, 1|3, H, W]` in [0, 1] to `folder`: PNG pages, one PDF, the description.

    Pixels are written losslessly as 8-bit levels, each as a square of `dots` x `dots`.
    """
    if x.shape != x_adv.shape or x.dim() != 4 or x.shape[1] not in (1, 3) or not len(x):
        raise ShapeError(f"a sheet takes two equal batches [N, 1|3, H, W], got {list(x.shape)} and {list(x_adv.shape)}")
    folder.mkdir(parents=True, exist_ok=True)
    channels, height, width = x.shape[1:]
    sheet = Sheet(channels, height, width, len(x), columns, rows, dots, fingerprint(x, x_adv))
    pages = [_page(sheet, number, x, x_adv) for number in range(sheet.pages)]
    pictures = [Image.fromarray(page.numpy()) for page in pages]
    for number, picture in enumerate(pictures):
        picture.save(folder / f"page-{number:03d}.png")
    pictures[0].save(folder / "sheet.pdf", save_all=True, append_images=pictures[1:], resolution=300)
    sheet.save(folder)
    return sheet


def fingerprint(x: Tensor, x_adv: Tensor) -> str:
    """A hash of the 8-bit levels of both batches."""
    levels = torch.cat([x, x_adv]).detach().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)
    return hashlib.sha256(levels.contiguous().numpy().tobytes()).hexdigest()[:16]


def _page(sheet: Sheet, number: int, x: Tensor, x_adv: Tensor) -> Tensor:
    dots, (height, width) = sheet.dots, (round(side * sheet.dots) for side in sheet.size)
    page = torch.full((3, height, width), 255, dtype=torch.uint8)
    half = math.ceil(sheet.radius * dots) + 2
    for corner, (u, v) in enumerate((sheet.marks()[0] * dots).tolist()):
        left, top = round(u) - half, round(v) - half
        stamp = mark(sheet.radius * dots, corner > 0, 2 * half, (u - left, v - top))
        page[:, top : top + 2 * half, left : left + 2 * half] = (255 * stamp).round().to(torch.uint8)
    for pair in range(sheet.count):
        for attacked, batch in ((False, x), (True, x_adv)):
            on, left, top = sheet.place(pair, attacked)
            if on == number:
                levels = (batch[pair].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
                large = levels.repeat_interleave(dots, 1).repeat_interleave(dots, 2)
                at_y, at_x = round(top * dots), round(left * dots)
                page[:, at_y : at_y + large.shape[1], at_x : at_x + large.shape[2]] = large
    return page.permute(1, 2, 0).contiguous()


def crop_photos(folder: Path, sheet: Sheet | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and attacked pictures `[N, C, H, W]` cut out of the photographs in `folder`, and `[N]` whether their page
    was found.

    `sheet` is read from the folder's `sheet.json` by default. There must be one image file per page, sorted by name in
    page order; the page may be turned in steps of 90 degrees and must fill a third of the picture. Raises `DataError`
    naming the file that cannot be read.
    """
    sheet = sheet or Sheet.load(folder)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS)
    if len(paths) != sheet.pages:
        raise DataError(f"{folder} must hold one photograph for each of {sheet.pages} pages, it has {len(paths)}")
    shape = (sheet.count, sheet.channels, sheet.height, sheet.width)
    clean, moved, found = torch.zeros(shape), torch.zeros(shape), torch.zeros(sheet.count, dtype=torch.bool)
    for number, path in enumerate(paths):
        picture = _read(path)
        view = find_page(picture, sheet)
        if view is None:
            continue
        for pair in range(sheet.count):
            for attacked, batch in ((False, clean), (True, moved)):
                on, left, top = sheet.place(pair, attacked)
                if on == number:
                    batch[pair] = _cut(picture, view, sheet, left, top)
                    found[pair] = True
    return clean, moved, found


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as problem:
        raise DataError(f"{path} cannot be read as a photograph: {problem}") from problem
    levels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return levels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 255


def find_page(picture: Tensor, sheet: Sheet) -> Tensor | None:
    """The map `[1, 3, 3]` from a sheet (in picture pixels) to the photograph `[3, H, W]` of it; None when its marks are
    not seen at any size.
    """
    grey = torch.einsum("c,chw->hw", picture.new_tensor(LUMA), picture)
    shrink = max(1.0, max(grey.shape) / LOOK)
    size = [round(side / shrink) for side in grey.shape]
    small = F.interpolate(grey[None, None], size=size, mode="area")[0] if shrink > 1 else grey[None]
    best, view = 0.0, None
    scale = picture.new_tensor([grey.shape[1] / size[1], grey.shape[0] / size[0]])
    for fraction in FRACTIONS:
        radius = fraction * max(size) / max(sheet.size) * sheet.radius
        if radius < 3:
            break
        centres, score = locate(small, radius)
        if float(score) > best:
            best, view = float(score), homography(sheet.marks(), centres * scale)
    return view


def _cut(picture: Tensor, view: Tensor, sheet: Sheet, left: float, top: float) -> Tensor:
    fine = max(1, round(max(picture.shape) / max(sheet.size)))
    base = view.new_tensor([[1 / fine, 0, left], [0, 1 / fine, top], [0, 0, 1]])
    large = warp(picture[None], view @ base, (sheet.height * fine, sheet.width * fine))
    cut = F.avg_pool2d(large, fine)
    cut = cut if sheet.channels == 3 else torch.einsum("c,bchw->bhw", cut.new_tensor(LUMA), cut)[:, None]
    return cut[0]
