"""How far what was written is from what should have been: Levenshtein's distance, with the pairs behind it.

Sequences are any that index and compare: strings, lists of words or of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Pair = tuple[int | None, int | None]


def table(reference: Sequence[Any], written: Sequence[Any]) -> list[list[int]]:
    """Distances between all beginnings of the two: [len(reference) + 1][len(written) + 1]."""
    rows = [list(range(len(written) + 1))]
    for i, wanted in enumerate(reference, 1):
        above, row = rows[-1], [i]
        for j, found in enumerate(written, 1):
            row.append(min(above[j - 1] + (wanted != found), above[j] + 1, row[j - 1] + 1))
        rows.append(row)
    return rows


def distance(reference: Sequence[Any], written: Sequence[Any]) -> int:
    """The fewest substitutions, insertions and deletions that turn one into the other."""
    return table(reference, written)[-1][-1]


def pairs(reference: Sequence[Any], written: Sequence[Any]) -> list[Pair]:
    """A cheapest alignment, in order: (i, j) for a match or substitution, (i, None) deleted, (None, j) inserted."""
    rows, i, j = table(reference, written), len(reference), len(written)
    found: list[Pair] = []
    while i or j:
        if i and j and rows[i][j] == rows[i - 1][j - 1] + (reference[i - 1] != written[j - 1]):
            i, j = i - 1, j - 1
            found.append((i, j))
        elif i and rows[i][j] == rows[i - 1][j] + 1:
            i -= 1
            found.append((i, None))
        else:
            j -= 1
            found.append((None, j))
    return found[::-1]


def error_rate(both: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> float:
    """Errors per symbol of the references, over all (reference, written): above 1 when much is inserted.

    NaN where the references are empty.
    """
    errors = length = 0
    for reference, written in both:
        errors += distance(reference, written)
        length += len(reference)
    return errors / length if length else float("nan")
