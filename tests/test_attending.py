"""Attention of recurrent stacks and of Transformers to a source: plain loops, caches, dropout, tied and joint words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import assert_close, assert_exact, normal, random_like
from test_seq2seq import BEGIN, BODIES, END, POSITIONS, B, S, V, make, models, told, words

from lstm_rot.branches.common import layer_norm
from lstm_rot.decoding import sample
from lstm_rot.models import attending, gru, language_model, lstm, seq2seq, transformer

LOOKING = ("luong", "bahdanau", "pre", "post")


def logits_of(h, params):
    logits = h @ params.decoder.out
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", ["pre", "post"])
def test_transformers_against_plain_loops(name):
    config, params = make(BODIES[name], scale=1)
    source, target = words(S, B, 6), words(V, B, 5)
    losses = seq2seq.losses(params, source, target, config=config, source_lengths=(lengths := [6, 1, 4]))
    for n in range(B):
        embedded = params.embed[source[n, : lengths[n]]], params.decoder.embed[target[n, :-1]]
        log_p = logits_of(reference.encoder_decoder(params.encoder, params.decoder.body, *embedded), params)
        assert_close(losses[n], -np.take_along_axis(log_p, target[n, 1:, None], -1)[:, 0], "float64")


@pytest.mark.parametrize("name", ["luong", "bahdanau"])
def test_attending_stacks_against_plain_loops(name):
    config, params = make(BODIES[name], scale=1)
    body: Any = config.decoder.body
    source, target = words(S, B, 6), words(V, B, 5)
    losses = seq2seq.losses(params, source, target, config=config)
    read, sources = config.encoder_model.apply(params.encoder, params.embed[source.T], config=config.encoder)
    weights, x = params.decoder.body, params.decoder.embed[target.T[:-1]]
    for n in range(B):
        carry = jax.tree.map(lambda leaf, n=n: leaf[:, n : n + 1], read)
        seen, outs = np.asarray(sources[:, n]), []
        for t in range(4):
            before = carry
            context, _ = reference.looked_up(weights.query, weights.wk, np.asarray(before.h[-1, 0]), seen)
            entering = x[t, n] if name == "luong" else np.concatenate([x[t, n], context])
            carry, h = body.model.apply(weights.stack, entering[None, None], config=body.stack, carry=carry)
            h = np.asarray(h[0, 0])
            query = h if name == "luong" else np.asarray(before.h[-1, 0])
            outs.append(reference.looked_up(weights.query, weights.wk, query, seen)[1](h))
        expected = -np.take_along_axis(logits_of(np.array(outs), params), target[n, 1:, None], -1)[:, 0]
        assert_close(losses[n], expected, "float64")


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize("chunks", [(4,), (1, 1, 1, 1), (3, 0, 1)])
def test_word_by_word_is_the_whole_target(name, chunks):
    config, params = make(BODIES[name])
    source, target, lengths = words(S, 6, B), words(V, 4, B), np.array([6, 0, 3])
    whole = seq2seq.encode(params, source, config=config, lengths=lengths)
    _, expected = language_model.apply(params.decoder, target, config=config.decoder, carry=whole)
    carry = seq2seq.encode(params, source, config=config, lengths=lengths, positions=POSITIONS)
    logits, at = [], 0
    for size in chunks:
        carry, some = language_model.apply(params.decoder, target[at : at + size], config=config.decoder, carry=carry)
        logits, at = [*logits, some], at + size
    assert np.isfinite(expected).all()
    assert_close(jnp.concatenate(logits), expected, "float64")


@pytest.mark.parametrize("name", LOOKING)
def test_an_empty_or_padded_source_has_finite_gradients(name):
    config, params = make(BODIES[name])
    pair = words(S, B, 6), words(V, B, 5)
    gradient = jax.grad(lambda p: seq2seq.loss(p, *pair, config=config, source_lengths=[0, 6, 1])[0])(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_what_stands_in_an_encoder_s_padding_is_nothing():
    config = transformer.Config(4, 2, 2, kind="encoder", param_dtype="float64")
    params, xs = transformer.init(jax.random.key(0), config), normal("float64", 5, 2, 4)

    def total(params, xs):
        return (transformer.apply(params, xs, config=config, lengths=[3, 5])[1] ** 2).sum()

    bad = xs.copy()
    bad[3:, 0] = np.nan
    assert_exact(jax.grad(total)(params, xs), jax.grad(total)(params, bad))
    alone = transformer.apply(params, xs[:3, :1], config=config)[1]
    assert_close(transformer.apply(params, bad, config=config, lengths=[3, 5])[1][:3, :1], alone, "float64")


@pytest.mark.parametrize("kind", ["causal", "decoder"])
def test_dropout_is_of_the_key_and_the_position(kind):
    """Chunks see the masks of the whole, layers and steps have their own, and without a key there is none."""
    config = transformer.Config(4, 2, 2, kind=kind, dropout=0.5, param_dtype="float64")
    params, xs = transformer.init(jax.random.key(0), config), normal("float64", 5, 2, 4)

    def carry():
        if kind == "causal":
            return transformer.zeros(config, 2, 5)
        return transformer.reading(
            params, normal("float64", 3, 2, 4), np.ones((3, 2), bool), config=config, positions=5
        )

    key = jax.random.key(1)
    held, first = transformer.apply(params, xs[:2], config=config, carry=carry(), key=key)
    _, second = transformer.apply(params, xs[2:], config=config, carry=held, key=key)
    _, whole = transformer.apply(params, xs, config=config, carry=carry(), key=key)
    assert_close(np.concatenate([first, second]), whole, "float64")
    others = [transformer.apply(params, xs, config=config, carry=carry(), key=k)[1] for k in (None, jax.random.key(2))]
    assert all(np.abs(other - whole).max() > 1e-3 for other in others)


def test_dropout_keeps_the_mean():
    """Over many keys what a step adds is on average what it adds without dropout, and the share dropped is the rate."""
    config = transformer.Config(8, 1, 1, dropout=0.25, param_dtype="float64")
    weights, _ = jax.tree.map(lambda leaf: leaf[0], transformer.init(jax.random.key(0), config).layers)
    branch, x = transformer.STEPS["causal"][0], jnp.asarray(normal("float64", 1, 1, 8))

    def add(key):
        return transformer._dropped(branch, 0, 0.25)((weights, (key, jnp.arange(1))), x, (), None)[1]

    adds, plain = jax.vmap(add)(jax.random.split(jax.random.key(0), 4000)), branch(weights, x, (), None)[1]
    assert abs((adds == 0).mean() - 0.25) < 0.01
    assert np.abs(adds.mean(0) - plain).max() < 0.05 * np.abs(plain).max()


def test_dropout_is_on_the_sums_of_words_and_positions():
    """Layers that add nothing show what enters them: a quarter of it is 0, and 0s of a row are normalised alike."""
    config = transformer.Config(64, dropout=0.25, param_dtype="float64")
    params: Any = transformer.init(jax.random.key(0), config)
    xs, ((attends, dense), scale) = normal("float64", 40, 5, 64), params
    silent = attends._replace(wo=0 * attends.wo), dense._replace(w2=0 * dense.w2, b2=0 * dense.b2)
    ys = transformer.apply(transformer.Params(silent, scale), xs, config=config, key=jax.random.key(1))[1]
    kept = (np.abs(ys[..., None] - ys[..., None, :]) < 1e-9).sum(-1) == 1
    assert abs(kept.mean() - 0.75) < 0.02
    entering = (xs + transformer.sinusoids(jnp.arange(40), config)[:, None]) / 0.75
    assert_close(layer_norm(jnp.where(kept, entering, 0), scale), ys, "float64")


@pytest.mark.parametrize("name", ["pre", "luong", "lstm"])
def test_tied_and_joint_words(name):
    """The softmax has the embedding's weights, the source the target's; entering words are sqrt(D) times as large."""
    body: Any = BODIES[name] if name != "luong" else attending.Config(lstm.Config(4, 4, param_dtype="float64"))
    tied = seq2seq.Config(V, language_model.Config(V, body, tied=True), joint=True)
    plain = seq2seq.Config(V, language_model.Config(V, body))
    params = seq2seq.init(jax.random.key(0), tied)
    assert params.embed is None and params.decoder.out is None
    embed: Any = params.decoder.embed
    untied = params._replace(embed=2.0 * embed, decoder=params.decoder._replace(embed=2.0 * embed, out=embed.T))
    pair = words(V, B, 6), words(V, B, 5)
    assert_close(seq2seq.losses(params, *pair, config=tied), seq2seq.losses(untied, *pair, config=plain), "float64")
    assert jax.tree.structure(seq2seq.specs(tied)) == jax.tree.structure(params)


def test_label_smoothing():
    config, params = make(BODIES["pre"])
    pair = words(S, B, 6), words(V, B, 5)
    plain, smoothed = (seq2seq.losses(params, *pair, config=config, smoothing=e) for e in (0.0, 0.3))
    carry = seq2seq.encode(params, pair[0].T, config=config)
    logits = language_model.apply(params.decoder, pair[1].T[:-1], config=config.decoder, carry=carry)[1]
    mean = -jax.nn.log_softmax(logits).mean(-1).T
    assert_close(smoothed, 0.7 * plain + 0.3 * mean, "float64")


def test_a_bidirectional_encoder():
    """Its halves stand beside each other: each is a stack of half the size, one of them on the source reversed."""
    decoder = language_model.Config(V, attending.Config(gru.Config(3, 4, param_dtype="float64")))
    config = seq2seq.Config(S, decoder, bidirectional=True)
    params, source = seq2seq.init(jax.random.key(0), config), words(S, 6, B)
    carry = seq2seq.encode(params, source, config=config)
    half = gru.Config(3, 2, param_dtype="float64")
    for way, rows in enumerate((source, source[::-1])):
        weights = jax.tree.map(lambda leaf, way=way: leaf[:, way], params.encoder)
        last, hs = gru.apply(weights, np.asarray(params.embed)[rows], config=half)
        assert_close(carry.stack.h[..., 2 * way : 2 * way + 2], last.h, "float64")
        assert_close(carry.source.v[..., 2 * way : 2 * way + 2], hs[:: -1 if way else 1], "float64")


@pytest.mark.parametrize("name", ["gru", "luong", "post"])
def test_samples_are_drawn_from_the_model(name):
    """Their scores are log p; of many, the first word has the model's frequencies; cold ones are greedy."""
    config, made = models(name, (0, 1))

    def draw(seed, temperature=1.0, length=4, made=made):
        how = {"begin": BEGIN, "end": END, "max_length": length, "temperature": temperature}
        return sample(made, config=config, key=jax.random.key(seed), **how)

    drawn = draw(0)
    for n in range(B):
        size = int(drawn.lengths[n, 0])
        said = np.asarray(drawn.words[n, 0])
        assert (said[size - 1] == END or size == 4) and END not in said[: size - 1] and (said[size:] == END).all()
        assert_close(drawn.scores[n, 0], told(config, made, said[:size])[n], "float64")
    _, same = models(name, (0, 1), source=np.repeat(words(S, 6, B)[:, :1], 300, axis=1))
    first = np.asarray(draw(0, length=1, made=same).words[:, 0, 0])
    expected = np.array([np.exp(told(config, made, np.array([word]))[0]) for word in range(V)])
    assert np.abs(np.bincount(first, minlength=V) / 300 - expected).max() < 0.1
    likeliest = [max(range(V), key=lambda w: told(config, made, np.array([w]))[n]) for n in range(B)]
    assert_exact(np.asarray(draw(0, 1e-4, 1).words[:, 0, 0]), np.array(likeliest, np.int32))


