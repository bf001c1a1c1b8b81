"""Pairs as numbers, to train on: in memory, or in files of any size that are read where they lie.

Source n is its words alone; target n begins with BOS and ends with EOS, so that a decoder reads all but its last and is
asked for all but its first. Which way the source is read is a property of the data: `reversed_source`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from experiments.translation.pairs import Pairs
from experiments.translation.vocabulary import BOS, EOS, Vocabularies, Vocabulary

FLUSHED = 10_000  # pairs held before they are written


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
        raise ValueError(f"{where} {reason}; give a limit that holds all, or leave it out")
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
    return examples._replace(source=Each(examples.source, lambda row: row[::-1]))


@dataclass(frozen=True)
class Each(Sequence[np.ndarray]):
    """Rows through a function, when they are read."""

    rows: Sequence[np.ndarray]
    function: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return Each(self.rows[index], self.function)
        return self.function(self.rows[index])


class Rows(Sequence[np.ndarray]):
    """Rows of unequal length in two files that are memory-mapped: their numbers in a row, and where each row ends."""

    def __init__(self, folder: Path, side: str):
        # asarray: a plain view of the map, which is faster to cut
        self._numbers = np.asarray(np.memmap(folder / f"{side}.numbers", "<i4", "r"))
        self._ends = np.asarray(np.memmap(folder / f"{side}.ends", "<i8", "r"))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
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
        with _Writer(folder, "source") as source, _Writer(folder, "target") as target:
            for pair in _kept(pairs, vocabularies, limit, left_out):
                source.add(pair[0])
                target.add(pair[1])
        known = {"of": identity, "left out": vars(left_out)}
        told.write_text(json.dumps(known) + "\n")
    return Encoded(Rows(folder, "source"), Rows(folder, "target")), LeftOut(**known["left out"])


@dataclass
class _Writer:
    folder: Path
    side: str
    end: int = 0
    rows: list[np.ndarray] = field(default_factory=list)

    def __enter__(self) -> "_Writer":
        self.numbers = (self.folder / f"{self.side}.numbers").open("wb")
        self.ends = (self.folder / f"{self.side}.ends").open("wb")
        return self

    def add(self, row: np.ndarray) -> None:
        self.rows.append(row)
        if len(self.rows) == FLUSHED:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            np.concatenate(self.rows, dtype="<i4").tofile(self.numbers)
            ends = self.end + np.cumsum([len(row) for row in self.rows], dtype="<i8")
            ends.tofile(self.ends)
            self.end = int(ends[-1])
            self.rows.clear()

    def __exit__(self, *error: object) -> None:
        self.flush()
        self.numbers.close()
        self.ends.close()
