"""Newton's schedules against the plain loop, values and gradients; what they say when they fail; what they cost."""

import os
import re
import subprocess
import sys
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import (
    CELLS,
    Example,
    assert_close,
    compiled,
    floats_of,
    normal,
    on_device,
    random_like,
    value_and_grads,
    weights,
)

from lstm_rot import (
    DEPTH,
    TIME,
    DampedNewton,
    DiagonalNewton,
    Newton,
    Sequential,
    newton_with_info,
    residual,
    scan,
    turn,
)
from lstm_rot.branches import lstm, minlstm, mlstm
from lstm_rot.models import lstm as model
from lstm_rot.newton import NotConverged, _inverse, affine, smoothed
from lstm_rot.sparsity import structure

B, H, T = 2, 3, 7
SCHEDULES = [Newton(), DiagonalNewton(), DampedNewton()]
DIAGONAL = Example(residual(lstm.diagonal), lstm.init_diagonal, reference.diagonal_lstm, memory=True)
MINIMAL = Example(residual(minlstm.minlstm), minlstm.init, reference.minlstm)
MATRIX = residual(mlstm.mlstm)


def along_time(name, dtype, steps=T, batch=B):
    """cell, p, left, belows"""
    xs = normal(dtype, steps, batch, H)
    if name == "mlstm":
        shapes = jax.eval_shape(
            partial(mlstm.init, dtype=dtype, input_size=H, num_heads=2, key_size=2, value_size=3), KEY
        )
        return MATRIX, random_like(shapes, 0), (normal(dtype, batch, 2, 2, 3), ()), xs
    example = {"diagonal": DIAGONAL, "minlstm": MINIMAL, **CELLS}[name]
    stream, memory = normal(dtype, batch, H, seed=1), normal(dtype, batch, H, seed=11)
    return example.cell, weights(example, dtype, width=H, hidden=H), (stream, memory if example.memory else ()), xs


def along_depth(name, dtype, layers=T, batch=B):
    example = CELLS[name]
    p = weights(example, dtype, layers, width=None, hidden=H)
    return turn(example.cell), p, None, (normal(dtype, batch, H), ())


def run(name, axis, dtype, schedule):
    cell, *args = (along_time if axis is TIME else along_depth)(name, dtype)
    return value_and_grads(scan(cell, axis, schedule=schedule), *args)


KEY = jax.random.key(0)
plain_loop = cache(partial(run, schedule=Sequential()))
ALONG_TIME = ["lstm", "lstm_1997", "gru", "rnn", "diagonal", "minlstm", "mlstm"]
ALONG_DEPTH = ["dense", "plain", "highway"]
LINES = [(name, TIME) for name in ALONG_TIME] + [(name, DEPTH) for name in ALONG_DEPTH]


@pytest.mark.parametrize(
    ("name", "axis", "dtype"),
    [(*line, "float64") for line in LINES]
    + [
        ("lstm", TIME, "float32"),
        ("diagonal", TIME, "float32"),
        ("mlstm", TIME, "float32"),
        ("dense", DEPTH, "float32"),
    ],
    ids=str,
)
def test_newton_is_the_plain_loop(name, axis, dtype):
    within = {"float32": 1e-6, "float64": 1e-12}[dtype]
    assert_close(run(name, axis, dtype, Newton()), plain_loop(name, axis, dtype), dtype, within)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_a_line_has_not_converged_while_its_corrections_are_large(gain, dtype):
    """A chaotic one makes of a residual of one rounding an error as large as its states: the residual says little.

    In the end each cell is computed from the one before it; a loop whose products round otherwise begins alike.
    """
    example = CELLS["rnn"]
    p = weights(example, dtype, width=16, hidden=16)
    p = p._replace(wh=gain / 2 * normal(dtype, 16, 16, seed=3))  # of the spectral radius gain
    left, xs = (normal(dtype, B, 16), ()), 0.3 * normal(dtype, 120, B, 16, seed=4)

    def told(iterations=None):
        line = scan(example.cell, TIME, schedule=partial(newton_with_info, newton=Newton(iterations)))
        right, (ys, info) = jax.jit(line)(p, left, xs)
        return (right, ys), info

    (_, states), info = told()
    loop = jax.jit(scan(example.cell, TIME))(p, left, xs)[1]
    alike = 4 if gain == 3 else len(xs)
    assert info.converged
    assert_close(states[:alike], loop[:alike], dtype)
    before = jnp.concatenate([left[0][None], states[:-1]])
    assert_close(states, jax.vmap(lambda s, x: example.cell(p, (s, ()), x)[1])(before, xs), dtype)
    assert (info.iterations > 60) == (gain == 3)
    early = told(int(info.iterations) - 1)[1]
    assert not early.converged and early.correction > {"float32": 1e-6, "float64": 1e-12}[dtype]
    assert early.residual < 16 * jnp.finfo(dtype).eps


