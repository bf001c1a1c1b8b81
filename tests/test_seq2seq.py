"""Sequence to sequence: the carry is the sentence, padding is nothing; and beam search against brute force."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import assert_close, assert_exact, random_like

from lstm_rot import Checkpointed
from lstm_rot.decoding import Score, beam, sample
from lstm_rot.models import attending, gru, language_model, lstm, residual_rnn, rnn, seq2seq, transformer

S, V, B = 9, 5, 3  # source words, target words, sentences
BEGIN, END = 1, 2
BODIES = {
    "lstm": lstm.Config(4, 4, 2, param_dtype="float64"),
    "projected": lstm.Config(3, 4, 2, projection_size=3, param_dtype="float64"),
    "gru": gru.Config(4, 4, param_dtype="float64"),
    "rnn": rnn.Config(3, 4, 2, param_dtype="float64"),
    "residual_rnn": residual_rnn.Config(4, 4, 2, param_dtype="float64"),
    "luong": attending.Config(lstm.Config(3, 4, 2, param_dtype="float64")),
    "bahdanau": attending.Config(gru.Config(7, 4, 2, param_dtype="float64"), "bahdanau"),
    "pre": transformer.Config(4, 2, 2, kind="decoder", param_dtype="float64"),
    "post": transformer.Config(4, 2, 2, kind="decoder", norm="post", param_dtype="float64"),
}
POSITIONS = 8  # room enough for every search here


def make(body, seed=0, scale=2):
    config = seq2seq.Config(S, language_model.Config(V, body))
    shapes = jax.eval_shape(lambda: seq2seq.init(jax.random.key(0), config))
    return config, jax.tree.map(lambda leaf: leaf * scale, random_like(shapes, seed))


def words(bound, *shape, seed=1):
    return np.random.default_rng(seed).integers(0, bound, shape)


def test_against_plain_loops():
    """Two layers of LSTM: numpy's loop over the source, then over the target from where it ended."""
    config, params = make(BODIES["lstm"])
    source, target, lengths = words(S, B, 6), words(V, B, 5), np.array([6, 0, 4])
    layers = [jax.tree.map(lambda leaf, at=at: leaf[at], params.encoder[0]) for at in range(2)]
    zero = [(np.zeros((B, 4)), np.zeros((B, 4)))] * 2
    lefts, _ = reference.stack(reference.lstm, layers, zero, params.embed[source.T], lengths)
    layers = [jax.tree.map(lambda leaf, at=at: leaf[at], params.decoder.body[0]) for at in range(2)]
    _, hs = reference.stack(reference.lstm, layers, lefts, params.decoder.embed[target.T[:-1]])
    logits = hs @ params.decoder.out
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, target.T[1:, :, None], -1)[..., 0].T
    assert_close(seq2seq.losses(params, source, target, config=config, source_lengths=lengths), expected, "float64")


@pytest.mark.parametrize("name", ["lstm", "projected", "gru", "luong", "bahdanau", "pre", "post"])
def test_padding_is_nothing_to_losses_and_gradients(name):
    """A batch of unequal pairs is its pairs, each alone and as long as it is, an empty source and target among them."""
    config, params = make(BODIES[name])
    source, target = words(S, B, 6), words(V, B, 7)
    lengths: Any = {"source_lengths": [6, 0, 2], "target_lengths": [3, 7, 1]}

    def loss(params):
        return seq2seq.loss(params, source, target, config=config, **lengths)

    def each(params):
        total = 0.0
        for n, (s, t) in enumerate(zip(*lengths.values(), strict=True)):
            one = source[n : n + 1, : max(s, 1)], target[n : n + 1, : max(t, 2)]
            if t > 1:
                total += seq2seq.losses(params, *one, config=config, source_lengths=[s]).sum()
        return total

    (total, count), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert count == 2 + 6 + 0
    assert_close((total, gradient), jax.jit(jax.value_and_grad(each))(params), "float64")
    slow: Any = {"schedule": Checkpointed(), "block": 1}
    slow |= {} if name in ("pre", "post") else {"implementation": "reference"}
    other = jax.jit(jax.grad(lambda p: seq2seq.loss(p, source, target, config=config, **lengths, **slow)[0]))(params)
    assert_close(gradient, other, "float64")


