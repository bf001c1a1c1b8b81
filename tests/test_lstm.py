"""The complete LSTM: every option against numpy loops, and the laws of padding, chunks, directions, noise and steps."""

import re
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import reference
from helpers import (
    TOLERANCE,
    assert_close,
    assert_exact,
    disagreement,
    on_device,
    random_like,
    stack_arguments,
    stack_gradients,
    weighed,
)

import lstm_rot
from lstm_rot import Checkpointed, Sequential
from lstm_rot.branches import lstm as branch
from lstm_rot.models import gru, lstm, recurrent, rnn

T, B, D, H, P = 5, 4, 3, 4, 2
KEY = jax.random.key(3)
LENGTHS = np.array([0, 2, T, 3])
PADDING = np.arange(T)[:, None, None] >= LENGTHS[:, None]
GATES = {"forget": branch.FORGET, "coupled": branch.COUPLED, "1997": branch.GATES_1997}
IMPLEMENTATIONS = ["reference", "hoisted", "wavefront"]
WAYS = {"forward": {}, "reverse": {"reverse": True}, "bidirectional": {"bidirectional": True}}
DROPOUTS = {"dropout": 0.3, "variational_dropout": 0.25, "recurrent_dropout": 0.4}
ZONEOUTS = {"zoneout_cell": 0.2, "zoneout_hidden": 0.35}
INSIDE: dict[str, Any] = {"peepholes": True, "layer_norm": True, "projection_size": P}
ALL: dict[str, Any] = {**INSIDE, **DROPOUTS, **ZONEOUTS}


def make(**options: Any) -> Any:
    """A config in float64 of two layers, the first of another input width."""
    return lstm.Config(D, H, **{"num_layers": 2, "param_dtype": "float64", **options})


def ways_of(config):
    return (0, 1) if config.bidirectional else (int(config.reverse),)


def taken_apart(config, tree) -> list[Any]:
    """A tree with leading axes [L] or [L, 2] as lists [layer][way]."""
    layers: list[Any] = [reference.at(tree, layer) for layer in range(len(jax.tree.leaves(tree)[0]))]
    return [[reference.at(layer, way) for way in (0, 1)] if config.bidirectional else [layer] for layer in layers]


def masks(model, config, key, steps, batch):
    """The noise of every layer and way, for `reference.sequences`."""
    drawn = []
    for layer in range(config.num_layers):
        width = config.input_size if layer == 0 else config.output_size
        of_layer = []
        for way in ways_of(config):
            own = jax.random.fold_in(jax.random.fold_in(key, layer), way)
            noise = model.KIND.draw(config, own, jnp.arange(steps, dtype="int32"), batch, width)
            in_cell = tuple(noise.cells) if any(mask is not None for mask in noise.cells) else None
            of_layer.append(jax.tree.map(np.asarray, (noise.dropout, noise.variational, in_cell)))
        drawn.append(of_layer)
    return drawn


def by_loops(model, config, params, xs, carry, lengths=None, key=None):
    """The stack in numpy: the last carry's leaves and the outputs."""
    if model is lstm:
        kind = next(name for name, gates in GATES.items() if gates == config.gates)
        zoneout = config.zoneout_cell, config.zoneout_hidden
        cell: Any = partial(reference.lstm_variant, gates=kind, rate=config.recurrent_dropout, zoneout=zoneout)
    else:
        cell = {gru: reference.gru, rnn: reference.rnn}[model]
    layers = [entry for run in params for entry in taken_apart(config, run)]
    lefts = taken_apart(config, tuple(carry) if model is lstm else (*carry, ()))
    noise = None if key is None else masks(model, config, key, *xs.shape[:2])
    rights, out = reference.sequences(
        cell, layers, lefts, xs, lengths, ways_of(config), dropout=config.dropout, noise=noise
    )
    last: Any = reference.joined([reference.joined(ways) if config.bidirectional else ways[0] for ways in rights])
    return tuple(leaf for leaf in last if isinstance(leaf, np.ndarray)), out


def agrees_with_loops(config, lengths: Any = LENGTHS, key=None, model: Any = lstm, implementation: Any = "reference"):
    params, xs, carry = stack_arguments(model, config, T, B)
    last, out = model.apply(
        params, xs, config=config, lengths=lengths, carry=carry, key=key, implementation=implementation
    )
    assert_close((tuple(last), out), by_loops(model, config, params, xs, carry, lengths, key), "float64")


# --- every option against the papers' equations


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(
    "options", [{}, *({name: value} for name, value in {**INSIDE, **ZONEOUTS}.items())], ids=lambda o: next(iter(o), "")
)
def test_each_option_against_numpy_loops(gates, options):
    agrees_with_loops(make(num_layers=1, gates=GATES[gates], **options))