def test_a_long_line_that_forgets_nothing_takes_few_iterations():
    """Its roundings add up as a random walk: corrections no smaller than that are not waited for."""

    def step(s, x):
        s = s + 0.1 * jnp.tanh(x + 0.01 * jnp.sin(s))
        return s, s

    xs = normal("float32", 8192, 4)
    _, (ys, info) = jax.jit(lambda xs: newton_with_info(step, jnp.zeros(4, "float32"), xs, len(xs)))(xs)
    assert info.converged and info.iterations <= 10
    assert_close(ys, jax.lax.scan(step, jnp.zeros(4, "float32"), xs)[1], "float32", 1e-5)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [("diagonal", reference.diagonal_lstm), ("minlstm", reference.minlstm), ("mlstm", reference.mlstm)],
)
def test_the_branches_made_for_it_are_the_plain_loops(name, oracle):
    cell, p, left, xs = along_time(name, "float64")
    loop = reference.line(oracle, p, left, xs, T, tied=True)
    assert_close(jax.jit(scan(cell, TIME))(p, left, xs), loop, "float64")


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=str)
@pytest.mark.parametrize(("name", "axis"), [("lstm", TIME), ("minlstm", TIME), ("dense", DEPTH)], ids=str)
def test_its_variants_are_too(name, axis, schedule):
    assert_close(run(name, axis, "float64", schedule), plain_loop(name, axis, "float64"), "float64")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("name", ["lstm", "minlstm"])
def test_short_lines_of_one_sequence(name, steps, schedule):
    cell, *args = along_time(name, "float64", steps, batch=1)
    run = partial(value_and_grads, scan(cell, TIME, schedule=schedule)), partial(value_and_grads, scan(cell, TIME))
    assert_close(run[0](*args), run[1](*args), "float64")


def test_an_empty_batch_comes_back_empty():
    cell, *args = along_time("rnn", "float64", batch=0)
    (h, _), ys = jax.jit(scan(cell, TIME, schedule=Newton()))(*args)
    assert h.shape == (0, H) and ys.shape == (T, 0, H)


def test_a_line_that_hands_on_nothing_needs_no_solving():
    line = scan(lambda p, left, below: (left, p * below), TIME, schedule=Newton())
    right, above = jax.jit(line)(2.0, (), jnp.arange(3.0))
    assert right == () and above.tolist() == [0, 2, 4]


def test_a_stack_of_lstms_with_lengths_and_bfloat16():
    """The stream float32, the outputs bfloat16; the products and the Jacobians are taken in bfloat16."""
    for compute, dtype in (("float64", "float64"), ("bfloat16", "bfloat16")):
        config = model.Config(3, 2, num_layers=2, compute_dtype=compute, param_dtype=compute)
        params, xs = model.init(KEY, config), normal("float64", 4, 3, 3).astype(compute)
        run = partial(model.apply, params, xs, config=config, lengths=[4, 0, 2], implementation="reference")
        for schedule in SCHEDULES if compute == "bfloat16" else SCHEDULES[:1]:
            assert_close(run(schedule=schedule), run(), dtype)


def test_derivatives_of_any_kind_are_those_of_the_solution():
    cell, p, left, xs = along_time("rnn", "float64", steps=3)

    def energy(schedule, x):
        (h, _), ys = scan(cell, TIME, schedule=schedule)(p, left, xs + x)
        return (h**3).sum() + (ys**2).sum()

    x, v = jnp.asarray(normal("float64", H, seed=5)), jnp.ones(H)
    ways: tuple[Any, ...] = (
        jax.hessian,
        lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (v,))),
        lambda f: jax.vmap(f, axis_size=2, in_axes=None),
    )
    for way in ways:
        at_once, plain = (way(partial(energy, schedule))(x) for schedule in (Newton(), Sequential()))
        assert_close(at_once, plain, "float64")


