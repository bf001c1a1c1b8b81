"""Hochreiter & Schmidhuber's task 6b, temporal order with three symbols, and the recurrent nets that learn it.

Noise of four letters between a first E and a last B; at three places far apart stands X or Y. Which of the eight
orders it was is asked after the last symbol.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

from experiments import fit
from lstm_rot.branches import gru as gru_branch
from lstm_rot.branches import lstm as lstm_branch
from lstm_rot.models import gru, lstm

START, NOISE, X, Y, END = 0, 1, 5, 6, 7  # symbols: E; a, b, c, d from 1 to 4; X; Y; B
SYMBOLS = CLASSES = 8
PLACES = ((10, 20), (33, 43), (66, 76))  # of X or Y in 100 to 110 symbols, the first and the last that may be
STRETCH = 2000  # sequences in a row, each new, by whose errors a net is judged
SOLVED = 0.01  # the share of them that may be wrong


@dataclass(frozen=True)
class Kind:
    """A recurrent cell: its model and its branch, and what its model's Config says of it."""

    model: Any
    branch: Any
    options: tuple[tuple[str, Any], ...] = ()


KINDS = {
    "1997": Kind(lstm, lstm_branch.lstm_1997, (("gates", lstm_branch.GATES_1997),)),
    **{f"bias:{bias}": Kind(lstm, lstm_branch.lstm, (("forget_bias", float(bias)),)) for bias in (-2, 0, 1, 2, 3, 5)},
    "GRU": Kind(gru, gru_branch.gru),
}


class Sequences(NamedTuple):
    """xs [T, B, 8], one symbol a step, what stands past a length [B] of no meaning; classes [B] in 0..7."""

    xs: jax.Array
    lengths: jax.Array
    classes: jax.Array


def sequences(key: jax.Array, count: int, length: int, *, longest: int | None = None) -> Sequences:
    """Sequences of `length` to `longest` symbols, by default a tenth more; at other lengths than 100 all is scaled."""
    keys = jax.random.split(key, 4)
    longest = length + length // 10 if longest is None else longest
    lengths = jax.random.randint(keys[0], (count,), length, longest + 1)
    places = np.array(PLACES) * length // 100
    at = jax.random.randint(keys[1], (count, 3), places[:, 0], places[:, 1] + 1)
    which = jax.random.bernoulli(keys[2], shape=(count, 3)).astype("int32")
    t = jnp.arange(longest)[:, None]
    symbols = jax.random.randint(keys[3], (longest, count), NOISE, X)
    for k in range(3):
        symbols = jnp.where(t == at[:, k], X + which[:, k], symbols)
    symbols = jnp.where(t == 0, START, jnp.where(t == lengths - 1, END, symbols))
    return Sequences(jax.nn.one_hot(symbols, SYMBOLS), lengths, which @ jnp.array([4, 2, 1]))


class Reader(NamedTuple):
    """The recurrent layer's params, and the linear head that reads its last output."""

    body: Any
    w: jax.Array
    b: jax.Array


def config_of(kind: Kind, hidden_size: int) -> Any:
    return kind.model.Config(SYMBOLS, hidden_size, **dict(kind.options))


def init(key: jax.Array, kind: Kind, hidden_size: int) -> Reader:
    """As the model has it; the head starts at zero."""
    body = kind.model.init(key, config_of(kind, hidden_size))
    return Reader(body, jnp.zeros((hidden_size, CLASSES)), jnp.zeros(CLASSES))


def logits(p: Reader, kind: Kind, given: Sequences) -> jax.Array:
    """[B, 8], after each sequence's last symbol."""
    config = config_of(kind, p.w.shape[0])
    carry, _ = kind.model.apply(p.body, given.xs, config=config, lengths=given.lengths)
    return carry.h[-1] @ p.w + p.b


class Learnt(NamedTuple):
    """params, one slice a seed, and the share of wrong answers in each stretch of new sequences: [seeds, stretches]."""

    params: Reader
    errors: np.ndarray


def learn(
    kind: Kind,
    *,
    length: int,
    hidden_size: int,
    stretches: int,
    batch: int,
    learning_rate: float,
    seeds: int,
    progress: Progress,
    label: str,
) -> Learnt:
    """Adam, gradients clipped at norm 1, every batch new; one jitted scan a stretch, `vmap`ped over the seeds."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))

    def step(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = state
        given = sequences(key, batch, length)

        def loss(p: Reader) -> tuple[jax.Array, jax.Array]:
            scores = logits(p, kind, given)
            return fit.cross_entropy(scores, given.classes), (scores.argmax(-1) != given.classes).mean()

        grads, wrong = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), wrong

    @partial(jax.jit, donate_argnums=0)
    @partial(jax.vmap, in_axes=(0, 0, None))
    def advance(state: Any, key: jax.Array, stretch: Any) -> tuple[Any, jax.Array]:
        state, wrong = jax.lax.scan(step, state, jax.random.split(jax.random.fold_in(key, stretch), STRETCH // batch))
        return state, wrong.mean()

    params = fit.per_seed(partial(init, kind=kind, hidden_size=hidden_size), seeds)
    state = params, jax.vmap(optimizer.init)(params)
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.arange(seeds))
    task, errors = progress.add_task(label, total=stretches), []
    for stretch in range(stretches):
        if fit.INTERRUPTED.is_set():
            raise InterruptedError(label)
        state, wrong = advance(state, keys, jnp.int32(stretch))
        errors.append(np.asarray(wrong))
        progress.advance(task)
    progress.remove_task(task)
    return Learnt(state[0], np.stack(errors, axis=1))


def solved_after(errors: Any) -> list[float]:
    """Sequences that each seed had read when it had got a stretch right, but for 1%; infinite where it never did."""
    right = np.array(errors) <= SOLVED
    return [float(STRETCH * (row.argmax() + 1)) if row.any() else float("inf") for row in right]
