"""The recurrent stacks and the residual nets against numpy loops and torch's stored outputs."""

import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import reference
from helpers import TOLERANCE, assert_close, assert_exact, normal, on_device, random_like

from lstm_rot import DEPTH, chain, residual, scan, turn
from lstm_rot.branches import mlp
from lstm_rot.models import classifier, gru, highway, lstm, resnet, rnn

MODELS = {"lstm": lstm, "gru": gru, "rnn": rnn, "highway": highway}
ORACLES = {"lstm": reference.lstm, "gru": reference.gru, "rnn": reference.rnn, "highway": reference.highway}
every_model = pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])


def make(name, *, dtype="float64", batch=3, **sizes: Any):
    """A config, random params and a random carry."""
    config = MODELS[name].Config(**sizes, param_dtype=dtype)
    shapes = jax.eval_shape(lambda: MODELS[name].init(jax.random.key(0), config))
    zeros = jax.eval_shape(lambda: MODELS[name].zeros(config, batch))
    return config, random_like(shapes, 0), random_like(zeros, 1)


def by_loops(name, params, xs, carry, lengths):
    """The stack again, in numpy: the runs of equal layers taken apart into a list of layers."""
    layers = [reference.at(run, i) for run in params for i in range(len(run.wh))]
    flows = list(zip(*carry, strict=True)) if name == "lstm" else [(h, ()) for h in carry.h]
    rights, out = reference.stack(ORACLES[name], layers, flows, xs, lengths)
    return tuple(np.stack(leaves) for leaves in zip(*rights, strict=True) if len(leaves[0])), out


