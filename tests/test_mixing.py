"""Attention residuals, against numpy and turned; the mixing matrices and what is measured of them; the verdict rule."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TIME_UNTIED, TOLERANCE, normal, random_like
from rich.progress import Progress

from experiments import mixing
from experiments.harness import Refused
from experiments.mixing import measuring, nets
from experiments.mixing.judging import DENSE, ROUNDING
from lstm_rot import DEPTH, TIME, residual, scan, turn
from lstm_rot.branches import attnres, dense, watched
from lstm_rot.branches.common import layer_norm

STEPS, BATCH, HIDDEN, WIDTH = 4, 3, 5, 2
ATTENDING = residual(attnres.attnres(dense.dense))
ALL = [(axis, kind) for axis, kinds in nets.KINDS.items() for kind in kinds]
EXACT = TOLERANCE["float64"]


def cells(width):
    """Random weights of attending cells, one slice a cell."""
    shapes = jax.eval_shape(partial(nets.init_attending, input_size=width, hidden_size=HIDDEN), jax.random.key(0))
    return random_like(shapes, 0, "float64", prefix=(STEPS,))


def begun(places):
    """A stream, and a memory whose cache holds it."""
    stream = jnp.asarray(normal("float64", BATCH, HIDDEN))
    return stream, (attnres.append(attnres.empty(places, stream), stream), ())


def softmax_mean(q, values):
    """sum over k of softmax_k(q . rms(v_k)) v_k, in numpy."""
    keys = values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6)
    scores = np.exp((q * keys).sum(-1, keepdims=True))
    return (scores * values).sum(0) / scores.sum(0)


def test_along_depth_it_is_attention_residuals():
    p, start = cells(None), begun(STEPS + 1)
    _, (stream, (cache, _)) = jax.jit(scan(turn(ATTENDING), DEPTH))(p, None, start)
    h = np.asarray(start[0])
    values = [h]
    for layer in range(STEPS):
        scale, w, b = (leaf[layer] for leaf in (p.weights.scale, p.weights.wh, p.weights.b))
        values.append(np.maximum(layer_norm(jnp.asarray(h), jnp.asarray(scale)), 0) @ w + b)
        h = softmax_mean(p.w[layer], np.stack(values))
    np.testing.assert_allclose(stream, h, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(cache.values, np.stack(values), rtol=EXACT, atol=EXACT)


def test_along_time_it_is_causal_attention():
    """Where a step proposes by its input alone: the same numbers from one masked product over all steps."""
    inputs, value, wx = (
        normal("float64", STEPS, BATCH, WIDTH),
        *(normal("float64", WIDTH, HIDDEN, seed=k) for k in (2, 3)),
    )
    branch = attnres.attnres(lambda p, stream, memory, below: (1, below @ p, lambda new: (memory, new)))
    p = attnres.Params(jnp.asarray(value), jnp.asarray(normal("float64", HIDDEN, seed=4)), jnp.asarray(wx))
    stream = jnp.zeros((BATCH, HIDDEN))
    _, streams = jax.jit(scan(residual(branch), TIME))(p, (stream, (attnres.empty(STEPS, stream), ())), inputs)
    v, q = inputs @ value, inputs @ wx + np.asarray(p.w)
    k = v / np.sqrt((v**2).mean(-1, keepdims=True) + 1e-6)
    weights = np.exp(np.einsum("lbh,kbh->blk", q, k)) * np.tri(STEPS)
    expected = np.einsum("blk,kbh->lbh", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(streams, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("tied", [True, False])
def test_attention_over_depth_is_attention_over_time_turned(tied):
    p, start, inputs = cells(WIDTH), begun(STEPS + 1), normal("float64", STEPS, BATCH, WIDTH)
    p = jax.tree.map(lambda leaf: leaf[0], p) if tied else p
    long = scan(ATTENDING, TIME_UNTIED._replace(tied=tied))
    deep = scan(turn(ATTENDING), DEPTH._replace(tied=tied))
    right, above = jax.jit(long)(p, start, inputs)
    turned_right, turned_above = jax.jit(deep)(p, inputs, start)
    jax.tree.map(np.testing.assert_array_equal, (right, above), (turned_above, turned_right))


def example(axis, kind):
    """A net of four cells with random weights, the queries' too, and images."""
    net = nets.Net(axis, nets.KINDS[axis][kind], STEPS, 4, HIDDEN)
    shapes = jax.eval_shape(partial(nets.init, net=net), jax.random.key(0))
    return net, random_like(shapes, 0, "float64"), jnp.asarray(normal("float64", BATCH, 4, 4))


