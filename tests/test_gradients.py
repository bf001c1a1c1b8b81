"""How gradients flow: the exact Jacobians of both kinds of line, and the gradient at every cell inside a grid."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CELLS, assert_close, assert_exact, flow, loss, normal, on_device, weights
from jax.flatten_util import ravel_pytree

from lstm_rot import DEPTH, TIME, Axis, branches, residual, scan, turn, wavefront
from lstm_rot.branches import attention, dense, lstm

N, H = 6, 4


def test_a_residual_net_is_a_sum_and_its_jacobian_a_product():
    """x_L = x_l + sum F_i and dx_L/dx_l = prod (I + dF_i), for every l."""
    p, x = on_device(weights(CELLS["dense"], "float64", N, width=None), normal("float64", H))
    net = scan(turn(CELLS["dense"].cell), DEPTH)

    def top(x, first):
        return net(jax.tree.map(lambda leaf: leaf[first:], p), None, (x, ()))[1][0]

    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], p) for i in range(N)]
    F = jax.jit(lambda layer, x: dense.dense(layer, x, (), None)[1])
    dF = jax.jit(jax.jacobian(F, 1))
    for first in range(N):
        stream, product, total = x, np.eye(H), x
        for layer in layers[first:]:
            product = (np.eye(H) + dF(layer, stream)) @ product
            total, stream = total + F(layer, stream), stream + F(layer, stream)
        assert_close(jax.jit(top, static_argnums=1)(x, first), total, "float64")
        assert_close(jax.jit(jax.jacobian(top), static_argnums=1)(x, first), product, "float64")


def gates(p, h, x):
    return np.moveaxis(np.tensordot(h, p.wh, 1) + np.tensordot(x, p.wx, 1) + p.b, -2, 0)


def test_an_lstm_is_a_weighted_sum():
    """c_T = (prod f) c_t + sum over k of (prod over j > k of f_j) i_k g_k, for every t."""
    p, left, xs = weights(CELLS["lstm"], "float64"), flow(CELLS["lstm"], "float64"), normal("float64", N, 2, H)
    cell = jax.jit(CELLS["lstm"].cell)
    sigmoid = jax.nn.sigmoid
    cs, forget, written = [left[0]], [], []
    right = left
    for x in xs:
        i, f, g, _ = gates(p, np.asarray(right[1]), x)
        forget.append(sigmoid(f))
        written.append(sigmoid(i) * np.tanh(g))
        right, _ = cell(p, right, x)
        cs.append(right[0])
    (last, _), _ = jax.jit(scan(CELLS["lstm"].cell, TIME))(p, left, xs)
    for t in range(N):
        formula = np.prod(forget[t:], axis=0) * cs[t]
        formula += sum(np.prod(forget[k + 1 :], axis=0) * written[k] for k in range(t, N))
        assert_close(last, formula, "float64")


@pytest.mark.parametrize("name", ["lstm", "lstm_1997", "gru", "rnn"])
def test_the_full_jacobian_is_the_product_of_the_steps(name):
    """d(stream, memory) at the end by the same at the start: the steps' Jacobians, the last on the left."""
    example = CELLS[name]
    p, xs, (stream, memory) = on_device(weights(example, "float64"), normal("float64", N, H), flow(example, "float64"))
    left = stream[0], memory[0] if example.memory else ()
    flat, unflatten = ravel_pytree(left)

    def step(flat, x):
        return ravel_pytree(example.cell(p, unflatten(flat), x)[0])[0]

    def line(flat):
        return ravel_pytree(scan(example.cell, TIME)(p, unflatten(flat), xs)[0])[0]

    jacobian, factors, at = jax.jit(jax.jacobian(step)), [], flat
    for x in xs:
        factors.append(jacobian(at, x))
        at = jax.jit(step)(at, x)
    assert_close(
        jax.jit(jax.jacobian(line))(flat), reduce(lambda product, factor: factor @ product, factors), "float64"
    )


def cut(branch):
    """The truncation of 1997: no gradient through the memory h."""
    return lambda p, stream, memory, below: branch(p, stream, jax.lax.stop_gradient(memory), below)


@pytest.mark.parametrize("name", ["lstm_1997", "lstm with keep 1"])
def test_the_constant_error_carousel(name):
    """With h cut and keep 1 the Jacobian from any cell state to the last is exactly the identity."""
    branch, of = {
        "lstm_1997": (lstm.lstm_1997, "lstm_1997"),
        "lstm with keep 1": (branches.with_keep(lstm.lstm, 1), "lstm"),
    }[name]
    p, xs, h = weights(CELLS[of], "float64"), normal("float64", 50, H), normal("float64", H)
    last = jax.jit(jax.jacobian(lambda c: scan(residual(cut(branch)), TIME)(p, (c, h), xs)[0][0]))
    assert_exact(last(normal("float64", H, seed=4)), jnp.eye(H))
    uncut = jax.jit(jax.jacobian(lambda c: scan(residual(branch), TIME)(p, (c, h), xs)[0][0]))
    assert np.abs(uncut(normal("float64", H, seed=4)) - np.eye(H)).max() > 0.01


