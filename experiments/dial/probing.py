"""What the stream alone hands back, along either axis by one function: the gain of its gradient, and every keep."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.dial import order
from experiments.gradient_flow import AXES, FLOOR, watched
from lstm_rot import residual, scan
from lstm_rot.branches import probed
from lstm_rot.models import conv_resnet


def gain(key: jax.Array, line: Any, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log10 of ||v J|| / ||v||, J = d stream_end / d stream_1, v normal; and the mean of all keeps.

    line(probe) -> (stream_end, keeps), the probe, zeros, added to the stream after the first step, over a batch. v is
    zero in channels that the first stream has not: then a line whose every keep is 1 and add 0 has the gain 1.
    """
    stream, hand_back, keeps = jax.vjp(line, probe, has_aux=True)
    there = jnp.arange(stream.shape[-1]) < probe.shape[-1]
    v = jax.random.normal(key, stream.shape) * there
    (back,) = hand_back(v)
    ratio = _norm(back) / _norm(v)
    parts = jax.tree.leaves(keeps)
    total = jnp.stack([keep.sum() for keep in parts]).sum()
    return jnp.log10(jnp.maximum(ratio, FLOOR)), total / sum(keep.size for keep in parts)


def _norm(x: jax.Array) -> jax.Array:
    """Also of what is so small that its square is nothing."""
    largest = jnp.maximum(jnp.abs(x).max(), FLOOR)
    return largest * jnp.sqrt(((x / largest) ** 2).sum())


@partial(jax.jit, static_argnums=0)
def _of_net(config: conv_resnet.Config, params: conv_resnet.Params, x: jax.Array, key: jax.Array) -> Any:
    net = conv_resnet.net(config, wrap=lambda branch: watched(probed(branch)))
    side, width, probes = x.shape[1], config.width, []
    for run in config.runs:
        if run is None:
            side, width = -(-side // 2), 2 * width
        probes.append(jnp.zeros((*(() if run is None else (run,)), len(x), side, side, width)))

    def line(probe: jax.Array) -> tuple[jax.Array, Any]:
        every = [probes[0].at[0].set(probe), *probes[1:]]
        p = (params.net[0], *zip(params.net[1:], every, strict=True))
        (_, *keeps), (stream, _) = net(p, (None,) * len(p), (x, ()))
        return stream, keeps

    return gain(key, line, probes[0][0])


def of_net(config: conv_resnet.Config, params: conv_resnet.Params, x: jax.Array, key: jax.Array) -> dict[str, float]:
    """Along depth: the blocks of a net, over normalised maps [B, P, P, C], batch norm by the batch's own statistics."""
    step = config.step._replace(gate_bias=None)  # which is in the params: one compilation for all biases
    return _named(*_of_net(replace(config, step=step), params, x, key))


@partial(jax.jit, static_argnums=0)
def _of_cell(branch: Any, p: order.Reader, xs: jax.Array, key: jax.Array) -> Any:
    weights = jax.tree.map(lambda leaf: leaf[0], p.body[0])  # of the first run of layers the first layer: the only one
    zeros = jnp.zeros((xs.shape[1], p.w.shape[0]))
    probes = jnp.zeros((len(xs), *zeros.shape))
    cells = scan(residual(watched(probed(branch))), AXES["time"])

    def line(probe: jax.Array) -> tuple[jax.Array, Any]:
        (stream, _), keeps = cells((weights, probes.at[0].set(probe)), (zeros, zeros), xs)
        return stream, keeps

    return gain(key, line, zeros)


def of_cell(branch: Any, p: order.Reader, xs: jax.Array, key: jax.Array) -> dict[str, float]:
    """Along time: the steps of a recurrent cell over sequences [T, B, D]."""
    return _named(*_of_cell(branch, p, xs, key))


def _named(log10_gain: jax.Array, keep: jax.Array) -> dict[str, float]:
    return {"log10_gain": float(log10_gain), "keep": float(keep)}