@pytest.mark.parametrize(("axis", "kind"), ALL)
def test_the_matrix_gives_the_streams_again_and_has_its_form(axis, kind):
    net, p, x = example(axis, kind)
    found = measuring.mixing(p, x, net=net)
    matrix = np.asarray(found.matrix)
    assert len(matrix) == STEPS + (axis == "depth") and measuring.rebuilt(found) < EXACT
    assert measuring.rebuilt(found._replace(matrix=found.matrix * 1.01)) > 1e-3
    assert (matrix[np.triu_indices(len(matrix), 1)] == 0).all()
    if net.kind.form in (nets.NOTHING, nets.ONES):
        alone = net.kind.form == nets.NOTHING
        expected = np.eye(len(matrix)) if alone else np.tri(len(matrix))
        np.testing.assert_array_equal(matrix, np.broadcast_to(expected[:, :, None, None], matrix.shape))
    elif net.kind.form == nets.GATED:
        assert measuring.from_ones(matrix) > 0.1 and measuring.second_value(matrix).max() < EXACT
        kept = keeps(net, p, x)
        np.testing.assert_allclose(matrix[-1, -2], kept[-1], rtol=EXACT)
        np.testing.assert_allclose(matrix[-1, 0], kept[-len(matrix) + 1 :].prod(0), rtol=EXACT)
    else:
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=EXACT)
        assert measuring.second_value(matrix).min() > DENSE


def keeps(net, p, x):
    """What each cell keeps, [STEPS, B, H]."""
    branch = watched(net.kind.branch, lambda _, keep, add, new: keep)
    return np.asarray(nets.run(branch, nets.AXES[net.axis], p.line, *nets.flows(p, x, net))[1][1])


@pytest.mark.parametrize("axis", ["depth", "time"])
def test_a_query_of_zeros_takes_the_mean(axis):
    net, p, x = example(axis, "attention")
    p = p._replace(line=p.line._replace(w=0 * p.line.w, wx=None if axis == "depth" else 0 * p.line.wx))
    matrix = np.asarray(measuring.mixing(p, x, net=net).matrix)[..., 0]
    mean = np.tri(len(matrix)) / np.arange(1, len(matrix) + 1)[:, None]
    np.testing.assert_allclose(matrix, np.broadcast_to(mean[:, :, None], matrix.shape), rtol=EXACT)


def test_a_fresh_query_is_zero_and_the_first_layer_sees_the_embedding_alone():
    p, (stream, memory) = cells(None), begun(STEPS + 1)
    fresh = attnres.init(p.weights, WIDTH, HIDDEN, "float64")
    assert (fresh.w == 0).all() and (fresh.wx == 0).all()  # pyright: ignore
    _, (_, (cache, _)) = jax.jit(scan(turn(ATTENDING), DEPTH))(p, None, (stream, memory))
    scale, w, b = (leaf[0] for leaf in (p.weights.scale, p.weights.wh, p.weights.b))
    first = np.maximum(layer_norm(stream, jnp.asarray(scale)), 0) @ w + b
    np.testing.assert_allclose(cache.values[1], first, rtol=EXACT, atol=EXACT)


def test_the_blocks_tell_a_product_matrix_from_a_dense_one():
    rng, size = np.random.default_rng(0), 7
    gates = rng.uniform(0.1, 0.9, size)
    product = np.array([[gates[k + 1 : l + 1].prod() if k <= l else 0 for k in range(size)] for l in range(size)])  # noqa: E741
    bent = product.copy()
    bent[-1, 0] += 0.1
    values = measuring.second_value(
        np.stack([product, bent, np.tri(size) * rng.normal(size=(size, size))], -1)[..., None]
    )
    assert values.shape == (3, 1)
    assert values[0] < EXACT and values[1] > 0.01 and values[2] > 0.3


