"""The models that are compared: one head, and bodies of as many parameters each."""

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from lstm_rot.models import gru, highway, language_model, lstm, transformer

BYTES = 256
HEADS = 4  # of a Transformer


def body(name: str, hidden: int, layers: int, compute: str) -> Any:
    """The config of a body of this name and width."""
    if name == "transformer":
        return transformer.Config(hidden, layers, HEADS, compute_dtype=compute)
    return {"lstm": lstm, "gru": gru, "highway": highway}[name].Config(hidden, hidden, layers, compute_dtype=compute)


def sized(name: str, parameters: int, layers: int, compute: str = "float32") -> language_model.Config:
    """The model of this name whose number of parameters is nearest to the one asked for; its width a multiple of 4."""
    widths = range(HEADS, 8193, HEADS)
    low, high = 0, len(widths) - 1  # the count grows with the width
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (middle + 1, high) if count(_config(name, widths[middle], layers, compute)) < parameters else (low, middle)
        )
    around = [_config(name, widths[k], layers, compute) for k in {max(low - 1, 0), low}]
    return min(around, key=lambda config: abs(count(config) - parameters))


def _config(name: str, hidden: int, layers: int, compute: str) -> language_model.Config:
    return language_model.Config(BYTES, body(name, hidden, layers, compute))


@lru_cache
def count(config: language_model.Config) -> int:
    """Its parameters, all of them."""
    shapes = jax.eval_shape(lambda: language_model.init(jax.random.key(0), config))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
