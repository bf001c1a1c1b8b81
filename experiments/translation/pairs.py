"""Pairs of sentences, and the reading of files of them. A sentence that is bad is told with its file and line."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, overload

from experiments.files import DataError

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose members are made when they are asked for, by `at`: what memory need not hold."""

    @abstractmethod
    def at(self, index: int) -> T:
        """The member of a number from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        numbers = range(len(self))[index]
        return self.at(numbers) if isinstance(numbers, int) else [self.at(number) for number in numbers]


class Pairs(Protocol):
    """Sentences and their translations: pairs[i] -> (source, target), by random access, as Grain asks of a source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, str]: ...

    @property
    def source(self) -> Sequence[str]: ...

    @property
    def target(self) -> Sequence[str]: ...

    def where(self, index: int) -> str:
        """The file and line of a pair, for a message."""
        ...


@dataclass(frozen=True)
class Listed:
    """Pairs from one place. `lines` are their numbers there, if these are not 1, 2, ...

    Raises DataError where one side has more sentences than the other.
    """

    source: Sequence[str]
    target: Sequence[str]
    origin: str
    lines: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise DataError(
                f"{self.origin}: {len(self.source)} lines in the source and {len(self.target)} in the target are no "
                f"pairs; give two files of which line n of one translates line n of the other"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.source[index], self.target[index]

    def where(self, index: int) -> str:
        return f"{self.origin}, line {index + 1 if self.lines is None else self.lines[index]}"


@dataclass(frozen=True)
class Joined:
    """Pairs of several places in a row; nothing is copied."""

    parts: tuple[Listed, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def _place(self, index: int) -> tuple[Listed, int]:
        at = range(len(self))[index]
        for part in self.parts:
            if at < len(part):
                return part, at
            at -= len(part)
        raise AssertionError

    def __getitem__(self, index: int) -> tuple[str, str]:
        part, at = self._place(index)
        return part[at]

    @property
    def source(self) -> Sequence[str]:
        return Side(self, 0)

    @property
    def target(self) -> Sequence[str]:
        return Side(self, 1)

    def where(self, index: int) -> str:
        part, at = self._place(index)
        return part.where(at)


class Side(Lazy[str]):
    """The sources (0) or targets (1) of pairs."""

    def __init__(self, pairs: Pairs, which: int):
        self._pairs, self._which = pairs, which

    def __len__(self) -> int:
        return len(self._pairs)

    def at(self, index: int) -> str:
        return self._pairs[index][self._which]


def sentences(content: bytes, origin: str) -> list[str]:
    """The lines of a file in UTF-8. Raises DataError, naming the line, for other bytes and for an empty line.

    A line ends with a line feed alone: what else Unicode calls a line's end stands within sentences.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(origin, content.count(b"\n", 0, error.start) + 1, error) from error
    lines = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise DataError(f"{origin}, line {number} is empty; take the line out on both sides, or translate it")
    return lines


def not_utf8(origin: str, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(f"{origin}, line {line}: the byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8")
