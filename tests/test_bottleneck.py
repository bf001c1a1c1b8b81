"""The sequential bottleneck and Newton's experiments: what they read and count, and how they judge."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, compiled
from rich.progress import Progress

from experiments import bottleneck, harness, newton
from experiments.bottleneck import judging, measuring
from experiments.bottleneck.layers import LAYERS
from experiments.mixing import nets
from experiments.newton import lines
from experiments.newton.judging import predictable
from lstm_rot import Sequential
from lstm_rot.training.hlo import Program

pytestmark = pytest.mark.usefixtures("settings_of_a_user")
KEY = jax.random.key(0)


def depth(f, *args, unknown=None):
    return Program(compiled(f, *args).as_text()).depth(unknown)


@pytest.mark.usefixtures("optimized")
def test_the_depth_of_a_program_counts_what_must_wait():
    x, w = jnp.ones((4, 4)), jnp.ones((4, 4))
    chain = lambda n: lambda x: jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=n)[0]  # noqa: E731
    deep = {n: depth(chain(n), x) for n in (10, 20, 40)}
    assert deep[40] - deep[20] == 2 * (deep[20] - deep[10]) >= 2 * 10
    beside = depth(lambda x: (chain(10)(x), chain(10)(x + 1)), x)
    assert deep[10] <= beside <= deep[10] + 3  # two chains need not wait for each other
    nested = depth(lambda x: jax.lax.scan(lambda x, _: (chain(10)(x), None), x, None, length=3)[0], x)
    assert nested >= 3 * 2 * 10  # product and tanh
    until = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.tanh(x @ w) + x, x)  # noqa: E731
    assert depth(until, x, unknown=8) - depth(until, x, unknown=4) == 4 * (
        depth(until, x, unknown=1) - depth(until, x, unknown=0)
    )
    with pytest.raises(ValueError, match="its trips are not known; say how many"):
        depth(until, x)


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if layer.same])
def test_a_layer_at_once_is_the_layer_step_by_step(name):
    layer = LAYERS[name]
    p, xs = layer.init(KEY, 3), jax.random.normal(KEY, (5, 2, 3))
    (ys, info), (plain, none) = jax.jit(layer.run)(p, xs), jax.jit(LAYERS[str(layer.same)].run)(p, xs)
    assert info.converged and 1 <= info.iterations <= 5 and none is None
    assert_close(ys, plain, "float32")


@pytest.mark.usefixtures("optimized")
def test_a_line_at_once_waits_for_about_log_t_operations():
    layer = LAYERS["minLSTM, at once"]
    p = layer.init(KEY, 2)
    for steps in (8, 32, 128):
        xs = jnp.ones((steps, 1, 2))
        assert depth(layer.run, p, xs) <= 4 * math.log2(steps)
        assert depth(LAYERS["minLSTM"].run, p, xs) >= steps


@pytest.mark.parametrize("name", LAYERS)
def test_no_layer_sees_what_comes_later(name):
    layer = LAYERS[name]
    p, xs = layer.init(KEY, 4), jax.random.normal(KEY, (6, 1, 4))
    run = jax.jit(lambda xs: layer.run(p, xs)[0])
    np.testing.assert_allclose(run(xs)[:4], run(xs.at[4:].add(1.0))[:4], atol=2e-6)
    assert np.abs(run(xs)[4:] - run(xs.at[4:].add(1.0))[4:]).max() > 1e-3


def test_calls_are_timed_in_turn():
    order = []
    times = measuring.in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 0.0, least=3)
    assert order == ["a", "b"] * 3 and {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}


def row(layer, steps, depth=1, seconds=1.0, flops=1.0, width=16):
    where = {"layer": layer, "steps": steps, "width": width, "batch": 1}
    return where | {"depth": depth, "seconds": seconds, "flops": flops}


def measured(rows, platform="cpu"):
    return {"rows": rows, "platform": platform, "device": "a machine"}


def lines_of(lstm, attention, steps=(64, 1024)):
    return measured(
        [
            row(layer, at, depth=deep)
            for layer, each in (("LSTM", lstm), ("attention", attention), ("convolution", (4, 4)))
            for at, deep in zip(steps, each, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("measurements", "verdict"),
    [
        (lines_of((640, 10240), (15, 18)), "reproduced"),
        (lines_of((640, 1000), (15, 18)), "contradicted"),
        (lines_of((640, 10240), (15, 240)), "contradicted"),
        (lines_of((640, 5000), (15, 18)), "inconclusive"),
        (lines_of((640, 1280), (15, 18), steps=(64, 128)), "inconclusive"),
    ],
)
def test_table_1_is_judged_by_how_operations_in_a_row_grow(measurements, verdict):
    assert judging.table_1(measurements).verdict == verdict


@pytest.mark.parametrize(
    ("attention", "verdict"),
    [
        ([(0.5, 0.5), (0.9, 2.0)], "reproduced"),  # (seconds, work) of the LSTM's 1, 1
        ([(1.5, 0.5), (0.9, 2.0)], "reproduced"),  # less work counts not
        ([(1.5, 1.5), (0.9, 2.0)], "inconclusive"),
        ([(1.5, 1.5), (1.9, 2.0)], "contradicted"),
        ([(0.5, 0.5), (0.6, 0.9)], "inconclusive"),
    ],
)
def test_the_bottleneck_is_judged_where_attention_does_more_work(attention, verdict):
    rows = [row("LSTM", at) for at in (64, 1024)]
    rows += [row("attention", at, seconds=s, flops=f) for at, (s, f) in zip((64, 1024), attention, strict=True)]
    assert judging.bottleneck(measured(rows, "gpu")).verdict == verdict
    assert judging.bottleneck(measured(rows)).verdict == "out of reach here"


@pytest.mark.parametrize(
    ("platform", "seconds", "verdict"),
    [
        ("cpu", 0.01, "out of reach here"),
        ("gpu", 0.01, "reproduced"),
        ("gpu", 0.5, "inconclusive"),
        ("gpu", 2, "contradicted"),
    ],
)
def test_speed_ups_are_judged_on_accelerators_alone(platform, seconds, verdict):
    rows = [row("minLSTM", 512), row("minLSTM, at once", 512, seconds=seconds)]
    rows += [row("GRU", 10_000, width=1), row("GRU, Newton", 10_000, seconds=seconds, width=1)]
    assert [judge(measured(rows, platform)).verdict for judge in (judging.minimal, judging.newton)] == [verdict] * 2


def test_a_tiny_run_of_the_bottleneck_is_written_judged_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(bottleneck, "long_line", lambda name, steps, width: {
        "layer": name, "steps": steps, "width": width, "seconds": 0.1, "peak": 1e6, "iterations": None})  # fmt: skip
    config = replace(
        bottleneck.PRESETS["quick"],
        layers=("LSTM", "attention", "convolution"),
        widths=(2,),
        steps=(2, 3),
        seconds=0.01,
    )
    result = harness.execute(bottleneck.EXPERIMENT, "quick", config, tmp_path, Progress(disable=True))
    assert len(result["table"]["rows"]) == 3 * 2 + 2 and (tmp_path / "bottleneck.png").stat().st_size > 1000
    assert {claim["verdict"] for claim in result["claims"]} == {"inconclusive", "out of reach here"}


def test_a_long_line_runs_in_a_process_of_its_own():
    told = measuring.long_line("minLSTM, at once", 50, 2)
    assert told["seconds"] > 0 and told["peak"] > 1e7 and told["iterations"] == 1
    with pytest.raises(harness.Refused, match=r"(?s)nothing over 50 steps of width 2 failed: .*; take fewer"):
        measuring.long_line("nothing", 50, 2)


def run_of(module, **fields):
    module.EXPERIMENT.run(replace(module.PRESETS["quick"], **fields), Progress(disable=True))


@pytest.mark.parametrize(
    ("module", "fields", "words"),
    [
        (bottleneck, {"layers": ("LSTM", "lstm")}, "--layers 'lstm': known are LSTM, LSTM, Newton"),
        (bottleneck, {"layers": ("LSTM",)}, "--layers: attention, convolution is what the table compares"),
        (newton, {"kinds": ("GRU",)}, "--kinds 'GRU': known are plain RNN, LSTM"),
        (newton, {"leaks": (0.5, 1.5)}, "--leaks 1.5: 1 - keep lies between 0 and 1"),
        (newton, {"steps": 7}, "--steps 7: give a divisor of the 64 pixels of digits"),
    ],
)
def test_bad_options_are_named(module, fields, words):
    with pytest.raises(harness.Refused, match=words):
        run_of(module, **fields)


def test_the_exponent_is_that_of_a_linear_line():
    """x' = M x: the log of M's largest eigenvalue; and the schedule's values are the plain ones."""
    matrix = jnp.asarray([[0.5, 0.2, 0.0], [0.0, 0.8, 0.1], [0.0, 0.0, 0.3]])
    step = lambda x, _: (x @ matrix, x.sum())  # noqa: E731
    start = jnp.ones((2, 3))
    carry, (ys, exponent) = jax.jit(partial(lines.with_exponent, step, length=200))(start, None)
    np.testing.assert_allclose(exponent, math.log(0.8), atol=1e-3)
    assert_close((carry, ys), Sequential()(step, start, None, 200), "float32")