@pytest.mark.parametrize("name", [*CELLS, "diagonal", "minlstm", "mlstm"])
def test_the_structure_that_is_read_is_that_of_the_jacobian(name):
    cell, p, left, xs = along_time(name, "float64", steps=1)
    p, left, xs = on_device(p, left, xs)
    step = partial(cell, p)
    (group,) = structure(step, left, xs[0])
    units = {"diagonal": (0, 1), "minlstm": (0, 1), "mlstm": (0, 1, 2, 3)}
    assert group.axes == units.get(name, (0,))
    assert group.affine == (name in ("minlstm", "mlstm"))
    leaves, treedef = jax.tree.flatten(left)
    whole = jax.jacobian(lambda *leaves: jax.tree.leaves(step(treedef.unflatten(leaves), xs[0])[0]), range(len(leaves)))
    for leaf, row in zip(leaves, whole(*leaves), strict=True):
        for of_row in row:
            for axis in group.axes:
                size = leaf.shape[axis]
                off = np.moveaxis(np.asarray(of_row), (axis, leaf.ndim + axis), (0, 1))[~np.eye(size, dtype=bool)]
                assert not off.any()


@pytest.mark.parametrize(
    ("step", "axes", "affine"),
    [
        (lambda c, x: jnp.cumsum(c, axis=0) * x, (1,), True),
        (lambda c, x: c[::-1] + x, (1,), True),
        (lambda c, x: c.at[0].add(x[1]), (), False),  # a scatter is not looked into
        (lambda c, x: c.T.sum(0, keepdims=True).T * c, (0,), False),
        (lambda c, x: jnp.concatenate([c[:, 1:], c[:, :1]], 1), (0,), True),
        (lambda c, x: c.reshape(6).reshape(2, 3) * x, (), True),
        (lambda c, x: jax.lax.reshape(c, (2, 3), (1, 0)) + x, (), True),  # transposed before
        (lambda c, x: jnp.where(x > 0, c, -c), (0, 1), True),
        (lambda c, x: jnp.where(c > 0, c, 0.0), (0, 1), False),
        (lambda c, x: jax.checkpoint(jnp.sin)(c), (0, 1), False),
        (lambda c, x: jax.lax.fori_loop(0, 2, lambda _, c: c * x, c), (), False),  # nor is a loop
        (lambda c, x: x, (0, 1), True),
        (lambda c, x: jax.lax.stop_gradient(c) * c, (0, 1), False),
    ],
)
def test_what_is_read_of_odd_steps(step, axes, affine):
    (group,) = structure(lambda c, x: (step(c, x), ()), jnp.ones((2, 3)), jnp.ones((2, 3)))
    assert group.axes == axes and (group.affine or not affine)
    line = scan(lambda p, left, below: (step(left, below), left), TIME, schedule=Newton())
    x = jnp.asarray(normal("float64", 4, 2, 3))
    plain = scan(lambda p, left, below: (step(left, below), left), TIME)
    assert_close(jax.jit(line)((), x[0], x), jax.jit(plain)((), x[0], x), "float64")


def test_leaves_that_do_not_meet_are_solved_apart():
    groups = structure(
        lambda c, x: ((c[0] * 2, jnp.tanh(c[1] @ jnp.ones((3, 3))), c[2] + c[0]), ()), (jnp.ones(3),) * 3, ()
    )
    assert [(group.leaves, group.axes, group.affine) for group in groups] == [((0, 2), (0,), True), ((1,), (), False)]


def info_of(schedule, line, *args):
    cell, axis = line
    _, (_, info) = jax.jit(scan(cell, axis, schedule=partial(newton_with_info, newton=schedule)))(*args)
    return info


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_an_affine_line_is_solved_by_one_iteration(schedule):
    for name in ("minlstm", "mlstm"):
        cell, *args = along_time(name, "float64", steps=50)
        info = info_of(schedule, (cell, TIME), *args)
        assert info.iterations == 1 and info.converged and info.residual < 1e-14


@pytest.mark.parametrize("schedule", [Newton(), DampedNewton()], ids=str)
def test_of_a_chaotic_map_it_says_how_hard_it_was(schedule):
    """x' = r x (1 - x), whose exponent is log 2 at r = 4 and below 0 at r = 2.5. An iteration mends a cell at least."""

    def line(schedule, r):
        cell = scan(lambda p, left, below: (p * left * (1 - left), left), TIME, length=20, schedule=schedule)
        return jax.jit(cell)(r, jnp.float64(0.3), None)[1]

    for r in (2.5, 4.0):
        above, info = line(partial(newton_with_info, newton=schedule), r)
        assert info.converged and info.iterations <= 20 + 18  # damped, and then no more
        np.testing.assert_allclose(above, line(Sequential(), r), atol=1e-15 * 2**20)
    assert info.iterations >= 20
    _, info = line(partial(newton_with_info, newton=Newton(iterations=3)), 4.0)
    assert not info.converged and info.iterations == 3 and info.residual > 0.01


