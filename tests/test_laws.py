"""The laws of turn, scan and chain, for every cell. "Exact" is bit for bit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from absl.testing import parameterized
from helpers import (
    CELLS,
    TIME_UNTIED,
    assert_close,
    assert_exact,
    flow,
    normal,
    value_and_grads,
    weights,
)

from lstm_rot import DEPTH, TIME, Axis, chain, residual, scan, turn
from lstm_rot.branches import gru, lstm

DTYPES = ["float32", "float64"]
L, T, B, H = 3, 4, 2, 4
every_cell = pytest.mark.parametrize("name", CELLS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_cell
@every_dtype
def test_two_turns_are_none(name, dtype):
    example = CELLS[name]
    args = weights(example, dtype), flow(example, dtype), normal(dtype, B, H)
    assert_exact(jax.jit(turn(turn(example.cell)))(*args), jax.jit(example.cell)(*args))
    assert str(jax.make_jaxpr(turn(turn(example.cell)))(*args)) == str(jax.make_jaxpr(example.cell)(*args))
    right, above = jax.jit(example.cell)(*args)
    assert_exact(jax.jit(turn(example.cell))(args[0], args[2], args[1]), (above, right))


@every_cell
@every_dtype
def test_the_whole_grid_turns(name, dtype):
    """With both axes untied, the turned cells on the turned grid compute the same, exactly, results exchanged."""
    example = CELLS[name]
    p, left, below = weights(example, dtype, L, T), flow(example, dtype, L), normal(dtype, T, B, H)
    upright, turned = scan(scan(example.cell, TIME_UNTIED), DEPTH), scan(scan(turn(example.cell), DEPTH), TIME_UNTIED)
    grid = jax.jit(upright)(p, left, below)
    assert_exact(jax.jit(turned)(p, below, left)[::-1], grid)
    _, grads = value_and_grads(upright, p, left, below)
    _, grads_turned = value_and_grads(lambda p, left, below: turned(p, below, left)[::-1], p, left, below)
    assert_close(grads_turned, grads, dtype)
    # The same nesting, the axes of p exchanged instead: the loops change places, so the last bits may differ.
    exchanged = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), p)
    assert_close(jax.jit(scan(scan(turn(example.cell), TIME_UNTIED), DEPTH))(exchanged, below, left)[::-1], grid, dtype)
    # And the numpy loops say what that is.
    below_t, rights = below, []
    for layer in range(L):
        right, below_t = reference.line(
            example.oracle, reference.at(p, layer), reference.at(left, layer), below_t, T, tied=False
        )
        rights.append(right)
    assert_close(grid, (reference.joined(rights), below_t), dtype)


class Nesting(chex.TestCase, parameterized.TestCase):
    """Depth within time is time within depth, compiled or not."""

    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore
    @parameterized.product(name=list(CELLS))
    def test_values_commute(self, name):
        example = CELLS[name]
        args = weights(example, "float64", L), flow(example, "float64", L), normal("float64", T, B, H)
        assert_close(
            self.variant(scan(scan(example.cell, TIME), DEPTH))(*args),
            self.variant(scan(scan(example.cell, DEPTH), TIME))(*args),
            "float64",
        )


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float64") for name in CELLS] + [("lstm", "float32"), ("dense", "float32")]
)
def test_nesting_commutes_with_gradients(name, dtype):
    example = CELLS[name]
    args = weights(example, dtype, L), flow(example, dtype, L), normal(dtype, T, B, H)
    rows = value_and_grads(scan(scan(example.cell, TIME), DEPTH), *args)
    columns = value_and_grads(scan(scan(example.cell, DEPTH), TIME), *args)
    assert_close(rows, columns, dtype)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(rows))  # the comparison reaches every argument


def test_chains_of_unlike_cells_commute_with_scan():
    """Rows of unlike layers, of unlike widths, one above the other: the chain of lines is the line of chains."""
    cells = residual(lstm.lstm), residual(gru.gru), residual(lstm.lstm_1997)
    widths = [(3, 5), (5, 2), (2, 4)]
    examples = [CELLS["lstm"], CELLS["gru"], CELLS["lstm_1997"]]
    p = tuple(
        weights(e, "float64", width=d, hidden=h, seed=i)
        for i, (e, (d, h)) in enumerate(zip(examples, widths, strict=True))
    )
    left = tuple(
        flow(e, "float64", hidden=h, seed=i) for i, (e, (_, h)) in enumerate(zip(examples, widths, strict=True))
    )
    xs = normal("float64", T, B, 3)
    rows = value_and_grads(chain(*(scan(cell, TIME) for cell in cells)), p, left, xs)
    columns = value_and_grads(scan(chain(*cells), TIME), p, left, xs)
    assert_close(rows, columns, "float64")
    below, rights = xs, []
    for example, p_cell, left_cell in zip(examples, p, left, strict=True):
        right, below = reference.line(example.oracle, p_cell, left_cell, below, T, tied=True)
        rights.append(right)
    assert_close(rows[0], (tuple(rights), below), "float64")


def test_equal_cells_chained_are_a_line_along_depth():
    example = CELLS["lstm"]
    p, left, below = weights(example, "float64", L), flow(example, "float64", L), normal("float64", B, H)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], (p, left)) for i in range(L)]
    p_each, left_each = zip(*each, strict=True)
    rights, above = jax.jit(chain(*[example.cell] * L))(p_each, left_each, below)
    joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rights)
    assert_close((joined, above), jax.jit(scan(example.cell, DEPTH))(p, left, below), "float64")


@every_cell
@every_dtype
@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "no inputs"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_four_corners(name, tied, inputs, dtype):
    """Tied or not, with inputs or not, along either axis: always the loop; the gradients along both are one."""
    example, n = CELLS[name], 5
    p = weights(example, dtype, *(() if tied else (n,)), width=H if inputs else None)
    start, xs = flow(example, dtype), normal(dtype, n, B, H) if inputs else None
    length = n if tied and not inputs else None
    along_time = scan(example.cell, Axis("left", tied), length=length)
    along_depth = scan(turn(example.cell), Axis("below", tied), length=length)
    actual, (p_bar, start_bar, xs_bar) = value_and_grads(along_time, p, start, xs)
    assert_close(actual, reference.line(example.oracle, p, start, xs, n, tied=tied), dtype)
    turned, grads = value_and_grads(lambda p, start, xs: along_depth(p, xs, start)[::-1], p, start, xs)
    assert_close(turned, actual, dtype)
    assert_close(grads, (p_bar, start_bar, xs_bar), dtype)


@pytest.mark.parametrize("flow_name", ["left", "below"])
@pytest.mark.parametrize(
    "tied",
    [(True, True, False), (False, True, True), (True, False, False)],
    ids=["b untied", "wx untied", "wh and b untied"],
)
def test_some_leaves_tied(flow_name, tied):
    """A prefix tree ties leaf by leaf: as if all were untied and the tied ones repeated; their gradients add up."""
    example = CELLS["lstm"]
    axis, all_untied = Axis(flow_name, lstm.Params(*tied)), Axis(flow_name, False)
    p, start, xs = weights(example, "float64", T)[:3], flow(example, "float64"), normal("float64", T, B, H)
    some = lstm.Params(*(leaf[0] if flag else leaf for leaf, flag in zip(p, tied, strict=True)))
    repeated = lstm.Params(*(jnp.stack([leaf[0]] * T) if flag else leaf for leaf, flag in zip(p, tied, strict=True)))  # pyright: ignore
    cell, args = (example.cell, (start, xs)) if flow_name == "left" else (turn(example.cell), (xs, start))
    values, (grads, *of_flows) = value_and_grads(scan(cell, axis), some, *args)
    expected, (expected_grads, *expected_of_flows) = value_and_grads(scan(cell, all_untied), repeated, *args)
    summed = lstm.Params(*(g.sum(0) if flag else g for g, flag in zip(expected_grads[:3], tied, strict=True)))
    assert_close((values, grads, of_flows), (expected, summed, expected_of_flows), "float64")


def test_tied_flags_reach_into_nested_trees():
    """A flag stands for all leaves below it, through dicts and tuples, and None is no leaf."""

    def cell(p, left, below):
        return p["a"]["x"] * left + p["a"]["y"] + p["b"][0], below

    p = {"a": {"x": np.array(0.5), "y": np.array(2.0)}, "b": (np.arange(4.0), None)}
    axis = Axis("left", {"a": True, "b": False})
    expected = 1.0
    for t in range(4):
        expected = 0.5 * expected + 2.0 + t
    right, _ = jax.jit(scan(cell, axis))(p, jnp.array(1.0), None)
    assert float(right) == expected


@every_cell
def test_a_line_of_lines_splits_anywhere(name):
    """A line is a cell: two lines, the right of the first the left of the second, are the whole line."""
    example = CELLS[name]
    p, left, xs = weights(example, "float64"), flow(example, "float64"), normal("float64", 7, B, H)
    whole = jax.jit(scan(example.cell, TIME))(p, left, xs)
    middle, first = jax.jit(scan(example.cell, TIME))(p, left, xs[:3])
    right, second = jax.jit(scan(example.cell, TIME))(p, middle, xs[3:])
    assert_close((right, jnp.concatenate([first, second])), whole, "float64")


def test_a_known_keep_costs_no_product():
    """The int 0 or 1 as keep: no multiplication by it, and a wide stream stays wide under narrow additions."""

    def branch(keep, dtype):
        return lambda p, stream, memory, below: (keep, below.astype(dtype), lambda stream: (memory, stream))

    stream, below = jnp.asarray(normal("float64", 3)), jnp.asarray(normal("float64", 3, seed=3))
    for keep, expected in {0: below, 1: stream + below}.items():
        cell = residual(branch(keep, "float64"))
        jaxpr = str(jax.make_jaxpr(cell)(None, (stream, ()), below))
        assert " mul " not in jaxpr
        assert_exact(jax.jit(cell)(None, (stream, ()), below)[1], jnp.asarray(expected))
    (right, _), _ = residual(branch(1, "float32"))(None, (stream, ()), below)
    assert right.dtype == "float64"
    assert " mul " in str(jax.make_jaxpr(residual(branch(jnp.float64(1), "float64")))(None, (stream, ()), below))
