"""The Transformer: `scan(chain(turn(residual(attention)), turn(residual(mlp))), DEPTH)`; causal, or reading or writing
the two sides of a pair.

Its keys and values are what flows along time. Without a carry a whole sequence is one chunk, as in training; with one,
a prompt of any length or a single position continues it. Depth inside time is cached decoding, time inside depth
prefill.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lstm_rot.branches import attention, mlp, noise
from lstm_rot.branches.common import layer_norm
from lstm_rot.core import DEPTH, Branch, Cell, chain, residual, scan, turn
from lstm_rot.models import checks
from lstm_rot.schedules import Schedule, Sequential

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config(checks.Dtypes):
    """Sizes and dtypes; `mlp_size` None is 4 * hidden_size.

    kind: causal; an encoder, whose positions see all of their sequence; or a decoder, whose layers also attend to a
    source. norm: before each step, and once more at the end (pre: its stream's path is clean), or after each addition
    (post: Vaswani et al. 2017). dropout: on the sums of xs and positions, and on what each step adds (Vaswani et al.
    2017, section 5.4).

    Raises ValueError for sizes below 1, heads that do not divide the hidden size, an unknown kind or norm, a rate
    outside [0, 1), and wrong dtypes.
    """

    hidden_size: int
    num_layers: int = 1
    num_heads: int = 1
    mlp_size: int | None = None
    kind: Literal["causal", "encoder", "decoder"] = "causal"
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        checks.sizes(self, "hidden_size", "num_layers", "num_heads")
        checks.rates(self, "dropout")
        for field, known in {"kind": tuple(STEPS), "norm": ("pre", "post")}.items():
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r}: give one of {', '.join(map(repr, known))}")
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


STEPS: dict[str, tuple[Branch, ...]] = {
    "causal": (attention.attention, mlp.mlp),
    "encoder": (attention.whole, mlp.mlp),
    "decoder": (attention.attention, attention.source, mlp.mlp),
}


class Params(NamedTuple):
    """Weights: of each of a layer's steps, with a leading layer axis; and the last norm, None where norms are post."""

    layers: tuple[attention.Params | mlp.Params, ...]
    scale: Float[Array, "H"] | None


class Reading(NamedTuple):
    """The carry of a decoder: its own cache, None where a whole target is read at once; the source, and its mask."""

    cache: attention.Cache | None
    source: attention.Source
    valid: Bool[Array, "S B"]


Carry = attention.Cache | Reading  # caches and sources with a leading layer axis


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params; layer l's key is the key folded with l.

    Raises ValueError for what is not one key, and another model's config.
    """
    checks.fresh(key, config, Config)
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    dtype, hidden = config.param_dtype, config.hidden_size

    def layer(index: jax.Array) -> tuple:
        steps = STEPS[config.kind]
        keys = jax.random.split(jax.random.fold_in(key, index), len(steps))
        return tuple(
            mlp.init(k, hidden, config.mlp_size or 4 * hidden, dtype)
            if step is mlp.mlp
            else attention.init(k, hidden, config.num_heads, dtype)
            for step, k in zip(steps, keys, strict=True)
        )

    layers = jax.vmap(layer)(jnp.arange(config.num_layers))
    return Params(layers, jnp.ones(hidden, dtype) if config.norm == "pre" else None)


def specs(config: Config) -> Params:
    """How the params lie over a mesh: layers over `stage`, heads and inner widths over `model`."""
    into, out = P("stage", None, "model"), P("stage", "model")
    attends = attention.Params(scale=P("stage"), wq=into, wk=into, wv=into, wo=out)
    dense = mlp.Params(scale=P("stage"), w1=into, b1=out, w2=out, b2=P("stage"))
    layers = tuple(dense if step is mlp.mlp else attends for step in STEPS[config.kind])
    return Params(layers, P() if config.norm == "pre" else None)


def zeros(config: Config, batch: int, positions: int) -> attention.Cache:
    """An empty cache with room for `positions` positions a sequence, [L, positions, B, heads, width]."""
    shape = config.num_layers, positions, batch, config.num_heads, config.hidden_size // config.num_heads
    k, v = jnp.zeros(shape, config.compute), jnp.zeros(shape, config.compute)
    return attention.Cache(k, v, jnp.zeros(config.num_layers, "int32"))


def reading(
    params: Params,
    source: Float[Any, "S B H"],
    valid: Bool[Any, "S B"],
    *,
    config: Config,
    positions: int | None = None,
) -> Reading:
    """A decoder's carry before its first position, of what its encoder gives; `positions`: the room of its own cache.

    Without positions there is no cache: the whole target is then read at once.
    """
    p = config.cast(params.layers[1])  # the step that attends to the source
    k, v = (jnp.einsum("sbh,lhnk->lsbnk", source.astype(config.compute), w) for w in (p.wk, p.wv))
    cache = None if positions is None else zeros(config, source.shape[1], positions)
    return Reading(cache, attention.Source(k, v), valid)


def room(carry: Carry) -> int:
    """How many positions a carry's cache can take on, where what it holds is seen; of none, 0."""
    cache = carry.cache if isinstance(carry, Reading) else carry
    if cache is None:
        return 0
    return cache.k.shape[1] - (0 if checks.traced(cache.length) else int(np.asarray(cache.length)[0]))


def taken(carry: Carry, rows: Int[Array, "N"]) -> Carry:
    """The carry of a batch of which sequence n goes on from sequence rows[n]."""
    if isinstance(carry, Reading):
        cache = None if carry.cache is None else taken(carry.cache, rows)
        source = jax.tree.map(lambda leaf: leaf[:, :, rows], carry.source)
        return Reading(cache, source, carry.valid[:, rows])  # pyright: ignore
    return carry._replace(k=carry.k[:, :, rows], v=carry.v[:, :, rows])


def reordered(carry: Carry, rows: Int[Array, "B"]) -> Carry:
    """The same, where sequence rows[b] has read the same source as b, which stays where it is."""
    if isinstance(carry, Reading):
        return carry._replace(cache=taken(carry.cache, rows))  # pyright: ignore
    return taken(carry, rows)


def apply(
    params: Params,
    xs: Float[Any, "T B H"],
    *,
    config: Config,
    carry: Carry | None = None,
    lengths: checks.Lengths = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: Callable[..., Cell] | None = None,
) -> tuple[Carry | None, Float[Array, "T B H"]]:
    """Runs the Transformer, jitted, on T positions, to which it adds sinusoids; returns the carry (None without one)
    and the last stream, normalised, in the compute dtype.

    With a carry (`zeros`, or what the last call returned) the positions continue it: chunks of any sizes equal one run.
    A decoder always has one, as `reading` makes it. lengths: an encoder's, of each sequence; what stands past them is
    not seen, and gives zeros. key: dropout draws from it.

    implementation: None, or a `training.pipeline.Pipeline`, which spreads the layers over devices; what it cuts is the
    batch, and with a carry the positions.

    Raises ValueError, before any compilation, for wrong ranks, widths and dtypes, params or a carry of another config,
    a carry without room for the positions (values are seen where they are not traced), an encoder with a carry, a
    decoder without one, lengths of another kind, and an implementation that cannot serve.
    """
    checks.floats("xs", xs, "T B H", config.hidden_size, config_field="config.hidden_size")
    checks.like("params", params, _shapes(config))
    checks.key_in(key)
    lengths = checks.whole(lengths)
    _check_kind(carry, lengths, config, *jnp.shape(xs)[:2])
    if not (implementation is None or callable(implementation)):
        raise ValueError(f"implementation={implementation!r}: give None, or a training.pipeline.Pipeline")
    dropping = key if config.dropout else None
    if implementation is not None and (config.kind != "causal" or dropping is not None):
        raise ValueError(f"implementation={implementation!r} serves causal Transformers without dropout; give None")
    how = {"schedule": schedule, "implementation": implementation}
    return _apply(params, xs, carry, lengths, dropping, config=config, **how)


def _check_kind(carry: Any, lengths: Any, config: Config, steps: int, batch: int) -> None:
    if lengths is not None and config.kind != "encoder":
        raise ValueError(f"lengths of kind={config.kind!r}: only an encoder sees what stands behind; leave them out")
    checks.lengths_in(lengths, batch, steps)
    if config.kind == "encoder" and carry is not None:
        raise ValueError("an encoder reads a sequence as a whole: it takes no carry")
    if config.kind == "decoder":
        if not isinstance(carry, Reading):
            raise ValueError("a decoder attends to a source: give the carry that `reading` or `seq2seq.encode` makes")
        checks.like("carry", carry._replace(cache=None), _reading_shapes(config, *jnp.shape(carry.valid)))
        carry = carry.cache
    if carry is not None:
        _check_cache(carry, config, steps, batch)


def _check_cache(carry: Any, config: Config, steps: int, batch: int) -> None:
    positions = carry.k.shape[1] if isinstance(carry, attention.Cache) and jnp.ndim(carry.k) == 5 else 0
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


@lru_cache
def _reading_shapes(config: Config, source: int, batch: int) -> Any:
    shape = config.num_layers, source, batch, config.num_heads, config.hidden_size // config.num_heads
    each: Any = jax.ShapeDtypeStruct(shape, config.compute)
    valid: Any = jax.ShapeDtypeStruct((source, batch), "bool")
    return Reading(None, attention.Source(each, each), valid)


def layer(config: Config, *, dropping: bool = False) -> Cell:
    """A layer's steps, one above the other: below is (x, mask of what is attended to), left what each step attends to.

    p: the weights of each step; of one that drops out, (weights, (key, positions)).
    """
    return chain(*(_step(branch, number, config, dropping) for number, branch in enumerate(STEPS[config.kind])))


def _step(branch: Branch, number: int, config: Config, dropping: bool) -> Cell:
    """pre: the residual step, turned. post: without a norm in it, a plain step that is the norm follows."""
    cell = turn(residual(_dropped(branch, number, config.dropout) if dropping else branch))
    if config.norm == "pre":
        return cell

    def post(p: Any, left: Any, below: Any) -> tuple[Any, Any]:
        weights, *drop = p if dropping else (p,)
        bare = weights._replace(scale=None)
        parts = (bare, *drop) if dropping else bare, weights.scale
        (right, _), above = chain(cell, turn(residual(mlp.normalise)))(parts, (left, None), below)
        return right, above

    return post


def _dropped(branch: Branch, number: int, rate: float) -> Branch:
    """The branch for p = (weights, (key, positions)); position t's mask depends on the key and t alone."""

    def dropped(p: Any, stream: Any, memory: Any, below: Any) -> tuple[Any, Any, Any]:
        weights, (key, positions) = p
        keep, add, read = branch(weights, stream, memory, below)
        mask = noise.each_step(jax.random.fold_in(key, number), rate, positions, add.shape[1:])
        return keep, noise.dropped(add, mask, rate), read

    return dropped


@partial(jax.jit, static_argnames=("config", "schedule", "implementation"))
def _apply(
    params: Params,
    xs: Any,
    carry: Carry | None,
    lengths: Any,
    key: Any,
    *,
    config: Config,
    schedule: Schedule,
    implementation: Any,
) -> Any:
    params = config.cast(params)
    cache = carry.cache if isinstance(carry, Reading) else carry
    first = 0 if cache is None else cache.length[0]
    positions = first + jnp.arange(len(xs), dtype="int32")
    x = xs.astype(config.stream)
    valid: Any = carry.valid if isinstance(carry, Reading) else ()
    if lengths is not None:
        valid = positions[:, None] < jnp.asarray(lengths, "int32")
        x = jnp.where(valid[..., None], x, 0)  # before any product: NaN in the padding must not reach a gradient
    elif config.kind == "encoder":
        valid = jnp.ones(xs.shape[:2], "bool")
    x = x + sinusoids(positions, config)[:, None]
    p = params.layers
    if key is not None:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(config.num_layers))
        drop = keys, jnp.broadcast_to(positions, (config.num_layers, len(xs)))
        entering = noise.each_step(jax.random.fold_in(key, config.num_layers), config.dropout, positions, x.shape[1:])
        x = noise.dropped(x, entering, config.dropout)
        p = tuple((weights, drop) for weights in p)
    lefts = {attention.attention: cache, attention.source: carry.source if isinstance(carry, Reading) else None}
    left = tuple(lefts.get(step) for step in STEPS[config.kind])
    run = scan(layer(config, dropping=key is not None), DEPTH, schedule=schedule)
    if implementation is not None:
        rows = P("stage", None, "data")
        flows = P("stage") if carry is None else attention.Cache(k=rows, v=rows, length=P("stage"))
        specs = P("stage"), (flows, None), P(None, "data")
        run = implementation(run, axis=1 if carry is None else 0, specs=specs)
    right, (x, _) = run(p, left, (x, valid))
    x = layer_norm(x, params.scale).astype(config.compute)
    if lengths is not None:
        x = jnp.where(valid[..., None], x, 0)
    return carry._replace(cache=right[0]) if isinstance(carry, Reading) else right[0], x


def sinusoids(positions: Int[Array, "T"], config: Config) -> Float[Array, "T H"]:
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5): [sin(t w_i), cos(t w_i)], w_i = 10000^(-2 i / H)."""
    dtype = jnp.float64 if config.stream == jnp.float64 else jnp.float32  # a narrower one cannot count far
    half = -(-config.hidden_size // 2)
    rates = 10000.0 ** (-jnp.arange(half, dtype=dtype) * 2 / config.hidden_size)
    angles = positions.astype(dtype)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, : config.hidden_size].astype(config.stream)