@pytest.mark.parametrize(
    ("way", "gates"), [*(("forward", gates) for gates in GATES), ("reverse", "forget"), ("bidirectional", "coupled")]
)
def test_all_options_at_once_against_numpy_loops(way, gates):
    """Three layers, projected to the width of the input or not; zoneout expected, for there is no key."""
    size = D if gates == "coupled" else P
    agrees_with_loops(make(num_layers=3, gates=GATES[gates], **WAYS[way], **{**ALL, "projection_size": size}))


@pytest.mark.parametrize(("way", "options"), [("forward", DROPOUTS), ("reverse", ZONEOUTS), ("bidirectional", ALL)])
def test_noise_against_numpy_loops(way, options):
    agrees_with_loops(make(**WAYS[way], **options), key=KEY)


@pytest.mark.parametrize("name", DROPOUTS | ZONEOUTS)
def test_each_noise_against_numpy_loops(name):
    agrees_with_loops(make(**{name: 0.5}), lengths=None, key=KEY)


def test_gradients_of_all_options_against_finite_differences():
    config = replace(make(**ALL, num_layers=1), hidden_size=3)
    args = stack_arguments(lstm, config, 3, 2)

    def apply(params, xs, carry):
        return lstm.apply(
            params, xs, config=config, carry=carry, key=KEY, lengths=np.array([3, 1]), implementation="reference"
        )

    jax.test_util.check_grads(apply, args, order=1, modes=["rev"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("model", "implementation"),
    [(gru, "reference"), (gru, "hoisted"), (gru, "wavefront"), (rnn, "hoisted")],  # they share all but the branch
    ids=["gru-reference", "gru-hoisted", "gru-wavefront", "rnn-hoisted"],
)
def test_other_stacks_take_the_same_options(model, way, implementation):
    config = model.Config(D, H, num_layers=3, dropout=0.4, param_dtype="float64", **WAYS[way])
    if way != "forward" and implementation == "wavefront":
        with pytest.raises(ValueError, match=f"'wavefront' cannot serve: {way}=True"):
            agrees_with_loops(config, model=model, implementation=implementation)
        return
    agrees_with_loops(config, key=KEY, model=model, implementation=implementation)


# --- padding, directions, chunks


@pytest.mark.parametrize(
    ("way", "implementation"),
    [*(("forward", name) for name in IMPLEMENTATIONS), ("reverse", "hoisted"), ("bidirectional", "hoisted")],
)
def test_poison_in_the_padding_changes_nothing(way, implementation):
    """Values and gradients are those of zeros there, bit for bit, whatever stands past the lengths."""
    layers = {"reverse": 1, "bidirectional": 2, "forward": 2 + (implementation == "wavefront")}[way]
    config = make(layer_norm=True, peepholes=True, **WAYS[way], num_layers=layers)
    params, xs, carry = stack_arguments(lstm, config, T, B)
    f = stack_gradients(lstm, config, lengths=LENGTHS, implementation=implementation)
    clean = f(params, np.where(PADDING, 0, xs), carry)
    for poison in (np.nan, np.inf, -np.inf):
        assert_exact(f(params, np.where(PADDING, poison, xs), carry), clean)
    (last, out), (of_params, of_xs, _) = clean
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_params))
    assert (np.where(PADDING, of_xs, 0) == 0).all() and (np.where(PADDING, out, 0) == 0).all()
    assert (np.where(PADDING, 1, of_xs) != 0).all()
    of_first = partial(jax.tree.map, lambda leaf: leaf[..., 0, :])  # its length is 0
    assert_exact(of_first(last), *on_device(of_first(carry)))


@pytest.mark.parametrize("way", WAYS)
def test_a_padded_sequence_is_the_sequence_alone(way):
    config = make(**WAYS[way])
    params, xs, carry = stack_arguments(lstm, config, T, B)
    apply = partial(lstm.apply, params, config=config)
    last, out = apply(xs, lengths=LENGTHS, carry=carry)
    for b in (1, 2):
        of_b = partial(jax.tree.map, lambda leaf, b=b: leaf[..., b : b + 1, :])
        alone, of_alone = apply(xs[: LENGTHS[b], b : b + 1], carry=of_b(carry))
        assert_close((of_b(last), out[: LENGTHS[b], b : b + 1]), (alone, of_alone), "float64")


def flipped(x, lengths):
    """Each sequence backwards within its length, one after the other."""
    x = np.array(x)
    for b, length in enumerate(lengths):
        x[:length, b] = x[:length, b][::-1]
    return x