def test_a_wrong_target_is_told_before_the_source_is_read():
    config, params = make(BODIES["lstm"])
    source, target = words(S, B, 6), words(V, B, 5)
    wrong: Any = [{"target_lengths": [1, 9, 1]}, {"smoothing": 1.5}, {"block": 0}, {"target_lengths": [1]}]
    before = seq2seq._encode._cache_size()  # pyright: ignore
    for options in wrong:
        with pytest.raises(ValueError):
            seq2seq.loss(params, source, target, config=config, **options)
    with pytest.raises(ValueError, match="target has shape"):
        seq2seq.loss(params, source, target[:, :1], config=config)
    assert seq2seq._encode._cache_size() == before  # pyright: ignore


def test_the_paper_s_start_dropout_and_bfloat16():
    config = seq2seq.Config(S, language_model.Config(V, lstm.Config(4, 4, 2, dropout=0.5, compute_dtype="bfloat16")))
    params = seq2seq.init(jax.random.key(0), config, uniform=0.08)
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    assert 0.07 < np.abs(leaves).max() <= 0.08 and abs(leaves.mean()) < 0.01
    assert jax.tree.structure(seq2seq.specs(config)) == jax.tree.structure(params)
    params, pair = seq2seq.init(jax.random.key(0), config), (words(S, B, 6), words(V, B, 5))
    plain, *dropped = (
        seq2seq.losses(params, *pair, config=config, key=None if k is None else jax.random.key(k))
        for k in (None, 0, 0, 1)
    )
    assert plain.dtype == "float32"
    assert_exact(dropped[0], dropped[1])
    assert (np.asarray(dropped[0]) != np.asarray(dropped[2])).any() and (np.asarray(dropped[0]) != plain).any()


# Beam search.


def models(name="lstm", seeds=(0,), source=None):
    config, _ = make(BODIES[name])
    source = words(S, 6, B) if source is None else source
    made = [make(BODIES[name], seed)[1] for seed in seeds]
    return config.decoder, [
        (params.decoder, seq2seq.encode(params, source, config=config, positions=POSITIONS)) for params in made
    ]


def told(config, made, target):
    """log p of the words of one target [N], for every sentence, each model's probabilities averaged: [B]."""
    read = np.tile(np.concatenate([[BEGIN], target])[:, None], B)
    each = [jax.nn.log_softmax(language_model.apply(p, read[:-1], config=config, carry=carry)[1]) for p, carry in made]
    log_p = np.log(np.mean(np.exp(each), axis=0))
    return np.take_along_axis(log_p, read[1:, :, None], -1)[..., 0].sum(0)


def search(config, made, width, length, **options):
    return beam(made, config=config, begin=BEGIN, end=END, width=width, max_length=length, **options)


@pytest.mark.parametrize(
    ("name", "seeds", "alpha"), [("lstm", (0,), 0.0), ("gru", (0, 1), 0.6), ("rnn", (0, 1, 2), 2.0)]
)
def test_a_beam_as_wide_as_the_space_finds_what_brute_force_finds(name, seeds, alpha):
    config, made = models(name, seeds)
    length, score = 3, Score(alpha)
    space = [
        hypothesis
        for n in range(1, length + 1)
        for hypothesis in product(range(V), repeat=n)
        if END not in hypothesis[:-1] and (hypothesis[-1] == END or n == length)
    ]
    scores = np.stack([score(told(config, made, np.array(one)), len(one)) for one in space])  # [hypotheses, B]
    found = search(config, made, V**length, length, score=score)
    for n in range(B):
        order = np.argsort(-scores[:, n])
        assert_close(found.scores[n, : len(space)], scores[order, n], "float64")
        for rank, at in enumerate(order):
            size = len(space[at])
            assert found.lengths[n, rank] == size
            assert tuple(np.asarray(found.words[n, rank])) == space[at] + (END,) * (length - size)
        assert np.isneginf(found.scores[n, len(space) :]).all() and not found.lengths[n, len(space) :].any()


