"""A causal Transformer: `scan(chain(turn(residual(attention)), turn(residual(mlp))), DEPTH)`, pre-norm.

Its keys and values are what flows along time. Without a carry a whole sequence is one chunk, as in training; with one,
a prompt of any length or a single position continues it. Depth inside time is cached decoding, time inside depth
prefill.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lstm_rot.branches import attention, mlp
from lstm_rot.branches.common import layer_norm
from lstm_rot.core import DEPTH, Cell, chain, residual, scan, turn
from lstm_rot.models import checks
from lstm_rot.schedules import Schedule, Sequential

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config(checks.Dtypes):
    """Sizes and dtypes; `mlp_size` None is 4 * hidden_size.

    Raises ValueError for sizes below 1, heads that do not divide the hidden size, and wrong dtypes.
    """

    hidden_size: int
    num_layers: int = 1
    num_heads: int = 1
    mlp_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        checks.sizes(self, "hidden_size", "num_layers", "num_heads")
        if self.mlp_size is not None:
            checks.sizes(self, "mlp_size")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}: every head gets an "
                f"equal share"
            )

    @property
    def input_size(self) -> int:
        """The width of xs."""
        return self.hidden_size

    @property
    def output_size(self) -> int:
        """The width of ys."""
        return self.hidden_size


class Params(NamedTuple):
    """Weights: (attention, mlp) with a leading layer axis, and the last norm."""

    layers: tuple[attention.Params, mlp.Params]
    scale: Float[Array, "H"]


Carry = attention.Cache  # with a leading layer axis


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params; layer l's key is the key folded with l."""
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    dtype, hidden = config.param_dtype, config.hidden_size

    def layer(index: jax.Array) -> tuple[attention.Params, mlp.Params]:
        key_attention, key_mlp = jax.random.split(jax.random.fold_in(key, index))
        return (
            attention.init(key_attention, hidden, config.num_heads, dtype),
            mlp.init(key_mlp, hidden, config.mlp_size or 4 * hidden, dtype),
        )

    return Params(layers=jax.vmap(layer)(jnp.arange(config.num_layers)), scale=jnp.ones(hidden, dtype))


def specs(config: Config) -> Params:
    """How the params lie over a mesh: layers over `stage`, heads and inner widths over `model`."""
    return Params(
        layers=(
            attention.Params(
                scale=P("stage"),
                wq=P("stage", None, "model"),
                wk=P("stage", None, "model"),
                wv=P("stage", None, "model"),
                wo=P("stage", "model"),
            ),
            mlp.Params(
                scale=P("stage"),
                w1=P("stage", None, "model"),
                b1=P("stage", "model"),
                w2=P("stage", "model"),
                b2=P("stage"),
            ),
        ),
        scale=P(),
    )


def zeros(config: Config, batch: int, positions: int) -> Carry:
    """An empty cache with room for `positions` positions a sequence, [L, positions, B, heads, width]."""
    shape = config.num_layers, positions, batch, config.num_heads, config.hidden_size // config.num_heads
    k, v = jnp.zeros(shape, config.compute), jnp.zeros(shape, config.compute)
    return Carry(k, v, jnp.zeros(config.num_layers, "int32"))


def apply(
    params: Params,
    xs: Float[Any, "T B H"],
    *,
    config: Config,
    carry: Carry | None = None,
    schedule: Schedule = Sequential(),
    implementation: Callable[..., Cell] | None = None,
) -> tuple[Carry | None, Float[Array, "T B H"]]:
    """Runs the Transformer, jitted, on T positions, to which it adds sinusoids; returns the carry (None without one)
    and the last stream, normalised, in the compute dtype.

    With a carry (`zeros`, or what the last call returned) the positions continue it: chunks of any sizes equal one run.

    implementation: None, or a `training.pipeline.Pipeline`, which spreads the layers over devices; what it cuts is the
    batch, and with a carry the positions.

    Raises ValueError, before any compilation, for wrong ranks, widths and dtypes, params or a carry of another config,
    a carry without room for the positions (values are seen where they are not traced), and another implementation.
    """
    checks.floats("xs", xs, "T B H", config.hidden_size, config_field="config.hidden_size")
    checks.like("params", params, _shapes(config))
    if carry is not None:
        _check_carry(carry, config, *jnp.shape(xs)[:2])
    if not (implementation is None or callable(implementation)):
        raise ValueError(f"implementation={implementation!r}: give None, or a training.pipeline.Pipeline")
    return _apply(params, xs, carry, config=config, schedule=schedule, implementation=implementation)


def _check_carry(carry: Carry, config: Config, steps: int, batch: int) -> None:
    positions = carry.k.shape[1] if isinstance(carry, Carry) and jnp.ndim(carry.k) == 5 else 0
    checks.like("carry", carry, jax.eval_shape(lambda: zeros(config, batch, positions)))
    if not checks.traced(carry.length):
        held = int(np.asarray(carry.length)[0])
        if held < 0 or held + steps > positions:
            raise ValueError(
                f"the carry holds {held} of {positions} positions, no room for {steps} more: "
                f"start with zeros(config, batch, positions) large enough for all of them"
            )


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


layer = chain(turn(residual(attention.attention)), turn(residual(mlp.mlp)))  # left: (cache, None); below: (x, ())


@partial(jax.jit, static_argnames=("config", "schedule", "implementation"))
def _apply(
    params: Params, xs: Any, carry: Carry | None, *, config: Config, schedule: Schedule, implementation: Any
) -> Any:
    params = config.cast(params)
    first = 0 if carry is None else carry.length[0]
    x = xs.astype(config.stream) + sinusoids(first + jnp.arange(len(xs), dtype="int32"), config)[:, None]
    run = scan(layer, DEPTH, schedule=schedule)
    if implementation is not None:
        rows = P("stage", None, "data")
        flows = P("stage") if carry is None else attention.Cache(k=rows, v=rows, length=P("stage"))
        specs = P("stage"), (flows, None), P(None, "data")
        run = implementation(run, axis=1 if carry is None else 0, specs=specs)
    (carry, _), (x, _) = run(params.layers, (carry, None), (x, ()))
    return carry, layer_norm(x, params.scale).astype(config.compute)


def sinusoids(positions: Int[Array, "T"], config: Config) -> Float[Array, "T H"]:
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5): [sin(t w_i), cos(t w_i)], w_i = 10000^(-2 i / H)."""
    dtype = jnp.float64 if config.stream == jnp.float64 else jnp.float32  # a narrower one cannot count far
    half = -(-config.hidden_size // 2)
    rates = 10000.0 ** (-jnp.arange(half, dtype=dtype) * 2 / config.hidden_size)
    angles = positions.astype(dtype)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, : config.hidden_size].astype(config.stream)
