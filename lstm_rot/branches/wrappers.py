"""Branches made from branches."""

from collections.abc import Callable
from typing import Any


def with_keep(branch: Callable[..., tuple], keep: Any) -> Callable[..., tuple]:
    """The branch with its keep replaced: 0 makes its net plain, 1 residual, between lies the dial."""

    def kept(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        _, add, read = branch(p, stream, memory, below)
        return keep, add, read

    return kept


def probed(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """The branch with p = (p, probe), the probe added to the stream.

    The gradient with respect to a probe of zeros, an untied leaf with one slice a cell, is the gradient with respect
    to the stream at that cell: the interior of a grid, reached from outside.
    """

    def with_probe(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        weights, probe = p
        keep, add, read = branch(weights, stream, memory, below)
        return keep, add.astype(stream.dtype) + probe, read

    return with_probe
