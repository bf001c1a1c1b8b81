"""3x3 convolutions of maps [B, P, P, C] on a CPU in C++, conv.cc, with their two gradients.

XLA's convolutions reach half of the cores' speed at 16 filters and for the weights' gradient.
"""

import os
from math import prod

import jax
from jaxtyping import Array, Float

from lstm_rot import native

WIDEST = 128  # channels; measured up to 64, and the weights of more would not stay in a core's cache


def serves(x: Float[Array, "B R P C"], w: Float[Array, "3 3 C K"]) -> bool:
    """Whether they can run here and pay: in float32, where JAX has one device, an image or more for each core."""
    fits = native.whole(x, w) and x.shape[0] >= (os.cpu_count() or 1) and max(w.shape) <= WIDEST
    return x.dtype == w.dtype == "float32" and jax.device_count() == 1 and fits and native.refusal() is None


def forward(x: Float[Array, "B R P C"], w: Float[Array, "3 3 C K"], stride: int) -> Float[Array, "B Q S K"]:
    """y[i, j] = sum over a, b of x[stride i + a - 1, stride j + b - 1] w[a, b], zeros around x."""
    pixels = [(size - 1) // stride + 1 for size in x.shape[1:3]]
    return _convolve(x, w, (x.shape[0], *pixels, w.shape[-1]), stride=stride, spread=1)


def backward(
    x: Float[Array, "B R P C"], w: Float[Array, "3 3 C K"], dy: Float[Array, "B Q S K"], stride: int
) -> tuple[Float[Array, "B R P C"], Float[Array, "3 3 C K"]]:
    """dx, the convolution of dy, zeros between its pixels, by w turned; and dw."""
    dx = _convolve(dy, w[::-1, ::-1].swapaxes(2, 3), x.shape, stride=1, spread=stride)
    flops, apart = 2 * w.size * prod(dy.shape[:3]), ((None, None), (None,))
    (dw,) = native.call("weigh", [w.shape], x, dy, axes=apart, flops=flops, stride=stride)
    return dx, dw


def _convolve(x: jax.Array, w: jax.Array, shape: tuple[int, ...], *, stride: int, spread: int) -> jax.Array:
    axes, flops = ((0, None), (0,)), 2 * prod(shape[:3]) * w.size
    (y,) = native.call("convolve", [shape], x, w, axes=axes, flops=flops, stride=stride, spread=spread)
    return y