@pytest.mark.parametrize("implementation", ["reference", "hoisted"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
def test_reverse_is_forward_of_flipped_sequences(implementation, lengths):
    config = make()
    params, xs, carry = stack_arguments(lstm, config, T, B)
    ends = np.full(B, T) if lengths is None else lengths
    apply = partial(lstm.apply, params, lengths=lengths, carry=carry, implementation=implementation)
    last, out = apply(xs, config=replace(config, reverse=True))
    forward, of_forward = apply(flipped(xs, ends), config=config)
    assert_close((last, out), (forward, flipped(of_forward, ends)), "float64")


def test_bidirectional_is_forward_and_reverse_side_by_side():
    """Layer by layer, each way with its own weights and carry, both on the joined outputs of the layer below."""
    config = make(bidirectional=True, peepholes=True)
    params, xs, carry = stack_arguments(lstm, config, T, B)
    last, out = lstm.apply(params, xs, config=config, lengths=LENGTHS, carry=carry)
    below = xs
    for layer in range(2):
        outs = []
        for way in (0, 1):
            one = replace(config, input_size=below.shape[-1], num_layers=1, bidirectional=False, reverse=bool(way))
            p, left = (
                jax.tree.map(lambda leaf, way=way: leaf[:, way], tree)
                for tree in (params[layer], jax.tree.map(lambda leaf, layer=layer: leaf[layer : layer + 1], carry))
            )
            right, y = lstm.apply((p,), below, config=one, lengths=LENGTHS, carry=left)
            of_way = jax.tree.map(lambda leaf, at=(layer, way): leaf[at], last)
            assert_close(of_way, jax.tree.map(lambda leaf: leaf[0], right), "float64")
            outs.append(np.asarray(y))
        below = np.concatenate(outs, -1)
    assert_close(out, below, "float64")
    assert config.output_size == out.shape[-1] == 2 * H


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_chunks_equal_one_run(implementation):
    """With every dropout, zoneout, and lengths that end in either chunk."""
    layers = 2 + (implementation == "wavefront")  # two of them of one width
    steps, config, lengths = 6, make(**DROPOUTS, zoneout_cell=0.2, num_layers=layers), np.array([0, 2, 6, 4])
    params, xs, carry = stack_arguments(lstm, config, steps, B)
    apply = partial(lstm.apply, params, config=config, key=KEY, implementation=implementation)
    whole = apply(xs, lengths=lengths, carry=carry, start=7)
    middle, first = apply(xs[:3], lengths=np.minimum(lengths, 3), carry=carry, start=7)
    second = partial(apply, xs[3:], lengths=np.maximum(lengths - 3, 0), carry=middle)
    last, rest = second(start=10)
    assert_close((last, jnp.concatenate([first, rest])), whole, "float64")
    _, rest = second(start=9)  # other masks
    assert disagreement(rest, whole[1][3:]) > 0.01


def test_chunks_of_any_size_equal_one_run():
    """Of no step and of several; the start may be traced."""
    config, cuts = make(dropout=0.3), (0, 2)
    params, xs, carry = stack_arguments(lstm, config, 6, B)
    apply = partial(lstm.apply, params, config=config, key=KEY)
    whole, outs = apply(xs, carry=carry), []
    for start, stop in zip((0, *cuts), (*cuts, 6), strict=True):
        carry, out = apply(xs[start:stop], carry=carry, start=jnp.int32(start))
        outs.append(out)
    assert_close((carry, jnp.concatenate(outs)), whole, "float64")


# --- noise


def test_masks_depend_on_the_key_the_layer_the_way_and_the_step_alone():
    config = make(**ALL, bidirectional=True)
    drawn = masks(lstm, config, KEY, T, B)
    shorter = jax.tree.map(lambda leaf: leaf[:3] if len(leaf) == T else leaf, drawn)
    assert_exact(masks(lstm, config, KEY, 3, B), shorter)
    flat = [
        leaf.astype(float).ravel() for leaf in jax.tree.leaves((drawn, masks(lstm, config, jax.random.key(4), T, B)))
    ]
    of_size: dict[int, list] = {}
    for leaf in flat:
        of_size.setdefault(leaf.size, []).append(tuple(leaf))
    assert all(len(set(leaves)) == len(leaves) for size, leaves in of_size.items() if size >= 40)
    steps = [tuple(step.ravel()) for step in drawn[1][0][0]]
    assert len(set(steps)) == T  # no two steps' are the same


def test_a_key_changes_the_outputs_and_only_the_key():
    config = make(**DROPOUTS)
    params, xs, _ = stack_arguments(lstm, config, T, B)
    out = [lstm.apply(params, xs, config=config, key=key)[1] for key in (KEY, jax.random.key(3), jax.random.key(4))]
    assert_exact(out[0], out[1])
    assert disagreement(out[0], out[2]) > 0.1
    old_style = lstm.apply(params, xs, config=config, key=jax.random.PRNGKey(3))[1]
    assert_exact(old_style, out[0])


def test_without_a_key_nothing_is_dropped():
    config = make(**DROPOUTS)
    params, xs, carry = stack_arguments(lstm, config, T, B)
    without = lstm.apply(params, xs, config=config, carry=carry)
    assert_exact(without, lstm.apply(params, xs, config=make(), carry=carry))
    assert_exact(without, lstm.apply(params, xs, config=make(), carry=carry, key=KEY))


def test_the_first_layers_input_is_not_dropped():
    config = make(num_layers=1, dropout=0.9)
    params, xs, _ = stack_arguments(lstm, config, T, B)
    assert_exact(lstm.apply(params, xs, config=config, key=KEY), lstm.apply(params, xs, config=config))


WIDE, RATE = 64, 0.3


def revealing(name, *, layers=1, steps=1, batch=32, c=0.0, h=0.0):
    """A stack whose outputs and last carry show its masks: the identity from x (and h) to g, all else constant.

    i is 1/2 and o too, f is 0: so c' = g / 2 is zero only where nothing arrives. h: all of it at the start, and the
    weight by which it arrives.
    """
    options: dict[str, Any] = {"num_layers": layers, "param_dtype": "float64", name: RATE}
    config = lstm.Config(WIDE, WIDE, **options)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(lambda: lstm.init(KEY, config)))
    params[0].wx[:, :, 2] = np.eye(WIDE)
    params[0].wh[:, :, 2] = np.eye(WIDE) * h
    params[0].b[:, 1] = -1e4
    carry = lstm.Carry(*(jnp.full((layers, batch, WIDE), value, "float64") for value in (c, h)))
    xs = np.ones((steps, batch, WIDE))
    return lambda xs=xs: lstm.apply(params, xs, config=config, carry=carry, key=KEY)


def binomial(kept, probability):
    """The number of True ones is within five standard deviations of its mean."""
    n = kept.size
    assert abs(kept.sum() - n * probability) < 5 * np.sqrt(n * probability * (1 - probability))


def test_statistics_of_dropout_between_layers():
    _, out = revealing("dropout", layers=2, steps=3)()
    binomial(np.asarray(out) != 0, 1 - RATE)
    assert not (np.asarray(out[0] != 0) == np.asarray(out[1] != 0)).all()


def test_statistics_of_variational_dropout():
    """One mask a sequence on the input, and another on h, both the same at every step."""
    _, out = revealing("variational_dropout", steps=4)()
    on_input = np.asarray(out[0] != 0)
    binomial(on_input, 1 - RATE)
    for step in out:
        assert ((np.asarray(step) != 0) == on_input).all()
    assert not (on_input[0] == on_input[1]).all()  # sequences have masks of their own
    _, out = revealing("variational_dropout", steps=4, h=1.0)(np.zeros((4, 32, WIDE)))
    on_hidden = np.asarray(out[0] != 0)
    binomial(on_hidden, 1 - RATE)
    for step in out:
        assert ((np.asarray(step) != 0) == on_hidden).all()
    assert not (on_hidden == on_input).all()


def test_statistics_of_recurrent_dropout():
    (c, _), out = revealing("recurrent_dropout", steps=3)()
    binomial(np.asarray(out) != 0, 1 - RATE)
    assert ((np.asarray(out[-1]) != 0) == np.asarray(c[0] != 0)).all()
    assert not (np.asarray(out[0] != 0) == np.asarray(out[1] != 0)).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_statistics_of_zoneout(steps):
    """What has never been updated, with probability rate ** steps, is exactly what it was."""
    (c, h), out = revealing("zoneout_cell", steps=steps, c=-5.0, h=0.25)()
    binomial(np.asarray(c) == -5, RATE**steps)
    assert (np.asarray(h) > 0).all() and (np.asarray(out) > 0).all()  # h is read from the cell state before zoneout
    (_, h), out = revealing("zoneout_hidden", steps=steps, c=-5.0, h=-0.25)()
    binomial(np.asarray(h) == -0.25, RATE**steps)
    assert_exact(out[-1], h[0])


def test_recurrent_dropout_loses_no_memory():
    """Where all that would be added is dropped, c' = f c: the stream itself is never touched."""
    config = make(num_layers=1, recurrent_dropout=1 - 1e-9)
    params, xs, carry = stack_arguments(lstm, config, T, B)
    params[0].wx[:], params[0].wh[:] = 0, 0
    last, _ = lstm.apply(params, xs, config=config, carry=carry, key=KEY)
    assert_close(last.c, carry.c * reference.sigmoid(params[0].b[:, 1]) ** T, "float64")
    undropped, _ = lstm.apply(params, xs, config=config, carry=carry)
    assert disagreement(undropped.c, last.c) > 0.1


# --- transformations


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_jit_and_grad_go_together(implementation):
    """A batch of stacks with weights, inputs and lengths of their own is each of them alone; gradients too."""
    config = make(num_layers=1 + 2 * (implementation == "wavefront"), layer_norm=True)
    one, other = (stack_arguments(lstm, config, T, B, seed=seed) for seed in (0, 20))
    lengths = np.stack([LENGTHS, LENGTHS[::-1]])

    def scalar(params, xs, lengths):
        return weighed(lstm.apply(params, xs, config=config, lengths=lengths, implementation=implementation))

    f = jax.value_and_grad(scalar, (0, 1))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), one[:2], other[:2])
    together = jax.jit(jax.vmap(f))(*both, lengths)
    alone = jax.jit(f)
    for k, args in enumerate((one, other)):
        expected = alone(*args[:2], lengths[k])
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], together), expected, "float64")


