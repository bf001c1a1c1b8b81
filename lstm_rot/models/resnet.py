"""An isotropic net of equal steps along DEPTH: `scan(turn(residual(branch)), DEPTH)`, residual, plain or highway."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches import dense, highway, with_keep
from lstm_rot.branches.common import layer_norm
from lstm_rot.core import DEPTH, Branch, residual, scan, turn
from lstm_rot.models import checks
from lstm_rot.schedules import Schedule, Sequential

P: Any = PartitionSpec  # stands where the weights stand


class Step(NamedTuple):
    """A branch and what makes its weights: init(key, input_size, hidden_size, dtype)."""

    branch: Branch
    init: Callable[..., Any]


RESIDUAL = Step(dense.dense, dense.init)
PLAIN = Step(with_keep(dense.dense, 0), dense.init)
HIGHWAY = Step(highway.highway, highway.init)


@dataclass(frozen=True)
class Config(checks.Dtypes):
    """Sizes and dtypes, and which step the net is made of. Raises ValueError for sizes below 1 and wrong dtypes."""

    input_size: int
    hidden_size: int
    num_layers: int
    step: Step = RESIDUAL

    def __post_init__(self):
        super().__post_init__()
        checks.sizes(self, "input_size", "hidden_size", "num_layers")


class Params(NamedTuple):
    """Weights of the net: into the stream, the steps with a leading layer axis, and the norm that reads it."""

    w: Float[Array, "D H"]
    b: Float[Array, "H"]
    steps: Any
    scale: Float[Array, "H"]


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params; layer l's key is the key folded with l.

    Raises ValueError for what is not one key, and another model's config.
    """
    checks.fresh(key, config, Config)
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    dtype, hidden = config.param_dtype, config.hidden_size
    key_in, key_steps = jax.random.split(key)
    keys = jax.vmap(partial(jax.random.fold_in, key_steps))(jnp.arange(config.num_layers))
    return Params(
        w=jax.nn.initializers.lecun_normal()(key_in, (config.input_size, hidden), dtype),
        b=jnp.zeros(hidden, dtype),
        steps=jax.vmap(lambda key: config.step.init(key, None, hidden, dtype))(keys),
        scale=jnp.ones(hidden, dtype),
    )


def specs(config: Config) -> Params:
    """How the params lie over a mesh: steps over `stage`, hidden sizes over `model`."""
    steps = jax.tree.map(lambda leaf: P("stage", *[None] * (leaf.ndim - 2), "model"), _shapes(config).steps)
    return Params(w=P(None, "model"), b=P("model"), steps=steps, scale=P("model"))


def apply(
    params: Params,
    xs: Float[Any, "B D"],
    *,
    config: Config,
    schedule: Schedule = Sequential(),
) -> Float[Array, "B H"]:
    """Runs the net, jitted, and returns its last stream, normalised: [B, H] in the compute dtype.

    Raises ValueError, before any compilation, for wrong ranks, widths, dtypes, and params of another config.
    """
    checks.floats("xs", xs, "B D", config.input_size, config_field="config.input_size")
    checks.like("params", params, _shapes(config))
    run = partial(_apply, config=config, schedule=schedule)
    return checks.automatic(run, xs, P(jax.typeof(xs).sharding.spec[0], None))(params, xs)


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


@partial(jax.jit, static_argnames=("config", "schedule"))
def _apply(params: Params, xs: Any, *, config: Config, schedule: Schedule) -> jax.Array:
    params = config.cast(params)
    stream = (xs.astype(config.compute) @ params.w + params.b).astype(config.stream)
    net = scan(turn(residual(config.step.branch)), DEPTH, schedule=schedule)
    _, (stream, _) = net(params.steps, None, (stream, ()))
    return layer_norm(stream, params.scale).astype(config.compute)
