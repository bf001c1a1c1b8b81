"""How a gradient fades along a line at initialisation: the same steps along time, and turned along depth.

The norm of d stream_end / d stream_k against n - k, the steps that the gradient travels, and over each curve the
product of the mean keeps: what the stream alone would hand back.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.progress import Progress

from experiments import data
from experiments.fit import counted, in_parallel, spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Experiment, Finding
from lstm_rot import Axis, residual, scan, turn
from lstm_rot.branches import dense, highway, lstm, probed, with_keep


@dataclass(frozen=True)
class Config:
    """Lines of `steps` cells, the image in their first stream; along time its pixels also enter, one a step."""

    steps: int = 64
    hidden_size: int = 32
    images: int = 8
    scale: float = 0.08
    """the LSTM's weights at the start are uniform in +-scale"""
    scales: tuple[float, ...] = (0.01, 0.02, 0.04, 0.08, 0.16)
    """the forget gate's claim again, at each of these scales"""
    seeds: int = 5
    data: str = "digits"


PRESETS = {"quick": Config(), "cpu": Config(hidden_size=64, images=32, seeds=10)}
AXES = {"time": Axis("left", tied=(True, False)), "depth": Axis("below", tied=False)}  # p is (weights, probe)
BIASES = (0, 1, 2, 5)
FLOOR = 1e-36  # float32 knows nothing much smaller


def small_lstm(key: jax.Array, input_size: int | None, hidden_size: int, *, scale: Any, bias: Any) -> lstm.Params:
    """Weights uniform in +-scale; biases zero but for the forget gate's."""
    p = lstm.init(key, input_size, hidden_size, forget_bias=bias)
    uniform = partial(jax.random.uniform, minval=-scale, maxval=scale)
    wx = None if p.wx is None else uniform(jax.random.fold_in(key, 0), p.wx.shape)
    return lstm.Params(wx, uniform(jax.random.fold_in(key, 1), p.wh.shape), p.b)


PLAIN = with_keep(dense.dense, 0)


def kinds(config: Config) -> dict[str, tuple[Any, Any, dict]]:
    """name -> (branch, init of its weights, init's options)."""
    return {
        "plain": (PLAIN, dense.init, {}),
        "highway": (highway.highway, highway.init, {}),
        "residual": (dense.dense, dense.init, {}),
        **{
            f"LSTM, forget bias {bias}": (lstm.lstm, small_lstm, {"scale": config.scale, "bias": float(bias)})
            for bias in BIASES
        },
    }