@pytest.mark.parametrize(
    "step",
    [
        lambda c, x: 0.5 * c + jax.lax.stop_gradient(jnp.tanh(3 * c)) + x,
        lambda c, x: jnp.round(3 * c + x),
        lambda c, x: 0.3 * c + jnp.sign(c) * x,
        lambda c, x: jnp.where(c > x, 1.0, 0.0) + x,
        lambda c, x: jax.lax.pad(c, 0.0, [(1, -1, 0)]) * 0.5 + x,
        lambda c, x: (0.5 * c.astype("float32")).astype("float64") + x,
    ],
    ids=["stopped", "rounded", "sign", "where", "shifted", "cast"],
)
def test_what_a_derivative_does_not_show_is_solved_all_the_same(step):
    x = jnp.asarray(normal("float64", 8, 3))
    line = [
        jax.jit(scan(lambda p, left, below: (step(left, below), left), TIME, schedule=schedule))((), x[0], x)
        for schedule in (Newton(tol=1e-6), Sequential())
    ]
    np.testing.assert_allclose(line[0][1], line[1][1], atol=1e-5)


@pytest.mark.parametrize("schedule", [Newton(), DampedNewton()], ids=str)
def test_long_chaos_in_float32_is_followed_to_the_last_bit(schedule):
    line = partial(lambda schedule, x: schedule(lambda c, _: (4 * c * (1 - c), c), x, None, 60))
    start = jnp.float32(0.3)
    (carry, (ys, info)), plain = (jax.jit(partial(line, how))(start) for how in (
        partial(newton_with_info, newton=schedule), Sequential()))  # fmt: skip
    assert info.converged and (carry, ys.tolist()) == (plain[0], plain[1].tolist())


def test_a_large_beginning_rounds_nothing_after_it():
    x = jnp.asarray(normal("float32", 40))
    ys = [jax.jit(lambda x, how=how: how(lambda c, x: (0.5 * c + x, c), jnp.float32(1e6), x, 40))(x)[1] for how in (
        Newton(), Sequential())]  # fmt: skip
    np.testing.assert_allclose(ys[0][25:], ys[1][25:], atol=1e-5)


def test_growing_lines_are_exact_too():
    line = lambda schedule: scan(lambda p, left, below: (p * left + below, left), TIME, schedule=schedule)  # noqa: E731
    args = 1.5, jnp.float64(1), jnp.asarray(normal("float64", 60))
    np.testing.assert_allclose(jax.jit(line(Newton()))(*args)[1], line(Sequential())(*args)[1], rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    ("name", "given", "precise"), [("rnn", None, True), ("rnn", "tensorfloat32", False), ("minlstm", None, False)]
)
def test_products_with_a_state_are_not_rounded_on_an_accelerator_unless_so_asked(name, given, precise, schedule):
    cell, *args = along_time(name, "float32")

    def loss(*args):
        return sum(leaf.sum() for leaf in jax.tree.leaves(scan(cell, TIME, schedule=schedule)(*args)))

    with jax.default_matmul_precision(given):
        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*on_device(*args)).as_text()
    products = re.findall(r"stablehlo.dot_general .*", program)  # the step's: the solver has none for states so small
    assert {"HIGHEST" in product for product in products} == {precise}


def failing(schedule):
    """The square root of what is soon below 0."""
    line = scan(lambda p, left, below: (jnp.sqrt(left) * p - below, left), TIME, schedule=schedule)
    return lambda p: line(p, jnp.ones(2), jnp.ones((4, 2)))


def test_a_jacobian_that_is_not_finite_at_the_guess_hinders_nobody():
    """sqrt has no derivative at 0, where the line begins; it is never there again."""

    def line(schedule):
        cell = scan(lambda p, left, below: (jnp.sqrt(left) * p + below, left), TIME, schedule=schedule)
        return jax.jit(cell)(1.0, jnp.zeros(2), jnp.ones((5, 2)))

    assert_close(line(Newton()), line(Sequential()), "float64")


@pytest.mark.parametrize("jitted", [True, False])
def test_what_does_not_converge_raises(jitted):
    run = failing(Newton())
    with pytest.raises(
        (jax.errors.JaxRuntimeError, NotConverged),
        match=r"NotConverged|Newton\(iterations=None, tol=None, oth.* 4 cells",
    ):
        jax.block_until_ready((jax.jit(run) if jitted else run)(1.0))
        jax.effects_barrier()