def test_vmap_over_keys():
    config = make(num_layers=1, variational_dropout=0.3, recurrent_dropout=0.3)
    params, xs, _ = stack_arguments(lstm, config, T, B)
    apply, keys = partial(lstm.apply, params, xs, config=config), jax.random.split(KEY, 2)
    together = jax.vmap(lambda key: apply(key=key))(keys)
    for k in range(2):
        assert_close(jax.tree.map(lambda leaf, k=k: leaf[k], together), apply(key=keys[k]), "float64")


@pytest.mark.parametrize("implementation", ["reference", "hoisted"])
def test_vmap_over_inputs_alone(implementation):
    """Weights that all share, as in per-example gradients."""
    config = make(num_layers=1)
    params, xs, _ = stack_arguments(lstm, config, T, B)
    f = jax.grad(lambda params, x: weighed(lstm.apply(params, x, config=config, implementation=implementation)))
    each = jax.jit(jax.vmap(f, in_axes=(None, 0)))(params, xs.swapaxes(0, 1)[:, :, None])
    alone = jax.jit(f)
    for b in range(2):
        assert_close(jax.tree.map(lambda leaf, b=b: leaf[b], each), alone(params, xs[:, b : b + 1]), "float64")


def hessian_product(implementation, config, mode, schedule):
    """(args, vector) -> the product of the Hessian of a weighed sum of the results with the vector."""

    def scalar(params, xs, carry):
        return weighed(
            lstm.apply(params, xs, config=config, carry=carry, schedule=schedule, implementation=implementation)
        )

    gradient = jax.grad(scalar, (0, 1, 2))

    def along(args, vector):
        return sum((g * v).sum() for g, v in zip(*map(jax.tree.leaves, (gradient(*args), vector)), strict=True))

    if mode == "forward over reverse":
        return jax.jit(lambda args, vector: jax.jvp(gradient, args, vector)[1])
    return jax.jit(jax.grad(along))


