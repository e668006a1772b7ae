import pytest
import torch

from cambrian.audio.files import write
from cambrian.data.audio_files import load
from cambrian.errors import DataError


def folder(tmp_path, names, samples=1000, rate=4000):
    for i, name in enumerate(names):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, torch.full((samples,), (i + 1) / 100), rate)
    return tmp_path


NAMES = [f"{digit}_{who}_{take}.wav" for digit in (3, 7) for who in ("ann", "bob") for take in range(3)]


def test_names_give_text_and_speaker_and_files_stay_in_one_split(tmp_path):
    data = load(folder(tmp_path, NAMES), rate=4000, seconds=0.1)
    assert data.info["texts"] == ["3", "7"] and data.info["speakers"] == ["ann", "bob"] and data.info["files"] == 12
    files = {}
    for name in ("train", "valid", "test"):
        batch = data.split(name)[torch.arange(len(data.split(name)))]
        files[name] = set(batch["file"].tolist())
        for i, audio, length, text in zip(batch["file"], batch["audio"], batch["length"], batch["text"]):
            assert audio[: int(length)].mean() == pytest.approx((int(i) + 1) / 100, abs=1e-4)
            assert not audio[int(length) :].any() and NAMES[int(i)].startswith(data.info["texts"][int(text)])
    assert sum(map(len, files.values())) == len(set().union(*files.values())) == 12
    assert len(data.train) == 3 * len(files["train"])  # 1,000 samples are two clips of 400 and a tail


def test_whole_files_and_named_folders(tmp_path):
    data = load(folder(tmp_path, ["train/a.wav", "valid/b.wav", "test/c.wav"]), rate=4000, seconds=None)
    assert data.train[torch.tensor([0])]["audio"].shape == (1, 1000) and "text" not in data.train[torch.tensor([0])]


def test_meta_labels_and_contours(tmp_path):
    folder(tmp_path, ["a.wav", "b.wav", "c.wav"])
    for name in "abc":
        (tmp_path / f"{name}.lab").write_text("0.0 0.1 s\n0.1 0.2 ih\n")
        (tmp_path / f"{name}.f0.csv").write_text("0,0\n0.1,120\n")
    rows = "".join(f"{n}.wav,{n},{n}.lab,{n}.f0.csv\n" for n in "abc")
    (tmp_path / "meta.csv").write_text("file,speaker,phones,f0\n" + rows)
    data = load(tmp_path, rate=4000, seconds=0.25)
    batch = data.train[torch.tensor([0])]
    assert data.info["phones"] == ["ih", "s", "sil"]
    assert batch["phone"][0].tolist() == [1] * 10 + [0] * 10 + [2] * 5
    assert batch["f0"][0].tolist() == [0.0] * 10 + [120.0] * 15


def test_errors_name_the_record(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        load(tmp_path / "none", rate=4000)
    with pytest.raises(DataError, match="no sound file"):
        load(tmp_path, rate=4000)
    folder(tmp_path, ["a.wav", "b.wav"])
    with pytest.raises(DataError, match="2 sound files"):
        load(tmp_path, rate=4000)
    folder(tmp_path, ["c.wav"])
    with pytest.raises(DataError, match="4000 Hz where 8000"):
        load(tmp_path, rate=8000, resample=False)
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"c\.wav"):
        load(tmp_path, rate=4000)
    folder(tmp_path, ["c.wav"])
    (tmp_path / "meta.csv").write_text("file,text\nx.wav,hello\n")
    with pytest.raises(DataError, match=r"line 2: no sound file 'x\.wav'"):
        load(tmp_path, rate=4000)
    (tmp_path / "meta.csv").write_text("file,colour\na.wav,red\n")
    with pytest.raises(DataError, match="colour"):
        load(tmp_path, rate=4000)
    (tmp_path / "meta.csv").write_text("file,phones\n" + "".join(f"{n}.wav,x.lab\n" for n in "abc"))
    (tmp_path / "x.lab").write_text("0.0 later s\n")
    with pytest.raises(DataError, match=r"x\.lab line 1"):
        load(tmp_path, rate=4000)
