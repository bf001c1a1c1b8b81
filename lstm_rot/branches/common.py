"""The two functions that several branches share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def affine(p: Any, h: Float[Array, "*B H"], x: Float[Array, "*B D"] | None) -> Float[Array, "..."]:
    """h W_h + x W_x + b, shaped [*B, H], or [*B, G, H] where the weights have an axis of G gates.

    A line without input has x = None, and its p.wx is None.
    """
    dtype = p.wh.dtype
    a = jnp.tensordot(h.astype(dtype), p.wh, 1) + p.b
    return a if x is None else a + jnp.tensordot(x.astype(dtype), p.wx, 1)


def layer_norm(x: Float[Array, "*B H"], scale: Float[Array, "H"] | None) -> Float[Array, "*B H"]:
    """scale * (x - mean) / sqrt(variance + 1e-6) over the last axis (Ba et al. 2016), in x's dtype; None: x itself."""
    if scale is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    return scale.astype(x.dtype) * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
