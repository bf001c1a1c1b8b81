"""An LSTM changed one thing at a time until it is a ResNet: how far each change moves it, and how each rung trains."""

from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

from experiments.data import Images
from experiments.fit import cross_entropy, error_rates, fit, in_parallel, per_seed
from experiments.rotation.laws import difference
from lstm_rot import DEPTH, Axis, residual, scan, turn
from lstm_rot.branches import lstm, probed
from lstm_rot.branches.common import affine, layer_norm

CLASSES = 10


class Rung(NamedTuple):
    """One net between the LSTM and the ResNet."""

    name: str
    opened: str = ""
    squashed: bool = True
    tied: bool = True
    inputs: bool = True


LADDER = (
    Rung("LSTM"),
    Rung("open f", "f"),
    Rung("open i", "fi"),
    Rung("open o", "fio"),
    Rung("drop the squash", "fio", squashed=False),
    Rung("untie", "fio", squashed=False, tied=False),
    Rung("stop the input: ResNet", "fio", squashed=False, tied=False, inputs=False),
)


class Weights(NamedTuple):
    """Weights of a rung: its cells, the image's way into the stream where nothing enters later, norm and head."""

    cell: lstm.Params
    embed: jax.Array | None
    scale: jax.Array
    w: jax.Array
    b: jax.Array


def branch_of(rung: Rung) -> Any:
    """The LSTM's equations; an opened gate is 1 and has no weights, an unsquashed read hands c on as it is."""

    def branch(p: lstm.Params, stream: jax.Array, memory: jax.Array, below: jax.Array | None) -> tuple[Any, Any, Any]:
        rows = jnp.moveaxis(affine(p, memory, below), -2, 0)
        gates = dict(zip((gate for gate in "ifgo" if gate not in rung.opened), rows, strict=True))

        def gated(gate: str, x: jax.Array) -> jax.Array:
            return x if gate in rung.opened else jax.nn.sigmoid(gates[gate]) * x

        def read(stream: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = gated("o", jnp.tanh(stream) if rung.squashed else stream)
            return h, h

        keep = 1 if "f" in rung.opened else jax.nn.sigmoid(gates["f"])
        return keep, gated("i", jnp.tanh(gates["g"])), read

    return branch


def init(rung: Rung, key: jax.Array, pixels: int, hidden: int) -> Weights:
    """The same key gives all rungs the LSTM's weights, less those of its opened gates, once or a copy for each step."""
    cell = lstm.init(key, pixels, hidden)
    kept = jnp.array([index for index, gate in enumerate("ifgo") if gate not in rung.opened])
    cell = lstm.Params(cell.wx[:, kept] if rung.inputs else None, cell.wh[:, kept], cell.b[kept])  # pyright: ignore
    if not rung.tied:
        cell = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (pixels, *leaf.shape)), cell)
    embed = None
    if not rung.inputs:
        embed = jax.nn.initializers.lecun_normal()(jax.random.fold_in(key, 1), (pixels * pixels, hidden))
    return Weights(cell, embed, jnp.ones(hidden), jnp.zeros((hidden, CLASSES)), jnp.zeros(CLASSES))


def run_line(rung: Rung, p: Weights, images: jax.Array, probes: jax.Array) -> jax.Array:
    """What the last cell reads, [B, H]: along TIME while inputs enter, and the last rung turned, along DEPTH."""
    batch, steps, pixels = images.shape
    cell, weights = residual(probed(branch_of(rung))), (p.cell, probes)
    if rung.inputs:
        zeros = jnp.zeros((batch, p.scale.size))
        rows = images.swapaxes(0, 1)
        (_, h), _ = scan(cell, Axis("left", tied=(rung.tied, False)))(weights, (zeros, zeros), rows)
    else:
        start = images.reshape(batch, steps * pixels) @ p.embed  # pyright: ignore
        _, (_, h) = scan(turn(cell), DEPTH)(weights, None, (start, start))
    return h


def no_probes(p: Weights, images: jax.Array) -> jax.Array:
    return jnp.zeros((images.shape[1], len(images), p.scale.size))


def logits(rung: Rung, p: Weights, images: jax.Array, probes: jax.Array | None = None) -> jax.Array:
    """[B, 10]; the head reads through a norm, for the last rungs' streams are not bounded."""
    probes = no_probes(p, images) if probes is None else probes
    return layer_norm(run_line(rung, p, images, probes), p.scale) @ p.w + p.b


