"""The training state, and the jitted step that makes the next one from it and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

Loss = Callable[[Any, Any, Any], tuple[Any, ...]]


@flax.struct.dataclass
class State:
    """All that a run hands from one step to the next; with the data's position, all that it needs to go on.

    Of arrays, or in their place of their shapes or shardings.
    """

    step: Any  # int32 scalar: updates made
    params: Any
    opt_state: Any
    key: Any  # uint32: a key's data; step n draws from the key folded with n
    halted: Any  # bool scalar: a loss or gradient was not finite; from then on nothing here changes
    statistics: Any = ()  # running means of what the loss hands out beside itself, as batch norm's statistics


def init_state(
    init: Callable[[Any], Any],
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    shardings: Any = None,
    statistics: Any = (),
) -> State:
    """The state before the first step: init(key) -> params. With `shardings`, every leaf is made where it lives.

    statistics: where the running means begin, a tree like the third thing that the loss function returns.
    """

    def make(key: Any) -> State:
        params = init(jax.random.fold_in(key, 0))
        return State(
            step=jnp.zeros((), "int32"),
            params=params,
            opt_state=optimizer.init(params),
            key=jax.random.key_data(jax.random.fold_in(key, 1)),
            halted=jnp.zeros((), "bool"),
            statistics=jax.tree.map(jnp.asarray, statistics),
        )  # pyright: ignore

    return jax.jit(make, out_shardings=shardings)(key)


def make_train_step(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    decay: float = 0.9,
    shardings: Any = None,
    batch_sharding: Any = None,
) -> Callable[[State, Any], tuple[State, dict]]:
    """step(state, batch) -> (state, metrics), jitted, the state donated.

    loss_fn(params, batch, key) -> (sum of the losses, number of items): the loss is their ratio over the whole batch,
    so that accumulation, and batches of sequences of different lengths, weigh every item alike. The dtype of the
    products is the model's own. It may return a third thing, a tree of numbers whose running means state.statistics
    keeps: after each step they are decay times what they were, and 1 - decay times the new ones (of several parts,
    their mean).
    batch: a tree, the first axis of each leaf that of the examples. accumulate: parts into which it is cut, one after
    another, each as large as memory allows. clip: the greatest global norm of the gradient (Pascanu et al. 2013).
    shardings, batch_sharding: see `training.sharding`.

    metrics, float32: loss; gradient_norm, before clipping; items. A step whose loss or gradient is not finite leaves
    the state as it was, but for `halted`.

    Raises ValueError for accumulate below 1, a clip that is not above 0, a decay outside 0..1, and, at the first call
    and before compiling, for a batch whose examples do not divide into `accumulate` parts over the mesh's `data`.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate={accumulate}: the batch is cut into at least one part")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: give the greatest norm of the gradient, above 0, or None")
    if not 0 <= decay < 1:
        raise ValueError(f"decay={decay}: give the weight of the old in a running mean, at least 0 and below 1")

    update = partial(_updated, loss_fn, optimizer, accumulate, clip, decay)

    def step(state: State, batch: Any) -> tuple[State, dict]:
        _check(batch, accumulate, batch_sharding)
        if shardings is None:
            return update(state, batch)
        with jax.sharding.use_abstract_mesh(shardings.step.mesh.abstract_mesh):  # for kernels: what is compiled for
            return update(state, batch)

    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding),
        out_shardings=(shardings, shardings.step),  # metrics are everywhere, as the step's number
    )


def _updated(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    accumulate: int,
    clip: float | None,
    decay: float,
    state: State,
    batch: Any,
) -> tuple[State, dict]:
    """The next state and the metrics, as `make_train_step` says."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    total, items, statistics, gradient = _gradient(loss_fn, accumulate, state.params, batch, key)
    count = jnp.maximum(items, 1)  # a batch of nothing but padding has loss 0
    loss, gradient = total / count.astype(total.dtype), jax.tree.map(lambda g: g / count.astype(g.dtype), gradient)
    norm = optax.tree.norm(gradient)
    if clip is not None:
        factor = jnp.minimum(1.0, clip / norm)
        gradient = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    running = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) / accumulate * new.astype(old.dtype), state.statistics, statistics
    )
    params = optax.apply_updates(state.params, updates)
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, statistics=running)  # pyright: ignore
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & ~state.halted
    new = jax.tree.map(partial(jnp.where, good), new, state).replace(halted=~good)
    metrics = {"loss": loss, "gradient_norm": norm, "items": items}
    return new, jax.tree.map(lambda leaf: leaf.astype("float32"), metrics)


def _gradient(loss_fn: Loss, accumulate: int, params: Any, batch: Any, key: Any) -> tuple[Any, Any, Any, Any]:
    """Of the losses over the batch, part by part: sum, number of items, sum of the statistics, the sum's gradient."""

    def of(part: Any, key: Any) -> tuple[Any, Any, Any, Any]:
        def scalar(params: Any) -> tuple[Any, Any]:
            total, items, *statistics = loss_fn(params, part, key)
            return total, (jnp.asarray(items).astype("float32"), statistics[0] if statistics else ())

        (total, (items, statistics)), gradient = jax.value_and_grad(scalar, has_aux=True)(params)
        return total, items, statistics, gradient

    if accumulate == 1:
        return of(batch, key)

    def add(sums: Any, x: Any) -> tuple[Any, None]:
        number, part = x
        return jax.tree.map(jnp.add, sums, of(part, jax.random.fold_in(key, number))), None

    # Part m is every accumulate-th example from m on, so that each part lies over `data` as the batch does.
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
    shapes = jax.eval_shape(of, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate, dtype="int32"), parts))[0]


def _check(batch: Any, accumulate: int, sharding: Any) -> None:
    devices = 1 if sharding is None else sharding.mesh.shape["data"]
    for path, leaf in jax.tree.leaves_with_path(batch):
        examples = leaf.shape[0] if leaf.ndim else 0
        if examples == 0 or examples % (accumulate * devices):
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has {examples} examples, shape {leaf.shape}: give a multiple of "
                f"accumulate={accumulate} times data={devices}"
            )
