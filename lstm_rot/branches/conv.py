"""Steps of convolutional nets along DEPTH: the stream is maps [B, P, P, C], one weight layer a 3x3 convolution.

What flows along the other axis are the norms' statistics: those to normalise by enter each step, None for the batch's
own, and those that were used leave it. Letters: C channels in, K out, P pixels per side.
"""

from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.native import convolution

EPSILON = 1e-5
NAME = "convolution"  # of what a convolution returns, and of its statistics, for `jax.checkpoint`'s policies
CHANNELS_PER_GROUP = 8


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv3x3(x: Float[Array, "B R P C"], w: Float[Array, "3 3 C K"], stride: int = 1) -> Float[Array, "B Q S K"]:
    """y[i, j] = sum over a, b of x[stride i + a - 1, stride j + b - 1] w[a, b], zeros around x, in the dtype of w.

    On a CPU it is that of `native.convolution` where it serves. Else it is XLA's, the gradient on a CPU written as two
    more convolutions with their transposes spelt out, for what autodiff makes of it XLA compiles there, inside a loop,
    to something 10 to 100 times slower. It has second derivatives, but no `jax.jvp`.
    """
    x = x.astype(w.dtype)
    if convolution.serves(x, w):
        return jax.lax.platform_dependent(
            x, w, cpu=partial(convolution.forward, stride=stride), default=partial(_by_xla, stride)
        )
    return _by_xla(stride, x, w)


def _by_xla(stride: int, x: jax.Array, w: jax.Array) -> jax.Array:
    return _conv(x, w, (stride, stride), ((1, 1), (1, 1)))


def _conv(x: jax.Array, w: jax.Array, strides: Any, padding: Any, **dilation: Any) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **dilation)