@pytest.mark.parametrize("name", LOOKING)
def test_specs_lie_as_the_params(name):
    config, params = make(BODIES[name])
    assert jax.tree.structure(seq2seq.specs(config)) == jax.tree.structure(params)
    for spec, leaf in zip(jax.tree.leaves(seq2seq.specs(config)), jax.tree.leaves(params), strict=True):
        assert len(spec) <= leaf.ndim


def test_bfloat16_and_its_stream():
    body = transformer.Config(8, 2, 2, kind="decoder", compute_dtype="bfloat16")
    for decoder in (body, attending.Config(lstm.Config(8, 8, compute_dtype="bfloat16"))):
        narrow = seq2seq.Config(S, language_model.Config(V, decoder))
        wide_body: Any = (
            transformer.Config(8, 2, 2, kind="decoder")
            if isinstance(decoder, transformer.Config)
            else attending.Config(lstm.Config(8, 8))
        )
        wide = seq2seq.Config(S, language_model.Config(V, wide_body))
        shapes = jax.eval_shape(lambda wide=wide: seq2seq.init(jax.random.key(0), wide))
        params, pair = random_like(shapes, 0, "float32"), (words(S, B, 6), words(V, B, 5))
        assert_close(
            seq2seq.losses(params, *pair, config=narrow), seq2seq.losses(params, *pair, config=wide), "bfloat16"
        )