def in_numpy(rung: Rung, p: Weights, images: np.ndarray) -> np.ndarray:
    """`run_line` as a loop in numpy that knows nothing of cells."""
    names, steps = [gate for gate in "ifgo" if gate not in rung.opened], images.shape[1]
    c = h = images.reshape(len(images), -1) @ p.embed if p.embed is not None else np.zeros((len(images), p.scale.size))
    for t in range(steps):
        cell = p.cell if rung.tied else jax.tree.map(lambda leaf, t=t: leaf[t], p.cell)
        a = {gate: h @ cell.wh[:, n] + cell.b[n] for n, gate in enumerate(names)}
        if rung.inputs:
            a = {gate: a[gate] + images[:, t] @ cell.wx[:, n] for n, gate in enumerate(names)}  # pyright: ignore
        sigma = {gate: 1 / (1 + np.exp(-a[gate])) if gate in a else 1.0 for gate in "ifo"}
        c = sigma["f"] * c + sigma["i"] * np.tanh(a["g"])
        h = sigma["o"] * (np.tanh(c) if rung.squashed else c)
    return h


def from_numpy(rung: Rung, p: Weights, images: np.ndarray) -> float:
    """The difference of `run_line` and the loop, both in float64."""
    p, x = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p), images.astype(np.float64)
    with jax.enable_x64(True):
        q, y = jax.tree.map(jnp.asarray, (p, x))
        return difference(jax.jit(run_line, static_argnums=0)(rung, q, y, no_probes(q, y)), in_numpy(rung, p, x))


def measure(config: Any, images: Images, progress: Progress) -> list[dict]:
    """For each rung: its distance from the rung before (same weights) and from numpy, and how it trains."""
    x, y = jnp.asarray(images.test_x[:64]), jnp.asarray(images.test_y[:64])

    def climb(rung: Rung) -> tuple[np.ndarray, dict]:
        untrained, outputs = first_outputs(rung, config.seeds, config.hidden_size, x)
        gaps = [from_numpy(rung, jax.tree.map(lambda leaf, seed=seed: leaf[seed], untrained), images.test_x[:64])
                for seed in range(config.seeds)]  # fmt: skip
        params, _ = fit(
            untrained,
            partial(logits, rung),
            images,
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            progress=progress,
            label=f"rung: {rung.name}",
        )
        _, error = error_rates(partial(logits, rung), params, images)
        gradients = np.asarray(stream_gradients(rung, params, x, y))
        with np.errstate(divide="ignore", invalid="ignore"):
            arrives = gradients[:, 0] / gradients[:, -1]
        row = {
            "rung": rung.name,
            "from_numpy": float(np.max(gaps)),
            "accuracy": [1 - e for e in error],
            "gradient": gradients.mean(0).tolist(),  # by step
            "arrives": arrives.tolist(),
        }
        return np.asarray(outputs), row

    outputs, rows = zip(*in_parallel(climb, LADDER, progress, "the ladder"), strict=True)
    moved = [[]] + [np.abs(b - a).max((1, 2)).tolist() for a, b in pairwise(outputs)]
    return [{**row, "moved": change} for row, change in zip(rows, moved, strict=True)]


@partial(jax.jit, static_argnums=(0, 1, 2))
def first_outputs(rung: Rung, seeds: int, hidden: int, images: jax.Array) -> tuple[Weights, jax.Array]:
    """The weights before training, and what the last cell reads: [seeds, B, H]."""
    p = per_seed(lambda key: init(rung, key, images.shape[-1], hidden), seeds)
    return p, jax.vmap(lambda p: run_line(rung, p, images, no_probes(p, images)))(p)


@partial(jax.jit, static_argnums=0)
def stream_gradients(rung: Rung, params: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    """||d loss / d stream_k|| of each seed and step, the mean over the images: [seeds, n]."""

    def loss(probes: jax.Array, p: Weights) -> jax.Array:
        return cross_entropy(logits(rung, p, x, probes), y) * len(x)

    gradients = jax.vmap(lambda p: jax.grad(loss)(no_probes(p, x), p))(params)
    return jnp.linalg.norm(gradients, axis=-1).mean(-1)
