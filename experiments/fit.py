"""Training for the experiments: one jitted `lax.scan` over steps, `vmap`ped over the seeds."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import Progress

from experiments.data import Images

INTERRUPTED = threading.Event()


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the batch, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def fit(
    params: Any,
    logits: Callable[[Any, jax.Array], jax.Array],
    images: Images,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    progress: Progress,
    label: str,
) -> tuple[Any, np.ndarray]:
    """Adam with a cosine decay, gradients clipped at norm 1: the params, and the losses [seeds, steps].

    `params` have one slice a seed; each seed has its own batches, drawn with replacement.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    )
    x, y = jnp.asarray(images.train_x), jnp.asarray(images.train_y)

    def step(state: Any, pick: jax.Array) -> tuple[Any, jax.Array]:
        params, moments = state
        loss, grads = jax.value_and_grad(lambda p: cross_entropy(logits(p, x[pick]), y[pick]))(params)
        updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), loss

    @partial(jax.jit, donate_argnums=0)
    @jax.vmap
    def advance(state: Any, picks: jax.Array) -> tuple[Any, jax.Array]:
        return jax.lax.scan(step, state, picks)

    seeds = len(jax.tree.leaves(params)[0])
    state = jax.tree.map(jnp.copy, params), jax.vmap(optimizer.init)(params)  # `advance` donates it
    picks = [np.random.default_rng(seed).integers(0, len(x), (steps, batch), np.int32) for seed in range(seeds)]
    task, losses = progress.add_task(label, total=steps), []
    for at in range(0, steps, 50):
        if INTERRUPTED.is_set():
            raise InterruptedError(label)
        state, loss = advance(state, np.stack(picks)[:, at : at + 50])
        losses.append(np.asarray(loss))
        progress.update(task, completed=min(at + 50, steps))
    progress.remove_task(task)
    return state[0], np.concatenate(losses, axis=1)


def per_seed(init: Callable[[jax.Array], Any], seeds: int) -> Any:
    """init(key) of the keys 0, 1, ..., stacked."""
    return jax.jit(jax.vmap(lambda seed: init(jax.random.key(seed))))(jnp.arange(seeds))


def in_parallel(work: Callable[[Any], Any], items: Iterable[Any], progress: Progress, label: str) -> list[Any]:
    """[work(item) for item in items], on as many threads as there are cores: most of it is compiling small programs.

    Ctrl-C stops every `fit` under way.
    """
    items = list(items)
    task = progress.add_task(label, total=len(items))
    INTERRUPTED.clear()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(task)
        except BaseException:
            INTERRUPTED.set()
            pool.shutdown(cancel_futures=True)
            raise
    progress.remove_task(task)
    return [future.result() for future in futures]


def error_rates(
    logits: Callable[[Any, jax.Array], jax.Array], params: Any, images: Images
) -> tuple[list[float], list[float]]:
    """The shares of wrong answers, 0..1, of each seed, on the training and on the test images."""
    x, y = np.concatenate([images.train_x, images.test_x]), np.concatenate([images.train_y, images.test_y])

    @jax.jit
    def wrong(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        answer = jax.lax.map(
            lambda one: jax.vmap(lambda p: logits(p, one[None])[0].argmax())(params), x, batch_size=256
        )
        return y != answer.T

    answers = np.asarray(wrong(params, x, y))
    train = len(images.train_x)
    return answers[:, :train].mean(1).tolist(), answers[:, train:].mean(1).tolist()


def rate(rows: Iterable[dict]) -> float:
    """The median of what a run's log tells in items a second; of a run too short to tell, nan."""
    told = [row["items_per_second"] for row in rows if "items_per_second" in row]
    return float(np.median(told)) if told else float("nan")


def counted(number: int, noun: str) -> str:
    """As in "1 seed", "3 seeds"."""
    return f"{number} {noun}" + "s" * (number != 1)


def spread(values: Any) -> str:
    """mean +- standard deviation, three digits."""
    return f"{np.mean(values):.3g} ± {np.std(values):.2g}"
