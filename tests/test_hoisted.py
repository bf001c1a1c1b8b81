"""The hoisted implementation (and the wavefront) against the reference: values, gradients, and the compiled program."""

import importlib
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    AGREEMENT,
    CELLS,
    DEPTH_TIED,
    TIME_UNTIED,
    Example,
    assert_close,
    compiled,
    disagreement,
    flow,
    normal,
    stack_arguments,
    stack_gradients,
    value_and_grads,
    weighed,
    weights,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType

from lstm_rot import DEPTH, TIME, Axis, Checkpointed, Sequential, residual, scan, turn
from lstm_rot.branches import lstm as branch
from lstm_rot.branches.common import product
from lstm_rot.kernels.hoisted import hoisted
from lstm_rot.models import lstm

B, H = 2, 4
SCHEDULES = [Sequential(1), Sequential(2), Checkpointed(), Checkpointed(3)]


# --- every option, drawn

NOISE = ["dropout", "variational_dropout", "recurrent_dropout", "zoneout_cell", "zoneout_hidden"]


@st.composite
def cases(draw, dtype):
    """A config, sizes and the options of a call."""
    way: dict[str, Any] = draw(st.sampled_from([{}, {}, {"reverse": True}, {"bidirectional": True}]))
    # Of one number, a norm is its sign: no gradient but rounding.
    layer_norm = draw(st.booleans())
    widths = st.sampled_from([3, 5] if layer_norm else [1, 3, 5])
    names: dict[str, Any] = draw(
        st.sampled_from([{"param_dtype": dtype}, {"param_dtype": "float32", "compute_dtype": dtype}])
    )
    options: dict[str, Any] = dict.fromkeys(sorted(draw(st.sets(st.sampled_from(NOISE), max_size=1))), 0.3)
    config = lstm.Config(
        input_size=draw(widths),
        hidden_size=draw(widths),
        num_layers=draw(st.sampled_from([1, 1, 2] if way.get("bidirectional") else [1, 2, 3])),
        **way,
        **(names if dtype == "bfloat16" else {"param_dtype": dtype}),
        gates=draw(st.sampled_from([branch.FORGET, branch.COUPLED, branch.GATES_1997])),
        peepholes=draw(st.booleans()),
        layer_norm=layer_norm,
        projection_size=draw(st.sampled_from([None, 2, 3])),
        **options,
    )
    steps, batch = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    lengths = draw(st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch).map(np.array))
    key = draw(st.sampled_from([None, 1]))
    options = {
        "lengths": lengths,
        "key": None if key is None else jax.random.key(key),
        "schedule": draw(st.sampled_from(SCHEDULES)),
    }
    return config, steps, batch, options, draw(st.integers(0, 99))


@pytest.mark.parametrize(("dtype", "examples"), [("float64", 4), ("float32", 3), ("bfloat16", 2)])
def test_fast_implementations_agree_with_the_reference(dtype, examples):
    """Values and gradients by params, xs and carry, on drawn shapes and options."""

    @settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases(dtype))
    def agree(case):
        config, steps, batch, options, seed = case
        args = stack_arguments(lstm, config, steps, batch, seed)
        expected = stack_gradients(lstm, config, **{**options, "schedule": Sequential()}, implementation="reference")(
            *args
        )
        diagonal = config.num_layers > 1 and not (config.bidirectional or config.reverse)
        for name in ("hoisted", "wavefront") if diagonal else ("hoisted",):
            actual = stack_gradients(lstm, config, **options, implementation=name)(*args)
            jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), actual, expected)
            assert disagreement(actual, expected) < AGREEMENT[dtype], (name, disagreement(actual, expected))

    agree()


def test_a_long_sequence_in_several_blocks(monkeypatch):
    """Blocks of cells, the last one shorter; the default on long sequences."""
    module = importlib.import_module("lstm_rot.kernels.hoisted")
    monkeypatch.setattr(module, "_block_length", lambda steps, uses: 4)
    config = lstm.Config(3, 5, param_dtype="float64", reverse=True)
    args = stack_arguments(lstm, config, 11, 3)
    options = {"lengths": np.array([11, 0, 6])}
    jax.clear_caches()
    actual = stack_gradients(lstm, config, **options, implementation="hoisted")(*args)
    jax.clear_caches()
    assert_close(actual, stack_gradients(lstm, config, **options, implementation="reference")(*args), "float64")


# --- lines of any cell