FORWARD, REVERSE = "forward over reverse", "reverse over reverse"
SECOND = make(num_layers=1, peepholes=True)
SECOND_ARGS = stack_arguments(lstm, SECOND, 3, 2)
VECTOR = random_like(SECOND_ARGS, 9)


@cache
def second_derivatives():
    return hessian_product("reference", SECOND, FORWARD, Sequential())(SECOND_ARGS, VECTOR)


def test_second_derivatives():
    """The reference's, by finite differences of its gradients."""
    gradient, step = stack_gradients(lstm, SECOND, implementation="reference"), 1e-5
    (_, above), (_, below) = (
        gradient(*jax.tree.map(lambda a, v, s=s: a + s * v, SECOND_ARGS, VECTOR)) for s in (step, -step)
    )
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), above, below)
    assert disagreement(second_derivatives(), differences) < 1e-6


@pytest.mark.parametrize(
    ("implementation", "mode", "schedule"),
    [
        ("hoisted", FORWARD, Sequential()),
        ("hoisted", REVERSE, Sequential()),
        ("hoisted", FORWARD, Checkpointed(2)),
    ],
    ids=str,
)
def test_second_derivatives_are_right_or_refused(implementation, mode, schedule):
    """What is made to be differentiated once may raise, but must never give wrong numbers."""
    try:
        actual = hessian_product(implementation, SECOND, mode, schedule)(SECOND_ARGS, VECTOR)
    except (TypeError, ValueError, NotImplementedError) as error:
        assert re.search("differentiat|custom_vjp", str(error))
        return
    assert_close(actual, second_derivatives(), "float64")