@pytest.mark.parametrize("axis", lines.DIAL)
def test_the_dial_sets_the_mean_keep_along_both_axes(axis):
    net = nets.Net(axis, lines.DIAL[axis], 8, 8, 4)
    made = lines.opened(KEY, net, 0.05)
    gates = {"wh": 0 * made.line.wh} | ({"wx": 0 * made.line.wx} if axis == "time" else {})
    line = made.line._replace(**gates)  # the gates' biases alone
    told = lines.measured(net.kind, axis, line, *nets.flows(made, jax.random.uniform(KEY, (2, 8, 8)), net))
    np.testing.assert_allclose(told["keep"], 0.95, atol=1e-5)
    np.testing.assert_allclose(told["log10_gain"], 8 * math.log10(0.95), atol=1e-4)
    np.testing.assert_allclose(told["exponent"], math.log(0.95), atol=1e-4)
    assert told["converged"] and told["iterations"] <= 2


def growing(below, above):
    """Iterations at 16 and at 256 cells of one line with an exponent below 0, and of one above."""
    rows = [
        {
            "kind": "plain RNN",
            "gain": gain,
            "length": length,
            "exponent": [exponent],
            "iterations": [n],
            "converged": [1],
        }
        for gain, exponent, each in ((0.5, -0.3, below), (3.0, 0.3, above))
        for length, n in zip((16, 256), each, strict=True)
    ]
    return {"untrained": rows}


@pytest.mark.parametrize(
    ("measurements", "verdict"),
    [
        (growing((5, 6), (14, 200)), "reproduced"),
        (growing((5, 60), (14, 200)), "contradicted"),
        (growing((5, 6), (14, 20)), "contradicted"),
        ({"untrained": growing((5, 6), (14, 200))["untrained"][:2]}, "inconclusive"),
    ],
)
def test_predictability_is_judged_by_how_iterations_grow(measurements, verdict):
    assert predictable(measurements).verdict == verdict
