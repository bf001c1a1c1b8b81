"""The Transformer: both nestings of one cell, its cache in chunks of any sizes, and plain loops of masked attention."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import reference
from helpers import assert_close, assert_exact, normal, random_like

from lstm_rot import DEPTH, TIME, Checkpointed, Sequential, scan, wavefront
from lstm_rot.models import language_model, transformer

L, T, B, H, N, V = 3, 7, 2, 6, 3, 11
LAYER = transformer.layer(transformer.Config(H))


def make(dtype="float64", *, hidden=H, heads=N, layers=L, **dtypes):
    body = transformer.Config(hidden, layers, heads, mlp_size=5, param_dtype=dtype, **dtypes)
    config = language_model.Config(V, body)
    params = random_like(jax.eval_shape(lambda: language_model.init(jax.random.key(0), config)), 0)
    return config, params


def tokens(steps=T, batch=B):
    return np.random.default_rng(3).integers(0, V, (steps, batch))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("hidden", "heads", "layers", "steps", "batch"), [(6, 3, 3, 7, 2), (5, 1, 1, 4, 1), (4, 2, 2, 1, 3)], ids=str
)
@pytest.mark.parametrize("schedule", [Sequential(), Checkpointed()], ids=str)
def test_against_plain_loops(dtype, hidden, heads, layers, steps, batch, schedule):
    config, params = make(dtype, hidden=hidden, heads=heads, layers=layers)
    carry, logits = language_model.apply(params, tokens(steps, batch), config=config, schedule=schedule)
    assert carry is None
    assert_close(logits, reference.transformer(params, tokens(steps, batch)), dtype)


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 2, 1], [0, 7], [5, 0, 2]], ids=str)
@pytest.mark.parametrize("room", [7, 12])
def test_chunks_of_any_sizes_are_one_run(chunks, room):
    """A prompt at once, token by token, or anything between: the same logits and the same cache."""
    config, params = make()
    _, whole = language_model.apply(params, tokens(), config=config)
    one, _ = language_model.apply(params, tokens(), config=config, carry=language_model.zeros(config, B, room))
    carry: Any = language_model.zeros(config, B, room)
    logits, first = [], 0
    for size in chunks:
        carry, out = language_model.apply(params, tokens()[first : first + size], config=config, carry=carry)
        logits.append(out)
        first += size
    assert_close(jnp.concatenate(logits), whole, "float64")
    assert_close(carry, one, "float64")
    assert (carry.length == T).all()


def grid_args():
    """Layers, an empty cache and a sequence as T chunks of one position."""
    config, params = make(layers=2)
    left = language_model.zeros(config, B, T), None
    return params.body.layers, left, (normal("float64", T, 1, B, H), ())


def results_and_gradients(grid, p, left, below):
    """The results, and the gradients of a weighed sum of outputs and cache w.r.t. weights, cache and inputs."""

    def scalar(p, k, v, x):
        (cache, _), (out, _) = grid(p, (left[0]._replace(k=k, v=v), None), (x, ()))
        weighed = [(leaf * random_like(leaf, i)).sum() for i, leaf in enumerate((cache.k, cache.v, out))]
        return sum(weighed), (cache, out)

    return jax.jit(jax.grad(scalar, (0, 1, 2, 3), has_aux=True))(p, left[0].k, left[0].v, below[0])


def test_decoding_is_loop_interchange():
    """The very same cell, nested two ways and along the diagonal: prefill and cached decoding, values and gradients."""
    p, left, below = grid_args()

    def one_chunk(p, left, below):
        right, (out, _) = scan(LAYER, DEPTH)(p, left, (below[0][:, 0], ()))
        return right, (out[:, None], ())

    decoding = results_and_gradients(scan(scan(LAYER, DEPTH), TIME), p, left, below)
    for grid in (scan(scan(LAYER, TIME), DEPTH), wavefront(LAYER), one_chunk):
        assert_close(results_and_gradients(grid, p, left, below), decoding, "float64")
    _, (_, out) = decoding
    assert_close(out[:, 0], reference.layers(p, below[0][:, 0]), "float64")


def test_causality():
    """Through all layers no logit depends on a later position, exactly, and every logit on all earlier ones."""
    config, params = make()
    x = normal("float64", T, 1, H)

    def top(x):
        return scan(LAYER, DEPTH)(params.body.layers, (None, None), (x, ()))[1][0] @ params.out

    jacobian = np.abs(jax.jit(jax.jacobian(top))(x)).max(axis=(1, 2, 4, 5))
    assert (jacobian[np.triu_indices(T, 1)] == 0).all()
    assert (jacobian[np.tril_indices(T)] > 0).all()
    changed = tokens().copy()
    changed[4] = (changed[4] + 1) % V
    _, before = language_model.apply(params, tokens(), config=config)
    _, after = language_model.apply(params, changed, config=config)
    assert_exact(before[:4], after[:4])
    assert (np.abs(before[4:] - after[4:]).max(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize("cached", [False, True])
def test_bfloat16_products_and_a_float32_stream(cached):
    config, params = make("float32", compute_dtype="bfloat16")
    exact, _ = make("float32")
    carry = language_model.zeros(config, B, T) if cached else None
    carry, logits = language_model.apply(params, tokens(), config=config, carry=carry)
    assert logits.dtype == "bfloat16"
    assert carry is None or (carry.k.dtype, carry.v.dtype, carry.length.dtype) == ("bfloat16", "bfloat16", "int32")
    _, expected = language_model.apply(params, tokens(), config=exact)
    assert_close(logits, expected, "bfloat16")


def test_tokens_of_any_integer_dtype():
    config, params = make()
    _, expected = language_model.apply(params, tokens(), config=config)
    for dtype in ("uint8", "int32"):
        assert_exact(language_model.apply(params, tokens().astype(dtype), config=config)[1], expected)


def test_gradients_against_finite_differences():
    config, params = make(layers=1)
    few = tokens(3, 1)
    jax.test_util.check_grads(
        lambda p: language_model.apply(p, few, config=config)[1], (params,), order=1, modes=["rev"]
    )


def test_a_layer_keeps_its_key_under_further_layers():
    few, many = (language_model.init(jax.random.key(1), make(layers=n)[0]) for n in (2, 4))
    assert_exact(few.body.layers, jax.tree.map(lambda leaf: leaf[:2], many.body.layers))
    sizes = partial(jax.tree.map, np.shape)
    assert sizes(few) == sizes(make(layers=2)[1])
