"""Dropout and zoneout of recurrent cells: wrappers of a branch, whose p becomes (weights, masks).

Masks are drawn beforehand, so that every order of the grid sees the same; True: kept, or updated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Masks(NamedTuple):
    """The masks of one cell, each None where it is not in use. `hidden` is a factor, the same at every step."""

    hidden: Float[Array, "B P"] | None = None
    add: Bool[Array, "B H"] | None = None
    cell: Bool[Array, "B H"] | None = None
    output: Bool[Array, "B P"] | None = None


TIED: Any = Masks(hidden=True, add=False, cell=False, output=False)  # pyright: ignore


def dropped(x: Float[Array, "*S"], mask: Bool[Array, "..."] | None, rate: float) -> Float[Array, "*S"]:
    """x / (1 - rate) where the mask is True, else 0; x itself without a mask (Srivastava et al. 2014, inverted)."""
    return x if mask is None else jnp.where(mask, x / (1 - rate), 0)


def each_step(key: jax.Array, rate: float, times: Int[Array, "T"], shape: tuple[int, ...]) -> Any:
    """[T, *shape], True with probability 1 - rate; step t's depends on the key and t alone. None for a rate of 0."""
    if not rate:
        return None
    return jax.vmap(lambda t: jax.random.bernoulli(jax.random.fold_in(key, t), 1 - rate, shape))(times)


def on_weights(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """The branch itself, for p = (weights, masks)."""
    return lambda p, stream, memory, below: branch(p[0], stream, memory, below)


def variational(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """Gal & Ghahramani 2016: one mask for all steps on the h that the gates see; what is handed on stays whole."""

    def masked(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        return branch(p, stream, memory * p[1].hidden.astype(memory.dtype), below)

    return masked


def without_memory_loss(branch: Callable[..., tuple], rate: float) -> Callable[..., tuple]:
    """Semeniuta et al. 2016, Eq. 15: dropout on what is added, never on the stream.  c' = f c + i d(g)"""

    def masked(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        keep, add, read = branch(p, stream, memory, below)
        return keep, dropped(add, p[1].add, rate), read

    return masked


def zoneout(branch: Callable[..., tuple], cell_rate: float, output_rate: float) -> Callable[..., tuple]:
    """Krueger et al. 2017, section 3.2: some units keep their old value, z of probability `rate`.

    c' = z_c c + (1 - z_c) (f c + i g)
    h' = z_h h + (1 - z_h) o tanh(f c + i g)        without masks: the expectation, each z its rate
    """

    def zoned(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        keep, add, read = branch(p, stream, memory, below)

        def read_zoned(_: Any) -> tuple[Any, Any]:
            new, _ = read(keep * stream + add.astype(stream.dtype))
            h = _zoned(new, memory, p[1].output, output_rate)
            return h, h

        return _zoned(keep, 1, p[1].cell, cell_rate), _zoned(add, 0, p[1].cell, cell_rate), read_zoned

    return zoned


def _zoned(new: Any, old: Any, mask: Any, rate: float) -> Any:
    """The new value where the mask is True, else the old one; without a mask the expectation."""
    if not rate:
        return new
    return (1 - rate) * new + rate * old if mask is None else jnp.where(mask, new, old)