SIZES = {  # T, B, D, H, L, lengths
    "ones": (1, 1, 1, 1, 1, None),
    "D = H": (5, 3, 4, 4, 2, None),
    "odd": (4, 1, 3, 5, 3, None),
    "lengths": (6, 4, 7, 3, 2, [0, 6, 2, 5]),
    "D = H, lengths": (3, 2, 3, 3, 3, [3, 1]),
    "no steps": (0, 2, 3, 4, 2, None),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_against_numpy_loops(name, dtype, size):
    steps, batch, width, hidden, layers, lengths = SIZES[size]
    config, params, carry = make(
        name, dtype=dtype, batch=batch, input_size=width, hidden_size=hidden, num_layers=layers
    )
    xs, lengths = normal(dtype, steps, batch, width), None if lengths is None else np.array(lengths)
    last, out = MODELS[name].apply(params, xs, config=config, lengths=lengths, carry=carry)
    assert_close(
        (tuple(last), out), by_loops(name, params, xs, carry, lengths) if steps else (tuple(carry), out), dtype
    )
    assert out.shape == (steps, batch, hidden) and out.dtype == dtype


TORCH = np.load(Path(__file__).parent / "torch_outputs" / "outputs.npz")


class Stored:
    """The entries of one stored torch model, or with `grad_` before their names their gradients."""

    def __init__(self, name, num_layers, prefix=""):
        self.get = lambda key: TORCH[f"{name}/{num_layers}/{prefix}{key}"]
        self.name, self.layers, self.prefix = name, num_layers, prefix

    def bias(self, layer):
        """torch has two biases, we their sum (whose gradient is either's); the GRU's candidate keeps two."""
        ih, hh = (self.get(f"bias_{kind}_l{layer}") for kind in ("ih", "hh"))
        total = ih if self.prefix else ih + hh
        if self.name == "RNN":
            return [total]
        if self.name == "LSTM":
            return [total.reshape(4, -1)]
        (r, z, _), (*_, n), (*_, bn) = (b.reshape(3, -1) for b in (total, ih, hh))
        return [np.stack([r, z, n]), bn]

    def params(self):
        gates, layers = {"LSTM": 4, "GRU": 3, "RNN": 1}[self.name], []
        for layer in range(self.layers):
            pair = [self.get(f"weight_{kind}_l{layer}") for kind in ("ih", "hh")]
            pair = [w.reshape(gates, -1, w.shape[-1]).transpose(2, 0, 1) for w in pair]
            pair = [w[:, 0] for w in pair] if self.name == "RNN" else pair
            layers.append(MODELS[self.name.lower()].branch.Params(*pair, *self.bias(layer)))
        runs = [layers[:1]] + [layers[1:]] * (self.layers > 1)
        return tuple(jax.tree.map(lambda *leaves: np.stack(leaves), *run) for run in runs)

    def carry(self, suffix=""):
        kind = MODELS[self.name.lower()].Carry
        return kind(**{field: self.get(field + suffix) for field in kind._fields})


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_against_torch(name, num_layers):
    """Values, last carries and all gradients of a packed batch of unequal lengths."""
    model, stored, grads = MODELS[name.lower()], Stored(name, num_layers), Stored(name, num_layers, "grad_")
    factors, xs = Stored(name, num_layers, "factor_"), stored.get("xs")
    config = model.Config(input_size=xs.shape[-1], hidden_size=stored.get("out").shape[-1], num_layers=num_layers)

    def scalar(params, xs, carry):
        last, out = model.apply(params, xs, config=config, lengths=TORCH["lengths"], carry=carry)
        weighed = jax.tree.map(
            lambda leaf, factor: (leaf * factor).sum(), (last, out), (factors.carry(), factors.get("out"))
        )
        return sum(jax.tree.leaves(weighed)), (last, out)

    actual = jax.jit(jax.grad(scalar, (0, 1, 2), has_aux=True))(stored.params(), xs, stored.carry("0"))
    gradients = grads.params(), grads.get("xs"), grads.carry("0")
    assert_close(actual, (gradients, (stored.carry(), stored.get("out"))), "float32")


def scalar_of(name, config, lengths):
    """Results and gradients of a weighed sum of them, with respect to params, xs and carry."""

    def scalar(params, xs, carry):
        results = MODELS[name].apply(params, xs, config=config, lengths=lengths, carry=carry)
        return sum((leaf * random_like(leaf, i)).sum() for i, leaf in enumerate(jax.tree.leaves(results))), results

    return jax.jit(jax.grad(scalar, (0, 1, 2), has_aux=True))


@every_model
def test_padding_changes_nothing(name):
    """NaN and infinity past the lengths (0 and T among them) leave values and gradients as zeros there do, exactly."""
    config, params, carry = make(name, batch=4, input_size=3, hidden_size=4, num_layers=2)
    lengths, xs = np.array([0, 2, 5, 3]), normal("float64", 5, 4, 3)
    padding = np.arange(5)[:, None, None] >= lengths[:, None]
    f = scalar_of(name, config, lengths)
    clean = f(params, np.where(padding, 0, xs), carry)
    for poison in (np.nan, np.inf, -np.inf):
        assert_exact(f(params, np.where(padding, poison, xs), carry), clean)
    (_, of_xs, _), (last, out) = clean
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    assert (np.where(padding, of_xs, 0) == 0).all() and (np.where(padding, 0, of_xs) != 0).sum() == 3 * lengths.sum()
    assert (np.where(padding, out, 0) == 0).all()
    assert_exact(
        jax.tree.map(lambda leaf: leaf[:, 0], last), on_device(jax.tree.map(lambda leaf: leaf[:, 0], carry))[0]
    )


@every_model
@pytest.mark.parametrize("integers", ["int32", "int64", "uint8"])
def test_lengths_of_any_integer_dtype(name, integers):
    config, params, carry = make(name, batch=2, input_size=3, hidden_size=4)
    xs = normal("float64", 5, 2, 3)
    results = MODELS[name].apply(params, xs, config=config, lengths=np.array([2, 5], integers), carry=carry)
    assert_close((tuple(results[0]), results[1]), by_loops(name, params, xs, carry, np.array([2, 5])), "float64")


@every_model
@pytest.mark.parametrize("first", [0, 2, 5])
def test_two_chunks_are_one_run(name, first):
    config, params, carry = make(name, batch=3, input_size=3, hidden_size=4, num_layers=2)
    xs, lengths = normal("float64", 5, 3, 3), np.array([1, 5, 3])
    apply = partial(MODELS[name].apply, params, config=config)
    whole = apply(xs, lengths=lengths, carry=carry)
    middle, start = apply(xs[:first], lengths=np.minimum(lengths, first), carry=carry)
    last, end = apply(xs[first:], lengths=np.maximum(lengths - first, 0), carry=middle)
    assert_close((last, jnp.concatenate([start, end])), whole, "float64")


@pytest.mark.parametrize("name", ["lstm", "gru"])  # with a memory, and without
@pytest.mark.parametrize(
    ("dtypes", "stream", "compute"),
    [
        (("float32", None, None), "float32", "float32"),
        (("float64", None, None), "float64", "float64"),
        (("bfloat16", None, None), "float32", "bfloat16"),
        (("float32", "bfloat16", None), "float32", "bfloat16"),
        (("float32", "bfloat16", "bfloat16"), "bfloat16", "bfloat16"),
        (("float32", None, "float64"), "float64", "float32"),
    ],
    ids=str,
)
def test_three_dtypes(name, dtypes, stream, compute):
    """The stream has its dtype, what is handed on the compute dtype; and the values are float64's, to rounding."""
    sizes: dict[str, Any] = {"input_size": 3, "hidden_size": 4, "num_layers": 2}
    exact_config, params, _ = make(name, batch=2, **sizes)
    names = dict(zip(("param_dtype", "compute_dtype", "stream_dtype"), dtypes, strict=True))
    config, xs = MODELS[name].Config(**sizes, **names), normal("float32", 6, 2, 3)
    cast = jax.tree.map(lambda leaf: jnp.asarray(leaf, config.param_dtype), params)
    last, out = MODELS[name].apply(cast, xs, config=config)
    assert {field: str(leaf.dtype) for field, leaf in last._asdict().items()} == (
        {"c": stream, "h": compute} if name == "lstm" else {"h": stream}
    )
    assert out.dtype == compute
    assert_close(
        (last, out), MODELS[name].apply(params, xs.astype("float64"), config=exact_config), min(stream, compute)
    )
    made = MODELS[name].init(jax.random.key(0), config)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} == {names["param_dtype"]}


