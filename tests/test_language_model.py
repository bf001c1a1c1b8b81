"""The language model: its split softmax against the plain one, and what it writes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TOLERANCE, assert_close, assert_exact, random_like

from lstm_rot import Checkpointed, Sequential
from lstm_rot.models import gru, highway, language_model, lstm, rnn, transformer

V, B, T = 11, 3, 7
BODIES = {
    "lstm": lstm.Config(4, 5, 2, param_dtype="float64"),
    "gru": gru.Config(4, 4, 2, param_dtype="float64"),
    "rnn": rnn.Config(4, 5, param_dtype="float64"),
    "highway": highway.Config(4, 5, 2, param_dtype="float64"),
    "transformer": transformer.Config(4, 2, 2, param_dtype="float64"),
}


def make(body):
    config = language_model.Config(V, body)
    return config, random_like(jax.eval_shape(lambda: language_model.init(jax.random.key(0), config)), 0)


def words(*shape):
    return np.random.default_rng(1).integers(0, V, shape)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lstm", 1),
        ("lstm", 2 * B * V),
        ("lstm", 1 << 20),
        ("gru", 2 * B * V),
        ("rnn", 1),
        ("highway", 1 << 20),
        ("transformer", 2 * B * V),
    ],
)
def test_losses_are_those_of_the_logits_whatever_the_block(name, block):
    config, params = make(BODIES[name])
    tokens = words(B, T + 1)
    how: Any = {"schedule": Checkpointed() if block == 1 else Sequential(), "block": block}

    def plain(params):
        _, logits = language_model.apply(params, tokens.T[:-1], config=config)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens.T[1:, :, None], axis=-1)[..., 0].T

    each = language_model.losses(params, tokens, config=config, **how)
    assert_close(each, plain(params), "float64")
    total, count = language_model.loss(params, tokens, config=config, **how)
    assert_close(total, plain(params).sum(), "float64")
    assert count == B * T
    gradient = jax.grad(lambda p: language_model.loss(p, tokens, config=config, **how)[0])(params)
    assert_close(gradient, jax.grad(lambda p: plain(p).sum())(params), "float64")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", [1, 4 * B * V, None])
@pytest.mark.parametrize("tied", [False, True])
def test_the_summed_loss_makes_its_gradient_with_its_value(dtype, block, tied):
    """As the losses' does, whose logits are computed again; in one block, in several, the last one shorter."""
    how: Any = {"param_dtype": "float32" if dtype == "bfloat16" else dtype, "compute_dtype": dtype}
    config = language_model.Config(V, gru.Config(5, 5, **how), dropout=0.3, tied=tied)
    params = random_like(jax.eval_shape(lambda: language_model.init(jax.random.key(0), config)), 0)
    tokens, lengths = words(B, T + 1), [T + 1, 0, 3]
    options: Any = {"config": config, "lengths": lengths, "key": jax.random.key(1), "smoothing": 0.2, "block": block}

    def summed(params):
        total, count = language_model.loss(params, tokens, **options)
        return total / count.astype(total.dtype)

    def each(params):
        return language_model.losses(params, tokens, **options).sum() / sum(max(n - 1, 0) for n in lengths)

    assert_close(jax.value_and_grad(summed)(params), jax.value_and_grad(each)(params), dtype)
    assert_close(summed(params), each(params), dtype)
    outside = np.arange(1, T + 1) >= np.array(lengths)[:, None]
    assert_exact(np.asarray(language_model.losses(params, tokens, **options)) == 0, outside)


def test_no_examples_and_lengths_within_a_jitted_function():
    config, params = make(BODIES["gru"])
    assert language_model.losses(params, words(0, 4), config=config).shape == (0, 3)
    assert_exact(language_model.loss(params, words(0, 4), config=config), (jnp.zeros(()), jnp.int32(0)))
    tokens, a = words(B, 4), jnp.array([4, 1, 3])
    of = jax.jit(lambda a: language_model.loss(params, tokens, config=config, lengths=a))
    assert_close(of(a), language_model.loss(params, tokens, config=config, lengths=[4, 1, 3]), "float64")


