"""A recurrent stack that looks back at its source: between 2014, when the carry was all there was, and 2017.

    context_t = sum over s of softmax_s(score(h, source_s)) source_s         x'_t = tanh(W_c context_t + W_h h_t)

Luong: the query is this step's h, so that the whole is a line along TIME and, above it, one plain step along DEPTH.
Bahdanau: the query is the h of the step before, and the context enters the stack too, so that it is inside the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lstm_rot.branches import attention
from lstm_rot.core import TIME, residual, scan, turn
from lstm_rot.models import checks, gru, highway, lstm, recurrent, residual_rnn, rnn
from lstm_rot.schedules import Schedule, Sequential

Stack = lstm.Config | gru.Config | rnn.Config | residual_rnn.Config | highway.Config
STACKS: dict[type, Any] = {module.Config: module for module in (lstm, gru, rnn, residual_rnn, highway)}

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config:
    """A stack, by its config, and what it looks back by: luong (general, Luong et al. 2015, Eq. 8) or bahdanau
    (additive, Bahdanau et al. 2015, section 3.1).

    A bahdanau stack reads words of width input_size - output_size, for the context enters beside them.
    Raises ValueError for another stack or attention, and a bahdanau stack without room for the context.
    """

    stack: Stack
    attention: Literal["luong", "bahdanau"] = "luong"

    def __post_init__(self):
        if type(self.stack) not in STACKS or self.stack.bidirectional or self.stack.reverse:
            raise ValueError(f"stack={self.stack!r}: give a recurrent stack that runs forwards")
        if self.attention not in ("luong", "bahdanau"):
            raise ValueError(f"attention={self.attention!r}: give 'luong' or 'bahdanau'")
        if self.input_size < 1:
            raise ValueError(
                f"input_size={self.stack.input_size}: a bahdanau stack reads a word and a context of width "
                f"{self.output_size} beside it; give their widths together"
            )

    @property
    def model(self) -> Any:
        """The module of the stack."""
        return STACKS[type(self.stack)]

    @property
    def input_size(self) -> int:
        """The width of xs."""
        return self.stack.input_size - (self.output_size if self.attention == "bahdanau" else 0)

    @property
    def output_size(self) -> int:
        """The width of ys, of the source and of the context."""
        return self.stack.output_size

    @property
    def encoder(self) -> Any:
        """Of a stack that reads the source: as this one, without a context."""
        return replace(self.stack, input_size=self.input_size)

    @property
    def param_dtype(self) -> Any:
        return self.stack.param_dtype

    @property
    def compute(self) -> Any:
        return self.stack.compute

    @property
    def stream(self) -> Any:
        return self.stack.stream


class Params(NamedTuple):
    """Weights: of the stack; of the keys, which are made once; of the query and the score."""

    stack: Any
    wk: Float[Array, "H H"]
    query: attention.Query


class Carry(NamedTuple):
    """Of the stack; of the source keys, values and which are its own."""

    stack: Any
    source: attention.Source
    valid: Bool[Array, "S B"]


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params: Lecun normal, and the stack as it makes itself.

    Raises ValueError for what is not one key, and another model's config.
    """
    checks.fresh(key, config, Config)
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    width, dtype = config.output_size, config.param_dtype
    key_stack, key_source, key_query = jax.random.split(key, 3)
    return Params(
        config.model.init(key_stack, config.stack),
        jax.nn.initializers.lecun_normal()(key_source, (width, width), dtype),
        attention.init_query(key_query, width, additive=config.attention == "bahdanau", dtype=dtype),
    )


def specs(config: Config) -> Params:
    """How the params lie over a mesh: the stack's as its own, those of the attention everywhere."""
    query = jax.tree.map(lambda leaf: P(), _shapes(config).query)
    return Params(config.model.specs(config.stack), P(), query)


def reading(
    params: Params, stack: Any, source: Float[Any, "S B H"], valid: Bool[Any, "S B"], *, config: Config
) -> Carry:
    """The carry before the first step: that of the stack, and what an encoder gave at each position of the source."""
    values = source.astype(config.compute)
    keys = values @ params.wk.astype(config.compute)
    return Carry(stack, attention.Source(keys, values), valid)


taken = recurrent.taken  # the batch is the second axis of its source and mask too


def reordered(carry: Carry, rows: Int[Array, "B"]) -> Carry:
    """The same, where sequence rows[b] has read the same source as b, which stays where it is."""
    return carry._replace(stack=recurrent.reordered(carry.stack, rows))


def apply(
    params: Params,
    xs: Float[Any, "T B D"],
    *,
    config: Config,
    carry: Carry,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: recurrent.Implementation | None = None,
) -> tuple[Carry, Float[Array, "T B H"]]:
    """Runs the stack, jitted, and what it looks back by; options as those of the stack, whose they are.

    Raises ValueError, before any compilation, for wrong ranks, widths and dtypes, params or a carry of another config,
    none at all, and an implementation that is a pipeline.
    """
    if not isinstance(carry, Carry):
        raise ValueError("an attending stack needs a source: give the carry that `reading` or `seq2seq.encode` makes")
    if callable(implementation):
        raise ValueError(f"implementation={implementation!r} serves stacks alone, without attention; give None")
    checks.floats("xs", xs, "T B D", config.input_size, config_field="the width of words")
    checks.like("params", params, _shapes(config))
    checks.like("carry", carry, _carry_shapes(config, jnp.shape(carry.valid)[0], jnp.shape(xs)[1]))
    return _apply(params, xs, carry, key, config=config, schedule=schedule, implementation=implementation)


@partial(jax.jit, static_argnames=("config", "schedule", "implementation"))
def _apply(params: Params, xs: Any, carry: Carry, key: Any, *, config: Config, schedule: Schedule, **how: Any) -> Any:
    query = jax.tree.map(lambda leaf: leaf.astype(config.compute), params.query)
    stack: Callable[..., Any] = partial(config.model.apply, params.stack, config=config.stack, key=key, **how)
    if config.attention == "luong":
        right, hs = stack(xs, carry=carry.stack, schedule=schedule)
        _, (ys, _) = turn(residual(attention.luong))(query, carry.source, (hs, carry.valid))
        return carry._replace(stack=right), ys

    def cell(p: Any, left: Any, below: Any) -> tuple[Any, Any]:
        before, t = left
        x, context = below, attention.looked_up(p, before.h[-1].astype(config.compute), carry.source, carry.valid)
        right, hs = stack(jnp.concatenate([x, context], -1)[None], carry=before, start=t)
        return (right, t + 1), attention.output(p, hs[0], context)

    (right, _), ys = scan(cell, TIME, schedule=schedule)(query, (carry.stack, jnp.int32(0)), xs.astype(config.compute))
    return carry._replace(stack=right), ys


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


@lru_cache
def _carry_shapes(config: Config, source: int, batch: int) -> Any:
    each: Any = jax.ShapeDtypeStruct((source, batch, config.output_size), config.compute)
    stack = jax.eval_shape(lambda: config.model.zeros(config.stack, batch))
    valid: Any = jax.ShapeDtypeStruct((source, batch), "bool")
    return Carry(stack, attention.Source(each, each), valid)
