"""Gate activations, one after the other or all at once, along the axis of gates [*B, G, H]."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float


class Activation(NamedTuple):
    """A gate's activation, and the same as outer * tanh(inner * a) + offset."""

    of: Callable[[Any], Any]
    inner: float
    outer: float
    offset: float


SIGMOID = Activation(jax.nn.sigmoid, 0.5, 0.5, 0.5)  # 1 / (1 + exp(-a)) = (1 + tanh(a / 2)) / 2
TANH = Activation(jnp.tanh, 1.0, 1.0, 0.0)
SQUASH = Activation(lambda a: 4 * jax.nn.sigmoid(a) - 2, 0.5, 2.0, 0.0)  # of 1997


def separately(a: Float[Array, "*B G H"], kinds: tuple[Activation, ...]) -> list[Float[Array, "*B H"]]:
    """Each gate by its own activation."""
    return [kind.of(gate) for kind, gate in zip(kinds, jnp.moveaxis(a, -2, 0), strict=True)]


def at_once(a: Float[Array, "*B G H"], kinds: tuple[Activation, ...]) -> list[Float[Array, "*B H"]]:
    """The same by one tanh over all gates, which a compiler vectorises; its gradient needs the gates alone."""
    gates = jax.lax.split(_at_once(a, kinds), [1] * len(kinds), axis=a.ndim - 2)  # whose transpose is one concatenation
    return [gate.squeeze(-2) for gate in gates]


def _constants(kinds: tuple[Activation, ...], dtype: Any) -> np.ndarray:
    """inner, outer, offset: [3, G, 1]."""
    return np.array([kind[1:] for kind in kinds], dtype).T[..., None]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _at_once(a: jax.Array, kinds: tuple[Activation, ...]) -> jax.Array:
    inner, outer, offset = _constants(kinds, a.dtype)
    return jnp.tanh(a * inner) * outer + offset


@_at_once.defjvp
def _(kinds: tuple[Activation, ...], primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (a,), (da,) = primals, tangents
    inner, outer, offset = _constants(kinds, a.dtype)
    y = checkpoint_name(_at_once(a, kinds), "gates")
    return y, da * (inner / outer) * (outer + offset - y) * (outer - offset + y)
