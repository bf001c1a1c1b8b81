"""What is seen in a trained net: what its cells add, and how far each state of its stream is from the last.

Along depth and along time by the same functions. A cell is a block or a time step; what it hands on is the stream as it
enters the next cell, after the rectifier where the block has one.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments import lines, nets
from lstm_rot.branches import conv
from lstm_rot.models import conv_resnet

TINY = 1e-30  # a stream that has died has no direction


def measure(net: nets.Net, x: Float[Array, "B P P C"]) -> dict[str, jax.Array]:
    """Of maps x, uint8, in a trained net: by name, a number for each of its cells.

    `response` is the standard deviation of what the cell adds, over images, pixels and channels (or units). With the
    block of He et al. 2015 that is its second layer's normalised output, before addition and rectifier; of an LSTM,
    i g. `layers`, along depth alone, has one for each 3x3 layer. The others: see `estimates`, within each stage.
    """
    return _measure(replace(net.recipe, seed=0), net.params, net.statistics, x)  # all seeds share what is compiled


@partial(jax.jit, static_argnums=0)
def _measure(recipe: nets.Recipe, params: Any, statistics: Any, x: Float[Array, "B P P C"]) -> dict[str, jax.Array]:
    net = nets.Net(recipe, params, statistics, {}, 0.0)
    rectified = recipe.convolutional and not recipe.model.step.pre_activated  # pyright: ignore

    def look(stream: Any, keep: Any, add: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
        return add.std(), jax.nn.relu(new) if rectified else new

    seen = lines.run(net, nets.pictures(recipe.data, recipe.pixels), x, look=look).seen
    parts = [{"response": responses, **estimates(streams)} for responses, streams in seen]
    joined = jax.tree.map(lambda *stages: jnp.concatenate(stages), *parts)
    return joined | ({"layers": layers(net, x)} if rectified else {})


def estimates(streams: Float[Array, "L B *S"]) -> dict[str, jax.Array]:
    """What Greff et al. 2016 ask of x_1 ... x_L, the estimates that the cells of a stage hand on; all [L].

    difference  E[x_l - x_L], over images and units together
    by_unit     the same of each unit by itself, root of the mean square over the units: nothing cancels
    deviation   the standard deviation of x_l - x_L, over images and units
    distance    ||x_l - x_L|| / ||x_L|| of an image: the median over the images; distance_25, distance_75: quartiles

    The first three in units of the standard deviation of x_L, over images and units.
    """
    flat = streams.reshape(*streams.shape[:2], -1)
    off, last = flat - flat[-1], flat[-1]
    unit = jnp.maximum(last.std(), TINY)
    distance = jnp.linalg.norm(off, axis=-1) / jnp.maximum(jnp.linalg.norm(last, axis=-1), TINY)
    quartiles = jnp.quantile(distance, jnp.array([0.25, 0.5, 0.75]), axis=1)
    return {
        "difference": off.mean((1, 2)) / unit,
        "by_unit": jnp.sqrt((off.mean(1) ** 2).mean(-1)) / unit,
        "deviation": off.std((1, 2)) / unit,
        "distance": quartiles[1],
        "distance_25": quartiles[0],
        "distance_75": quartiles[2],
    }


class Heard(NamedTuple):
    """A norm that hands on the standard deviation of what it gives, in the place of the statistics used."""

    norm: conv.BatchNorm

    def __call__(self, x: Float[Array, "B P P C"], statistics: Any) -> tuple[Float[Array, "B P P C"], jax.Array]:
        x, _ = self.norm(x, statistics)
        return x, x.std()


def _is_norm(leaf: Any) -> bool:
    return isinstance(leaf, conv.BatchNorm)


def _heard(leaf: Any) -> Any:
    return Heard(leaf) if _is_norm(leaf) else leaf


def layers(net: nets.Net, x: Float[Array, "B P P C"]) -> Float[Array, "N"]:
    """The standard deviation of each 3x3 layer's output, after its norm and before addition and rectifier.

    As in Fig. 7 of He et al. 2015: the stem, then both layers of each block. The norms use the running statistics.
    """
    recipe = net.recipe
    heard = jax.tree.map(_heard, net.params.net, is_leaf=_is_norm)
    cell = conv_resnet.net(recipe.model)  # pyright: ignore
    (stem, *runs), _ = cell(heard, net.statistics, (nets.normal(x, nets.pictures(recipe.data, recipe.pixels)), ()))
    return jnp.concatenate([stem[None], *[jnp.stack(both, -1).ravel() for both in runs]])
