"""Scores from MusicXML (`.xml`, `.musicxml`, compressed `.mxl`) and MIDI files (`.mid`, `.midi`), as lists of notes.

A score is an integer array [n, 4] of (part, onset, duration, pitch), times in `TICKS` a quarter note, pitch as MIDI
numbers (60 = middle C), sorted by onset. Tied notes are one note, grace notes and percussion are left out, repeats are
played once. Both readers are written for hostile files: nothing is run, and sizes are limited.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cambrian.errors import DataError

TICKS = 24  # a quarter note; divides by 2, 3, 4, 6, 8
LOWEST, KEYS = 21, 88  # the piano's A0 to C8
SUFFIXES = (".mxl", ".xml", ".musicxml", ".mid", ".midi")
MOST_BYTES = 50_000_000
LONGEST = 1_000_000  # ticks, some six hours
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def read(path: Path) -> np.ndarray:
    """The notes [n, 4] of one file. Raises `DataError` naming the file for what cannot be read or holds no note."""
    try:
        if path.suffix.lower() in (".mid", ".midi"):
            notes = _midi(path.read_bytes())
        else:
            notes = _musicxml(_xml_bytes(path))
    except DataError:
        raise
    except (OSError, ValueError, LookupError, ArithmeticError, zipfile.BadZipFile, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read as a score ({type(error).__name__}: {error})") from None
    if not notes:
        raise DataError(f"{path} holds no note")
    found = np.array(notes, np.int64)
    ends = found[:, 1] + found[:, 2]
    if found[:, 1:].min() < 0 or found[:, 3].max() > 127 or ends.max() > LONGEST:
        raise DataError(
            f"{path} has a note outside of any score: times 0 to {ends.max()} ticks, pitches {found[:, 3].min()} to {found[:, 3].max()}"
        )
    return found[np.lexsort((found[:, 0], found[:, 1]))]


def roll(notes: np.ndarray, step: int) -> np.ndarray:
    """Which of the 88 piano keys sound at every `step`-th tick: uint8 [T, 88]; other pitches are left out."""
    held = notes[(notes[:, 3] >= LOWEST) & (notes[:, 3] < LOWEST + KEYS)]
    out = np.zeros((_steps(notes, step), KEYS), np.uint8)
    for _, onset, duration, pitch in held:
        out[-(-onset // step) : -(-(onset + duration) // step), pitch - LOWEST] = 1
    return out


def voices(notes: np.ndarray, step: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Pitch of each part at every `step`-th tick, int16 [T, parts] (0 = rest; the highest of several), and whether it
    begins there, bool [T, parts].
    """
    pitch = np.zeros((_steps(notes, step), parts), np.int16)
    begins = np.zeros(pitch.shape, bool)
    for part, onset, duration, number in notes[np.argsort(notes[:, 3], kind="stable")]:
        if part < parts:
            first, last = -(-onset // step), -(-(onset + duration) // step)
            pitch[first:last, part] = number
            begins[first:last, part] = False
            if last > first:
                begins[first, part] = True
    return pitch, begins


def _steps(notes: np.ndarray, step: int) -> int:
    return int(-(-(notes[:, 1] + notes[:, 2]).max() // step))


# -- MusicXML --------------------------------------------------------------------------------------------------------


def _xml_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".mxl":
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} is larger than {MOST_BYTES // 10**6} MB, which no score needs")
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith((".xml", ".musicxml")) and not n.startswith("META-INF")]
        if not names or archive.getinfo(names[0]).file_size > MOST_BYTES:
            raise DataError(f"{path} holds no score of at most {MOST_BYTES // 10**6} MB")
        return archive.read(names[0])


def _musicxml(text: bytes) -> list[tuple[int, int, int, int]]:
    root = ElementTree.fromstring(text)
    if root.tag != "score-partwise":
        raise ValueError(f"a MusicXML score must be score-partwise, not {root.tag}")
    return [note for number, part in enumerate(root.findall("part")) for note in _part(number, part)]


def _part(number: int, part: ElementTree.Element) -> list[tuple[int, int, int, int]]:
    notes: list[tuple[int, int, int, int]] = []
    open_ties: dict[int, int] = {}  # pitch -> place in `notes`
    now, divisions, shift, last = 0.0, 1.0, 0, 0.0
    for item in (item for measure in part.iter("measure") for item in measure):
        length = float(item.findtext("duration", "0")) * TICKS / divisions
        if item.tag == "attributes":
            divisions = float(item.findtext("divisions", str(divisions)))
            shift = int(item.findtext("transpose/chromatic", str(shift)))
        elif item.tag == "backup":
            now -= length
        elif item.tag == "forward":
            now += length
        elif item.tag == "note" and length:
            onset = last if item.find("chord") is not None else now
            last, now = onset, max(now, onset + length)
            pitch = item.find("pitch")
            if pitch is not None:
                _add(notes, open_ties, number, round(onset), round(length), _number(pitch) + shift, item)
    return notes


def _add(
    notes: list[tuple[int, int, int, int]], open_ties: dict[int, int], part: int, onset: int, length: int, pitch: int,
    item: ElementTree.Element,
) -> None:  # fmt: skip
    ties = {tie.get("type") for tie in item.findall("tie")}
    if "stop" in ties and pitch in open_ties:
        place = open_ties.pop(pitch)
        notes[place] = (part, notes[place][1], onset + length - notes[place][1], pitch)
    else:
        place = len(notes)
        notes.append((part, onset, length, pitch))
    if "start" in ties:
        open_ties[pitch] = place


def _number(pitch: ElementTree.Element) -> int:
    alter = round(float(pitch.findtext("alter", "0")))
    return 12 * (int(pitch.findtext("octave", "")) + 1) + _STEPS[pitch.findtext("step", "")] + alter


# -- MIDI ------------------------------------------------------------------------------------------------------------


def _midi(data: bytes) -> list[tuple[int, int, int, int]]:
    if data[:4] != b"MThd":
        raise ValueError("a MIDI file begins with MThd")
    header, division = int.from_bytes(data[4:8], "big"), int.from_bytes(data[12:14], "big")
    if division & 0x8000 or not division:
        raise ValueError("MIDI files timed in film frames are not read; give one timed in quarter notes")
    place, part, notes = 8 + header, 0, []
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "big")
        if kind == b"MTrk":
            found = _track(data[place + 8 : place + 8 + size], part, TICKS / division)
            notes += found
            part += bool(found)
        place += 8 + size
    return notes


def _track(data: bytes, part: int, scale: float) -> list[tuple[int, int, int, int]]:
    notes: list[tuple[int, int, int, int]] = []
    sounding: dict[tuple[int, int], int] = {}
    place, now, status = 0, 0, 0
    while place < len(data):
        wait, place = _varying(data, place)
        now += wait
        if data[place] & 0x80:
            status, place = data[place], place + 1
        if status in (0xFF, 0xF0, 0xF7):
            size, place = _varying(data, place + (status == 0xFF))
            place += size
            continue
        channel, first = status & 15, data[place]
        second = 0 if status >> 4 in (0xC, 0xD) else data[place + 1]
        place += 1 if status >> 4 in (0xC, 0xD) else 2
        if status >> 4 in (8, 9) and channel != 9:
            onset = sounding.pop((channel, first), None)
            if onset is not None and now > onset:
                notes.append((part, round(onset * scale), max(1, round((now - onset) * scale)), first))
            if status >> 4 == 9 and second:
                sounding[channel, first] = now
    return notes


def _varying(data: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for used in range(4):
        byte = data[place + used]
        value = value << 7 | byte & 127
        if byte < 128:
            return value, place + used + 1
    raise ValueError("a MIDI number is longer than four bytes")
