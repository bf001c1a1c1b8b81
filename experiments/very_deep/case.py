"""What is trained: the same net, weights and images for every library. Imports none, for each process has its own."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RATE = 0.01  # the learning rate of plain SGD
KEPT = 0.9  # of the running statistics, in each step
EPSILON = 1e-5  # of the batch norms
CLASSES, CHANNELS, STAGES = 10, 3, 3


class Weights(NamedTuple):
    """convolutions [3, 3, C, K], the stem's first, then two of each block; norms begin as ones and zeros; the head."""

    convolutions: list[np.ndarray]
    head: np.ndarray


@dataclass(frozen=True)
class Case:
    """A training step of the net of He et al. 2015: `pixels` a side, float32.

    part: 'deep', of which compiling and memory are asked, or 'rate', whose images are counted. analysed: the batch of
    which memory is asked; where it is another, it is only compiled. compiles: how often compiling is timed.
    """

    depth: int
    batch: int
    pixels: int
    width: int = 16
    part: str = "deep"
    analysed: int = 0
    compiles: int = 1
    device: str = "cpu"

    @property
    def blocks(self) -> int:
        """Of each stage."""
        return (self.depth - 2) // 6

    def sizes(self) -> list[tuple[int, int]]:
        """(channels, filters) of each convolution."""
        sizes, channels = [(CHANNELS, self.width)], self.width
        for stage in range(STAGES):
            for _ in range(self.blocks):
                filters = self.width << stage
                sizes += [(channels, filters), (filters, filters)]
                channels = filters
        return sizes

    def weights(self) -> Weights:
        """He normal, the head Xavier normal; float32."""
        rng = np.random.default_rng(0)

        def normal(*shape: int, gain: float) -> np.ndarray:
            return rng.standard_normal(shape, np.float32) * np.float32((gain / np.prod(shape[:-1])) ** 0.5)

        convolutions = [normal(3, 3, *size, gain=2) for size in self.sizes()]
        return Weights(convolutions, normal(self.width << (STAGES - 1), CLASSES, gain=1))

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Standard normal maps [B, P, P, 3], float32, and classes [B], int32."""
        rng = np.random.default_rng(1)
        x = rng.standard_normal((self.batch, self.pixels, self.pixels, CHANNELS), np.float32)
        return x, rng.integers(0, CLASSES, self.batch).astype(np.int32)
