"""Training on sequences that are always new, and the errors at chosen distances."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import fit
from experiments.recall import kinds
from experiments.recall.kinds import Net, Params
from experiments.recall.tasks import Sequences, Task

CHUNK = 50  # steps a call
PIECE = 50  # sequences read at once when errors are measured
TEST = 2**31  # seed of the sequences by which errors are measured: of no training

# Runs once, so that compiling is all its time: without optimising it takes a fifth.
fresh = jax.jit(kinds.init, static_argnums=1, compiler_options={"xla_backend_optimization_level": 0})


def share_wrong(scores: jax.Array, given: Sequences) -> jax.Array:
    """Of logits [Q, B, A], the share whose greatest is not the answer's, 0..1."""
    return (scores.argmax(-1) != given.answers).mean()


class Training:
    """One net's on one task: compiled once, for every rate and seed.

    Adam, warmed up over a tenth of the steps and falling to 0 along a cosine, gradients clipped at norm 1.
    """

    def __init__(self, task: Task, net: Net, *, trained: int, steps: int, batch: int):
        self.task, self.net, self.trained, self.steps, self.batch = task, net, trained, steps, batch
        shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(shape)
        )
        self._advance = jax.jit(self._chunk, donate_argnums=0)

    def __call__(self, rate: float, seed: int, done: Callable[[int], None]) -> tuple[Params, list[float]]:
        """The params, and the share of wrong answers in each chunk of `CHUNK` steps, of which `done` is told.

        Distances are uniform from the task's least to `trained`; weights and sequences are the seed's, at every rate.
        """
        params = fresh(jax.random.key(seed), self.net)
        state, rng, errors = (params, self.optimizer.init(params)), np.random.default_rng(seed), []
        for _ in range(self.steps // CHUNK):
            if fit.INTERRUPTED.is_set():
                raise InterruptedError(self.net.kind)
            state, error = self._advance(state, np.float32(rate), self._batches(rng))
            errors.append(float(error))
            done(CHUNK)
        return state[0], errors

    def _batches(self, rng: np.random.Generator) -> Sequences:
        """[CHUNK, ...]"""
        distance = rng.integers(self.task.least, self.trained + 1, CHUNK * self.batch)
        given = self.task.draw(rng, distance, self.task.steps(self.trained))
        return Sequences(*(part.reshape(len(part), CHUNK, self.batch).swapaxes(0, 1).astype("int32") for part in given))

    def _chunk(self, state: Any, rate: jax.Array, batches: Sequences) -> tuple[Any, jax.Array]:
        state, errors = jax.lax.scan(partial(self._step, rate), state, batches)
        return state, errors.mean()

    def _step(self, rate: jax.Array, state: Any, given: Sequences) -> tuple[Any, jax.Array]:
        def loss(p: Params) -> tuple[jax.Array, jax.Array]:
            scores = kinds.logits(p, self.net, given)
            return fit.cross_entropy(scores, jnp.asarray(given.answers)), share_wrong(scores, given)

        params, moments = state
        grads, error = jax.grad(loss, has_aux=True)(params)
        updates, moments = self.optimizer.update(grads, moments)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return (optax.apply_updates(params, updates), moments), error


def held_out(task: Task, distances: Sequence[int], count: int) -> Iterator[list[Sequences]]:
    """Of each distance at least `count` sequences, `PIECE` at once, all of one length: the same for every net."""
    steps = task.steps(max(distances))
    for distance in distances:
        rng = np.random.default_rng((TEST, distance))
        yield [task.draw(rng, np.full(PIECE, distance), steps) for _ in range(-(-count // PIECE))]


def errors_at(
    task: Task, answer: Callable[[Sequences], jax.Array], distances: Sequence[int], count: int
) -> list[float]:
    """The share of wrong answers at each distance, 0..1; answer: the logits [Q, B, A] of sequences, all of one length.

    count: sequences by which each is measured.
    """
    return [
        float(np.mean([share_wrong(answer(given), given) for given in each]))
        for each in held_out(task, distances, count)
    ]