# --- decoding


@pytest.mark.parametrize("options", [{}, {**INSIDE, **ZONEOUTS}], ids=["plain", "all"])
def test_steps_are_apply(options):
    config = make(**options)
    params, xs, carry = stack_arguments(lstm, config, T, B)
    whole = lstm.apply(params, xs, config=config, carry=carry)
    carry, outs = jax.tree.map(jnp.asarray, carry), []
    for x in xs:
        carry, y = lstm.step(params, x, config=config, carry=carry)
        outs.append(y)
    assert_close((carry, jnp.stack(outs)), whole, "float64")


@pytest.mark.usefixtures("untyped")
def test_sizes_and_rates_may_be_of_numpy():
    config = lstm.Config(np.int64(D), np.int32(H), dropout=np.float32(0.25))  # pyright: ignore
    assert config == lstm.Config(D, H, dropout=0.25)
    assert lstm.apply(lstm.init(KEY, config), np.zeros((T, B, D), "float32"), config=config)[1].shape == (T, B, H)


def test_a_step_takes_a_carry_of_one_array_twice():
    config = make()
    params, x, zero = lstm.init(KEY, config), np.ones((B, D)), jnp.zeros((2, B, H))
    apart = lstm.step(params, x, config=config, carry=lstm.zeros(config, B))
    assert_exact(lstm.step(params, x, config=config, carry=lstm.Carry(zero, zero)), apart)


def test_a_step_donates_its_carry_and_compiles_once():
    config = make()
    params, xs, _ = stack_arguments(lstm, config, T, B)
    carry, size = lstm.zeros(config, B), None
    for x in xs:
        old = carry
        carry, _ = lstm.step(params, x, config=config, carry=carry)
        assert all(leaf.is_deleted() for leaf in old)
        assert not any(leaf.is_deleted() for leaf in carry)
        size = size or lstm._step._cache_size()  # pyright: ignore
        assert lstm._step._cache_size() == size  # pyright: ignore
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        lstm.step(params, xs[0], config=config, carry=old)
    program: Any = lstm._step.lower(params, xs[0], carry, config=config).compile()  # pyright: ignore
    assert program.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in carry)


# --- initial weights

SHAPES = {
    "plain": ({}, {"wx": (D, 4, H), "wh": (H, 4, H), "b": (4, H)}),
    "coupled": ({"gates": branch.COUPLED}, {"wx": (D, 3, H), "wh": (H, 3, H), "b": (3, H)}),
    "1997": ({"gates": branch.GATES_1997}, {"wx": (D, 3, H), "wh": (H, 3, H), "b": (3, H)}),
    "peepholes": ({"peepholes": True}, {"wx": (D, 4, H), "wh": (H, 4, H), "b": (4, H), "peephole": (3, H)}),
    "peepholes, 1997": (
        {"peepholes": True, "gates": branch.GATES_1997},
        {"wx": (D, 3, H), "wh": (H, 3, H), "b": (3, H), "peephole": (2, H)},
    ),
    "layer norm": (
        {"layer_norm": True},
        {"wx": (D, 4, H), "wh": (H, 4, H), "b": (4, H), "norm": ((4, H), (4, H), (H,), (H,))},
    ),
    "projection": ({"projection_size": P}, {"wx": (D, 4, H), "wh": (P, 4, H), "b": (4, H), "wp": (H, P)}),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("case", SHAPES)
def test_shapes_of_params_and_carry(case, bidirectional):
    options, expected = SHAPES[case]
    config = make(num_layers=3, bidirectional=bidirectional, **options)
    norm: Any = branch.Norm
    first, others = jax.eval_shape(lambda: lstm.init(KEY, config))
    size, ways = config.cell_output_size, (2,) if bidirectional else ()

    def shapes(p):
        fields = {name: leaf for name, leaf in p._asdict().items() if leaf is not None}
        return {name: jax.tree.map(lambda leaf: leaf.shape, leaf) for name, leaf in fields.items()}

    def below(layers, expected):
        leading = (layers, *ways)
        return {
            name: norm(*((*leading, *part) for part in shape)) if name == "norm" else (*leading, *shape)
            for name, shape in expected.items()
        }

    assert shapes(first) == below(1, expected)
    assert shapes(others) == below(2, {**expected, "wx": (config.output_size, *expected["wx"][1:])})
    carry = lstm.zeros(config, B)
    assert (carry.c.shape, carry.h.shape) == ((3, *ways, B, H), (3, *ways, B, size))


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize(("gates", "size"), [("forget", None), ("coupled", P), ("1997", H + 2)])
def test_recurrent_weights_start_orthogonal(gates, size, dtype):
    """W_h of each gate, layer and direction: square ones, and those of a projection as far as their shape allows."""
    config = make(gates=GATES[gates], projection_size=size, bidirectional=True, param_dtype=dtype)
    for run in lstm.init(KEY, config):
        matrices = np.moveaxis(np.asarray(run.wh), -2, 0).reshape(-1, size or H, H)
        for w in matrices:
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=TOLERANCE[dtype])
        assert len({w.tobytes() for w in matrices}) == len(matrices)