@every_model
def test_gradients_against_finite_differences(name):
    config, params, carry = make(name, batch=2, input_size=2, hidden_size=3, num_layers=2)
    xs, lengths = normal("float64", 3, 2, 2), np.array([3, 1])
    apply = partial(MODELS[name].apply, config=config, lengths=lengths)
    jax.test_util.check_grads(
        lambda p, xs, carry: apply(p, xs, carry=carry), (params, xs, carry), order=1, modes=["rev"]
    )


@every_model
def test_init_is_stable_under_further_layers(name):
    """Layer l's weights depend on the key and on l alone."""
    few, many = (MODELS[name].Config(input_size=3, hidden_size=4, num_layers=n) for n in (2, 4))
    few, many = (MODELS[name].init(jax.random.key(7), config) for config in (few, many))
    assert_exact((few[0], few[1]), (many[0], jax.tree.map(lambda leaf: leaf[:1], many[1])))
    recurrent = np.asarray(few[0].wh[0]).reshape(4, -1, 4)
    for gate in range(recurrent.shape[1]):
        np.testing.assert_allclose(recurrent[:, gate] @ recurrent[:, gate].T, np.eye(4), atol=TOLERANCE["float32"])
    if name == "lstm":
        assert (few[0].b[0, 1] == 1).all() and (few[0].b[0, [0, 2, 3]] == 0).all()