def test_with_forget_gates_the_carousel_decays():
    """With h cut the Jacobian is diag(prod f)."""
    p, xs = weights(CELLS["lstm"], "float64"), normal("float64", N, H)
    c, h = normal("float64", H, seed=4), normal("float64", H)
    line = scan(residual(cut(lstm.lstm)), TIME)
    _, hs = jax.jit(line)(p, (c, h), xs)
    before = np.concatenate([h[None], hs[:-1]])
    product = np.prod([jax.nn.sigmoid(gates(p, h, x)[1]) for h, x in zip(before, xs, strict=True)], axis=0)
    jacobian = jax.jit(jax.jacobian(lambda c: line(p, (c, h), xs)[0][0]))(c)
    assert_close(jacobian, np.diag(product), "float64")
    assert_exact(jacobian * (1 - np.eye(H)), jnp.zeros((H, H)))


PROBED_TIME, PROBED_DEPTH = Axis("left", (True, False)), Axis("below", (False, False))
ORDERS = {
    "rows": lambda cell: scan(scan(cell, PROBED_TIME), PROBED_DEPTH),
    "columns": lambda cell: scan(scan(cell, PROBED_DEPTH), Axis("left", (True, False))),
    "wavefront": lambda cell: wavefront(cell, time=PROBED_TIME, depth=PROBED_DEPTH),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_gradient_at_every_cell_inside_a_grid(name, order):
    """A probe of zeros at (l, t) has the gradient of the stream there: that of the grid split at the cell by hand."""
    layers, steps = 2, 3
    example, branch = CELLS[name], {"lstm": lstm.lstm, "gru": branches.gru.gru}[name]
    p, left = on_device(weights(example, "float64", layers), flow(example, "float64", layers))
    xs, cell = jnp.asarray(normal("float64", steps, 2, H)), residual(branches.probed(branch))
    probes = np.zeros((layers, steps, 2, H)) if order != "columns" else np.zeros((steps, layers, 2, H))
    probed = jax.jit(jax.grad(lambda probes: loss(ORDERS[order](cell))((p, probes), left, xs)))(probes)
    probed = probed if order != "columns" else probed.swapaxes(0, 1)

    def split(delta, at):
        """The grid by hand, cell by cell, with delta added to the stream where cell `at` leaves it."""
        flows, aboves = [jax.tree.map(lambda leaf, i=i: leaf[i], left) for i in range(layers)], []
        for t in range(steps):
            below = xs[t]
            for layer in range(layers):
                p_layer = jax.tree.map(lambda leaf, i=layer: leaf[i], p)
                keep, add, read = branch(p_layer, *flows[layer], below)
                stream = keep * flows[layer][0] + add + jnp.where((jnp.array([layer, t]) == at).all(), delta, 0)
                memory, below = read(stream)
                flows[layer] = stream, memory
            aboves.append(below)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *flows), jnp.stack(aboves)

    def scalar(delta, at):
        return loss(lambda p, left, below: split(delta, at))(None, None, None)

    by_hand = jax.jit(jax.grad(scalar))
    for layer in range(layers):
        for t in range(steps):
            expected = by_hand(np.zeros((2, H)), np.array([layer, t]))
            assert np.abs(expected).max() > 0
            assert_close(probed[layer, t], expected, "float64")


@pytest.mark.parametrize("grid", ["rows", "wavefront"])
def test_probes_inside_a_grid_against_finite_differences(grid):
    layers, steps, step = 2, 3, 1e-6
    p, left = weights(CELLS["lstm"], "float64", layers), flow(CELLS["lstm"], "float64", layers)
    xs, probes = normal("float64", steps, 2, H), np.zeros((layers, steps, 2, H))
    cell = ORDERS[grid](residual(branches.probed(lstm.lstm)))
    scalar = jax.jit(lambda probes: loss(cell)((p, probes), left, xs))
    gradient = jax.jit(jax.grad(scalar))(probes)
    for index in np.ndindex(layers, steps, 2, 1):
        nudge = np.zeros_like(probes)
        nudge[index] = step
        difference = (scalar(probes + nudge) - scalar(probes - nudge)) / (2 * step)
        np.testing.assert_allclose(gradient[index], difference, rtol=0, atol=1e-7)


def test_causality_through_attention():
    """No output depends on a later input: these gradients are exactly zero, and all others are not."""
    steps, hidden = 5, 6
    p = attention.init(jax.random.key(0), hidden, 2, "float64")
    cell = turn(residual(attention.attention))
    x = normal("float64", steps, 1, hidden)
    jacobian = np.asarray(jax.jit(jax.jacobian(lambda x: cell(p, None, (x, ()))[1][0]))(x))[:, 0, :, :, 0]
    largest = np.abs(jacobian).max(axis=(1, 3))
    assert (largest[np.triu_indices(steps, 1)] == 0).all()
    assert (largest[np.tril_indices(steps)] > 1e-6).all()


def test_untied_probe_axes_are_slices_of_one_leaf():
    """One probe a step, tied along depth: the same stream gradients, summed over layers."""
    layers, steps = 2, 3
    p, left = weights(CELLS["lstm"], "float64", layers), flow(CELLS["lstm"], "float64", layers)
    xs = normal("float64", steps, 2, H)
    cell = residual(branches.probed(lstm.lstm))
    shared = scan(scan(cell, PROBED_TIME), Axis("below", (False, True)))
    each = scan(scan(cell, PROBED_TIME), PROBED_DEPTH)
    of_shared = jax.jit(jax.grad(lambda q: loss(shared)((p, q), left, xs)))(np.zeros((steps, 2, H)))
    of_each = jax.jit(jax.grad(lambda q: loss(each)((p, q), left, xs)))(np.zeros((layers, steps, 2, H)))
    assert_close(of_shared, of_each.sum(0), "float64")