@pytest.mark.parametrize(
    ("gates", "uniform"),
    [("forget", None), ("forget", 32**-0.5), ("forget", np.float64(0.08)), ("coupled", None), ("1997", 0.08)],
)
def test_initial_weights(uniform, gates):
    config = lstm.Config(16, 32, 2, gates=GATES[gates], forget_bias=2.5, **{**INSIDE, "projection_size": 8})
    runs: Any = lstm.init(KEY, config, uniform=uniform)
    for run in runs:
        bias = np.array(run.b)
        if gates == "forget":
            bias[:, 1] -= 2.5
        if uniform is None:
            assert (np.abs(bias) < 1e-6).all() and (np.asarray(run.peephole) == 0).all()
            np.testing.assert_allclose(np.std(run.wx), run.wx.shape[1] ** -0.5, rtol=0.1)
            np.testing.assert_allclose(np.std(run.wp), 32**-0.5, rtol=0.2)
        else:
            for leaf in (run.wx, run.wh, bias, run.peephole, run.wp):
                assert 0.9 * uniform < float(np.abs(leaf).max()) <= uniform + 1e-6
                assert abs(float(np.mean(leaf))) < 0.25 * uniform
                np.testing.assert_allclose(float(np.std(leaf)), uniform / np.sqrt(3), rtol=0.15)
        assert all((np.asarray(leaf) == one).all() for leaf, one in zip(run.norm, (1, 1, 1, 0), strict=True))


@pytest.mark.parametrize(("bidirectional", "options"), [(True, {}), (False, {"uniform": 0.08})])
def test_a_layers_weights_do_not_depend_on_the_number_of_layers(bidirectional, options):
    few, many = (lstm.init(KEY, make(num_layers=n, bidirectional=bidirectional), **options) for n in (2, 4))
    assert_exact(few, (many[0], jax.tree.map(lambda leaf: leaf[:1], many[1])))
    layers = [np.asarray(leaf).tobytes() for leaf in many[1].wh]
    assert len(set(layers)) == 3


# --- errors