def watched(branch: Any) -> Any:
    """The branch, handing its keep on instead of its output."""

    def with_keep_above(p: Any, stream: jax.Array, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        keep, add, read = branch(p, stream, memory, below)
        return keep, add, lambda s: (read(s)[0], jnp.broadcast_to(jnp.asarray(keep, s.dtype), s.shape))

    return with_keep_above


def line(branch: Any, axis: str, weights: Any, image: jax.Array, start: jax.Array, probes: jax.Array) -> Any:
    """The last stream, and every keep: [H] and [n, H]."""
    cell, memory = residual(watched(probed(branch))), jnp.zeros_like(start)  # branches without one hand it on
    if axis == "time":
        (stream, _), keeps = scan(cell, AXES[axis])((weights, probes), (start, memory), image)
    else:
        keeps, (stream, _) = scan(turn(cell), AXES[axis])((weights, probes), None, (start, memory))
    return stream, keeps


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@partial(jax.vmap, in_axes=(None, None, None, None, None, None, 0))
def measure(config: Config, axis: str, branch: Any, init: Any, options: dict, images: Any, key: jax.Array) -> Any:
    """log10 of the gain ||d stream_end / d stream_k||_F / sqrt(H), and log10 of the product of the mean keeps: [n].

    Mean of the logarithms over the images; a gain of 1 is what the identity has.
    """
    hidden, n = config.hidden_size, config.steps
    key_weights, key_start = jax.random.split(key)
    pixels = images.reshape(len(images), -1)
    if axis == "time":
        weights, inputs = init(key_weights, 1, hidden, **options), pixels[:, :n, None]
    else:
        weights = jax.vmap(lambda k: init(k, None, hidden, **options))(jax.random.split(key_weights, n))
        inputs = pixels
    embed = jax.nn.initializers.lecun_normal()(key_start, (pixels.shape[1], hidden))
    probes = jnp.zeros((n, hidden))

    def of_image(image: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        jacobian, keeps = jax.jacrev(lambda p: line(branch, axis, weights, image, start, p), has_aux=True)(probes)
        largest = jnp.maximum(jnp.abs(jacobian).max((0, 2), keepdims=True), FLOOR)  # else its square may underflow
        gain = largest.squeeze() * jnp.sqrt(((jacobian / largest) ** 2).sum((0, 2)) / hidden)
        return jnp.log10(jnp.maximum(gain, FLOOR)), keeps

    gains, keeps = jax.vmap(of_image)(inputs, pixels @ embed)
    mean_keeps = jnp.append(keeps.mean((0, 2))[1:], 1.0)  # stream_k is kept by the steps after k
    products = jnp.cumsum(jnp.log10(jnp.maximum(mean_keeps, FLOOR))[::-1])[::-1]
    return gains.mean(0), jnp.maximum(products, np.log10(FLOOR))


def seeded(config: Config, axis: str, kind: tuple[Any, Any, dict], images: Any) -> dict:
    """The curves of every seed in short; index: the steps that the gradient has travelled."""
    keys = jax.vmap(jax.random.key)(jnp.arange(config.seeds))
    gains, products = (np.asarray(curves)[:, ::-1] for curves in measure(config, axis, *kind, images, keys))
    return {
        "log10_gain": gains.mean(0).tolist(),
        "low": gains.min(0).tolist(),
        "high": gains.max(0).tolist(),
        "log10_keeps": products.mean(0).tolist(),
        "factor": [factor(gain) for gain in gains],
        "keep": [factor(product) for product in products],
    }


def factor(log10_curve: np.ndarray) -> float:
    """The geometric mean factor a step, as far as the curve is above what float32 can tell from zero."""
    last = np.flatnonzero(log10_curve > np.log10(FLOOR) + 1)[-1]
    return float(10 ** (log10_curve[last] / last)) if last else 0.0


def run(config: Config, progress: Progress) -> dict:
    images = data.images(config.data)
    if config.steps > images.train_x[0].size:
        raise data.DataError(
            f"steps={config.steps}: an image of {config.data} has only {images.train_x[0].size} pixels"
        )
    some = images.train_x[: config.images]
    lines = list(product(AXES, kinds(config).items()))
    curves: dict[str, dict] = {axis: {} for axis in AXES}
    for (axis, (name, _)), curve in zip(
        lines,
        in_parallel(lambda task: seeded(config, task[0], task[1][1], some), lines, progress, "gradient flow"),
        strict=True,
    ):
        curves[axis][name] = curve
    scales = [
        {"scale": scale, **{f"bias {bias}": at_scale(config, scale, bias, some) for bias in BIASES[:3]}}
        for scale in config.scales
    ]
    return {"curves": curves, "scales": scales, "scale": config.scale, "data": images.provenance}


def at_scale(config: Config, scale: float, bias: int, images: Any) -> dict:
    """The LSTM along time with weights of that scale."""
    curve = seeded(config, "time", (lstm.lstm, small_lstm, {"scale": scale, "bias": float(bias)}), images)
    return {"factor": curve["factor"], "keep": curve["keep"]}


def judge(measurements: dict) -> list[Finding]:
    scales = measurements["scales"]
    near = [abs(np.mean(row["bias 0"]["factor"]) - 0.5) <= 0.05 for row in scales]
    mends = all(
        np.mean(row["bias 0"]["factor"]) < np.mean(row["bias 1"]["factor"]) < np.mean(row["bias 2"]["factor"])
        and np.mean(row["bias 2"]["factor"]) >= 0.85
        for row in scales
    )
    verdict = INCONCLUSIVE
    if not mends or not any(near):
        verdict = CONTRADICTED
    elif all(near):
        verdict = REPRODUCED
    at_zero = ", ".join(f"{spread(row['bias 0']['factor'])} (weights ±{row['scale']:g})" for row in scales)
    at = measurements["curves"]["time"]
    others = ", ".join(f"{spread(at[f'LSTM, forget bias {b}']['factor'])} at bias {b}" for b in BIASES[1:])
    ours = (
        f"forget bias 0: the gate keeps {spread(at['LSTM, forget bias 0']['keep'])} a step; the gradient's factor is "
        f"{at_zero}. With weights ±{measurements['scale']:g} it is {others}"
    )
    rule = (
        "reproduced if along time the gradient's factor a step at forget bias 0 is within 0.05 of 0.5 at every scale "
        "of the weights, grows at bias 1, again at 2, and is then at least 0.85; contradicted if it is near 0.5 at no "
        "scale or a bias does not mend it so; else inconclusive"
    )
    return [Finding("JOZ15-delta", ours, verdict, rule)]


def draw(result: dict) -> Figure:
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    curves = result["measurements"]["curves"]
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(BIASES)))
    looks = {"plain": ("#D55E00", "--"), "highway": ("#CC79A7", "-."), "residual": ("black", "-")}
    looks |= {f"LSTM, forget bias {bias}": (c, "-") for bias, c in zip(BIASES, colours, strict=True)}
    for axis, (name, lines) in zip(axes, curves.items(), strict=True):
        for kind, curve in lines.items():
            colour, dash = looks[kind]
            travelled = np.arange(len(curve["log10_gain"]))
            axis.plot(travelled, curve["log10_gain"], dash, color=colour, label=kind, linewidth=1.6)
            axis.fill_between(travelled, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
            if kind != "plain":  # its keep is 0: the product has no logarithm
                axis.plot(travelled[::4], curve["log10_keeps"][::4], ".", color=colour, markersize=4)
        axis.set(title=f"along {name}", xlabel="steps that the gradient travels, n - k", ylim=(-20, 6))
    config = result["config"]
    figure.suptitle(
        f"At initialisation: hidden size {config['hidden_size']}, the LSTM's weights uniform in ±{config['scale']:g} "
        f"({result['data']['name']}, {counted(result['seeds'], 'seed')}: mean, least and greatest)",
        fontsize=9,
    )
    axes[0].set_ylabel(r"$\log_{10}\ \Vert\partial s_n/\partial s_k\Vert_F\,/\sqrt{H}$")
    axes[0].plot([], [], ".", color="grey", label="product of mean keeps (0 for plain)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def table(measurements: dict) -> dict:
    rows = [
        [axis, kind, spread(curve["factor"]), "0" if kind == "plain" else spread(curve["keep"])]
        for axis, lines in measurements["curves"].items()
        for kind, curve in lines.items()
    ]
    return {"columns": ["along", "step", "gradient's factor a step", "mean keep a step"], "rows": rows}


EXPERIMENT = Experiment(
    name="gradient_flow",
    title="How a gradient fades, along time and along depth",
    claims=("JOZ15-delta",),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="The gain of the gradient at initialisation against the steps it travels, the same steps along time "
    "(weights shared, a pixel enters at each step) and turned along depth (each layer its own weights). Bands: least "
    "and greatest of the seeds; dots: the product of the mean keeps.",
    table=table,
)
