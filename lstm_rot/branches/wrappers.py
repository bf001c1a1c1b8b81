"""Branches made from branches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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


def watched(branch: Callable[..., tuple], look: Callable[[Any, Any, Any, Any], Any]) -> Callable[..., tuple]:
    """The branch, handing on (above, look(stream, keep, add, new stream)): the inside of a grid, seen from outside."""

    def looked_at(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        keep, add, read = branch(p, stream, memory, below)

        def read_and_look(new: Any) -> tuple[Any, Any]:
            remembered, above = read(new)
            return remembered, (above, look(stream, keep, add, new))

        return keep, add, read_and_look

    return looked_at


def lesioned(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """The branch with p = (weights, alive), alive a bool: where it is False the step is skipped.

    Stream and memory then pass as they came: a layer deleted (Veit et al. 2016), or a time step not read.
    """

    def or_skipped(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        weights, alive = p
        keep, add, read = branch(weights, stream, memory, below)

        def read_or_keep(new: Any) -> tuple[Any, Any]:
            remembered, above = read(new)
            return jax.tree.map(lambda new, old: jnp.where(alive, new, old), remembered, memory), above

        return jnp.where(alive, keep, 1), jnp.where(alive, add, 0), read_or_keep

    return or_skipped


def by_path(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """The branch with p = (weights, through), through a bool: which of the two paths the gradient takes at this step.

    The values are the branch's own. True: the gradient goes back through what is proposed, False: through keep * stream
    alone. Over a line, one choice a step is one of the 2^n paths of Veit et al. 2016, and the gradients along all of
    them sum to the gradient. What an LSTM reads from its memory counts as proposed. A step that changes the stream's
    shape hands back the whole gradient.
    """

    def along(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        weights, through = p
        stopped = jax.lax.stop_gradient
        into = jax.tree.map(lambda flow: jnp.where(through, flow, stopped(flow)), (stream, memory))
        keep, add, read = branch(weights, *into, below)
        if add.shape != stream.shape:
            return branch(weights, stream, memory, below)
        return 0, keep * jnp.where(through, stopped(stream), stream) + add, read

    return along
