"""Convolutions, their norms, and the residual nets made of them, against numpy loops and against autodiff."""

import re
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AGREEMENT, assert_close, compiled, disagreement, normal, operations, random_like, weighed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_rot import Checkpointed
from lstm_rot.branches import conv
from lstm_rot.models import conv_resnet

SHORTCUTS = {  # a step, and what the oracle calls it
    "residual": (conv_resnet.RESIDUAL, 1),
    "plain": (conv_resnet.PLAIN, 0),
    "pre-activated": (conv_resnet.PRE_ACTIVATED, 1),
    "exclusive gate": (conv_resnet.HIGHWAY, "exclusive gate"),
    "shortcut-only gate": (conv_resnet.Step(shortcut=conv.shortcut_only, gate_bias=-1.0), "shortcut-only gate"),
}


@cache
def make(name, depth=8, norm=conv.BatchNorm, dtype="float64", **fields):
    step, shortcut = SHORTCUTS[name]
    config = conv_resnet.Config(depth, step, norm, width=2, channels=3, num_classes=4, param_dtype=dtype, **fields)
    params = random_like(jax.eval_shape(lambda: conv_resnet.init(jax.random.key(0), config)), 0)
    oracle = partial(reference.conv_resnet, runs=config.runs, pre=step.pre_activated, shortcut=shortcut)
    return config, params, oracle


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 4, 3, 5), (1, 5, 7, 1, 2), (3, 1, 2, 2, 2)], ids=str)
def test_a_convolution_against_loops_and_its_gradient_against_autodiff(shape, stride):
    *image, channels, width = shape
    x, w = normal("float64", *image, channels), normal("float64", 3, 3, channels, width, seed=3)
    assert_close(conv.conv3x3(jnp.asarray(x), jnp.asarray(w), stride), reference.conv3x3(x, w, stride), "float64")

    def plain(x, w):
        return conv._conv(x, w, (stride, stride), ((1, 1), (1, 1)))

    def second(f):
        slope = jax.grad(lambda x, w: weighed(jnp.tanh(f(x, w))), (0, 1))
        return jax.grad(lambda x, w: weighed(slope(x, w), seed=9), (0, 1))

    ours = partial(conv.conv3x3, stride=stride)
    for order in (lambda f: jax.grad(lambda x, w: weighed(f(x, w)), (0, 1)), second):
        assert_close(jax.jit(order(ours))(x, w), jax.jit(order(plain))(x, w), "float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_in_fewer_bits_is_that_in_float64(dtype):
    x, w = normal("float64", 4, 8, 8, 6), normal("float64", 3, 3, 6, 6, seed=3)

    def results(x, w):
        value, back = jax.vjp(conv.conv3x3, x, w)
        return value, back(jnp.ones_like(value))

    fewer = jax.jit(results)(x.astype(dtype), w.astype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(fewer)} == {jnp.dtype(dtype)}
    assert disagreement(fewer, jax.jit(results)(x, w)) < AGREEMENT[dtype]


def test_elsewhere_the_gradient_is_left_to_the_compiler():
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(conv.conv3x3(x, w)), (0, 1)))
    x, w = normal("float32", 2, 4, 4, 3), normal("float32", 3, 3, 3, 3)
    barriers = {
        platform: gradient.trace(x, w).lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier")
        for platform in ("cpu", "tpu", "cuda")
    }
    assert barriers == {"cpu": 3, "tpu": 0, "cuda": 0}


@pytest.mark.parametrize("norm", [conv.BatchNorm, conv.GroupNorm])
@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_net_against_numpy_loops(name, norm):
    if norm is conv.GroupNorm and "gate" in name:
        pytest.skip("no other norm's code runs there")
    config, params, oracle = make(name, 14, norm)
    images = normal("float64", 3, 5, 5, 3)
    logits, used = conv_resnet.apply(params, images, config=config)
    expected = oracle(params, images, None)
    assert_close((logits, used), expected, "float64")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), used)
    running = jax.tree.map(lambda leaf: np.abs(leaf) + 0.5, random_like(shapes, 7))
    assert_close(
        conv_resnet.apply(params, images, config=config, statistics=running)[0],
        oracle(params, images, running)[0],
        "float64",
    )


