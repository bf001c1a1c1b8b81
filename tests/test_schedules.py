"""Schedules against the plain sequential line, and the wavefront against two nested scans; values and gradients."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CELLS,
    DEPTH_TIED,
    TIME_UNTIED,
    assert_close,
    assert_exact,
    compiled,
    flow,
    normal,
    value_and_grads,
    weights,
)

from lstm_rot import DEPTH, TIME, Axis, Checkpointed, Sequential, residual, scan, turn, wavefront
from lstm_rot.branches import lstm, probed
from lstm_rot.models import lstm as model
from lstm_rot.models import recurrent

B, H = 2, 4
SCHEDULES = [Sequential(1), Sequential(3), Checkpointed(), Checkpointed(1), Checkpointed(4), Checkpointed(100)]


def run(axis, length, schedule):
    """A plain recurrent net along time, or a residual net with inputs along depth, of that length."""
    if axis == "time":
        cell, args = scan(CELLS["rnn"].cell, TIME, schedule=schedule), weights(CELLS["rnn"], "float64")
        return value_and_grads(cell, args, flow(CELLS["rnn"], "float64"), normal("float64", length, B, H))
    cell = scan(turn(CELLS["dense"].cell), DEPTH, schedule=schedule)
    args = weights(CELLS["dense"], "float64", length)
    return value_and_grads(cell, args, normal("float64", length, B, H), flow(CELLS["dense"], "float64"))


sequential = cache(partial(run, schedule=Sequential()))


@pytest.mark.parametrize("axis", ["time", "depth"])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 16])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_schedules_are_the_plain_loop(schedule, axis, length):
    assert_close(run(axis, length, schedule), sequential(axis, length), "float64")


def temporary_bytes(schedule, length):
    """The scratch memory of the gradient of a long line of LSTM cells."""
    cell = scan(residual(lstm.lstm), TIME, length=length, schedule=schedule)
    p, left = weights(CELLS["lstm"], "float64", width=None), flow(CELLS["lstm"], "float64")
    program = compiled(jax.grad(lambda p, left: cell(p, left, None)[0][0].sum(), (0, 1)), p, left)
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_checkpoints_take_memory_of_the_square_root():
    assert temporary_bytes(Sequential(), 1024) > 3 * temporary_bytes(Checkpointed(), 1024)
    few, many = (temporary_bytes(Checkpointed(), n) for n in (1024, 16 * 1024))
    assert 2 < many / few < 6  # the root of 16 is 4
    assert temporary_bytes(Sequential(), 16 * 1024) > 12 * temporary_bytes(Sequential(), 1024)


def test_equal_schedules_are_one_static_argument():
    traces = []

    @partial(jax.jit, static_argnames="schedule")
    def f(p, left, below, schedule):
        traces.append(schedule)
        return scan(CELLS["rnn"].cell, TIME, schedule=schedule)(p, left, below)

    args = weights(CELLS["rnn"], "float64"), flow(CELLS["rnn"], "float64"), normal("float64", 3, B, H)
    for _ in range(2):
        for make in (partial(Sequential, 2), Checkpointed, partial(Checkpointed, 2), partial(Checkpointed, every=2)):
            assert make() == make() and hash(make()) == hash(make())
            f(*args, schedule=make())
    assert traces == [Sequential(2), Checkpointed(), Checkpointed(2)]


def test_models_take_schedules_and_trace_once():
    config = model.Config(input_size=H, hidden_size=H, num_layers=2, param_dtype="float64")
    params, xs = model.init(jax.random.key(0), config), normal("float64", 9, B, H)
    expected = model.apply(params, xs, config=config)
    for schedule in SCHEDULES[1:]:
        assert_close(model.apply(params, xs, config=config, schedule=schedule), expected, "float64")
    size = recurrent._apply._cache_size()  # pyright: ignore
    model.apply(params, xs, config=model.Config(H, H, 2, param_dtype="float64"), schedule=Checkpointed(4))
    assert recurrent._apply._cache_size() == size  # pyright: ignore


EVERY_SIZE = [("lstm", layers, steps) for layers in (1, 2, 5) for steps in (0, 1, 3, 7)]


@pytest.mark.parametrize(("name", "layers", "steps"), [*EVERY_SIZE, ("gru", 2, 7), ("gru", 5, 3), ("highway", 3, 2)])
def test_the_wavefront_is_two_scans(name, layers, steps):
    example = CELLS[name]
    args = weights(example, "float64", layers), flow(example, "float64", layers), normal("float64", steps, B, H)
    nested = value_and_grads(scan(scan(example.cell, TIME), DEPTH), *args)
    assert_close(value_and_grads(wavefront(example.cell), *args), nested, "float64")


@pytest.mark.parametrize("time", [TIME, TIME_UNTIED], ids=["time tied", "time untied"])
@pytest.mark.parametrize("depth", [DEPTH, DEPTH_TIED], ids=["depth untied", "depth tied"])
@pytest.mark.parametrize("schedule", [Sequential(), Checkpointed(3)], ids=str)
def test_the_wavefront_of_every_corner(time, depth, schedule):
    """Weights [L, T, ...], [L, ...], [T, ...] or one for all."""
    layers, steps, example = 3, 5, CELLS["lstm"]
    prefix = (() if depth.tied else (layers,)) + (() if time.tied else (steps,))
    args = weights(example, "float64", *prefix), flow(example, "float64", layers), normal("float64", steps, B, H)
    nested = value_and_grads(scan(scan(example.cell, time), depth), *args)
    assert_close(
        value_and_grads(wavefront(example.cell, time=time, depth=depth, schedule=schedule), *args), nested, "float64"
    )


def test_the_wavefront_with_leaves_tied_in_every_way_and_keys():
    """Weights tied along time, probes along neither axis, one along depth alone, and random keys for each cell."""
    layers, steps = 3, 4

    def cell(p, left, below):
        inner, shift, key = p
        right, above = residual(probed(lstm.lstm))(inner, left, below)
        return right, above + shift + jax.random.normal(key, above.shape, above.dtype)

    time, depth = Axis("left", ((True, False), False, False)), Axis("below", ((False, False), True, False))
    keys = jax.random.split(jax.random.key(5), (layers, steps))
    left, below = flow(CELLS["lstm"], "float64", layers), normal("float64", steps, B, H)
    probes, shift = normal("float64", layers, steps, B, H), normal("float64", steps, H, seed=8)
    q = ((weights(CELLS["lstm"], "float64", layers), probes), shift)

    def of(grid):
        return value_and_grads(lambda q, left, below: grid((*q, keys), left, below), q, left, below)

    assert_close(of(wavefront(cell, time=time, depth=depth)), of(scan(scan(cell, time), depth)), "float64")


@pytest.mark.parametrize("steps", [1, 4])
def test_the_wavefront_without_input(steps):
    """Nothing enters along time: `length` says how long it lasts, as for the scans."""

    def cell(p, left, below):
        return jnp.tanh(left @ p), below

    p, left = normal("float64", 3, H, H), normal("float64", 3, B, H)
    nested = scan(scan(cell, TIME, length=steps), DEPTH)
    for below in (None, ()):
        assert_close(jax.jit(wavefront(cell, length=steps))(p, left, below), jax.jit(nested)(p, left, below), "float64")


def test_idle_ticks_poison_nothing():
    """A cell that is NaN at zero, in its value and in its derivatives, has finite values and gradients in a grid."""

    def cell(p, left, below):
        norm = jnp.sqrt((left**2).sum(-1, keepdims=True)) * jnp.sqrt((below**2).sum(-1, keepdims=True))
        right = p * left / norm + below
        return right, jnp.log(below**2) + right

    zeros = np.zeros((B, H))
    assert all(np.isnan(leaf).any() for leaf in cell(1.0, *map(jnp.asarray, (zeros, zeros))))
    args = normal("float64", 3, H), normal("float64", 3, B, H), normal("float64", 4, B, H)
    nested = value_and_grads(scan(scan(cell, TIME), DEPTH), *args)
    assert_close(value_and_grads(wavefront(cell), *args), nested, "float64")


def test_the_wavefront_checks_its_numpy_arguments_like_scan():
    """Called outside of jit, on numpy arrays, with a jitted result to compare with."""
    example = CELLS["gru"]
    args = weights(example, "float64", 2), flow(example, "float64", 2), normal("float64", 3, B, H)
    assert_close(wavefront(example.cell)(*args), jax.jit(wavefront(example.cell))(*args), "float64")
    untied = weights(example, "float64", 2, 3)
    grid = wavefront(example.cell, time=TIME_UNTIED)
    closed = jax.jit(lambda left: grid(untied, left, args[2]))(args[1])
    assert_exact(closed, jax.jit(lambda p, left: grid(p, left, args[2]))(untied, args[1]))


def test_a_tick_is_one_product_over_the_layers():
    """T + L - 1 ticks, and the products of each have the layers as their batch axis."""
    layers, steps = 5, 7
    args = (
        weights(CELLS["lstm"], "float64", layers),
        flow(CELLS["lstm"], "float64", layers),
        normal("float64", steps, B, H),
    )
    jaxpr = jax.make_jaxpr(wavefront(CELLS["lstm"].cell))(*args)
    loops = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert [loop.params["length"] for loop in loops] == [steps + layers - 1]
    products = [e for e in loops[0].params["jaxpr"].eqns if e.primitive.name == "dot_general"]
    assert len(products) == 2  # x W_x and h W_h
    for product in products:
        _, (of_lhs, of_rhs) = product.params["dimension_numbers"]
        assert len(of_lhs) == 1 == len(of_rhs) and layers in product.outvars[0].aval.shape
    hlo = compiled(wavefront(CELLS["lstm"].cell), *args).as_text()
    assert re.findall(r'known_trip_count":\{"n":"(\d+)"', hlo) == [str(steps + layers - 1)]