def test_init_ends_where_there_are_few_threads():
    """Eight stacks begun in one program by two cores, where batched QRs would wait for each other, forever."""
    code = """
import os
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax
from lstm_rot.models import lstm
begun = jax.jit(lambda keys: [lstm.init(key, lstm.Config(128, 128)) for key in keys])
for seed in range(10):
    jax.block_until_ready(begun(jax.random.split(jax.random.key(seed), 8)))
"""
    alone = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=alone, timeout=120)


@pytest.mark.parametrize("step", ["RESIDUAL", "PLAIN", "HIGHWAY"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("num_layers", [1, 4])
def test_residual_nets_against_numpy_loops(step, dtype, num_layers):
    config = resnet.Config(3, 5, num_layers, getattr(resnet, step), param_dtype=dtype)
    params = random_like(jax.eval_shape(lambda: resnet.init(jax.random.key(0), config)), 0)
    xs = normal(dtype, 4, 3)
    oracle = {"RESIDUAL": reference.dense, "PLAIN": reference.plain, "HIGHWAY": reference.highway}[step]
    assert_close(resnet.apply(params, xs, config=config), reference.resnet(oracle, params, xs), dtype)


def test_the_block_of_he_2015():
    """x <- relu(x + F(x)): a residual step, then a plain one; values by numpy, gradients by a jax loop."""
    layers, hidden, inner = 3, 4, 6
    shapes = jax.eval_shape(lambda: mlp.init(jax.random.key(0), hidden, inner, "float64"))
    p, x = random_like(shapes, 0, prefix=(layers,))._replace(scale=None), normal("float64", 2, hidden)
    block = chain(turn(residual(mlp.mlp)), turn(residual(mlp.rectify)))

    def net(p, x):
        return scan(block, DEPTH)((p, None), (None, None), (x, ()))[1][0]

    def by_hand(p, x):
        for i in range(layers):
            x = jax.nn.relu(x + jax.nn.relu(x @ p.w1[i] + p.b1[i]) @ p.w2[i] + p.b2[i])
        return x

    expected = x
    for i in range(layers):
        expected = np.maximum(reference.mlp(reference.at(p, i), expected), 0)
    assert_close(jax.jit(net)(p, x), expected, "float64")
    ours, theirs = (
        jax.jit(jax.grad(lambda p, x, f=f: (f(p, x) * normal("float64", 2, hidden, seed=9)).sum(), (0, 1)))(p, x)
        for f in (net, by_hand)
    )
    assert_close(ours, theirs, "float64")


@cache
def body(name):
    """The body of a classifier of 6 x 6 images: rows along time, or all pixels through depth."""
    if name in MODELS:
        return MODELS[name].Config(input_size=6, hidden_size=5, num_layers=2)
    return resnet.Config(36, 5, 2, getattr(resnet, name))


@pytest.mark.parametrize("name", [*MODELS, "RESIDUAL", "PLAIN", "HIGHWAY"])
def test_a_classifier_of_either_way(name):
    config, images = classifier.Config(body(name), num_classes=3), normal("float32", 2, 6, 6)
    fresh = classifier.init(jax.random.key(0), config)
    assert_exact(classifier.apply(fresh, images, config=config), jnp.zeros((2, 3), "float32"))
    params = random_like(jax.eval_shape(lambda: fresh), 0)
    value, grads = jax.jit(jax.value_and_grad(lambda p: (classifier.apply(p, images, config=config) ** 2).sum()))(
        params
    )
    logits = classifier.apply(params, images, config=config)
    model = MODELS.get(name, resnet)
    if config.turned:
        top = model.apply(params.body, images.reshape(2, 36), config=config.body)
    else:
        _, outputs = model.apply(params.body, images.transpose(1, 0, 2), config=config.body)
        top = outputs[-1]
    assert_close(logits, np.asarray(top) @ params.w + params.b, "float32")
    assert logits.shape == (2, 3) and value > 0
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
