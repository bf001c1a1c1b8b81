"""The gradient along single paths through a trained net, and what paths of each length carry (Veit et al. 2016).

A line of n cells, each of which proposes and is skipped, has 2^n paths, n over k of them of length k: through k of the
proposals. Blocks that halve the maps hand back the whole gradient, and are not counted.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln, logsumexp

from experiments import lines, nets
from experiments.fit import cross_entropy
from lstm_rot import Branch
from lstm_rot.branches import by_path, lesioned

SCALE = 2.0**90  # of the loss: float32 knows nothing below 1e-38, and the longest paths carry less
FLOOR = 1e-65
LENGTHS = 65  # measured, at most: in a longer line those between are interpolated
LOG_10 = np.log(10)


def started(branch: Branch, probe: Any) -> Branch:
    """The branch with p = (weights, (extra, first)): where `first`, the probe is added to what comes in.

    The gradient with respect to a probe of zeros is that with respect to the line's first stream and memory.
    """

    def with_probe(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        weights, (extra, first) = p
        if stream.shape == probe[0].shape:  # else a later stage
            stream, memory = jax.tree.map(lambda x, dx: x + jnp.where(first, dx, 0), (stream, memory), probe)
        keep, add, read = branch((weights, extra), stream, memory, below)
        if add.shape != stream.shape:  # where the maps halve, and so not the first
            return keep, add, read
        return 0, keep * stream + add, read

    return with_probe


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(
    recipe: Any, wrap: Callable[[Branch], Branch], params: Any, statistics: Any, x: Any, y: Any, extras: Any
) -> Any:
    net, there = nets.Net(recipe, params, statistics, {}, 0.0), nets.pictures(recipe.data, recipe.pixels)
    first = jnp.arange(lines.length(recipe)) == 0

    def loss(probe: Any, extra: jax.Array) -> jax.Array:
        outcome = lines.run(net, there, x, wrap=lambda branch: started(wrap(branch), probe), extra=(extra, first))
        return SCALE * cross_entropy(outcome.logits, y)

    return jax.vmap(jax.grad(loss), (None, 0))(lines.first(recipe, x), extras)


def gradients(net: nets.Net, wrap: Callable[[Branch], Branch], x: Any, y: Any, extras: np.ndarray) -> np.ndarray:
    """[S, all units], float64, of the mean loss in nats with respect to the line's first stream and memory.

    One for each of the extras [S, cells].

    wrap: `by_path`, then an extra says through which proposals; or `lesioned`, which gives the whole gradient for True.
    """
    recipe = replace(net.recipe, seed=0)  # one program for all seeds
    found = _gradients(recipe, wrap, net.params, net.statistics, x, y, extras)
    flat = [np.asarray(leaf, np.float64).reshape(len(extras), -1) for leaf in jax.tree.leaves(found)]
    return np.concatenate(flat, axis=1) / SCALE


def log_norms(found: np.ndarray) -> np.ndarray:
    """log10 of the norms of gradients [S, units]: [S]."""
    return np.log10(np.maximum(np.linalg.norm(found, axis=1), FLOOR))


def measure(net: nets.Net, x: Any, y: Any, samples: int) -> dict:
    """Of each length, log10 of the norms along `samples` random paths: of their mean, the mean, and the 10% and 90%."""
    cells, able = lines.length(net.recipe), np.concatenate(lines.alike(net.recipe))
    rng, n = np.random.default_rng(net.recipe.seed), len(able)
    lengths = np.unique(np.round(np.linspace(0, n, min(n + 1, LENGTHS))).astype(int))
    rows = []
    for k in lengths:
        through = np.zeros((samples, cells), bool)
        for path in through:
            path[rng.choice(able, k, replace=False)] = True
        rows.append(log_norms(gradients(net, by_path, x, y, through)))
    logs = np.array(rows)
    whole = log_norms(gradients(net, lesioned, x, y, np.ones((1, cells), bool)))[0]
    low, high = np.quantile(logs, (0.1, 0.9), axis=1)
    return {
        "length": lengths.tolist(),
        "log10_of_mean": ((logsumexp(LOG_10 * logs, axis=1) - np.log(samples)) / LOG_10).tolist(),
        "mean_of_log10": logs.mean(1).tolist(),
        "log10_low": low.tolist(),
        "log10_high": high.tolist(),
        "log10_whole": float(whole),
    }


class Shares(NamedTuple):
    """Of the lengths 0..n: their share of the sum of all paths' norms, and of the number of all paths; each sums to 1.

    excess: that sum over the norm of the whole gradient, at least 1, for paths may cancel each other.
    """

    gradient: np.ndarray
    paths: np.ndarray
    excess: float

    def until(self, share: float) -> int:
        """The least length up to which that share of the gradient is carried."""
        return int(np.searchsorted(self.gradient.cumsum(), share))


def shares(measured: dict) -> Shares:
    """What paths of each length carry: their number times the mean norm along one, over the sum for all lengths.

    As Veit et al. do. Norms add up only where gradients point the same way: their sum is an upper bound.
    """
    n = measured["length"][-1]
    k = np.arange(n + 1)
    counts = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    sums = counts + LOG_10 * np.interp(k, measured["length"], measured["log10_of_mean"])
    total = logsumexp(sums)
    excess = np.exp(total - LOG_10 * measured["log10_whole"])
    return Shares(np.exp(sums - total), np.exp(counts - n * np.log(2)), float(excess))