@pytest.mark.parametrize("name", BODIES)
def test_one_beam_is_greedy_and_a_batch_is_its_sentences(name):
    """Of many sentences too, which go on without those that have ended: one model of each kind of carry."""
    many = 20 if name in ("lstm", "luong", "pre") else B
    source = words(S, 6, many)
    config, made = models(name, source=source)
    found = search(config, made, 1, 6)
    carry, last, ended = made[0][1], np.full(many, BEGIN), np.zeros(many, bool)
    for step in range(6):
        carry, logits = language_model.apply(made[0][0], last[None], config=config, carry=carry)
        last = np.where(ended, END, logits[0].argmax(-1))
        assert_exact(np.asarray(found.words[:, 0, step]), last.astype(np.int32))
        ended |= last == END
    wide = search(config, made, 4, 6)
    for n in range(0, many, many // B):
        _, alone = models(name, source=source[:, n : n + 1])
        assert_close(search(config, alone, 4, 6), jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], wide), "float64")


def test_scores_are_those_of_the_words_and_a_model_twice_is_one():
    config, made = models("lstm", (0, 3))
    found = search(config, made, 4, 7, score=Score(0.6))
    for n, k in product(range(B), range(4)):
        size = int(found.lengths[n, k])
        assert_close(found.scores[n, k], Score(0.6)(told(config, made, found.words[n, k, :size])[n], size), "float64")
    assert (np.diff(found.scores) <= 0).all()
    one, twice = search(config, made[:1], 3, 5), search(config, made[:1] * 2, 3, 5)
    assert_exact(one.words, twice.words)
    assert_close(one.scores, twice.scores, "float64")


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(
    ("ends", "read"),
    [([1] * 3, [3]), ([1] * 38, [38]), ([1] * 30 + [3] * 6 + [10] * 3 + [40], [40] + [10] * 2 + [5] * 7 + [2] * 30)],
    ids=["few at once", "all at once", "one by one"],
)
def test_what_has_ended_costs_nothing(ends, read, sampled, monkeypatch):
    """A scripted model, whose sentence b ends after as many words as its carry says: few that go on are few rows.

    No two cases are of one shape: a second would run the compiled first, which tells the rows to that one's list.
    """
    ends, rows = np.array(ends), []
    config, made = models("lstm", source=words(S, 6, len(ends)))
    carry = made[0][1]
    carry = lstm.Carry(c=jnp.broadcast_to(ends[None, :, None], carry.c.shape).astype("float64"), h=0 * carry.h)

    def scripted(params, tokens, *, config, carry):
        jax.debug.callback(lambda: rows.append(tokens.shape[1]))
        carry = carry._replace(h=carry.h + 1)
        end = jnp.where(carry.h[0, :, 0] >= carry.c[0, :, 0], 50.0, -50.0)
        return carry, jnp.zeros((1, len(end), V)).at[0, :, END].set(end)

    monkeypatch.setattr(language_model, "apply", scripted)
    how: Any = {"config": config, "begin": BEGIN, "end": END, "max_length": 50}
    made = [(made[0][0], carry)]
    found = sample(made, key=jax.random.key(0), **how) if sampled else beam(made, width=1, **how)
    jax.effects_barrier()
    assert_exact(np.asarray(found.lengths[:, 0]), ends.astype(np.int32))
    assert_exact(np.asarray(found.words == END).sum(-1)[:, 0], 51 - ends)
    assert rows == read


def test_a_sample_is_of_the_key_and_its_place():
    """Whatever else is in the batch, and though it is given up in parts."""
    source = words(S, 6, 20)
    drawn = []
    for sentences in (source, source[:, :B]):
        config, made = models("gru", source=sentences)
        drawn.append(sample(made, config=config, begin=BEGIN, end=END, max_length=8, key=jax.random.key(0)))
    assert len({*np.asarray(drawn[0].lengths).ravel().tolist()}) > 3
    assert_exact(drawn[0].words[:B], drawn[1].words)
    assert_close(drawn[0].scores[:B], drawn[1].scores, "float64")