ERRORS = {
    "implementation": (
        lambda: run(implementation="cudnn"), "implementation='cudnn'", "choose None", "'reference'", "'hoisted'",
    ),
    "wavefront, both ways": (
        lambda: run({"bidirectional": True}, implementation="wavefront"),
        "'wavefront' cannot serve", "bidirectional=True", "None picks",
    ),
    "wavefront, reverse": (
        lambda: run({"reverse": True}, implementation="wavefront"), "'wavefront' cannot serve", "reverse=True",
    ),
    "hoisted, another schedule": (
        lambda: run(implementation="hoisted", schedule=jax.lax.scan),
        "'hoisted' cannot serve", "schedule=", "Sequential",
    ),
    "both ways": (lambda: make(bidirectional=True, reverse=True), "reverse=True", "bidirectional=True", "choose one"),
    "gates": (lambda: make(gates="coupled"), "gates='coupled'", "FORGET, COUPLED or GATES_1997"),
    "no projection": (lambda: make(projection_size=0), "projection_size=0", "at least 1"),
    "half a projection": (lambda: make(projection_size=1.5), "projection_size=1.5"),
    "key of integers": (lambda: run(key=3), "key=3", "jax.random.key(seed)"),
    "several keys": (lambda: run(key=jax.random.split(KEY, 3)), "give one key"),
    "float key": (lambda: run(key=np.zeros(2)), "give one key"),
    "start below zero": (lambda: run(start=-1), "start=-1", "at least 0"),
    "start between steps": (lambda: run(start=0.5), "start=0.5", "whole number"),
    "several starts": (lambda: run(start=np.arange(2)), "start=", "whole number"),
    "carry of one way": (
        lambda: run({"bidirectional": True}, carry=lstm.zeros(make(), B)), "carry.c", "(2, 4, 4)", "(2, 2, 4, 4)",
    ),
    "carry of two ways": (
        lambda: run(carry=lstm.zeros(make(bidirectional=True), B)), "carry.c", "(2, 2, 4, 4)", "another config",
    ),
    "carry of no projection": (
        lambda: run({"projection_size": P}, carry=lstm.zeros(make(), B)), "carry.h", "(2, 4, 4)", "(2, 4, 2)",
    ),
    "params of one way": (
        lambda: run({"bidirectional": True}, params=lstm.init(KEY, make())), "params[0].wx", "another config",
    ),
    "params without peepholes": (
        lambda: run({"peepholes": True}, params=lstm.init(KEY, make())), "params is", "another config",
    ),
    "params of another gate": (
        lambda: run({"gates": branch.COUPLED}, params=lstm.init(KEY, make())), "params[0].wx", "(1, 3, 4, 4)",
    ),
    "uniform of infinity": (lambda: lstm.init(KEY, make(), uniform=np.inf), "uniform=inf", "above 0"),
    "forget bias": (lambda: make(forget_bias=np.nan), "forget_bias=nan", "finite"),
    "forget bias of words": (lambda: make(forget_bias=None), "forget_bias=None", "finite"),
    "schedule not called": (lambda: run(schedule=Checkpointed), "Checkpointed", "as it is called"),
    "no schedule": (lambda: run(schedule=None), "schedule=None", "Sequential()"),
    "uniform of zero": (lambda: lstm.init(KEY, make(), uniform=0.0), "uniform=0.0", "above 0"),
    "uniform below zero": (lambda: lstm.init(KEY, make(), uniform=-0.1), "uniform=-0.1", "above 0"),
    "uniform not a number": (lambda: lstm.init(KEY, make(), uniform=np.nan), "uniform=nan", "above 0"),
    "step, both ways": (lambda: step({"bidirectional": True}), "no next step", "use apply"),
    "step, reverse": (lambda: step({"reverse": True}), "no next step", "use apply"),
    "step of a sequence": (lambda: step(shape=(T, B, D)), "x has 3 axes", "[B, D]"),
    "step of another width": (lambda: step(shape=(B, D + 1)), "x has 4 features", "config.input_size=3"),
    "step of another batch": (lambda: step(shape=(B + 1, D)), "carry.c", "(2, 5, 4)"),
}  # fmt: skip


def run(config: Any = None, *, params: Any = None, **options: Any) -> Any:
    config = make(**(config or {}))
    params = lstm.init(KEY, config) if params is None else params
    return lstm.apply(params, np.zeros((T, B, D)), config=config, **options)


def step(config: Any = None, shape: tuple = (B, D)) -> Any:
    config = make(**(config or {}))
    return lstm.step(lstm.init(KEY, config), np.zeros(shape), config=config, carry=lstm.zeros(config, B))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("case", ERRORS)
def test_wrong_calls(case):
    call, *parts = ERRORS[case]
    before = recurrent._apply._cache_size()  # pyright: ignore
    with pytest.raises(ValueError) as error:
        call()
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
    assert recurrent._apply._cache_size() == before  # pyright: ignore


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("field", [*DROPOUTS, *ZONEOUTS])
@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 2, True, "0.5", None, float("nan")])
def test_rates_are_probabilities_below_one(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r}: give a probability")):
        make(**{field: value})


@pytest.mark.parametrize(
    ("options", "schedule", "picked", "parts"),
    [
        ({}, Sequential(), "hoisted", ["'reference' serves too", "'wavefront' serves too"]),
        (
            {"reverse": True},
            Checkpointed(2),
            "hoisted",
            ["'reference' serves", "'wavefront' cannot serve: reverse=True"],
        ),
        ({"bidirectional": True}, Sequential(2), "hoisted", ["'wavefront' cannot serve: bidirectional=True"]),
        (ALL, Sequential(), "hoisted", ["'reference' serves too", "'wavefront' serves too"]),
        ({}, jax.lax.scan, "reference", ["'hoisted' cannot serve: schedule=", "'wavefront' serves too"]),
        ({}, Sequential(), "hoisted", ["'wavefront' serves too: here as 'reference', for no two layers are alike"]),
        ({"num_layers": 3}, Sequential(), "hoisted", ["'wavefront' serves too: T + L - 1 ticks"]),
    ],
    ids=["plain", "reverse", "bidirectional", "all options", "another schedule", "unlike layers", "like layers"],
)
def test_explain_names_the_pick_and_each_refusal(options, schedule, picked, parts):
    text = lstm_rot.explain(make(**options), schedule=schedule)
    assert text.startswith(f"None picks {picked!r}: ") and len(text.splitlines()) == 4
    assert all(part in text for part in parts), text