def twice(p, stream, memory, below):
    """An LSTM into which x enters twice, by the same weight: as it is, and doubled, which is not the x that enters."""
    keep, add, read = branch.lstm(p, stream, memory, below)
    again = product(below, p.wx) + product(2 * below, p.wx)
    return keep, add + jnp.tanh(again[..., 0, :].astype(stream.dtype)), read


def other_bias(p, stream, memory, below):
    """An LSTM whose input's product has a bias that is no weight, and is itself the bias of the flowing product."""
    return branch.lstm(p._replace(b=2 * p.b), stream, memory, below)


def twice_flowing(p, stream, memory, below):
    """An LSTM that multiplies by its W_h twice, and uses its weight outside of `product` for nothing."""
    keep, add, read = branch.lstm(p, stream, memory, below)
    again = product(jnp.tanh(stream), p.wh, p.b)
    return keep, add + jnp.tanh(again[..., 0, :].astype(stream.dtype)), read


def no_oracle(*args):
    raise NotImplementedError


LINES = {
    **CELLS,
    "x twice": Example(residual(twice), branch.init, no_oracle, memory=True),
    "other bias": Example(residual(other_bias), branch.init, no_oracle, memory=True),
    "h twice": Example(residual(twice_flowing), branch.init, no_oracle, memory=True),
}


def line_arguments(name, axis, length, width: Any = 4, untied_weights: Any = None):
    """The cell, along depth turned, its weights, and flows; the one that is handed on without a leading axis."""
    example = LINES[name]
    cell = example.cell if axis.flow == "left" else turn(example.cell)
    untied = not axis.tied if untied_weights is None else untied_weights
    p = weights(example, "float64", *[length] * untied, width=width)
    xs = None if width is None else normal("float64", length, B, width)
    flows = (flow(example, "float64"), xs)
    return cell, (p, *(flows if axis.flow == "left" else flows[::-1]))


AXES = {"time": TIME, "time, untied": TIME_UNTIED, "depth": DEPTH, "depth, tied": DEPTH_TIED}


@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, "time") for name in LINES]
    + [(name, "depth") for name in ("lstm", "dense", "highway", "h twice")]
    + [(name, axis) for name in ("lstm", "gru") for axis in ("time, untied", "depth, tied")],
)
def test_a_hoisted_line_is_a_scanned_line(name, axis):
    cell, args = line_arguments(name, AXES[axis], 5)
    assert_close(
        value_and_grads(hoisted(cell, AXES[axis]), *args), value_and_grads(scan(cell, AXES[axis]), *args), "float64"
    )


@pytest.mark.parametrize(
    ("axis", "schedule"),
    [("time", Sequential(2)), ("time", Checkpointed(1)), ("time", Checkpointed(3)), ("depth", Checkpointed(3))],
    ids=str,
)
def test_schedules_of_a_hoisted_line(axis, schedule):
    cell, args = line_arguments("lstm", AXES[axis], 7)
    line = hoisted(cell, AXES[axis], schedule=schedule)
    assert_close(value_and_grads(line, *args), value_and_grads(scan(cell, AXES[axis]), *args), "float64")


@pytest.mark.parametrize("axis", ["time", "depth"])
@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("schedule", [Sequential(2), Checkpointed()], ids=str)
def test_lines_of_no_cell_and_of_one(axis, length, schedule):
    cell, args = line_arguments("gru", AXES[axis], length)
    line = hoisted(cell, AXES[axis], schedule=schedule)
    assert_close(value_and_grads(line, *args), value_and_grads(scan(cell, AXES[axis]), *args), "float64")


@pytest.mark.parametrize(
    ("name", "axis"),
    [*(("lstm", axis) for axis in AXES), ("gru", "time"), ("dense", "depth"), ("dense", "depth, tied")],
)
def test_lines_without_input(name, axis):
    cell, args = line_arguments(name, AXES[axis], 5, width=None)
    expected = value_and_grads(scan(cell, AXES[axis], length=5), *args)
    assert_close(value_and_grads(hoisted(cell, AXES[axis], length=5), *args), expected, "float64")


TIED = {  # the lstm's wx, wh, b
    "biases untied": (True, True, False),
    "only biases tied": (False, False, True),
    "input untied": (False, True, True),
    "recurrence untied": (True, False, True),
}


