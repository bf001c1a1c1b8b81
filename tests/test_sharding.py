"""The hidden axis over four devices: gates are an axis of their own, so that no step moves them between devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CELLS, assert_close, compiled, flow, normal, weights
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_rot import DEPTH, TIME, scan

H = 8


def mesh():
    return Mesh(np.array(jax.devices()[:4]), ("model",))


def last_axis(tree):
    """Every leaf sharded along its last axis."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh(), PartitionSpec(*[None] * (leaf.ndim - 1), "model")), tree)


CASES = {
    "one cell": (CELLS["lstm"].cell, (), ()),
    "one gru cell": (CELLS["gru"].cell, (), ()),
    "a line along time": (scan(CELLS["lstm"].cell, TIME), (), (3,)),
    "a stack": (scan(scan(CELLS["lstm"].cell, TIME), DEPTH), (2,), (3,)),
}


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_a_sharded_hidden_axis_permutes_nothing(case, dtype):
    cell, layers, steps = CASES[case]
    example = CELLS["gru" if "gru" in case else "lstm"]
    args = weights(example, dtype, *layers, width=H, hidden=H), flow(example, dtype, *layers, hidden=H)
    args = (*args, normal(dtype, *steps, 2, H))
    everywhere = NamedSharding(mesh(), PartitionSpec())
    shardings = (*last_axis(args[:2]), everywhere)
    expected = jax.jit(cell)(*args)
    program = compiled(cell, *args, in_shardings=shardings, out_shardings=last_axis(expected))
    assert "collective-permute" not in program.as_text()
    results = program(*args)
    assert_close(results, expected, dtype)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(results)} == {4}


@pytest.mark.usefixtures("optimized")
def test_flat_gates_would_move():
    """The contrast: the same step on weights [D, 4H] with the hidden axis sharded needs permutes."""

    def step(w, h):
        i, f, g, o = jnp.split(h @ w, 4, axis=-1)
        return i * f + g * o

    w, h = normal("float32", H, 4 * H), normal("float32", 2, H)
    text = compiled(step, w, h, in_shardings=last_axis((w, h)), out_shardings=last_axis(h)).as_text()
    assert "collective-permute" in text
