"""What a language model, or several together, go on with from a carry: the likeliest words by beam search, or samples.

Of a sentence pair the carry is what `models.seq2seq.encode` makes of its source; a width of 1 takes the likeliest word
at each step, greedily.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_rot.models import checks, language_model, transformer


@dataclass(frozen=True)
class Score:
    """log p of a hypothesis over ((5 + n) / 6)^alpha, n its words with the end (Wu et al. 2016, Eq. 14).

    alpha 0: the plain sum of Sutskever et al. 2014. Vaswani et al. 2017 have 0.6.
    """

    alpha: float = 0.0

    def __post_init__(self):
        if not self.alpha >= 0:
            raise ValueError(f"alpha={self.alpha!r}: give 0, or above it to favour longer hypotheses")

    def __call__(self, log_p: Any, length: Any) -> Any:
        return log_p / ((5.0 + jnp.asarray(length, log_p.dtype)) / 6.0) ** self.alpha


class Hypotheses(NamedTuple):
    """The best of each sentence, best first; where there are fewer than K, scores of -inf and lengths of 0."""

    words: Int[Array, "B K N"]  # behind the end, the end again
    lengths: Int[Array, "B K"]  # with the end, which a hypothesis of N words may lack
    scores: Float[Array, "B K"]


class _Search(NamedTuple):
    """A search under way: `step` words are written, and K beams a sentence go on from them."""

    step: Any
    sentences: Any  # [B], which of the batch's these are
    carries: Any  # of each model, [L, B * K, ...]
    last: Any  # [B * K], the words to be read next
    words: Any  # [B, K, N]
    log_p: Any  # [B, K], -inf where there is no beam
    done: Hypotheses  # of samples, what is written so far; `words` and `log_p` are then None


FEW = 4  # sentences: so many stay together until all have ended


def _run(search: _Search, goes_on: Any, advance: Any, config: language_model.Config) -> Hypotheses:
    """What is done when no sentence goes on, by goes_on(search), [B]; when at most half do, they do so alone."""
    batch = len(search.sentences)
    half = batch // 2 if batch > FEW else 0
    search = jax.lax.while_loop(lambda search: goes_on(search).sum() > half, advance, search)
    if not half:
        return search.done
    rows = jnp.argsort(~goes_on(search), stable=True)[:half]
    width = len(search.last) // batch
    beams = (width * rows[:, None] + jnp.arange(width)).reshape(-1)
    sentences, words, log_p, done = jax.tree.map(
        lambda leaf: leaf[rows], (search.sentences, search.words, search.log_p, search.done)
    )
    carries = tuple(config.carries.taken(carry, beams) for carry in search.carries)
    rest = _run(
        _Search(search.step, sentences, carries, search.last[beams], words, log_p, done), goes_on, advance, config
    )
    return jax.tree.map(lambda whole, some: whole.at[rows].set(some), search.done, rest)


def beam(
    models: Sequence[tuple[language_model.Params, Any]],
    *,
    config: language_model.Config,
    begin: int,
    end: int,
    width: int,
    max_length: int,
    score: Score = Score(),
) -> Hypotheses:
    """The best `width` hypotheses of every sentence, jitted.

    models: params and first carry of each; of several, an ensemble, the mean of the probabilities is taken. begin: the
    word read first, and not returned; end: the one that ends a hypothesis, counted in its length. After `max_length`
    words a hypothesis ends as it stands. At each step the best `width` continuations are looked at: those that end are
    kept as done, and others take their places. A sentence's search ends as soon as nothing can beat what is done; when
    at most half of more than 4 sentences go on, they do so without the others.

    Raises ValueError, before any compilation, for no model, a Transformer's cache without room, begin and end outside
    the vocabulary, a width or a length below 1, and carries that differ in their batch or are of another config.
    """
    models = tuple((params, carry) for params, carry in models)
    _check(models, config, begin, end, width, max_length)
    return _beam(models, begin, end, config=config, width=width, max_length=max_length, score=score)


def sample(
    models: Sequence[tuple[language_model.Params, Any]],
    *,
    config: language_model.Config,
    begin: int,
    end: int,
    max_length: int,
    key: PRNGKeyArray,
    temperature: float = 1.0,
) -> Hypotheses:
    """One hypothesis of each sentence, its words drawn one by one from p^(1 / temperature), jitted; K is 1.

    models, begin, end and max_length as in `beam`; the scores are log p, whatever the temperature. Sentence b's words
    follow from the key, b and its carry, whatever else is in the batch. Raises ValueError as `beam` does, and for a
    temperature that is not above 0: a beam of width 1 takes the likeliest.
    """
    models = tuple((params, carry) for params, carry in models)
    _check(models, config, begin, end, 1, max_length)
    checks.key_in(key)
    if key is None or not temperature > 0:
        raise ValueError(f"key={key!r}, temperature={temperature}: give a key and a temperature above 0")
    return _sample(models, begin, end, key, jnp.asarray(temperature), config=config, max_length=max_length)


@partial(jax.jit, static_argnames=("config", "max_length"))
def _sample(
    models: Any, begin: Any, end: Any, key: Any, temperature: Any, *, config: language_model.Config, max_length: int
) -> Hypotheses:
    params, carries = zip(*models, strict=True)
    batch, wide = language_model.batch_of(carries[0]), _wide(config)
    nothing = Hypotheses(
        jnp.full((batch, 1, max_length), end, "int32"), jnp.zeros((batch, 1), "int32"), jnp.zeros((batch, 1), wide)
    )
    first = _Search(jnp.int32(0), jnp.arange(batch), carries, jnp.full(batch, begin, "int32"), None, None, nothing)

    def goes_on(search: _Search) -> jax.Array:
        return (search.step < max_length) & ((search.step == 0) | (search.last != end))

    def advance(search: _Search) -> _Search:
        writing, done = goes_on(search), search.done
        carries, log_p = _read(params, search.carries, search.last, config, wide)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, search.step)))(search.sentences)
        drawn = jax.vmap(jax.random.categorical)(keys, log_p / temperature.astype(wide))
        word = jnp.where(writing, drawn.astype("int32"), end)
        said = jnp.where(writing, jnp.take_along_axis(log_p, word[:, None], axis=1)[:, 0], 0)
        done = Hypotheses(
            done.words.at[:, 0, search.step].set(word),
            done.lengths + writing[:, None].astype(done.lengths.dtype),
            done.scores + said[:, None],
        )
        return search._replace(step=search.step + 1, carries=carries, last=word, done=done)

    return _run(first, goes_on, advance, config)


def _wide(config: language_model.Config) -> Any:
    """The dtype of probabilities: at least float32."""
    return config.body.compute if jnp.finfo(config.body.compute).bits > 32 else jnp.dtype("float32")


def _check(models: tuple, config: language_model.Config, begin: int, end: int, width: int, max_length: int) -> None:
    if not models:
        raise ValueError("no model: give at least one pair of params and carry")
    for name, word in {"begin": begin, "end": end}.items():
        if not 0 <= word < config.vocab_size:
            raise ValueError(f"{name}={word}: give the number of a word, 0..{config.vocab_size - 1}")
    for name, number in {"width": width, "max_length": max_length}.items():
        if number < 1:
            raise ValueError(f"{name}={number}: give at least 1")
    batches = [language_model.batch_of(carry) for _, carry in models]
    if len(set(batches)) > 1:
        raise ValueError(f"the carries are of {batches} sentences: give each model the same ones")
    for params, carry in models:
        room = transformer.room(carry) if isinstance(config.body, transformer.Config) else max_length
        if room < max_length:
            raise ValueError(
                f"max_length={max_length}: the carry's cache has room for {room} positions; make it with "
                f"positions={max_length}"
            )
        first = jnp.zeros((1, batches[0]), "int32")
        jax.eval_shape(partial(language_model.apply, config=config, carry=carry), params, first)


@partial(jax.jit, static_argnames=("config", "width", "max_length", "score"))
def _beam(
    models: Any, begin: Any, end: Any, *, config: language_model.Config, width: int, max_length: int, score: Score
) -> Hypotheses:
    params, carries = zip(*models, strict=True)
    batch = language_model.batch_of(carries[0])
    wide = _wide(config)
    words = jnp.full((batch, width, max_length), end, "int32")
    nothing = jnp.full((batch, width), -jnp.inf, wide)
    first = _Search(
        step=jnp.int32(0),
        sentences=jnp.arange(batch),
        carries=tuple(config.carries.taken(carry, jnp.repeat(jnp.arange(batch), width)) for carry in carries),
        last=jnp.full(batch * width, begin, "int32"),
        words=words,
        log_p=nothing.at[:, 0].set(0),  # one beam: the others would be the same
        done=Hypotheses(words, jnp.zeros((batch, width), "int32"), nothing),
    )

    def goes_on(search: _Search) -> jax.Array:
        best = search.log_p.max(-1)  # it can only fall, its length only grow
        bound = jnp.maximum(score(best, search.step + 1), score(best, max_length))
        return (search.step < max_length) & (bound > search.done.scores[:, -1])

    def advance(search: _Search) -> _Search:
        carries, log_p = _read(params, search.carries, search.last, config, wide)
        total = search.log_p[..., None] + log_p.reshape(*search.log_p.shape, -1)
        return _chosen(search._replace(carries=carries), total, end, score, config)

    return _run(first, goes_on, advance, config)


def _read(params: tuple, carries: tuple, words: jax.Array, config: Any, wide: Any) -> tuple[tuple, jax.Array]:
    """Every model reads the words [N]: the carries, and the logarithms of their mean probabilities, [N, V]."""
    read = [
        language_model.apply(p, words[None], config=config, carry=carry)
        for p, carry in zip(params, carries, strict=True)
    ]
    each = jnp.stack([jax.nn.log_softmax(logits[0].astype(wide)) for _, logits in read])
    return tuple(carry for carry, _ in read), jax.nn.logsumexp(each, axis=0) - np.log(len(read)).astype(wide)


def _chosen(search: _Search, total: jax.Array, end: Any, score: Score, config: language_model.Config) -> _Search:
    """The search one word further, by the log p [B, K, V] of every beam with every word."""
    batch, width, vocabulary = total.shape
    top = min(2 * width, width * vocabulary)  # of 2 K at most K end, for a beam has one end: K are left to go on
    log_p, places = jax.lax.top_k(total.reshape(batch, -1), top)
    beams, word = places // vocabulary, places % vocabulary
    words = _at(search.words, beams).at[:, :, search.step].set(word)
    length = search.step + 1
    ends = (word == end) | (length == words.shape[-1])
    kept = jnp.where(ends & (jnp.arange(top) < width), score(log_p, length), -jnp.inf)
    lengths = jnp.where(jnp.isfinite(kept), length, 0)
    done = _merged(search.done, Hypotheses(words, lengths, kept))

    log_p, places = jax.lax.top_k(jnp.where(ends, -jnp.inf, log_p), width)
    beams, word, words = _at(beams, places), _at(word, places), _at(words, places)
    rows = (beams + width * jnp.arange(batch, dtype=beams.dtype)[:, None]).reshape(-1)
    carries = tuple(config.carries.reordered(carry, rows) for carry in search.carries)
    return search._replace(step=length, carries=carries, last=word.reshape(-1), words=words, log_p=log_p, done=done)


def _merged(done: Hypotheses, new: Hypotheses) -> Hypotheses:
    """The best of both, as many as are done."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), done, new)
    _, places = jax.lax.top_k(both.scores, done.scores.shape[1])
    return jax.tree.map(lambda leaf: _at(leaf, places), both)


def _at(leaf: jax.Array, places: jax.Array) -> jax.Array:
    """Of [B, M, ...] the entries [B, K] of each sentence."""
    return jnp.take_along_axis(leaf, places.reshape(*places.shape, *(1,) * (leaf.ndim - 2)), axis=1)