@pytest.mark.parametrize(
    ("case", "flow_name"),
    [*((case, "left") for case in TIED), ("biases untied", "below"), ("only biases tied", "below")],
)
def test_axes_that_tie_some_weights(case, flow_name):
    """Prefix trees of bools in the axis."""
    wx, wh, b = TIED[case]
    tied: Any = branch.Params
    axis, length = Axis(flow_name, tied(wx, wh, b)), 5
    cell, (whole, *flows) = line_arguments("lstm", axis, length, untied_weights=True)
    p = branch.Params(*(leaf[0] if tied else leaf for leaf, tied in zip(whole[:3], (wx, wh, b), strict=True)))
    assert_close(
        value_and_grads(hoisted(cell, axis), p, *flows), value_and_grads(scan(cell, axis), p, *flows), "float64"
    )


def test_a_line_without_weights_and_a_nested_tree():
    """Weights anywhere in p, and a cell that multiplies by none."""

    def cell(p, left, below):
        (inner, shift), scale = p
        right, above = CELLS["lstm"].cell(inner["a"], left, below)
        return right, above * scale + shift

    def none(p, left, below):
        return jnp.tanh(p * left + below), left

    p = (({"a": weights(CELLS["lstm"], "float64")}, normal("float64", 5, H)), normal("float64", H, seed=8))
    axis = Axis("left", ((True, False), True))
    args = p, flow(CELLS["lstm"], "float64"), normal("float64", 5, B, H)
    assert_close(value_and_grads(hoisted(cell, axis), *args), value_and_grads(scan(cell, axis), *args), "float64")
    args = normal("float64", H), normal("float64", B, H), normal("float64", 5, B, H)
    assert_close(value_and_grads(hoisted(none, TIME), *args), value_and_grads(scan(none, TIME), *args), "float64")


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_hoisted_lines_nest(order):
    """A line of cells is a cell: hoisted inside of a scanned line, and around one."""
    example, layers = CELLS["lstm"], 3
    args = weights(example, "float64", layers), flow(example, "float64", layers), normal("float64", 5, B, H)
    expected = value_and_grads(scan(scan(example.cell, TIME), DEPTH), *args)
    grids = {
        "rows": scan(hoisted(example.cell, TIME), DEPTH),
        "columns": scan(hoisted(example.cell, DEPTH), TIME),
    }
    assert_close(value_and_grads(grids[order], *args), expected, "float64")


def test_a_batch_of_no_axis_and_of_two():
    example = CELLS["lstm"]
    for batch in ((), (2, 3)):
        left = normal("float64", *batch, H, seed=3), normal("float64", *batch, H, seed=4)
        args = weights(example, "float64"), left, normal("float64", 5, *batch, H)
        expected = value_and_grads(scan(example.cell, TIME), *args)
        assert_close(value_and_grads(hoisted(example.cell, TIME), *args), expected, "float64")


@pytest.mark.usefixtures("untyped")
def test_wrong_lines_are_refused_as_by_scan():
    schedule: Any
    cell, (p, left, xs) = line_arguments("lstm", TIME, 4)
    for schedule in (jax.lax.scan, lambda *args: None):
        with pytest.raises(ValueError, match=r"a hoisted line runs Sequential or Checkpointed, not .*use scan"):
            hoisted(cell, TIME, schedule=schedule)
    for make in (hoisted, scan):
        with pytest.raises(ValueError, match=r"several lengths, \[4, 6\]"):
            make(cell, TIME, length=6)(p, left, xs)
        with pytest.raises(ValueError, match="without a length"):
            make(cell, TIME)(p, left, None)
        with pytest.raises(ValueError, match="flow='above'"):
            make(cell, Axis("above", True))(p, left, xs)  # pyright: ignore


# --- the compiled program


def loops(hlo: str) -> list[Counter[str]]:
    """Of every computation that a while loop's body reaches: how often each operation stands in it."""
    texts = {
        m[1]: m[0] for m in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) [^\n]*\{\n.*?^\}", hlo, re.MULTILINE | re.DOTALL)
    }
    called = {name: re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)", text) for name, text in texts.items()}

    def reached(name: str) -> list[str]:
        return [name, *(inner for callee in called[name] for inner in reached(callee))]

    def operations(name: str) -> Counter[str]:
        return sum((Counter(re.findall(r" = \S+ ([a-z][a-z-]*)\(", texts[n])) for n in reached(name)), Counter())

    return [operations(name) for name in re.findall(r"body=%?([\w.-]+)", hlo)]


