"""Reading pictures: every layout, every way in which a record can be bad, and what the pixels become."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cambrian.data import images
from cambrian.data.image_files import split_of
from cambrian.data.pixels import decode
from cambrian.data.source import Source
from cambrian.errors import DataError, MissingExtraError, ShapeError


def png(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    """A picture of one colour."""
    colour = value if mode in ("L", "I;16") else (value, 10, 200) if mode == "RGB" else (value, 10, 200, 0)
    return encoded(Image.new(mode, size, colour))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


def fill(root: Path, classes: dict[str, int], mode: str = "L", size: tuple[int, int] = (8, 8)) -> Path:
    """A folder a class, each picture of another grey level."""
    level = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:03d}.png").write_bytes(png(level % 256, size, mode))
            level += 1
    return root


def levels(part: object) -> set[int]:
    return {int(image[0, 0, 0]) for image in part.fields["image"]}


def test_class_folders_are_split_by_class_and_seed(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", {"cat": 40, "dog": 20})
    data = images.load(root)
    assert data.name == "pets" and data.info == {"shape": (1, 8, 8), "classes": ["cat", "dog"], "scale": 255}
    assert data.train.fields["image"].dtype == torch.uint8 and data.train.fields["label"].dtype == torch.int64
    parts = [levels(part) for part in (data.train, data.valid, data.test)]
    assert set.union(*parts) == set(range(60)) and sum(map(len, parts)) == 60  # each picture in one split
    assert torch.bincount(data.test.fields["label"]).tolist() == [4, 2]
    assert levels(images.load(Source("path", str(root))).test) == parts[2]
    assert levels(images.load(root, seed=7).test) != parts[2]
    assert all((level < 40) == (label == 0) for level, label in _pairs(data.train))


def _pairs(part: object) -> list[tuple[int, int]]:
    return [(int(x[0, 0, 0]), int(y)) for x, y in zip(part.fields["image"], part.fields["label"], strict=True)]


def test_given_splits_are_kept(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 5, "b": 5})
    fill(tmp_path / "val", {"a": 2, "b": 2})
    fill(tmp_path / "test", {"a": 3, "b": 1})
    data = images.load(tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (10, 4, 4)
    assert data.test.fields["label"].tolist() == [0, 0, 0, 1]


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    data = images.load(tmp_path)
    assert data.info["classes"] == [] and not data.train.fields["label"].any()
    assert (len(data.train), len(data.valid), len(data.test)) == (24, 3, 3)


def table(path: Path, labels: list[object], column: str = "image", names: list[str] | None = None) -> None:
    """A parquet table as the Hub writes it; grey level = row."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    cells = [{"bytes": png(row), "path": None} for row in range(len(labels))]
    content = pyarrow.table({column: cells, "label": labels})
    if names:
        text = json.dumps({"info": {"features": {"label": {"names": names}}}})
        content = content.replace_schema_metadata({"huggingface": text})
    parquet.write_table(content, path)


def test_parquet_tables(tmp_path: Path) -> None:
    table(tmp_path / "train-00000-of-00002.parquet", [0, 1] * 10, "img", names=["cat", "dog"])
    table(tmp_path / "train-00001-of-00002.parquet", [1, 0] * 10, "img", names=["cat", "dog"])
    table(tmp_path / "test.parquet", [1, 1, 0], "img", names=["cat", "dog"])
    data = images.load(tmp_path)
    assert data.info["classes"] == ["cat", "dog"] and (len(data.train), len(data.valid), len(data.test)) == (36, 4, 3)
    assert data.test.fields["label"].tolist() == [1, 1, 0]
    one = images.load(tmp_path / "train-00000-of-00002.parquet", size=4, channels=3)
    assert one.info["shape"] == (3, 4, 4) and (len(one.train), len(one.valid), len(one.test)) == (16, 2, 2)


