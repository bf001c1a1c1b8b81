"""3x3 convolutions of maps [B, P, P, C] on a CPU in C++, native/conv.cc, with their two gradients.

XLA's convolutions reach half of the cores' speed at 16 filters and for the weights' gradient.
"""

import jax
from jaxtyping import Array, Float

from lstm_rot.kernels import compiled


def serves(x: jax.Array, w: jax.Array) -> bool:
    """Whether they can run here: in float32, in a program of one device, for over several they are not spread."""
    one = jax.device_count() == 1 and compiled.whole(x, w)
    return x.dtype == w.dtype == "float32" and one and compiled.refusal() is None


def forward(x: Float[Array, "B R P C"], w: Float[Array, "3 3 C K"], stride: int) -> Float[Array, "B Q S K"]:
    """y[i, j] = sum over a, b of x[stride i + a - 1, stride j + b - 1] w[a, b], zeros around x."""
    pixels = [(size - 1) // stride + 1 for size in x.shape[1:3]]
    return _convolve(x, w, (x.shape[0], *pixels, w.shape[-1]), stride=stride, spread=1)


def backward(
    x: Float[Array, "B R P C"], w: Float[Array, "3 3 C K"], dy: Float[Array, "B Q S K"], stride: int
) -> tuple[Float[Array, "B R P C"], Float[Array, "3 3 C K"]]:
    """dx, the convolution of dy, zeros between its pixels, by w turned; and dw."""
    dx = _convolve(dy, w[::-1, ::-1].swapaxes(2, 3), x.shape, stride=1, spread=stride)
    (dw,) = compiled.call("weigh", [w.shape], x, dy, stride=stride, flops=2 * w.size * dy.size // dy.shape[-1])
    return dx, dw


def _convolve(x: jax.Array, w: jax.Array, shape: tuple[int, ...], *, stride: int, spread: int) -> jax.Array:
    pixels = shape[0] * shape[1] * shape[2]
    (y,) = compiled.call("convolve", [shape], x, w, stride=stride, spread=spread, flops=2 * pixels * w.size)
    return y
