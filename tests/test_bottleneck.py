"""The sequential bottleneck and Newton's experiments: what they read and count, and how they judge."""

import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, compiled
from jaxlib import gpu_rnn
from matplotlib import pyplot as plt
from rich.progress import Progress

from experiments import bottleneck, harness, newton
from experiments.bottleneck import judging, measuring
from experiments.bottleneck.layers import HEAD, LAYERS, at_once, dilated, fused
from experiments.mixing import nets
from experiments.newton import lines
from experiments.newton.judging import predictable
from lstm_rot import Newton, Sequential
from lstm_rot.branches import gru
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


@pytest.mark.parametrize("name", [name for name in LAYERS if judging.at_once(name)])
def test_a_layer_at_once_is_the_layer_step_by_step(name):
    layer = LAYERS[name]
    p, xs = layer.init(KEY, 3), jax.random.normal(KEY, (5, 2, 3))
    (ys, info), (plain, none) = jax.jit(layer.run)(p, xs), jax.jit(LAYERS[str(layer.same)].run)(p, xs)
    assert info.converged and 1 <= info.iterations <= 5 and none is None
    assert_close(ys, plain, "float32")


@cache
def program(name, steps, width, *, gradient):
    layer = LAYERS[name]
    loss = lambda p, xs: jnp.square(layer.run(p, xs)[0]).mean()  # noqa: E731
    run = jax.value_and_grad(loss, argnums=(0, 1)) if gradient else layer.run
    return compiled(run, layer.init(KEY, width), jnp.ones((steps, 1, width)))


AT_ONCE = {  # iterations; numbers in the state of a step of width 128
    "minLSTM, at once": (1, 128),
    "mLSTM, at once": (1, 128 * HEAD),
    "diagonal LSTM, Newton": (4, 2 * 128),
}


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", AT_ONCE)
def test_a_line_at_once_waits_for_about_log_t_operations_and_holds_t_times_its_state(name, gradient):
    """An iteration, and the gradient, is one scan: a few operations more where the line is twice as long."""
    iterations, state = AT_ONCE[name]
    short, long = (program(name, steps, 128, gradient=gradient) for steps in (8, 32))
    few, more = (Program(each.as_text()).depth(iterations) for each in (short, long))
    assert more <= few + 4 * math.log2(32 / 8) * (iterations + gradient)
    taken = long.memory_analysis().temp_size_in_bytes / (4 * 32 * state)
    assert taken < 64  # dense Jacobians alone are 128 times a step's state, or more


@pytest.mark.usefixtures("optimized")
def test_a_line_step_by_step_waits_for_each_step():
    assert depth(LAYERS["minLSTM"].run, LAYERS["minLSTM"].init(KEY, 2), jnp.ones((64, 1, 2))) >= 64


def test_a_million_steps_fit_their_memory():
    """What each step takes of a line of ten thousand: inputs, outputs and all between them."""
    memory = program("diagonal LSTM, Newton", 10_000, 16, gradient=False).memory_analysis()
    taken = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert 1_000_000 * taken / 10_000 < judging.BUDGET
    assert judging.fits({"peak": 3.9e9}) == "within the 4,000 allowed"
    assert judging.fits({"peak": 4.1e9}) == "above the 4,000 allowed"


@pytest.mark.parametrize("name", ["attention", "convolution"])
def test_the_longest_path_is_the_number_of_layers_that_join_the_ends(name):
    layer, steps = LAYERS[name], 8
    p = layer.init(KEY, 4)

    def joined(layers):
        def end(xs):
            for _ in range(layers):
                xs = layer.run(p, xs)[0]
            return xs[-1].sum()

        return bool(np.abs(jax.grad(end)(jax.random.normal(KEY, (steps, 1, 4)))[0]).max() > 0)

    path = layer.path(steps)  # pyright: ignore[reportOptionalCall]
    assert joined(path) and not joined(path - 1)


def test_dilated_convolutions_join_the_ends_in_fewer_layers():
    assert [dilated(steps) for steps in (2, 3, 4, 9, 10, 2048)] == [1, 1, 2, 2, 3, 7]


def test_cudnns_lstm_is_traced_as_a_layer(monkeypatch):
    """Forward and gradient; how much memory cuDNN wants, only a GPU can say."""
    monkeypatch.setattr(gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", lambda *_: (8, 8), raising=False)
    layer = LAYERS["LSTM, cuDNN"]
    p, xs = layer.init(KEY, 4), jnp.ones((6, 2, 4))
    assert jax.eval_shape(layer.run, p, xs)[0].shape == xs.shape
    loss = lambda p, xs: layer.run(p, xs)[0].sum()  # noqa: E731
    traced = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(p, xs))
    assert "rnn_fwd" in traced and "rnn_bwd" in traced


def test_fused_attention_is_attention():
    layer = LAYERS["attention, cuDNN"]
    p, xs = layer.init(KEY, 32), jax.random.normal(KEY, (6, 2, 32))
    ours, theirs = LAYERS["attention"].run(p, xs)[0], fused(p, xs, "xla")[0]
    assert_close(theirs, ours, "bfloat16")


