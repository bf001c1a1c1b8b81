"""Pairs as numbers, to train on: in memory, or in files of any size that are read where they lie.

Source n is its words alone; target n begins with BOS and ends with EOS, so that a decoder reads all but its last and is
asked for all but its first. Which way the source is read is a property of the data: `reversed_source`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.translation.pairs import Lazy, Pairs
from experiments.translation.vocabulary import BOS, EOS, Vocabularies, Vocabulary

WRITTEN = 10_000  # pairs at once


class Encoded(NamedTuple):
    """Rows of numbers, int32; `Sequences(encoded._asdict())` makes batches of them."""

    source: Sequence[np.ndarray]
    target: Sequence[np.ndarray]


@dataclass
class LeftOut:
    """How many pairs were not kept, and why; `first` tells of the first."""

    pairs: int = 0
    empty: int = 0
    over: int = 0
    first: str = ""

    def __str__(self) -> str:
        if not self.empty + self.over:
            return f"all {self.pairs} pairs are kept"
        return f"{self.over} too long and {self.empty} empty of {self.pairs} pairs are left out; first {self.first}"


def encoded(pairs: Pairs, vocabularies: Vocabularies, *, limit: int) -> tuple[Encoded, LeftOut]:
    """The pairs of which no side is empty or longer than `limit` numbers, BOS and EOS not counted; and how many others.

    Raises ValueError where none is left, naming the first.
    """
    left_out = LeftOut()
    kept = list(_kept(pairs, vocabularies, limit, left_out))
    return Encoded([source for source, _ in kept], [target for _, target in kept]), left_out


def whole(pairs: Pairs, vocabularies: Vocabularies, *, limit: int) -> Encoded:
    """All pairs, of which none may be left out: to test on. Raises ValueError, naming the line, where one is over."""
    numbers, left_out = encoded(pairs, vocabularies, limit=limit)
    if left_out.over + left_out.empty:
        raise ValueError(f"{left_out.first}; give a limit that holds all, or leave it out")
    return numbers


def sentence(text: str, vocabulary: Vocabulary, *, limit: int, where: str) -> np.ndarray:
    """One sentence to translate, int32 [length]. Raises ValueError, naming `where`, for an empty one or one over."""
    numbers = vocabulary.encode(text)
    if reason := _reason(numbers, limit):
        raise ValueError(f"{where} {reason}; split it, or take a net that was trained with longer ones")
    return numbers


def _kept(
    pairs: Pairs, vocabularies: Vocabularies, limit: int, left_out: LeftOut
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for at in range(len(pairs)):
        source, target = (vocabulary.encode(text) for vocabulary, text in zip(vocabularies, pairs[at], strict=True))
        left_out.pairs += 1
        if reason := _reason(source, limit) or _reason(target, limit):
            left_out.empty += reason == EMPTY
            left_out.over += reason != EMPTY
            left_out.first = left_out.first or f"{pairs.where(at)} {reason}"
        else:
            yield source, np.concatenate([[np.int32(BOS)], target, [np.int32(EOS)]], dtype=np.int32)
    if left_out.pairs == left_out.empty + left_out.over:
        raise ValueError(f"none of {left_out.pairs} pairs is left: {left_out.first or 'there are none'}")


EMPTY = "is empty"


def _reason(numbers: np.ndarray, limit: int) -> str:
    if not len(numbers):
        return EMPTY
    return f"has {len(numbers)} numbers, the limit is {limit}" if len(numbers) > limit else ""


def reversed_source(examples: Encoded) -> Encoded:
    """The same with each source read from its end (Sutskever et al. 2014, section 3.3)."""
    return examples._replace(source=Turned(examples.source))


class Turned(Lazy[np.ndarray]):
    """Rows read from their ends."""

    def __init__(self, rows: Sequence[np.ndarray]):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> np.ndarray:
        return self._rows[index][::-1]


class Rows(Lazy[np.ndarray]):
    """Rows of unequal length in two files that are memory-mapped: their numbers in a row, and where each row ends."""

    def __init__(self, folder: Path, side: str):
        # asarray: a plain view of the map, which is faster to cut
        self._numbers = np.asarray(np.memmap(folder / f"{side}.numbers", "<i4", "r"))
        self._ends = np.asarray(np.memmap(folder / f"{side}.ends", "<i8", "r"))

    def __len__(self) -> int:
        return len(self._ends)

    def at(self, index: int) -> np.ndarray:
        return self._numbers[self._ends[index - 1] if index else 0 : self._ends[index]]


def stored(
    folder: Path, pairs: Pairs, vocabularies: Vocabularies, *, limit: int, sha256: str
) -> tuple[Encoded, LeftOut]:
    """As `encoded`, of pairs that memory does not hold: written to the folder once, and read from there.

    What lies there is taken if it was made of the same text, `sha256`, the same vocabularies and limit.
    """
    identity = {"sha256": sha256, "vocabularies": vocabularies.digest, "limit": limit}
    told = folder / "examples.json"
    known = json.loads(told.read_text()) if told.exists() else {}
    if known.get("of") != identity:
        told.unlink(missing_ok=True)  # until all is written again
        folder.mkdir(parents=True, exist_ok=True)
        left_out = LeftOut()
        _write(folder, _kept(pairs, vocabularies, limit, left_out))
        known = {"of": identity, "left out": vars(left_out)}
        told.write_text(json.dumps(known) + "\n")
    return Encoded(Rows(folder, "source"), Rows(folder, "target")), LeftOut(**known["left out"])


def _write(folder: Path, kept: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    for path in [*folder.glob("*.numbers"), *folder.glob("*.ends")]:
        path.unlink()
    while some := list(islice(kept, WRITTEN)):
        for side, rows in zip(Encoded._fields, zip(*some, strict=True), strict=True):
            with (folder / f"{side}.numbers").open("ab") as numbers, (folder / f"{side}.ends").open("ab") as ends:
                before = numbers.tell() // 4
                ends.write((before + np.cumsum([len(row) for row in rows])).astype("<i8").tobytes())
                numbers.write(np.concatenate(rows).astype("<i4").tobytes())
