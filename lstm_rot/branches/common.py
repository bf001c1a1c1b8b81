"""The two functions that several branches share."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def product(x: Float[Array, "*B K"], w: Any, b: Any = None) -> Float[Array, "..."]:
    """x W + b in the dtype of W, [*B, K] by [K, *out], b of any shape: a branch makes the products of its flows here.

    W may be callable: an implementation that makes the product itself, as `kernels.hoisted`.
    """
    if callable(w):
        return w(x, b)  # pyright: ignore
    y = jnp.tensordot(x.astype(w.dtype), w, 1)
    return y if b is None else y + b


def affine(p: Any, h: Float[Array, "*B H"], x: Float[Array, "*B D"] | None) -> Float[Array, "..."]:
    """h W_h + x W_x + b, shaped [*B, H], or [*B, G, H] where the weights have an axis of G gates.

    A line without input has x = None, and its p.wx is None.
    """
    return product(h, p.wh, p.b if x is None else product(x, p.wx, p.b))


def layer_norm(x: Float[Array, "*B H"], scale: Float[Array, "H"] | None) -> Float[Array, "*B H"]:
    """scale * (x - mean) / sqrt(variance + 1e-6) over the last axis (Ba et al. 2016), in x's dtype; None: x itself."""
    if scale is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    return scale.astype(x.dtype) * centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