@pytest.mark.usefixtures("untyped")
def test_wrong_calls():
    config, params = make(BODIES["lstm"])
    decoder, made = models()
    attention: Any = transformer.Config(4, param_dtype="float64")
    pair = words(S, B, 6), words(V, B, 5)
    missing: Any = None
    unknown: Any = "additive"
    for call, said in {
        lambda: seq2seq.Config(0, decoder): "source_vocab_size=0",
        lambda: seq2seq.Config(S, language_model.Config(V, attention)): "kind='decoder'",
        lambda: seq2seq.init(jax.random.key(0), config, uniform=0.0): "uniform=0.0",
        lambda: seq2seq.losses(params, pair[0] + S, pair[1], config=config): f"source run from .* 0..{S - 1}",
        lambda: seq2seq.losses(params, pair[0], pair[1] + V, config=config): f"target run from .* 0..{V - 1}",
        lambda: seq2seq.losses(params, pair[0][:2], pair[1], config=config): "source has 2 examples, target 3",
        lambda: seq2seq.losses(
            params, *pair, config=config, source_lengths=[7, 1, 1]
        ): r"source_lengths\[0\] = 7 .* the words of source",
        lambda: seq2seq.losses(
            params, *pair, config=config, target_lengths=[1, 9, 1]
        ): r"target_lengths\[1\] = 9 is outside 0..5, the words of target",
        lambda: seq2seq.losses(params, pair[0], pair[1][:, :1], config=config): r"target has shape \(3, 1\)",
        lambda: seq2seq.losses(params, *pair, config=config, smoothing=1.5): "smoothing=1.5",
        lambda: seq2seq.losses(params.decoder, *pair, config=config): "made with another config",
        lambda: search(decoder, [], 1, 1): "no model",
        lambda: search(decoder, made, 0, 1): "width=0",
        lambda: search(decoder, made, 1, 0): "max_length=0",
        lambda: beam(made, config=decoder, begin=V, end=END, width=1, max_length=1): f"begin={V}",
        lambda: search(*models("pre"), 1, POSITIONS + 1): f"room for {POSITIONS} positions",
        lambda: search(decoder, models("luong")[1], 1, 1): "made with another config",
        lambda: sample(made, config=decoder, begin=BEGIN, end=END, max_length=1, key=missing): "key=None",
        lambda: language_model.losses(models("luong")[1][0][0], pair[1], config=models("luong")[0]): "needs a source",
        lambda: language_model.losses(models("pre")[1][0][0], pair[1], config=models("pre")[0]): "attends to a source",
        lambda: language_model.losses(made[0][0], pair[1], config=decoder, smoothing=1.0): "smoothing=1.0",
        lambda: seq2seq.Config(S, decoder, joint=True): "joint=True: 9 source words, 5",
        lambda: seq2seq.Config(S, models("pre")[0], bidirectional=True): "bidirectional=True",
        lambda: seq2seq.Config(S, language_model.Config(V, gru.Config(4, 5)), bidirectional=True): "of an even one",
        lambda: language_model.zeros(models("luong")[0], 1, 1): "goes on from a source",
        lambda: language_model.Config(V, BODIES["projected"], tied=True, dropout=1.0): "dropout=1.0",
        lambda: language_model.Config(V, gru.Config(3, 4), tied=True): "words of width 3 and gives 4",
        lambda: attending.Config(gru.Config(4, 4), "bahdanau"): "a context of width 4",
        lambda: attending.Config(gru.Config(4, 4), unknown): "attention='additive'",
        lambda: attending.Config(gru.Config(4, 4, bidirectional=True)): "runs forwards",
        lambda: transformer.Config(4, kind=unknown): "kind='additive'",
        lambda: transformer.Config(4, norm=unknown): "norm='additive'",
        lambda: language_model.Config(V, transformer.Config(4, kind="encoder")): "kind='encoder'",
        lambda: search(decoder, made + models(source=words(S, 6, 2))[1], 1, 1): "give each model the same ones",
        lambda: Score(-1.0): "alpha=-1.0",
    }.items():
        with pytest.raises(ValueError, match=said):
            call()