def dots_of_loops(f, *args):
    """How many products each loop holds, sorted, and how many products there are outside."""
    hlo = compiled(f, *args).as_text()
    inside = sorted(loop["dot"] + loop["custom-call"] for loop in loops(hlo))
    return inside, len(re.findall(r" = \S+ (?:dot|custom-call)\(", hlo)) - sum(inside)


def gradient_of(make, cell, axis, **options):
    return jax.grad(lambda *args: weighed(make(cell, axis, **options)(*args)), (0, 1, 2))


@pytest.mark.parametrize("axis", ["time", "depth"])
def test_no_weights_gradient_is_in_a_loop(axis):
    """Each loop of the hoisted gradient holds one product, h W in the one and dy W^T in the other; the reference's
    hold two, x W and h W, and four, each one's two gradients."""
    cell, args = line_arguments("lstm", AXES[axis], 9)
    assert dots_of_loops(gradient_of(scan, cell, AXES[axis]), *args) == ([2, 4], 0)
    inside, outside = dots_of_loops(gradient_of(hoisted, cell, AXES[axis]), *args)
    assert inside == [1, 1] and outside == 4  # x W; and dx, dW_x, dW_h
    assert dots_of_loops(hoisted(cell, AXES[axis]), *args) == ([1], 1)


def test_along_depth_the_weights_gradient_is_one_batched_product():
    """dW of all layers: a product with the layers as its batch axis, outside of every loop."""
    layers = 9
    cell, args = line_arguments("dense", DEPTH, layers, width=None)
    jaxpr = jax.make_jaxpr(gradient_of(hoisted, cell, DEPTH, length=layers))(*args)
    hlo = compiled(gradient_of(hoisted, cell, DEPTH, length=layers), *args).as_text()
    inside = [loop["dot"] for loop in loops(hlo)]
    assert sorted(inside) == [1, 1], jaxpr
    batched = re.findall(r" = f64\[9,4,4\]\S* dot\(.*lhs_batch_dims=\{0\}", hlo)
    assert len(batched) == 1 == len(re.findall(r" = \S+ dot\(", hlo)) - 2


@pytest.mark.parametrize(
    ("platform", "devices", "block"), [("cpu", 1, 8), ("cpu", 4, 16), ("tpu", 1, 2), ("tpu", 4, 8)]
)
def test_blocks_are_those_of_one_device_that_is_compiled_for(platform, devices, block):
    """Of 64 steps; the mesh in scope says where it will run, and over how many devices the batch is."""
    here = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]).abstract_mesh
    device = replace(here.abstract_device, platform=platform)
    there = AbstractMesh(here.axis_sizes, here.axis_names, here.axis_types, abstract_device=device)
    config = lstm.Config(8, 64 if platform == "cpu" else 1024, param_dtype="float32")
    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), config))
    xs = jax.ShapeDtypeStruct((64, 256 if platform == "cpu" else 4096, 8), "float32")
    with jax.sharding.use_abstract_mesh(there):
        jaxpr = str(jax.make_jaxpr(lambda *args: lstm.apply(*args, config=config))(params, xs))
    assert re.findall(r"length=(\d+)", jaxpr).count(str(64 // block)) and f"length={block}\n" in jaxpr


@pytest.mark.usefixtures("optimized")
def test_a_stack_as_users_compile_it():
    """Of each layer and direction two loops, one product in each."""
    config = lstm.Config(3, 4, 2, param_dtype="float32")
    args = stack_arguments(lstm, config, 9, B)
    hlo = stack_gradients(lstm, config, implementation="hoisted").lower(*args).compile().as_text()
    products = [loop["dot"] + loop["custom-call"] for loop in loops(hlo)]
    assert products == [1, 1, 1, 1]


def gradients_memory(schedule, steps):
    """Scratch bytes of the gradient of a hoisted line."""
    example, hidden = CELLS["lstm"], 32
    p = weights(example, "float32", width=8, hidden=hidden)
    left = normal("float32", 8, hidden), normal("float32", 8, hidden)

    def scalar(p, left, xs):
        return hoisted(example.cell, TIME, schedule=schedule)(p, left, xs)[0][1].sum()

    args = p, left, np.zeros((steps, 8, 8), "float32")
    return compiled(jax.grad(scalar), *args).memory_analysis().temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_checkpoints_take_a_quarter_of_the_memory():
    assert 4 * gradients_memory(Checkpointed(), 4096) < gradients_memory(Sequential(), 4096)
