"""A trained net damaged: cells deleted, cells exchanged. The cells are blocks along depth, or steps along time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import kendalltau

from experiments import lines, nets
from lstm_rot.branches import lesioned


class Damage(NamedTuple):
    """What is left of a line: which cells are alive, bools [cells], and which cell stands at each place, [cells]."""

    alive: np.ndarray
    order: np.ndarray


def none(cells: int) -> Damage:
    """The line as it was trained."""
    return Damage(np.ones(cells, bool), np.arange(cells))


def deleted(cells: int, which: Any) -> Damage:
    """Without these cells."""
    whole = none(cells)
    whole.alive[which] = False
    return whole


def exchanged(cells: int, alike: Sequence[range], pairs: int, rng: np.random.Generator) -> Damage:
    """`pairs` times two cells that are alike exchanged, each pair of cells as likely as any other."""
    whole = none(cells)
    lines_of_two = [line for line in alike if len(line) > 1]
    weights = np.array([len(line) * (len(line) - 1) for line in lines_of_two], float)
    for number in rng.choice(len(lines_of_two), pairs, p=weights / weights.sum()):
        pair = rng.choice(lines_of_two[number], 2, replace=False)
        whole.order[pair] = whole.order[pair[::-1]]
    return whole


def tau(damage: Damage) -> float:
    """Kendall's rank correlation of the order with the old one: 1 for the same, 0 for a random one."""
    return float(kendalltau(np.arange(len(damage.order)), damage.order)[0])  # pyright: ignore


def error(net: nets.Net, x: Any, y: Any, damage: Damage) -> float:
    """The share of wrong answers, in 0..1, of the net so damaged."""
    recipe = replace(net.recipe, seed=0)  # one program for all seeds
    return float(_wrong(recipe, net.params, net.statistics, x, y, damage.alive, damage.order))


@partial(jax.jit, static_argnums=0)
def _wrong(recipe: Any, params: Any, statistics: Any, x: Any, y: Any, alive: Any, order: Any) -> jax.Array:
    net = nets.Net(recipe, params, statistics, {}, 0.0)
    there = nets.pictures(recipe.data, recipe.pixels)
    scores = lines.run(net, there, x, wrap=lesioned, extra=alive, order=order).logits
    return (scores.argmax(-1) != y).mean()


def measure(net: nets.Net, x: Any, y: Any, samples: int) -> dict:
    """Test errors in 0..1: undamaged, without each cell, and with ever more cells deleted or exchanged at random."""
    cells, alike = lines.length(net.recipe), lines.alike(net.recipe)
    rng, able = np.random.default_rng(net.recipe.seed), np.concatenate(alike)
    at_once = [2**k for k in range(len(able).bit_length()) if 2**k <= 2 * len(able) / 3]
    pairs = at_once if max(map(len, alike)) > 1 else []
    measured = partial(error, net, x, y)

    def sampled(damages: list[Damage]) -> dict:
        errors = [measured(damage) for damage in damages]
        taus = [tau(damage) for damage in damages]
        return {"mean": np.mean(errors), "least": min(errors), "greatest": max(errors), "tau": np.mean(taus)}

    return {
        "whole": measured(none(cells)),
        "single": [measured(deleted(cells, cell)) for cell in range(cells)],
        "deleted": [
            {"cells": k} | sampled([deleted(cells, rng.choice(able, k, replace=False)) for _ in range(samples)])
            for k in at_once
        ],
        "exchanged": [{"pairs": k} | sampled([exchanged(cells, alike, k, rng) for _ in range(samples)]) for k in pairs],
    }
