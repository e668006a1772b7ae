from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from cambrian.data import music_files
from cambrian.errors import DataError

NOTE = (
    "<note>{chord}<pitch><step>{step}</step><octave>{octave}</octave></pitch><duration>{length}</duration>{tie}</note>"
)


def note(step: str, octave: int, length: object, *, chord: bool = False, tie: str = "") -> str:
    ties = "".join(f'<tie type="{t}"/>' for t in tie.split())
    return NOTE.format(step=step, octave=octave, length=length, chord="<chord/>" if chord else "", tie=ties)


def score(*parts: str) -> bytes:
    made = (f"<part><measure><attributes><divisions>2</divisions></attributes>{p}</measure></part>" for p in parts)
    return f"<score-partwise>{''.join(made)}</score-partwise>".encode()


def read(folder: Path, payload: bytes, name: str = "a.xml") -> np.ndarray:
    (folder / name).write_bytes(payload)
    return music_files.read(folder / name)


def test_musicxml_by_hand(tmp_path: Path) -> None:
    upper = note("C", 4, 2, tie="start") + note("C", 4, 1, tie="stop") + "<note><rest/><duration>1</duration></note>"
    upper += note("D", 4, 2) + note("F", 4, 2, chord=True)
    lower = note("A", 0, 4) + "<backup><duration>2</duration></backup>" + note("B", 2, 2)
    notes = read(tmp_path, score(upper, lower))
    assert notes.tolist() == [
        [0, 0, 36, 60],
        [1, 0, 48, 21],
        [1, 24, 24, 47],
        [0, 48, 24, 62],
        [0, 48, 24, 65],
    ]
    with zipfile.ZipFile(tmp_path / "b.mxl", "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("b.xml", score(upper, lower))
    assert np.array_equal(music_files.read(tmp_path / "b.mxl"), notes)


def test_rolls_and_voices_by_hand() -> None:
    notes = np.array([[0, 0, 36, 60], [1, 0, 48, 21], [0, 36, 12, 60], [0, 48, 24, 62], [0, 48, 24, 65], [0, 0, 24, 5]])
    quarter = music_files.roll(notes, 24)
    assert [np.flatnonzero(row).tolist() for row in quarter] == [[0, 39], [0, 39], [41, 44]]
    pitch, begins = music_files.voices(notes[:5], 24, 2)
    assert pitch.tolist() == [[60, 21], [60, 21], [65, 0]]
    assert begins.tolist() == [[True, True], [False, False], [True, False]]
    pitch, begins = music_files.voices(notes[:5], 12, 2)
    assert begins[:, 0].tolist() == [True, False, False, True, True, False]


def midi(events: bytes, division: int = 96) -> bytes:
    track = events + b"\x00\xff\x2f\x00"
    return b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + division.to_bytes(2, "big") + (
        b"MTrk" + len(track).to_bytes(4, "big") + track
    )  # fmt: skip


def test_midi_by_hand(tmp_path: Path) -> None:
    events = b"\x00\xff\x03\x02hi" + b"\x00\xc0\x05" + b"\x00\x90\x3c\x40" + b"\x60\x3c\x00"  # running status ends it
    events += b"\x00\x99\x24\x40\x00\x89\x24\x40" + b"\x81\x40\x90\x40\x40" + b"\x30\x80\x40\x00"  # drums left out
    notes = read(tmp_path, midi(events), "a.mid")
    assert notes.tolist() == [[0, 0, 24, 60], [0, 72, 12, 64]]


def test_bad_scores_are_named(tmp_path: Path) -> None:
    for name, payload in (
        ("a.xml", b"<score-partwise>"),
        ("b.xml", b"<score-timewise/>"),
        ("c.xml", score()),
        ("d.xml", score(note("H", 4, 2))),
        ("e.xml", score(note("C", 44, 2))),
        ("k.xml", score(note("C", 4, "inf"))),
        ("l.xml", score(note("C", 4, 2)).replace(b"<divisions>2", b"<divisions>0")),
        ("m.xml", score("<backup><duration>4</duration></backup>" + note("C", 4, 2))),
        ("n.xml", score(note("C", 4, 10**9))),
        ("f.mxl", b"no zip"),
        ("g.mid", b"RIFF" + bytes(20)),
        ("h.mid", midi(b"\x00\x90\x3c")[:-4]),
        ("i.mid", midi(b"\xff\xff\xff\xff\xff\x90\x3c\x40")),
        ("j.mid", midi(b"", division=0x8001)),
    ):
        with pytest.raises(DataError, match=name):
            read(tmp_path, payload, name)
    with pytest.raises(DataError):
        music_files.read(tmp_path / "none.xml")
