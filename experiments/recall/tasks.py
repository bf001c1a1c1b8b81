"""Two tasks that ask for what stood a chosen number of symbols ago, generated; no two sequences need be alike.

associative recall    k1 v1 k2 v2 ... noise ... k       the value that stood behind this key
copying               s1 s2 ... blank ... go go ...     the string, a symbol at each go
"""

from dataclasses import dataclass
from math import factorial
from typing import NamedTuple

import numpy as np

NOISE = 4  # letters of it


class Sequences(NamedTuple):
    """B sequences of T symbols: at which Q steps of each something is asked, and the answers, 0 .. symbols - 1."""

    symbols: np.ndarray  # [T, B]
    asked: np.ndarray  # [Q, B]
    answers: np.ndarray  # [Q, B]


@dataclass(frozen=True)
class Recall:
    """Associative recall. Keys are the symbols from 0, a sequence's all distinct; values the next as many; then noise.

    The distance is that from the key asked for to where it is asked for, in symbols.
    """

    pairs: int
    symbols: int  # keys; there are as many values

    @property
    def name(self) -> str:
        return "associative recall"

    @property
    def vocabulary(self) -> int:
        return 2 * self.symbols + NOISE

    @property
    def least(self) -> int:
        """The distance from the first pair to just behind the last."""
        return 2 * self.pairs

    def steps(self, distance: int) -> int:
        """In which every sequence of up to this distance ends."""
        return 2 * (self.pairs - 1) + distance + 1

    def draw(self, rng: np.random.Generator, distance: np.ndarray, steps: int) -> Sequences:
        """A sequence of each distance [B], in `steps` steps: those behind the question are noise."""
        each = np.arange(len(distance))
        keys = rng.random((self.symbols, len(each))).argsort(0)[: self.pairs]
        values = rng.integers(0, self.symbols, keys.shape)
        which = rng.integers(0, self.pairs, len(each))
        symbols = rng.integers(2 * self.symbols, self.vocabulary, (steps, len(each)))
        symbols[: 2 * self.pairs : 2], symbols[1 : 2 * self.pairs : 2] = keys, self.symbols + values
        asked = 2 * which + distance
        symbols[asked, each] = keys[which, each]
        return Sequences(symbols, asked[None], values[which, each][None])


@dataclass(frozen=True)
class Copying:
    """Copying a string of `length` symbols (as in Graves et al. 2014, section 4.1, with a gap).

    The distance is the number of blanks between the string and the first go.
    """

    length: int
    symbols: int

    @property
    def name(self) -> str:
        return "copying"

    @property
    def vocabulary(self) -> int:
        return self.symbols + 2

    @property
    def least(self) -> int:
        return 1

    def steps(self, distance: int) -> int:
        """In which every sequence of up to this distance ends."""
        return 2 * self.length + distance

    def draw(self, rng: np.random.Generator, distance: np.ndarray, steps: int) -> Sequences:
        """A sequence of each distance [B], in `steps` steps: those behind the string's copy are go too."""
        blank, go = self.symbols, self.symbols + 1
        string = rng.integers(0, self.symbols, (self.length, len(distance)))
        first = self.length + distance
        symbols = np.where(np.arange(steps)[:, None] < first, blank, go)
        symbols[: self.length] = string
        return Sequences(symbols, first + np.arange(self.length)[:, None], string)


Task = Recall | Copying


def unbound(count: int, symbols: int) -> float:
    """The share of wrong answers, 0..1, of one who knows which symbols stood at `count` places, but not where each.

    The most frequent is the best answer: 1 - E[max] / count of as many fair draws of `symbols`, where the draws with
    max <= m are counted by count! [x^count] (sum over j <= m of x^j / j!)^symbols.
    """

    def at_most(most: int) -> float:
        series = np.poly1d([1 / factorial(j) for j in range(most, -1, -1)]) ** symbols
        return float(series[count]) * factorial(count) / symbols**count

    return 1 - sum(1 - at_most(most) for most in range(count)) / count