@pytest.mark.parametrize("name", [name for name, layer in LAYERS.items() if not layer.cudnn])
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


def test_rows_outlive_a_layer_that_fails(monkeypatch):
    def run(p, xs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nallocating much")

    gives_up = at_once(gru.gru, lambda p, batch: (jnp.zeros((*batch, 2)), ()), Newton(iterations=1))
    for name, fails in (("attention", run), ("GRU, Newton", gives_up)):
        monkeypatch.setitem(LAYERS, name, LAYERS[name]._replace(run=fails))
    told = []
    rows = measuring.case(["attention", "GRU, Newton", "convolution"], 4, 2, 1, 0.01, lambda: told.append(1))
    assert rows[0] == {"layer": "attention", "steps": 4, "width": 2, "batch": 1,
        "failed": "RESOURCE_EXHAUSTED: out of memory"}  # fmt: skip
    assert rows[1]["failed"].startswith("GRU, Newton over 4 steps is not solved at once")
    low, high = rows[2]["quartiles"]
    assert 0 < low <= rows[2]["seconds"] <= high and len(told) == 3


def test_a_call_that_fails_amid_the_rounds_stops_alone():
    calls = iter([None, ValueError("one too many\nof them")])

    def sometimes():
        if error := next(calls):
            raise error

    failed = {}
    times = measuring.in_turn({"a": sometimes, "b": lambda: None}, 0.0, failed=failed)
    assert {name: len(each) for name, each in times.items()} == {"b": 5}
    assert list(failed) == ["a"] and str(failed["a"]).startswith("one too many")
    calls = iter([ValueError("one too many")])
    with pytest.raises(ValueError, match="one too many"):
        measuring.in_turn({"a": sometimes}, 0.0)


def test_a_layer_that_failed_is_left_out_of_what_is_judged_and_said_in_the_table():
    measurements = lines_of((640, 10240), (15, 18)) | {"long": [{"layer": "x", "steps": 9, "width": 1, "failed": "no"}]}
    measurements["rows"].append({"layer": "attention", "steps": 4096, "width": 16, "batch": 1, "failed": "no memory"})
    assert judging.table_1(measurements).verdict == "reproduced"
    assert "4,096" not in judging.bottleneck(measurements).ours
    rows = bottleneck.table(measurements)["rows"]
    assert [row[4] for row in rows if "failed" in str(row[4])] == ["failed: no memory", "failed: no"]
    everything = [{**row, "failed": "no memory"} for row in measurements["rows"]]
    for rows in (measurements["rows"], everything):
        plt.close(bottleneck.draw({"measurements": measurements | {"rows": rows}}))


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([(64, 0.5), (256, 1.5), (1024, 3.0)], "from T=256"),
        ([(64, 2.0), (256, 1.5)], "from T=64"),
        ([(64, 2.0), (256, 0.5), (1024, 3.0)], "from T=1,024"),
        ([(64, 2.0), (256, 1.0)], "none up to T=256"),
    ],
)
def test_the_crossing_is_where_a_layer_stays_the_faster(ratios, words):
    assert judging.crossing(ratios) == words


def test_newtons_lstm_is_compared_with_its_own_loop_and_with_cudnn():
    rows = [row("LSTM", at, seconds=1.0) for at in (64, 1024)]
    rows += [row("LSTM, cuDNN", at, seconds=0.1) for at in (64, 1024)]
    rows += [row("LSTM, Newton", 64, seconds=0.5), row("LSTM, Newton", 1024, seconds=0.09)]
    told = [("LSTM", "from T=64"), ("LSTM, cuDNN", "from T=1,024")]
    assert list(judging.crossings(measured(rows))) == [(16, "LSTM, Newton", *each) for each in told]
    drawn = bottleneck.table(measured(rows) | {"long": []})["rows"][-1]
    assert drawn[:3] == [16, "from T=1,024", "LSTM, Newton: faster than LSTM, cuDNN"]
    assert judging.kernels(measured(rows, "gpu")).verdict == "inconclusive"  # Newton's is faster once
    assert judging.kernels(measured(rows[:4], "gpu")).verdict == "reproduced"
    assert judging.kernels(measured(rows[:2])).verdict == "out of reach here"


def row(layer, steps, depth=1, seconds=1.0, flops=1.0, width=16):
    where = {"layer": layer, "steps": steps, "width": width, "batch": 1}
    numbers = {"iterations": 3, "bytes": 1, "calls": 5}
    return where | numbers | {"depth": depth, "seconds": seconds, "flops": flops}


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
    rows += [row("diagonal LSTM", 512), row("diagonal LSTM, Newton", 512, seconds=seconds)]
    rules = judging.minimal, judging.newton, judging.diagonal
    assert [judge(measured(rows, platform)).verdict for judge in rules] == [verdict] * 3


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
    assert "KeyError: 'nothing'" in measuring.long_line("nothing", 50, 2)["failed"]


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