def test_reach_and_entropy_of_known_rows():
    ones, alone = (matrix[:, :, None, None] for matrix in (np.tri(5), np.eye(5)))
    np.testing.assert_allclose(measuring.reach(ones), np.arange(5) / 2)
    np.testing.assert_allclose(measuring.entropy(ones), np.log(np.arange(1, 6)))
    assert (measuring.reach(alone) == 0).all() and (measuring.entropy(alone) == 0).all()


def measured(drop=(), error=0.1, rebuilt=1e-7, **numbers):
    """Rows of three forms along both axes; numbers: what those of a form have, of the second seed."""
    names = {nets.ONES: "from_ones", nets.GATED: "second", nets.ATTENTION: "second_mean"}
    good = {"from_ones": 0.0, "second": ROUNDING / 100, "second_mean": 0.3}
    rows = [
        {"axis": axis, "kind": form, "form": form, "positions": 3, "reach": [[0.0, 0.5, 1.0]] * 2}
        | {"test_error": [0.1, error], "rebuilt": [1e-7, rebuilt], name: [good[name], numbers.get(name, good[name])]}
        for axis in ("depth", "time")
        for form, name in names.items()
        if (axis, form) not in drop
    ]
    return {"rows": rows}


@pytest.mark.parametrize(
    ("measurements", "verdict"),
    [
        (measured(), "reproduced"),
        (measured(from_ones=2 * ROUNDING), "contradicted"),
        (measured(second=2 * ROUNDING), "contradicted"),
        (measured(second_mean=DENSE / 2), "contradicted"),
        (measured(second=float("nan")), "contradicted"),
        (measured(drop=[("time", nets.GATED)]), "inconclusive"),
        (measured(drop=[("time", nets.GATED)], from_ones=1.0), "contradicted"),
        (measured(error=0.8), "inconclusive"),
        (measured(error=0.8, from_ones=1.0), "inconclusive"),
        (measured(rebuilt=1e-3), "inconclusive"),
        ({"rows": []}, "inconclusive"),
    ],
)
def test_the_forms_are_judged_along_both_axes_by_nets_that_have_learnt(measurements, verdict):
    assert [finding.verdict for finding in mixing.judge(measurements)] == [verdict]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": ("GRU",)}, "--depth 'GRU': known are 'plain', 'residual'"),
        ({"time": ("highway",)}, "--time 'highway': known are 'LSTM 1997'"),
        ({"piece": 5}, "--piece 5: give a divisor of the 64 pixels"),
        ({"piece": 32}, "--piece 32: .*up to a third"),
        ({"layers": 1}, "--layers 1: give 2 or more"),
        ({"images": 361}, "--images 361: digits has 360"),
    ],
)
def test_options_that_cannot_be_run_are_refused_by_name(options, message):
    with pytest.raises(Refused, match=message):
        mixing.run(replace(mixing.PRESETS["quick"], **options), Progress(disable=True))


def test_a_long_line_is_published_by_evenly_spaced_positions():
    rng = np.random.default_rng(0)
    matrix = np.tri(40)[:, :, None, None] * rng.uniform(0.5, 1, (40, 40, 2, 3))
    found = measuring.Mixing(*(jnp.asarray(part) for part in (matrix, np.ones((40, 2, 3)), matrix.sum(1))))
    row = mixing.looked_into([found])
    assert row["positions"] == 40 and len(row["shown"]) == 32 and row["shown"][0] == 0 and row["shown"][-1] == 39
    assert [len(weights) for weights in row["matrix"]] == list(range(1, 33)) and row["rebuilt"][0] < EXACT
    np.testing.assert_allclose(row["matrix"][-1], matrix.mean((2, 3))[-1, row["shown"]])
