"""The hidden axis over four devices: gates are an axis of their own, so that no step moves them between devices.

And examples over four, on a mesh of automatic axes or of explicit ones.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CELLS, assert_close, compiled, flow, normal, random_like, weights
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_rot import DEPTH, TIME, Checkpointed, Newton, scan
from lstm_rot.models import classifier, conv_resnet, gru, lstm, resnet
from lstm_rot.training.pipeline import Pipeline

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


B, T, D = 4, 5, 6
KEY = jax.random.key(0)
WIDE: Any = {"param_dtype": "float64"}
PLAIN = lstm.Config(D, H, **WIDE)
RICH = lstm.Config(
    D, H, 2, bidirectional=True, projection_size=4, peepholes=True, dropout=0.3, zoneout_cell=0.1, **WIDE
)
PLACED = {  # a model, its config, options of its apply, and its input, examples along which axis
    "lstm": (lstm, PLAIN, {}, (T, B, D), 1),
    "lstm, reference": (lstm, PLAIN, {"implementation": "reference"}, (T, B, D), 1),
    "lstm, at once": (lstm, PLAIN, {"schedule": Newton()}, (T, B, D), 1),
    "lstm, rich": (lstm, RICH, {"key": KEY, "lengths": [5, 0, 2, 1]}, (T, B, D), 1),
    "gru": (gru, gru.Config(D, H, compute_dtype="bfloat16"), {}, (T, B, D), 1),
    "resnet": (resnet, resnet.Config(D, H, 3, **WIDE), {"schedule": Checkpointed()}, (B, D), 0),
    "conv_resnet": (conv_resnet, conv_resnet.Config(8, width=4, **WIDE), {}, (B, 8, 8, 3), 0),
    "classifier": (classifier, classifier.Config(gru.Config(D, H, **WIDE), 3), {}, (B, T, D), 0),
}


@pytest.mark.parametrize(
    ("name", "context"), [*((name, True) for name in PLACED), *((name, False) for name in ("lstm", "conv_resnet"))]
)
def test_examples_over_explicit_axes_are_what_they_are_over_none(name, context):
    """Explicit axes are those of `jax.make_mesh` unless it is told otherwise."""
    model, config, options, shape, axis = PLACED[name]
    dtype = "bfloat16" if name == "gru" else "float64"
    params, x = random_like(model.init(KEY, config), 0), normal("float32" if name == "gru" else dtype, *shape)
    devices = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    spec = PartitionSpec(*("data" if place == axis else None for place in range(len(shape))))

    def run(params, x):
        results = model.apply(params, x, config=config, **options)
        leaves = [leaf.astype("float64") for leaf in jax.tree.leaves(results)]
        return sum((jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) * leaf).sum() for leaf in leaves), results

    def both(params, x):
        return jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(params, x)

    expected = both(params, x)
    with jax.set_mesh(devices) if context else nullcontext():
        found = both(params, jax.device_put(x, NamedSharding(devices, spec)))
        eager = model.apply(params, jax.device_put(x, NamedSharding(devices, spec)), config=config, **options)
    assert_close(found, expected, dtype)
    assert_close(eager, expected[0][1], dtype)
    output = jax.tree.leaves(eager)[0 if name == "conv_resnet" else -1]
    assert "data" in output.sharding.spec and found[1][1].sharding.spec == spec


def without_stage(spec):
    return PartitionSpec(*(None if axis == "stage" else axis for axis in spec))


def test_models_over_explicit_axes_in_pipelines_shard_maps_and_over_their_own_units():
    config = lstm.Config(H, H, num_layers=4, **WIDE)
    params, x = random_like(lstm.init(KEY, config), 0), normal("float64", T, B, H)
    expected = lstm.apply(params, x, config=config)
    stages = jax.make_mesh((2, 1, 2), ("data", "model", "stage"), devices=jax.devices()[:4])
    placed = jax.device_put(x, NamedSharding(stages, PartitionSpec(None, "data")))
    assert_close(
        lstm.apply(params, placed, config=config, implementation=Pipeline(stages, chunks=2)), expected, "float64"
    )

    both = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    specs = PartitionSpec(), PartitionSpec(None, "data"), PartitionSpec(None, "data")
    examples, carry = jax.device_put((x, lstm.zeros(config, B)), NamedSharding(both, specs[1]))
    run = jax.shard_map(
        lambda p, x, carry: lstm.apply(p, x, config=config, carry=carry)[1],
        mesh=both,
        in_specs=specs,
        out_specs=specs[1],
        axis_names={"data"},
    )
    with jax.set_mesh(both):
        assert_close(jax.jit(run)(params, examples, carry), expected[1], "float64")
        specs = jax.tree.map(without_stage, lstm.specs(config), is_leaf=lambda tree: isinstance(tree, PartitionSpec))
        units = jax.device_put(params, jax.tree.map(partial(NamedSharding, both), specs))
        assert_close(jax.jit(lambda p: lstm.apply(p, x, config=config))(units), expected, "float64")
