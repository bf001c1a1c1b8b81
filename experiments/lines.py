"""A trained net as a line of cells, along depth or along time: what every look into one is made of.

The cells of a line are the blocks of a convolutional net, 3n of them, the layers of a dense one, or the time steps of a
recurrent one. A wrapper of branches stands for each cell's branch (`branches.lesioned`, `branches.watched`,
`branches.by_path`, ...), and gets what it asks for beside the weights cell by cell: `extra`, with a leading axis of the
line's length.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.nets import Net, Pictures, Recipe, normal, pieces
from lstm_rot import DEPTH, TIME, Axis, Branch, residual, scan, turn
from lstm_rot.branches import lstm, rnn, watched, with_keep
from lstm_rot.branches.common import layer_norm
from lstm_rot.models import conv_resnet
from lstm_rot.models import lstm as lstm_model
from lstm_rot.models import residual_rnn as residual_rnn_model
from lstm_rot.models import rnn as rnn_model

READERS: dict[type, tuple[Branch, bool]] = {  # of one layer: its branch, and whether it has a memory
    lstm_model.Config: (lstm.lstm, True),
    rnn_model.Config: (rnn.rnn, False),
    residual_rnn_model.Config: (with_keep(rnn.rnn, 1), False),
}


class Outcome(NamedTuple):
    """Of a run: the logits [B, K], and by stage what each cell handed on, [cells of the stage, ...].

    A convolutional net has three stages, in which the maps are alike; any other line is one.
    """

    logits: jax.Array
    seen: tuple[Any, ...]


def same(branch: Branch) -> Branch:
    """The branch itself."""
    return branch


def length(recipe: Recipe) -> int:
    """The number of cells."""
    model: Any = recipe.model
    if recipe.convolutional:
        return 3 * model.blocks
    return model.body.num_layers if recipe.turned else recipe.length


def stages(recipe: Recipe) -> list[range]:
    """The cells of each stage."""
    if not recipe.convolutional:
        return [range(length(recipe))]
    n = recipe.model.blocks  # pyright: ignore
    return [range(start, start + n) for start in (0, n, 2 * n)]


def alike(recipe: Recipe) -> list[range]:
    """Cells that can stand in for each other, by line: all, but for the blocks that halve the maps."""
    if not recipe.convolutional:
        return stages(recipe)
    first, *later = stages(recipe)
    return [first, *(stage[1:] for stage in later if len(stage) > 1)]


def first(recipe: Recipe, x: jax.Array) -> tuple[jax.Array, Any]:
    """Zeros of the shapes of the stream and the memory that come into the first cell, for maps x [B, P, P, C]."""
    model: Any = recipe.model
    if recipe.convolutional:
        return jnp.zeros((*x.shape[:3], model.width)), ()
    zeros = jnp.zeros((len(x), model.body.hidden_size))
    return zeros, zeros if not recipe.turned and READERS[type(model.body)][1] else ()


def run(
    net: Net,
    pictures: Pictures,
    x: jax.Array,
    *,
    wrap: Callable[[Branch], Branch] = same,
    extra: Any = None,
    look: Callable[[Any, Any, Any, Any], Any] | None = None,
    order: jax.Array | None = None,
) -> Outcome:
    """The net on maps x [B, P, P, C], uint8, each cell's branch wrapped; its batch norms use the running statistics.

    extra: None, or a tree of [cells, ...]: then the wrapped branch's p is (weights, its slice). look: see
    `branches.watched`; None: nothing is seen. order: None, or ints [cells], which cell stands at each place, its
    weights along depth, its input along time; only cells that are `alike` change places, `extra` stays with the place.
    """
    both = partial(_wrapped, wrap, look or _nothing)
    way = _deep if net.recipe.convolutional else _dense if net.recipe.turned else _long
    return way(net, normal(x, pictures), both, extra, order)


def _wrapped(wrap: Callable, look: Callable, branch: Branch) -> Branch:
    return watched(wrap(branch), look)


def _nothing(*_: Any) -> tuple:
    return ()


def _deep(net: Net, x: jax.Array, wrap: Callable[[Branch], Branch], extra: Any, order: Any) -> Outcome:
    config: Any = net.recipe.model
    net = net if order is None else _moved(net, order)
    stem, *runs = net.params.net
    runs, end = runs[: len(config.runs)], runs[len(config.runs) :]
    at, weights = 0, []
    for size, run in zip(config.runs, runs, strict=True):
        place: Any = at if size is None else slice(at, at + size)
        weights.append(run if extra is None else (run, jax.tree.map(partial(_at, place), extra)))
        at += size or 1
    cell = conv_resnet.net(config, wrap=wrap)
    (_, *rights), (stream, _) = cell((stem, *weights, *end), net.statistics, (x, ()))
    seen = [
        jax.tree.map(lambda leaf, size=size: leaf[None] if size is None else leaf, seen)
        for size, (_, seen) in zip(config.runs, rights[: len(runs)], strict=True)
    ]
    joined = tuple(
        jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts) for parts in (seen[:1], *_pairs(seen[1:], config))
    )
    return Outcome(conv_resnet.head(net.params, stream, config), joined)


def _moved(net: Net, order: jax.Array) -> Net:
    """Blocks in another order, each with its running statistics."""
    parts, at = list(zip(net.params.net, net.statistics, strict=True)), 0
    for number, size in enumerate(net.recipe.model.runs, start=1):  # pyright: ignore
        if size is not None:
            parts[number] = jax.tree.map(partial(_at, order[at : at + size] - at), parts[number])
        at += size or 1
    weights, statistics = zip(*parts, strict=True)
    return net._replace(params=net.params._replace(net=weights), statistics=statistics)


def _at(place: Any, leaf: jax.Array) -> jax.Array:
    return leaf[place]


def _pairs(seen: list, config: Any) -> list[list]:
    """What was seen of each later stage: of its first block, and of the line of the others, where there are any."""
    parts = 2 if config.blocks > 1 else 1
    return [seen[k : k + parts] for k in range(0, len(seen), parts)]


def _dense(net: Net, x: jax.Array, wrap: Callable[[Branch], Branch], extra: Any, order: Any) -> Outcome:
    config: Any = net.recipe.model
    body, (w, b, steps, scale) = config.body, net.params.body
    steps = steps if order is None else jax.tree.map(partial(_at, order), steps)
    line = scan(turn(residual(wrap(body.step.branch))), DEPTH)
    below = x.reshape(len(x), -1) @ w + b
    (_, seen), (stream, _) = line(steps if extra is None else (steps, extra), None, (below, ()))
    return Outcome(layer_norm(stream, scale) @ net.params.w + net.params.b, (seen,))


def _long(net: Net, x: jax.Array, wrap: Callable[[Branch], Branch], extra: Any, order: Any) -> Outcome:
    config: Any = net.recipe.model
    branch, remembers = READERS[type(config.body)]
    weights = jax.tree.map(lambda leaf: leaf[0], net.params.body[0])  # of its one layer
    line = scan(residual(wrap(branch)), TIME if extra is None else Axis("left", tied=(True, False)))
    xs = pieces(x, config.body.input_size).swapaxes(0, 1)
    xs = xs if order is None else xs[order]
    p = weights if extra is None else (weights, extra)
    (stream, memory), (_, seen) = line(p, first(net.recipe, x), xs)
    return Outcome((memory if remembers else stream) @ net.params.w + net.params.b, (seen,))