def test_the_derivatives_of_the_summed_loss_s_gradient():
    config, params = make(BODIES["gru"])
    tokens = words(B, T + 1)
    tangents = random_like(params, 5)

    def loss(params):
        return language_model.loss(params, tokens, config=config, block=2 * B * V)[0]

    def each(params):
        return language_model.losses(params, tokens, config=config).sum()

    for product in (
        lambda of: jax.jvp(jax.grad(of), (params,), (tangents,))[1],
        lambda of: jax.grad(lambda p: sum(map(jnp.vdot, *map(jax.tree.leaves, (jax.grad(of)(p), tangents)))))(params),
    ):
        assert_close(product(loss), product(each), "float64")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (params,), (tangents,))


@pytest.mark.parametrize("name", ["lstm", "highway", "transformer"])
def test_what_is_written_is_what_the_whole_sequence_would_say(name):
    """At temperature 0 each word is the likeliest after all before it; at a tiny one too; at 1 it is drawn."""
    config, params = make(BODIES[name])
    prompt, key = words(3, B), jax.random.key(0)
    written = language_model.generate(params, prompt, config=config, length=5, key=key, temperature=0.0)
    _, logits = language_model.apply(params, np.concatenate([prompt, written]), config=config)
    assert_exact(np.asarray(written), np.asarray(logits[2:-1].argmax(-1), np.int32))
    assert_exact(language_model.generate(params, prompt, config=config, length=5, key=key, temperature=1e-5), written)
    drawn = [language_model.generate(params, prompt, config=config, length=40, key=jax.random.key(k)) for k in (1, 2)]
    assert (np.asarray(drawn[0]) != np.asarray(drawn[1])).any()


def test_draws_follow_the_softmax():
    config, params = make(BODIES["rnn"])
    prompt = np.tile(words(2, 1), 20_000)
    drawn = language_model.generate(params, prompt, config=config, length=1, key=jax.random.key(0))[0]
    _, logits = language_model.apply(params, prompt[:, :1], config=config)
    shares = np.bincount(drawn, minlength=V) / len(drawn)
    np.testing.assert_allclose(shares, jax.nn.softmax(logits[-1, 0]), atol=0.015)  # four standard deviations


def test_dropout_needs_a_key_and_bfloat16_keeps_wide_losses():
    config, params = make(lstm.Config(4, 4, 2, dropout=0.5, compute_dtype="bfloat16"))
    tokens = words(B, T + 1)
    each = language_model.losses(params, tokens, config=config)
    assert each.dtype == "float32"
    dropped = [language_model.losses(params, tokens, config=config, key=jax.random.key(k)) for k in (0, 0, 1)]
    assert_exact(dropped[0], dropped[1])
    assert (np.asarray(dropped[0]) != np.asarray(dropped[2])).any() and (np.asarray(dropped[0]) != each).any()


@pytest.mark.usefixtures("untyped")
def test_wrong_calls():
    config, params = make(BODIES["rnn"])
    for call, said in {
        lambda: language_model.losses(params, words(B, 1), config=config): "at least two words",
        lambda: language_model.losses(params, words(B, 4) + V, config=config): f"give numbers in 0..{V - 1}",
        lambda: language_model.losses(params, words(B, 4), config=config, block=0): "block=0",
        lambda: language_model.loss(params, words(B, 4), config=config, lengths=[4, 5, 1]): r"lengths\[1\] = 5 is out",
        lambda: language_model.loss(params, words(B, 4), config=config, smoothing=1.0): "smoothing=1.0",
        lambda: language_model.losses(params, words(B), config=config): r"\[B, N\]",
        lambda: language_model.generate(params, words(0, B), config=config, length=1, key=jax.random.key(0)): "prompt",
        lambda: language_model.generate(
            params, words(1, B), config=config, length=0, key=jax.random.key(0)
        ): "length=0",
        lambda: language_model.Config(V, lstm.Config(4, 4, bidirectional=True)): "reads forwards",
        lambda: language_model.Config(V, lstm.Config): "give one of lstm.Config, gru.Config",  # pyright: ignore
        lambda: language_model.Config(0, BODIES["rnn"]): "vocab_size=0",
    }.items():
        with pytest.raises(ValueError, match=said):
            call()
