"""The grid that the page turns: the gradients of trained nets at every cell, at 0, 45 and 90 degrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments.data import Images
from experiments.fit import cross_entropy, fit, in_parallel, per_seed
from lstm_rot import DEPTH, Axis, Cell, residual, scan, turn, wavefront
from lstm_rot.branches import dense, lstm, probed
from lstm_rot.branches.common import layer_norm

SIDE, CLASSES = 8, 10
TIME_PROBED = Axis("left", tied=(True, False))  # p is (weights, probes)


class Weights(NamedTuple):
    """Into the stream, the cells, the norm and the head."""

    embed: jax.Array
    cells: Any
    scale: jax.Array
    w: jax.Array
    b: jax.Array


def init(make: Callable[..., Any], inputs: int | None, width: int, hidden: int, cells: int, key: jax.Array) -> Weights:
    """`make` makes the weights of one cell; the embedding is [width, hidden]."""
    key_embed, key_cells = jax.random.split(key)
    weights = jax.vmap(lambda k: make(k, inputs, hidden))(jax.random.split(key_cells, cells))
    embed = jax.nn.initializers.lecun_normal()(key_embed, (width, hidden))
    return Weights(embed, weights, jnp.ones(hidden), jnp.zeros((hidden, CLASSES)), jnp.zeros(CLASSES))


def head(p: Weights, top: jax.Array) -> jax.Array:
    return layer_norm(top, p.scale) @ p.w + p.b


def nested(cell: Cell) -> Cell:
    return scan(scan(cell, TIME_PROBED), DEPTH)


def diagonal(cell: Cell) -> Cell:
    return wavefront(cell, time=TIME_PROBED)


def lstm_logits(grid: Callable[[Cell], Cell], p: Weights, images: jax.Array, probes: jax.Array) -> jax.Array:
    """SIDE layers of LSTM over the rows of the images; probes [layer, time, B, H]."""
    zeros = jnp.zeros((SIDE, len(images), p.scale.size))
    rows = jnp.tanh(images.swapaxes(0, 1) @ p.embed)
    _, above = grid(residual(probed(lstm.lstm)))((p.cells, probes), (zeros, zeros), rows)
    return head(p, above[-1])


def resnet_logits(p: Weights, images: jax.Array, probes: jax.Array) -> jax.Array:
    """A residual net through depth; probes [depth, B, H]."""
    start = images.reshape(len(images), -1) @ p.embed
    _, (stream, _) = scan(turn(residual(probed(dense.dense))), DEPTH)((p.cells, probes), None, (start, ()))
    return head(p, stream)


def measure(config: Any, images: Images, progress: Progress) -> dict:
    """The page's grid: the mean over images of ||d loss / d stream|| at each cell of the trained nets."""
    pixels, hidden, count = images.train_x.shape[-1], config.hidden_size, 16
    x, y = jnp.asarray(images.test_x), jnp.asarray(images.test_y)

    def train(make: Any, inputs: int | None, width: int, logits: Any, shape: tuple[int, ...], label: str) -> Weights:
        params, _ = fit(
            per_seed(lambda key: init(make, inputs, width, hidden, shape[0], key), 1),
            lambda p, x: logits(p, x, jnp.zeros((*shape, len(x), hidden))),
            images,
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            progress=progress,
            label=label,
        )
        return jax.tree.map(lambda leaf: leaf[0], params)

    def norms(logits: Any, p: Weights, x: jax.Array, y: jax.Array, shape: tuple[int, ...]) -> Any:
        def loss(probes: jax.Array) -> jax.Array:
            return cross_entropy(logits(p, x, probes), y) * len(x)

        gradients = jax.jit(jax.grad(loss))(jnp.zeros((*shape, len(x), hidden)))
        return jnp.linalg.norm(gradients, axis=-1)

    def through(grid: Any) -> Any:
        return lambda p, x, probes: lstm_logits(grid, p, x, probes)

    square = (SIDE, pixels)
    trainings = (
        (lstm.init, hidden, pixels, through(nested), square, "the grid's LSTM"),
        (dense.init, None, pixels * pixels, resnet_logits, (pixels,), "the grid's ResNet"),
    )
    stack, net = in_parallel(lambda task: train(*task), trainings, progress, "the grid")
    lines = [jnp.flatnonzero(y == digit)[:count] for digit in range(SIDE)]
    some = jnp.concatenate(lines)
    measured = (
        (through(nested), stack, x[some], y[some], square),
        (through(diagonal), stack, x[some], y[some], square),
        (resnet_logits, net, x[some], y[some], (pixels,)),
    )
    at_0, at_45, of_net = in_parallel(lambda task: norms(*task), measured, progress, "its gradients")
    at_0, at_45 = at_0.mean(-1), at_45.mean(-1)
    ends = np.cumsum([len(line) for line in lines])[:-1]
    at_90 = jnp.stack([norm.mean(-1) for norm in jnp.split(of_net, ends, axis=-1)])
    return {"depth": SIDE, "time": pixels, "stops": stops(at_0, at_45, at_90)}


def stops(at_0: jax.Array, at_45: jax.Array, at_90: jax.Array) -> list[dict]:
    """What the page says and colours at each angle; the values are [line, step along the stream]."""
    lines, steps = at_0.shape
    unit = "‖∂ loss / ∂ stream‖"
    return [
        {
            "angle": 0,
            "name": "LSTM",
            "code": "scan(residual(lstm), TIME)",
            "caption": f"{lines} layers of LSTM, trained to read a digit row by row: in each layer the stream runs "
            "along time, its weights shared by all steps.",
            "values": at_0.tolist(),
            "unit": unit,
        },
        {
            "angle": 45,
            "name": "wavefront",
            "code": "wavefront(residual(lstm))",
            "caption": "The same LSTM run along its anti-diagonals: the cells of one row on the screen are "
            f"independent and run in one tick, {lines + steps - 1} ticks in all. The gradients are the same to "
            f"rounding (largest difference {float(jnp.abs(at_45 - at_0).max()):.1g}).",
            "values": at_45.tolist(),
            "unit": unit,
        },
        {
            "angle": 90,
            "name": "ResNet",
            "code": "scan(turn(residual(dense)), DEPTH)",
            "caption": f"A residual net of {steps} layers, trained on the same digits: the stream runs through "
            "depth, each layer with weights of its own. One column a digit, from 0 on the right to 7; between "
            "the columns nothing flows.",
            "values": at_90.tolist(),
            "unit": unit,
        },
    ]