def _forward(x: jax.Array, w: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv3x3(x, w, stride), (x, w)


def _backward(stride: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    operands = x.astype(w.dtype), w, dy
    cpu = _in_cpp if convolution.serves(*operands[:2]) else _spelt_out
    dx, dw = jax.lax.platform_dependent(*operands, cpu=partial(cpu, stride), default=partial(_by_autodiff, stride))
    return dx.astype(x.dtype), dw


conv3x3.defvjp(_forward, _backward)


def _by_autodiff(stride: int, x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(partial(_by_xla, stride), x, w)[1](dy)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_cpp(stride: int, x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    return convolution.backward(x, w, dy, stride)


@_in_cpp.defjvp
def _(stride: int, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    return _in_cpp(stride, *primals), jax.jvp(partial(_spelt_out, stride), primals, tangents)[1]


def _spelt_out(stride: int, x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """dx: of dy, zeros between its pixels, by the flipped w. dw: of x by dy, the batch in the place of the channels.

    The barriers keep the compiler from folding the transposes into the convolutions again.
    """
    transposed = w[::-1, ::-1].swapaxes(2, 3), x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    flipped, xs, dys = map(jax.lax.optimization_barrier, transposed)
    ends = [(size, (n - 1) * stride + 1) for size, n in zip(x.shape[1:3], dy.shape[1:3], strict=True)]
    dx = _conv(dy, flipped, (1, 1), [(1, size + 1 - end) for size, end in ends], lhs_dilation=(stride, stride))
    dw = _conv(xs, dys, (1, 1), [(1, end + 1 - size) for size, end in ends], rhs_dilation=(stride, stride))
    return dx, dw.transpose(1, 2, 0, 3)


class Statistics(NamedTuple):
    """What batch norm normalises by, of each channel."""

    mean: Float[Array, "C"]
    variance: Float[Array, "C"]


class BatchNorm(NamedTuple):
    """scale * (x - mean) / sqrt(variance + 1e-5) + shift, over examples and pixels (Ioffe & Szegedy 2015)."""

    scale: Float[Array, "C"]
    shift: Float[Array, "C"]

    def __call__(self, x: Float[Array, "B P P C"], statistics: Any = None) -> tuple[Float[Array, "B P P C"], Any]:
        """Normalised by the Statistics given, else by the batch's own; and those used, in x's dtype."""
        scale, shift = self.scale.astype(x.dtype), self.shift.astype(x.dtype)
        if statistics is None:
            return normalised_by_its_own(x, scale, shift)
        mean, variance = (leaf.astype(x.dtype) for leaf in statistics)
        return (x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + shift, Statistics(mean, variance)


@jax.custom_vjp
def normalised_by_its_own(
    x: Float[Array, "B P P C"], scale: Float[Array, "C"], shift: Float[Array, "C"]
) -> tuple[Float[Array, "B P P C"], Statistics]:
    """Batch norm by the batch's own statistics, and those.

    Its gradient is the closed form of Ioffe & Szegedy 2015, section 3: two sums over the maps, where autodiff takes
    four. It has second derivatives, but no `jax.jvp`.
    """
    return _normalise(x, scale, shift)[0]


def _normalise(x: jax.Array, scale: jax.Array, shift: jax.Array) -> tuple[tuple[jax.Array, Statistics], tuple]:
    mean = checkpoint_name(x.mean((0, 1, 2)), NAME)
    variance = checkpoint_name(((x - mean) ** 2).mean((0, 1, 2)), NAME)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    return ((x - mean) * (scale * inverse) + shift, Statistics(mean, variance)), (x, mean, inverse, scale)


def _normalise_backward(saved: tuple, d: tuple[jax.Array, Statistics]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dx = scale / deviation (dy - mean of dy - normal * mean of dy normal), and what comes through the statistics."""
    x, mean, inverse, scale = saved
    dy, through = d
    count = x.size // x.shape[-1]
    centred = x - mean
    dscale, dshift = inverse * (dy * centred).sum((0, 1, 2)), dy.sum((0, 1, 2))
    factor = scale * inverse
    slope = (2 * through.variance - factor * inverse * dscale) / count
    return factor * dy + slope * centred + (through.mean - factor * dshift) / count, dscale, dshift


normalised_by_its_own.defvjp(_normalise, _normalise_backward)


class GroupNorm(NamedTuple):
    """The same over the pixels and channels of a group of 8 (Wu & He 2018): each example by itself, no statistics."""

    scale: Float[Array, "C"]
    shift: Float[Array, "C"]

    def __call__(self, x: Float[Array, "B P P C"], statistics: Any = None) -> tuple[Float[Array, "B P P C"], Any]:
        """Normalised; there are no statistics."""
        groups = x.reshape(*x.shape[:-1], -1, gcd(x.shape[-1], CHANNELS_PER_GROUP))
        centred = groups - groups.mean((1, 2, 4), keepdims=True)
        variance = (centred**2).mean((1, 2, 4), keepdims=True)
        normal = (centred * jax.lax.rsqrt(variance + EPSILON)).reshape(x.shape)
        return normal * self.scale.astype(x.dtype) + self.shift.astype(x.dtype), ()


class Params(NamedTuple):
    """Weights of one block of two layers, each with its norm."""

    w1: Float[Array, "3 3 C K"]
    norm1: Any
    w2: Float[Array, "3 3 K K"]
    norm2: Any


def post_activation(p: Params, stream: Float[Array, "B P P C"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """The residual function of He et al. 2015: F = norm(relu(norm(x * W_1)) * W_2), * a convolution.

    The rectifier that follows their addition is a plain step of its own, `mlp.rectify`.
    """
    first, second = (None, None) if below is None else below
    x, first = p.norm1(_wide(stream, conv3x3(stream, p.w1, _stride(p.w1))), first)
    x, second = p.norm2(_wide(stream, conv3x3(jax.nn.relu(x), p.w2)), second)
    return 1, x, lambda stream: (memory, (first, second))


def pre_activation(p: Params, stream: Float[Array, "B P P C"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """The residual function of He et al. 2016, Fig. 4e: F = relu(norm(relu(norm(x)) * W_1)) * W_2."""
    first, second = (None, None) if below is None else below
    x, first = p.norm1(stream, first)
    x, second = p.norm2(_wide(stream, conv3x3(jax.nn.relu(x), p.w1, _stride(p.w1))), second)
    return 1, _wide(stream, conv3x3(jax.nn.relu(x), p.w2)), lambda stream: (memory, (first, second))


def _wide(stream: jax.Array, x: jax.Array) -> jax.Array:
    """A convolution's result in the stream's dtype: the pointwise arithmetic."""
    return checkpoint_name(x, NAME).astype(stream.dtype)


def _stride(w: jax.Array) -> int:
    """A step that doubles the channels halves the maps."""
    return 1 if w.shape[2] == w.shape[3] else 2


class Stem(NamedTuple):
    """Weights of one layer; norm None: without norm and rectifier."""

    w: Float[Array, "3 3 C K"]
    norm: Any


def stem(p: Stem, stream: Float[Array, "B P P C"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """The plain step from the image into the stream: x' = relu(norm(x * W)), or x * W alone before pre-activation."""
    x = _wide(stream, conv3x3(stream, p.w))
    if p.norm is None:
        return 0, x, lambda stream: (memory, ())
    x, statistics = p.norm(x, below)
    return 0, jax.nn.relu(x), lambda stream: (memory, statistics)


def ended(p: Any, stream: Float[Array, "B P P C"], memory: Any, below: Any) -> tuple[Any, Any, Any]:
    """The plain step that a pre-activated net ends with: x' = relu(norm(x))."""
    x, statistics = p(stream, below)
    return 0, jax.nn.relu(x), lambda stream: (memory, statistics)


def narrowing(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """The branch, its add perhaps of half the pixels and twice the channels: then keep applies to a shortcut.

    The shortcut without weights of He et al. 2015 (option A): every second pixel, zeros for the new channels.
    """

    def narrowed(p: Any, stream: jax.Array, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        keep, add, read = branch(p, stream, memory, below)
        if add.shape == stream.shape:
            return keep, add, read
        short = jnp.pad(stream[:, ::2, ::2], ((0, 0),) * 3 + ((0, add.shape[-1] - stream.shape[-1]),))
        if isinstance(keep, int):
            return 0, keep * short + add if keep else add, read
        return 0, keep * short + add, read

    return narrowed


class Gate(NamedTuple):
    """Weights of a gate on a block's shortcut: a 1x1 convolution and its bias."""

    w: Float[Array, "C K"]
    b: Float[Array, "K"]


def exclusive(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """p = (weights, gate): x' = (1 - g) x + g F, g = sigmoid(x W_g + b_g), a highway's step (He et al. 2016, 3.1)."""

    def gated(p: Any, stream: jax.Array, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        _, add, read = branch(p[0], stream, memory, below)
        g = _gate(p[1], stream, add)
        return 1 - g, g * add, read

    return gated


def shortcut_only(branch: Callable[..., tuple]) -> Callable[..., tuple]:
    """p = (weights, gate): x' = (1 - g) x + F, g as of `exclusive` (He et al. 2016, 3.1)."""

    def gated(p: Any, stream: jax.Array, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        _, add, read = branch(p[0], stream, memory, below)
        return 1 - _gate(p[1], stream, add), add, read

    return gated


def _gate(p: Gate, stream: jax.Array, add: jax.Array) -> jax.Array:
    x = stream if add.shape == stream.shape else stream[:, ::2, ::2]
    return jax.nn.sigmoid(_wide(stream, x.astype(p.w.dtype) @ p.w + p.b))


def scaled(branch: Callable[..., tuple], keep: float, add: float) -> Callable[..., tuple]:
    """x' = keep x + add F: the constant scalings of He et al. 2016, 3.1."""

    def with_scales(p: Any, stream: jax.Array, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        _, proposed, read = branch(p, stream, memory, below)
        return keep, add * proposed, read

    return with_scales


def init(key: PRNGKeyArray, channels: int, width: int, dtype: Any = "float32", *, norm: Any, pre: bool) -> Params:
    """He normal weights, of variance 2 / fan-in; scales one, shifts zero. pre: for `pre_activation`."""
    key_1, key_2 = jax.random.split(key)
    return Params(
        _weights(key_1, channels, width, dtype),
        fresh(norm, channels if pre else width, dtype),
        _weights(key_2, width, width, dtype),
        fresh(norm, width, dtype),
    )


def init_stem(key: PRNGKeyArray, channels: int, width: int, dtype: Any = "float32", *, norm: Any) -> Stem:
    """He normal weights; norm None: none."""
    return Stem(_weights(key, channels, width, dtype), norm and fresh(norm, width, dtype))


def init_gate(key: PRNGKeyArray, channels: int, width: int, dtype: Any = "float32", *, bias: float) -> Gate:
    """He normal weights, every bias `bias`: below zero, so that the stream is carried at first."""
    return Gate(jax.nn.initializers.he_normal()(key, (channels, width), dtype), jnp.full(width, bias, dtype))


def fresh(norm: Any, channels: int, dtype: Any = "float32") -> Any:
    """A norm of that many channels."""
    return norm(jnp.ones(channels, dtype), jnp.zeros(channels, dtype))


def _weights(key: jax.Array, channels: int, width: int, dtype: Any) -> jax.Array:
    return jax.nn.initializers.he_normal()(key, (3, 3, channels, width), dtype)