def test_parquet_without_names_keeps_numbers_in_order(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", [10, 9, 2] * 4)
    assert images.load(tmp_path / "train.parquet").info["classes"] == ["2", "9", "10"]


def test_a_changed_table_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    table(path, [0, 1] * 10)
    assert len(images.load(path).train) == 16
    table(path, [0, 1] * 20)
    os.utime(path, ns=(1, 1))
    assert len(images.load(path).train) == 32


@pytest.mark.parametrize(("label", "message"), [(None, "row 2: the label is missing"), (-1, "row 2: the label"), (5, "row 2: label 5")])  # fmt: skip
def test_bad_labels_in_a_table(tmp_path: Path, label: object, message: str) -> None:
    table(tmp_path / "train.parquet", [0, 1, label, 0, 1], names=["cat", "dog"])
    with pytest.raises(DataError, match=message):
        images.load(tmp_path)


def test_damaged_tables(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"train.parquet: not a parquet table"):
        images.load(tmp_path)
    table(tmp_path / "train.parquet", [0, 1], "scan")
    with pytest.raises(DataError, match="no column of pictures"):
        images.load(tmp_path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"cambrian\[data\]"):
        images.load(tmp_path)


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = lambda tag, body: struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))  # noqa: E731
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(3, (64, 64), "RGB")[:-40], "truncated or damaged"),
        (b"", "holds no bytes"),
        (b"GIF89a is what it says", "not a picture|truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture"),
        (bomb(), "decompression bomb|exceeds limit"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    fill(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "dog" / "odd one.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"dog.odd one\.png: .*({message})"):
        images.load(tmp_path)


def test_mixed_sizes_need_a_size(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 5})
    fill(tmp_path / "more", {"x": 1})
    (tmp_path / "more" / "x").rename(tmp_path / "dog")
    (tmp_path / "more").rmdir()
    (tmp_path / "dog" / "wide.png").write_bytes(png(9, (20, 10)))
    with pytest.raises(DataError, match=r"dog.wide\.png: 10x20 pixels .*pass size="):
        images.load(tmp_path)
    assert images.load(tmp_path, size=16).info["shape"] == (1, 16, 16)


def test_folders_that_cannot_be_learned_from(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture found"):
        images.load(tmp_path / "empty")
    fill(tmp_path / "lonely", {"cat": 6, "dog": 1})
    with pytest.raises(DataError, match="class 'dog' has one sample"):
        images.load(tmp_path / "lonely")
    (tmp_path / "lonely" / "dog" / "000.png").unlink()
    with pytest.raises(DataError, match="dog: the class folder holds no picture"):
        images.load(tmp_path / "lonely")
    fill(tmp_path / "loose", {"cat": 6})
    (tmp_path / "loose" / "stray.png").write_bytes(png())
    with pytest.raises(DataError, match=r"stray\.png: a picture beside class folders"):
        images.load(tmp_path / "loose")
    fill(tmp_path / "untrained" / "train", {"cat": 3})
    fill(tmp_path / "untrained" / "test", {"dog": 3})
    with pytest.raises(DataError, match="class 'dog' has no sample in the training split"):
        images.load(tmp_path / "untrained")


@pytest.mark.parametrize("wrong", ["/no/such/place", Source("world", "glyphs")])
def test_sources_that_are_no_pictures(wrong: object) -> None:
    with pytest.raises(DataError, match=r"no file or folder|embedded"):
        images.load(wrong)


def test_modes_become_grey_or_rgb() -> None:
    assert decode(png(7, mode="RGB"), "x").shape == (3, 8, 8)
    assert decode(png(7), "x").shape == (1, 8, 8) and decode(png(7), "x", channels=3).shape == (3, 8, 8)
    assert (decode(png(7, mode="RGBA"), "x") == 255).all()  # fully transparent: the white below shows
    deep = encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)))
    assert (decode(deep, "x") == 255).all()  # 16 bits are scaled, not clipped
    half = encoded(Image.fromarray(np.full((4, 4), 32896, np.uint16)))
    assert (decode(half, "x") == 128).all()


def test_sizes_average_or_interpolate() -> None:
    stripes = np.tile(np.array([0, 200], np.uint8), (8, 4))
    assert (decode(encoded(Image.fromarray(stripes)), "x", size=4) == 100).all()  # shrinking takes means
    edge = np.repeat(np.array([[0, 0, 200, 200]], np.uint8), 4, axis=0)
    larger = decode(encoded(Image.fromarray(edge)), "x", size=16)[0, 8]
    assert (np.diff(larger.astype(int)) >= 0).all() and len(np.unique(larger)) > 3  # enlarging ramps, no blocks
    wide = decode(encoded(Image.fromarray(np.repeat([[9, 50, 50, 9]], 2, axis=0).astype(np.uint8))), "x", size=2)
    assert (wide == 50).all()  # the centre square


def test_exif_orientation_is_obeyed() -> None:
    picture = Image.new("L", (6, 4))
    stream = io.BytesIO()
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(stream, "JPEG", exif=exif)
    assert decode(stream.getvalue(), "x").shape == (1, 6, 4)


def test_grey_and_coloured_together_become_rgb(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"grey": 5})
    fill(tmp_path / "b", {"red": 5}, mode="RGB")
    (tmp_path / "b" / "red").rename(tmp_path / "a" / "red")
    assert images.load(tmp_path / "a").info["shape"] == (3, 8, 8)


def test_unit_and_signed() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8)
    assert images.unit(pixels).tolist() == [0.0, 1.0] and images.signed(pixels).tolist() == [-1.0, 1.0]
    with pytest.raises(ShapeError, match="must be uint8"):
        images.unit(images.unit(pixels))


def test_split_names() -> None:
    assert split_of("train-00000-of-00001-abc") == "train" and split_of("validation") == "valid"
    assert split_of("trainer") is None


class FakeHub(types.ModuleType):
    """Stands for the `datasets` library: one set with a train and a test part."""

    class Part(list):
        column_names = ("img", "label")

        def __init__(self, rows: list[dict[str, object]]) -> None:
            super().__init__(rows)
            self.features = {"label": types.SimpleNamespace(names=["cat", "dog"])}

        def cast_column(self, column: str, feature: object) -> FakeHub.Part:
            assert column == "img" and feature == "undecoded"
            return self

    @staticmethod
    def Image(*, decode: bool) -> str:
        return "decoded" if decode else "undecoded"

    @classmethod
    def load_dataset(cls, name: str) -> dict[str, FakeHub.Part]:
        if name != "owner/pets":
            raise ConnectionError("offline")
        row = lambda n: {"img": {"bytes": png(n), "path": None}, "label": n % 2}  # noqa: E731
        return {"train": cls.Part([row(n) for n in range(20)]), "test": cls.Part([row(n) for n in range(4)])}


def test_hub_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub("datasets"))
    data = images.load(Source("hub", "owner/pets"))
    assert data.info["classes"] == ["cat", "dog"] and (len(data.train), len(data.test)) == (18, 4)
    with pytest.raises(DataError, match=r"owner/none: not a data set of the Hub .*offline"):
        images.load("hub:owner/none")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"cambrian\[data\]"):
        images.load("hub:owner/pets")


@pytest.mark.skipif("CAMBRIAN_DATA" not in os.environ, reason="CAMBRIAN_DATA is unset: no real tables to read")
def test_real_mnist_table() -> None:
    data = images.load(Path(os.environ["CAMBRIAN_DATA"]) / "mnist-10k")
    assert data.info["shape"] == (1, 28, 28) and len(data.test) == 2000 and data.info["classes"] == list("0123456789")
