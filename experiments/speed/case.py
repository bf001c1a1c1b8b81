"""What is computed, and what a contender's builder gives: imports no library, for each process has its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Case:
    """What is computed. `part`: 'plain'; 'masked', with lengths, a projection to H / 2 and zoneout; or 'wavefront'."""

    batch: int
    time: int
    inputs: int
    hidden: int
    layers: int = 1
    dtype: str = "float32"
    part: str = "plain"
    device: str = "cpu"

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.time}x{self.inputs}x{self.hidden}"

    @property
    def half(self) -> str | None:
        """The dtype of the products, where it is not float32."""
        return None if self.dtype == "float32" else self.dtype

    @property
    def projection(self) -> int | None:
        return self.hidden // 2 if self.part == "masked" else None

    @property
    def widths(self) -> list[int]:
        """The input width of each layer."""
        return [self.inputs] + [self.projection or self.hidden] * (self.layers - 1)

    def xs(self, *, batch_major: bool = False) -> np.ndarray:
        """The inputs, standard normal, float32: [T, B, D], or [B, T, D]."""
        xs = np.random.default_rng(0).standard_normal((self.time, self.batch, self.inputs), np.float32)
        return xs.swapaxes(0, 1).copy() if batch_major else xs

    def lengths(self) -> np.ndarray:
        """[B] lengths, uniform in T/2 .. T."""
        return np.random.default_rng(1).integers(self.time // 2, self.time + 1, self.batch).astype(np.int32)


class Traced(NamedTuple):
    """A model in JAX, to be compiled: apply(weights, xs, *beside) -> ys; `beside` is not differentiated.

    in_place: the results of each call are written over those of the last, so that no call pays for new memory.
    """

    apply: Callable[..., Any]
    weights: Any
    beside: tuple = ()
    batch_major: bool = False
    in_place: bool = False


class Eager(NamedTuple):
    """A model that runs as it is; each call returns when its results are there: ys, and (ys, gradients)."""

    forward: Callable[[], Any]
    both: Callable[[], Any]
    versions: dict[str, str]


class LeftOut(Exception):
    """This contender does not do this case; the message says why."""