def test_the_papers_nets_have_the_papers_parameters():
    millions = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}
    for depth, expected in millions.items():
        shapes = conv_resnet._shapes(conv_resnet.Config(depth))
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
        assert abs(count - expected) < 0.03 * expected, (depth, count)


def gradients(config, params, images, **options):
    def scalar(params, images):
        logits, used = conv_resnet.apply(params, images, config=config, **options)
        return weighed(logits), (logits, used)

    return jax.grad(scalar, (0, 1), has_aux=True)(params, images)


def test_checkpointed_and_sharded_it_is_the_same_net():
    config, params, _ = make("residual", 14)
    images = normal("float64", 4, 4, 4, 3)
    run = partial(jax.jit, static_argnames="schedule")(partial(gradients, config))
    expected = run(params, images)
    assert_close(run(params, images, schedule=Checkpointed(2)), expected, "float64")
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))  # one image a device: a norm of its own would show
    divided = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    assert_close(run(params, divided), expected, "float64")


def test_depth_costs_no_operations():
    images = normal("float64", 1, 4, 4, 3)
    counts = [
        operations(partial(gradients, make("residual", depth)[0]), make("residual", depth)[1], images)
        for depth in (26, 62)
    ]
    assert counts[0] == counts[1]


def test_running_statistics_begin_at_zero_and_one():
    config, params, _ = make("pre-activated", dtype="float32")
    start = conv_resnet.statistics(config)
    used = conv_resnet.apply(params, normal("float32", 1, 4, 4, 3), config=config, statistics=start)[1]
    assert jax.tree.structure(start) == jax.tree.structure(used)
    assert {float(leaf.min()) for leaf in jax.tree.leaves(start)} == {0.0, 1.0}


def test_products_in_bfloat16_leave_the_stream_in_float32():
    config, params, _ = make("residual", 8, dtype="float32", compute_dtype="bfloat16")
    images = normal("float32", 2, 8, 8, 3)
    logits, used = conv_resnet.apply(params, images, config=config)
    assert {leaf.dtype for leaf in (logits, *jax.tree.leaves(used))} == {jnp.dtype("float32")}
    text = compiled(lambda p, x: conv_resnet.apply(p, x, config=config)[0], params, images).as_text()
    assert "bf16" in text


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: conv_resnet.Config(21), "depth=21: give 6n + 2 layers"),
        (lambda: conv_resnet.Config(2), "depth=2: give 6n + 2"),
        (lambda: conv_resnet.Config(8, width=0), "width=0: give a whole number"),
        (lambda: conv_resnet.Config(8, norm=dict), "norm=<class 'dict'>: give branches.conv.BatchNorm"),
        (lambda: applied(np.zeros((4, 4, 3), "float32")), "images has 3 axes"),
        (lambda: applied(np.zeros((1, 4, 4, 1), "float32")), "images has 1 features, config.channels=3"),
        (lambda: applied(np.zeros((1, 3, 3, 3), "float32")), "halved twice, so give at least 4 x 4"),
        (lambda: applied(np.zeros((1, 4, 4, 3), "uint8")), "images is uint8"),
        (lambda: applied(statistics=()), "statistics is"),
        (lambda: applied(params=make("plain", 14, dtype="float32")[1]), "was it made with another config"),
    ],
)
def test_wrong_calls_name_the_value_and_the_remedy(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def applied(images: Any = np.zeros((1, 4, 4, 3), "float32"), *, params=None, **options):  # noqa: B008
    config, ours, _ = make("residual", 8, dtype="float32")
    return conv_resnet.apply(ours if params is None else params, images, config=config, **options)