def test_too_few_iterations_raise():
    cell, *args = along_time("rnn", "float64")
    few = jax.jit(scan(cell, TIME, schedule=Newton(iterations=1)))
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"a line of 7 cells has the residual .* after 1 iterations; allow"
    ):
        jax.block_until_ready(few(*args))
        jax.effects_barrier()


def test_without_convergence_values_and_gradients_are_nan(monkeypatch):
    monkeypatch.setattr("lstm_rot.newton._complain", lambda *_: None)
    cell, *args = along_time("rnn", "float64")
    results = value_and_grads(scan(cell, TIME, schedule=Newton(iterations=1)), *args)
    assert all(np.isnan(leaf).all() for leaf in floats_of(results))


def test_or_falls_back_gradients_and_all():
    cell, *args = along_time("rnn", "float64")
    for iterations in (1, None):
        line = scan(cell, TIME, schedule=Newton(iterations=iterations, otherwise="sequential"))
        assert_close(value_and_grads(line, *args), plain_loop("rnn", TIME, "float64"), "float64")
    fallen, plain = (jax.jit(failing(how))(1.0)[1] for how in (Newton(otherwise="sequential"), Sequential()))
    np.testing.assert_array_equal(fallen, plain)  # nan and all


def test_or_is_told_and_left_as_it_is():
    _, (above, info) = jax.jit(failing(newton_with_info))(1.0)
    assert not info.converged and info.residual >= 0.5 and above.shape == (4, 2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_step_that_is_not_finite_is_told_soon(schedule):
    """When the cells before it are solved, however long the line is after it."""
    cell, p, left, xs = along_time("rnn", "float64", steps=200)
    run = jax.jit(scan(cell, TIME, schedule=partial(newton_with_info, newton=schedule)))
    for at in (0, 60):
        _, (_, info) = run(p, left, np.where(np.arange(200)[:, None, None] == at, np.nan, xs))
        assert not info.converged and info.residual == np.inf and info.iterations < 80


@pytest.mark.parametrize("otherwise", ["raise", "sequential"])
def test_lines_of_a_vmap_are_each_solved(otherwise):
    """Of weights and lengths of iteration that differ; values and gradients."""
    cell, p, left, xs = along_time("rnn", "float64")
    scales = jnp.asarray([0.01, 1.0, 3.0])

    def run(schedule, scale):
        return value_and_grads(
            lambda p, left, xs: scan(cell, TIME, schedule=schedule)(jax.tree.map(lambda w: scale * w, p), left, xs),
            p,
            left,
            xs,
        )

    together = jax.vmap(partial(run, Newton(otherwise=otherwise)))(scales)
    for at, scale in enumerate(scales):
        assert_close(jax.tree.map(lambda leaf, at=at: leaf[at], together), run(Sequential(), scale), "float64")


def test_damping_spares_what_runs_away():
    """The logistic map at r = 2.5, begun far from its fixed point: undamped, most iterations mend one cell."""

    def info(newton):
        cell = lambda p, left, below: (p * left * (1 - left), left)  # noqa: E731
        schedule = partial(newton_with_info, newton=newton)
        return jax.jit(scan(cell, TIME, length=60, schedule=schedule))(2.5, jnp.float64(0.3), None)[1][1]

    assert info(Newton()).iterations >= 50 and info(DampedNewton()).iterations <= 15


@pytest.mark.parametrize("n", [1, 3, 5])
def test_the_smoother_is_the_least_squares_solution(n):
    a, b = normal("float64", 6, 2, n, n), normal("float64", 6, 2, n)
    for damping in (1e-3, 1.0, 50.0):
        got = jax.jit(smoothed)(a, b, jnp.float64(damping))
        for row in range(2):
            lower = np.eye(6 * n)
            for t in range(1, 6):
                lower[t * n : t * n + n, t * n - n : t * n] = -a[t, row]
            rows = np.concatenate([lower, np.sqrt(damping) * np.eye(6 * n)])
            want = np.linalg.lstsq(rows, np.concatenate([b[:, row].ravel(), np.zeros(6 * n)]))[0]
            np.testing.assert_allclose(got[:, row].ravel(), want, atol=1e-12)
    forward, backward = jax.jit(affine)(a, b), jax.jit(partial(affine, back=True))(a, b)
    np.testing.assert_allclose((forward * b).sum(), (backward * b).sum(), rtol=1e-12)  # one is the other transposed


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_inverses_are_numpys(n):
    a = normal("float64", 3, 2, n, n).copy()
    a[0, 0] = np.eye(n)[::-1]  # whose pivots lie elsewhere
    np.testing.assert_allclose(jax.jit(_inverse)(jnp.asarray(a)) @ a, np.broadcast_to(np.eye(n), a.shape), atol=1e-12)
    assert not np.isfinite(_inverse(jnp.zeros((n, n)))).any()
    assert n == 1 or not np.isfinite(_inverse(jnp.ones((n, n)))).all()


def test_damped_lines_end_where_devices_share_few_threads():
    """Two devices, two threads: a batched LU in each would wait for the other's, forever."""
    code = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from lstm_rot import TIME, DampedNewton, residual, scan
from lstm_rot.branches import lstm
from lstm_rot.training.mesh import make_mesh

line = jax.jit(scan(residual(lstm.lstm), TIME, schedule=DampedNewton()))
split = NamedSharding(make_mesh("data=2"), PartitionSpec(None, "data"))
xs = jax.device_put(jax.random.normal(jax.random.key(1), (64, 16, 2)), split)
p, zeros = lstm.init(jax.random.key(0), 2, 4), jnp.zeros((16, 4))
for _ in range(5):
    jax.block_until_ready(line(p, (zeros, zeros), xs))
"""
    two = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=two, timeout=120)


def test_what_a_line_costs():
    """Affine lines have no loop in their program; memory grows as T D, of dense Jacobians as T D^2."""
    cells = {"minlstm": MINIMAL, "diagonal": DIAGONAL, "lstm": CELLS["lstm"]}

    @cache
    def program(name, steps, hidden):
        cell, init, _, memory = cells[name]
        z = jnp.zeros((1, hidden))
        args = init(KEY, 2, hidden, "float64"), (z, z if memory else ()), jnp.zeros((steps, 1, 2))
        return compiled(scan(cell, TIME, schedule=newton_with_info), *args)

    def memory(*sizes):
        return program(*sizes).memory_analysis().temp_size_in_bytes

    assert "while" not in program("minlstm", 64, 4).as_text()
    assert "while" in program("diagonal", 64, 4).as_text()
    for name, growth in (("minlstm", 4), ("diagonal", 4), ("lstm", 16)):
        assert 0.7 * growth < memory(name, 64, 16) / memory(name, 64, 4) < 1.4 * growth, name
    assert 1.8 < memory("diagonal", 128, 4) / memory("diagonal", 64, 4) < 2.2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Newton(iterations=0), "iterations=0: allow at least 1"),
        (lambda: Newton(tol=-1.0), "tol=-1.0: give a residual of at least 0"),
        (lambda: Newton(iterations=2.5), "iterations=2.5: allow at least 1"),  # pyright: ignore[reportArgumentType]
        (lambda: Newton(tol=float("nan")), "tol=nan"),
        (lambda: Newton(tol=float("inf")), "tol=inf"),
        (lambda: DampedNewton(damping=float("inf")), "damping=inf"),
        (
            lambda: Newton(otherwise="hope"),  # pyright: ignore[reportArgumentType]
            "otherwise='hope': choose 'raise' or 'sequential'",
        ),
        (lambda: DampedNewton(damping=0.0), "damping=0.0: give a number above 0; Newton() is without"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_options_are_named(make, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


def test_bad_carries_are_named_before_compiling():
    def line(left, change=lambda left: left):
        return scan(lambda p, left, below: (change(left), below), TIME, schedule=Newton())((), left, jnp.ones(3))

    with pytest.raises(ValueError, match=r"the carry's leaf \[1\] is int32: only floating states"):
        line((jnp.ones(2), jnp.int32(0)))
    with pytest.raises(TypeError, match="carry"):
        line(jnp.ones(2), lambda left: left[:1])
    with pytest.raises(TypeError, match="float32"):
        line(jnp.ones(2), lambda left: left.astype("float32"))


def test_equal_schedules_do_not_trace_again():
    count = 0

    @partial(jax.jit, static_argnums=0)
    def run(schedule, x):
        nonlocal count
        count += 1
        return schedule(lambda c, x: (jnp.tanh(c + x), c), jnp.float64(0), x, 3)

    for schedule in (Newton(), Newton(), DiagonalNewton()):
        run(schedule, jnp.ones(3))
    assert count == 2 and floats_of(run(Newton(), jnp.ones(3)))
