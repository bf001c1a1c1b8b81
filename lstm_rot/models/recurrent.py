"""What the stacks of LSTM, GRU and RNN share: `scan(scan(cell, TIME), DEPTH)`, masked past each sequence's length.

A stack's params are a tuple of runs of equal layers, each one tree with a leading layer axis: all layers in one run
where a layer's input and output are of one width, else the first layer alone, then the others. Of a bidirectional
stack, weights and carries have an axis of two directions after that of the layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from lstm_rot import native
from lstm_rot.branches import noise
from lstm_rot.core import DEPTH, Above, Axis, Below, Branch, Cell, Left, Params, Right, residual, scan
from lstm_rot.kernels import packed
from lstm_rot.kernels.hoisted import hoisted
from lstm_rot.models import checks
from lstm_rot.schedules import Checkpointed, Schedule, Sequential
from lstm_rot.wavefront import wavefront

Implementation = Literal["reference", "hoisted", "packed", "wavefront"]
Spread = Callable[..., Cell]  # (grid, time=, specs=) -> the grid over devices, as `training.pipeline.Pipeline`
STEPS = Axis("left", tied=(True, noise.TIED))  # of p = (weights, masks): the weights are shared, most masks are not


@dataclass(frozen=True)
class Config(checks.Dtypes):
    """Sizes of a recurrent stack; its dtypes are `Dtypes`'s.

    bidirectional: each layer is two, one of them reading from each sequence's end; their outputs are joined.
    reverse: every layer reads from each sequence's end. dropout: on what one layer hands to the next.

    Raises ValueError for sizes below 1, dtypes that are not floating, rates outside [0, 1), both ways at
    once and reversed, and float64 while x64 is off.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    reverse: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        checks.sizes(self, "input_size", "hidden_size", "num_layers")
        checks.rates(self, "dropout")
        if self.bidirectional and self.reverse:
            raise ValueError("reverse=True with bidirectional=True: it reads both ways already; choose one")

    @property
    def cell_output_size(self) -> int:
        """The width of what one cell hands on."""
        return self.hidden_size

    @property
    def output_size(self) -> int:
        """The width of ys: of both directions together."""
        return self.cell_output_size * (2 if self.bidirectional else 1)

    @property
    def unpacked(self) -> str | None:
        """What these cells have that the compiled loop of `kernels.packed` has not; None where it can run them."""
        return "cells that are not the LSTM's"

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(input width, number of layers) of each run of equal layers."""
        if self.input_size == self.output_size:
            return [(self.input_size, self.num_layers)]
        return [(self.input_size, 1)] + [(self.output_size, self.num_layers - 1)] * (self.num_layers > 1)

    @property
    def layer_axes(self) -> tuple[int, ...]:
        """The leading axes of weights and carries: (L,), or (L, 2)."""
        return (self.num_layers, 2) if self.bidirectional else (self.num_layers,)


class Noise(NamedTuple):
    """What is drawn for one direction of one layer: masks of its input, and those of its cells; None: not in use."""

    dropout: Bool[Array, "T B D"] | None = None
    variational: Float[Array, "B D"] | None = None
    cells: noise.Masks = noise.Masks()


# Of p = (weights, number of the layer, Noise): what is the same at every step; and how it lies over a mesh.
TIED: Any = (True, True, Noise(dropout=False, variational=True, cells=noise.TIED))  # pyright: ignore
FLOWS = P("stage", "data"), P(None, "data")  # left and below
SPECS = P("stage"), P("stage"), jax.tree.map(lambda tied: P("stage", *[None] * (not tied), "data"), TIED[2])


class Kind(NamedTuple):
    """A kind of recurrent stack."""

    branch: Callable[[Any, bool, bool], Branch]  # (config, fast, noisy), its p being (weights, masks)
    init: Callable[..., Any]  # (key, config, input_size=) -> the params of one layer
    zeros: Callable[[Any, int], Any]  # (config, batch) -> the carry before the first step
    flows: Callable[[Any], tuple[Any, Any]]  # carry -> stream, memory, [L, B, H]
    carry: Callable[[Any, Any], Any]  # stream, memory -> carry
    draw: Callable[..., Noise]  # (config, key, times, batch, width) -> Noise of one layer and direction


class Hidden(NamedTuple):
    """The carry of cells without a memory of their own: the outputs, in the stream's dtype."""

    h: Float[Array, "L B H"] | Float[Array, "L 2 B H"]


def zeros(config: Config, batch: int) -> Hidden:
    """The carry before the first step."""
    return Hidden(jnp.zeros((*config.layer_axes, batch, config.hidden_size), config.stream))


def without_memory(branch: Branch, init: Callable[..., Any]) -> Kind:
    """The kind whose stream is its output."""
    return Kind(
        branch=lambda config, fast, noisy: noise.on_weights(branch),
        init=lambda key, config, input_size: init(key, input_size, config.hidden_size, config.param_dtype),
        zeros=zeros,
        flows=lambda carry: (carry.h, ()),
        carry=lambda stream, memory: Hidden(stream),
        draw=draw,
    )


def draw(config: Config, key: jax.Array, times: Int[Array, "T"], batch: int, width: int) -> Noise:
    """The masks of dropout between layers."""
    return Noise(dropout=noise.each_step(key, config.dropout, times, (batch, width)))


def taken(carry: Any, rows: Int[Array, "N"]) -> Any:
    """The carry of a batch of which sequence n goes on from sequence rows[n]; of stacks that run one way."""
    return jax.tree.map(lambda leaf: leaf[:, rows], carry)


reordered = taken  # there is nothing that sequences share


def init(kind: Kind, key: jax.Array, config: Config, **options: Any) -> tuple:
    """Fresh params; layer l's key is the key folded with l, so that a further layer changes none below it."""
    runs, first = [], 0
    for width, layers in config.runs:
        make = partial(kind.init, config=config, input_size=width, **options)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(first, first + layers))
        if config.bidirectional:
            make, keys = (
                jax.vmap(make),
                jax.vmap(lambda k: jax.vmap(partial(jax.random.fold_in, k))(jnp.arange(2)))(keys),
            )
        runs.append(jax.vmap(make)(keys))
        first += layers
    return tuple(runs)


def specs(kind: Kind, config: Config) -> tuple:
    """How the params lie over a mesh: layers over `stage`, hidden sizes over `model`, gates and inputs nowhere."""
    lead = "stage", *[None] * (len(config.layer_axes) - 1)

    def of(path: Any, leaf: Any) -> P:
        axes: list = [*lead, *[None] * (leaf.ndim - len(lead))]
        axes[-2 if getattr(path[-1], "name", None) == "wp" else -1] = "model"  # a projection's rows are hidden units
        return P(*axes)

    return jax.tree_util.tree_map_with_path(of, shapes(kind, config, 1)[0])


def explain(config: Config, *, schedule: Schedule = Sequential()) -> str:
    """Which implementation None picks for this config and schedule, which others serve, and why the rest cannot."""
    picked = _pick(None, config, schedule)
    lines = [f"None picks {picked!r}: {_PURPOSE[picked]}"]
    for name, purpose in _PURPOSE.items():
        reason = _refusal(name, config, schedule)
        if name == "wavefront" and all(count == 1 for _, count in config.runs):
            purpose = "here as 'reference', for no two layers are alike, to be run at once"
        if name != picked:
            lines.append(f"{name!r} serves too: {purpose}" if reason is None else f"{name!r} cannot serve: {reason}")
    return "\n".join(lines)


_PURPOSE: dict[Implementation, str] = {
    "packed": "one loop in C++ on a CPU, but of short lines; None picks it in a program of one device; as 'hoisted'",
    "hoisted": "the inputs' products before the loop, the weights' gradients after it; no jax.jvp but of gradients",
    "reference": "scan(scan(cell, TIME), DEPTH) as it is written; any derivative",
    "wavefront": "T + L - 1 ticks of one batched product over the layers; the layers may be on devices of their own",
}


def _refusal(implementation: Implementation, config: Config, schedule: Schedule) -> str | None:
    """Why the implementation cannot serve; None where it can."""
    if implementation == "hoisted" and not isinstance(schedule, Sequential | Checkpointed):
        return f"schedule={schedule!r} runs opaque cells; hoisted lines run Sequential or Checkpointed"
    if implementation == "packed":
        if config.unpacked:
            return f"{config.unpacked}: it runs the plain LSTM in float32"
        if not isinstance(schedule, Sequential):
            return f"schedule={schedule!r}: it runs all steps in one go"
        return native.refusal()
    if implementation == "wavefront" and (config.bidirectional or config.reverse):
        way = "bidirectional" if config.bidirectional else "reverse"
        return f"{way}=True needs all of the layer below before its first step"
    return None


def _pick(implementation: Implementation | None, config: Config, schedule: Schedule) -> Implementation:
    """The named implementation, or the fastest that serves. Raises ValueError where it is unknown or cannot serve."""
    if isinstance(schedule, type) or not callable(schedule):
        raise ValueError(f"schedule={schedule!r}: give one as it is called, as in Sequential() or Checkpointed()")
    if implementation is None:
        alone = jax.device_count() == 1  # what is compiled as one call is not spread over devices
        fastest: list[Implementation] = ["packed", "hoisted"] if alone else ["hoisted"]
        for name in fastest:
            if _refusal(name, config, schedule) is None:
                return name
        return "reference"
    if implementation not in _PURPOSE:
        raise ValueError(f"implementation={implementation!r}: choose None or one of {', '.join(map(repr, _PURPOSE))}")
    reason = _refusal(implementation, config, schedule)
    if reason:
        raise ValueError(f"implementation={implementation!r} cannot serve: {reason}; None picks one that can")
    return implementation


def apply(
    kind: Kind,
    params: Any,
    xs: Any,
    *,
    config: Config,
    lengths: Any,
    carry: Any,
    key: Any,
    start: Any,
    schedule: Schedule,
    implementation: Implementation | Spread | None,
) -> tuple[Any, jax.Array]:
    """Checks, then runs the jitted stack."""
    spread = implementation if callable(implementation) else None
    if spread is not None and (reason := _refusal("wavefront", config, schedule)):
        raise ValueError(f"implementation={spread!r} cannot serve: {reason}; None picks one that can")
    named = _pick(None if callable(implementation) else implementation, config, schedule)
    checks.floats("xs", xs, "T B D", config.input_size, config_field="config.input_size")
    steps, batch, _ = jnp.shape(xs)
    lengths = checks.whole(lengths)
    expected_params, expected_carry = shapes(kind, config, batch)
    checks.like("params", params, expected_params)
    checks.lengths_in(lengths, batch, steps)
    if carry is not None:
        checks.like("carry", carry, expected_carry)
    checks.key_in(key)
    checks.step_number("start", start)
    how = {"schedule": schedule, "implementation": named, "spread": spread}
    run = partial(_apply, kind, config=config, **how)
    if spread is None:  # which says itself where what lies
        time, examples, _ = jax.typeof(xs).sharding.spec
        carries = jax.tree.map(lambda leaf: P(*[None] * (leaf.ndim - 2), examples, None), expected_carry)
        run = checks.automatic(run, xs, (carries, P(time, examples, None)))
    return run(params, xs, lengths, carry, key, start)


@lru_cache
def shapes(kind: Kind, config: Config, batch: int) -> tuple[Any, Any]:
    return jax.eval_shape(lambda: (init(kind, jax.random.key(0), config), kind.zeros(config, batch)))


@partial(jax.jit, static_argnums=0, static_argnames=("config", "schedule", "implementation", "spread"))
def _apply(
    kind: Kind,
    params: Any,
    xs: Any,
    lengths: Any,
    carry: Any,
    key: Any,
    start: Any,
    *,
    config: Config,
    schedule: Schedule,
    implementation: Implementation,
    spread: Spread | None,
) -> tuple[Any, jax.Array]:
    stream, memory = kind.flows(kind.zeros(config, xs.shape[1]) if carry is None else carry)
    left = stream.astype(config.stream), jax.tree.map(lambda leaf: leaf.astype(config.compute), memory)
    x, valid = xs.astype(config.compute), None
    if lengths is not None:
        valid = jnp.arange(len(xs), dtype="int32")[:, None] < lengths.astype("int32")
        # Before any product: what stands in the padding, NaN too, must not reach dW.
        x = jnp.where(valid[..., None], x, 0)
    stack = _Stack(kind, config, implementation, spread, schedule, key, start, lengths)
    rights, first, x = [], 0, (x, valid)
    for p, (_, layers) in zip(config.cast(params), config.runs, strict=True):
        run = jax.tree.map(lambda leaf, a=first, b=first + layers: leaf[a:b], left)
        right, x = stack.run(p, run, x, first)
        rights.append(right)
        first += layers
    stream, memory = jax.tree.map(lambda *runs: jnp.concatenate(runs), *rights)
    return kind.carry(stream, memory), x[0]


class _Stack(NamedTuple):
    """A stack being run; x below is the pair of a sequence [T, B, D] and of which of its steps are valid, or None."""

    kind: Kind
    config: Config
    implementation: Implementation
    spread: Spread | None
    schedule: Schedule
    key: Any
    start: Any
    lengths: Any

    def run(self, p: Params, left: Left, x: Below, first: int) -> tuple[Right, Above]:
        """A run of equal layers, the lowest being layer `first`."""
        layers = jax.tree.leaves(p)[0].shape[0]
        numbers = jnp.arange(first, first + layers, dtype="int32")
        if layers > 1:
            if self.spread is not None:
                run = self.spread(scan(self.along_time, DEPTH), time=Axis("left", TIED), specs=(SPECS, *FLOWS))
                return run(self.with_noise(p, numbers, x), left, x)
            if self.implementation == "wavefront":
                return self.diagonal(self.with_noise(p, numbers, x), left, x)
            return scan(self.layer, DEPTH)((p, numbers), left, x)
        # Alone, for what it hands on may be wider than what enters.
        right, x = self.layer(_at(0, (p, numbers)), _at(0, left), x)
        return jax.tree.map(lambda leaf: leaf[None], right), x

    def layer(self, p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        """One layer, a cell along DEPTH: its line along TIME, or one each way."""
        weights, number = p
        x, valid = below
        if not self.config.bidirectional:
            right, y = self.line(weights, left, x, valid, number, way=int(self.config.reverse))
            return right, (y, valid)
        ways = [self.line(_at(way, weights), _at(way, left), x, valid, number, way=way) for way in (0, 1)]
        rights, ys = zip(*ways, strict=True)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rights), (jnp.concatenate(ys, -1), valid)

    def line(
        self, weights: Params, left: Left, x: jax.Array, valid: Any, number: Any, *, way: int
    ) -> tuple[Right, jax.Array]:
        """One layer in one direction; way 1 reads from each sequence's end."""
        x = flipped(x, self.lengths) if way else x
        right, (y, _) = self.along_time((weights, number, self.drawn(number, way, x.shape)), left, (x, valid))
        return right, flipped(y, self.lengths) if way else y

    def along_time(self, p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        """One layer's line along TIME, its noise given: a cell along DEPTH that closes over no array."""
        make: Any = {"hoisted": hoisted, "packed": packed.packed}.get(self.implementation, scan)
        return self.given_noise(make(self.cell(), STEPS, schedule=self.schedule), p, left, below)

    def diagonal(self, p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        """A run of layers along its anti-diagonal."""
        cell = partial(self.given_noise, self.cell())
        return wavefront(cell, time=Axis("left", TIED), depth=DEPTH, schedule=self.schedule)(p, left, below)

    def with_noise(self, weights: Params, numbers: Any, below: Below) -> Params:
        """p of a run of layers whose order is not that of the layers: with what is drawn for all of them."""
        return weights, numbers, jax.vmap(lambda number: self.drawn(number, 0, below[0].shape))(numbers)

    def given_noise(self, run: Cell, p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        """A layer's cell, or its line, for p = (weights, number of the layer, Noise)."""
        weights, number, drawn = p
        x, valid = below
        right, y = run((weights, drawn.cells), left, (self.entering(drawn, number, x), valid))
        return right, (y, valid)

    def cell(self) -> Cell:
        return masked(residual(self.kind.branch(self.config, self.implementation != "reference", self.key is not None)))

    def drawn(self, number: Any, way: int, shape: tuple[int, ...]) -> Noise:
        """The noise of a layer and direction: it depends on these, the key and the absolute step alone."""
        if self.key is None:
            return Noise()
        steps, batch, width = shape
        key = jax.random.fold_in(jax.random.fold_in(self.key, number), way)
        return self.kind.draw(
            self.config, key, jnp.asarray(self.start, "int32") + jnp.arange(steps, dtype="int32"), batch, width
        )

    def entering(self, drawn: Noise, number: Any, x: jax.Array) -> jax.Array:
        """The input of a layer, dropped out; of the first by a variational mask only."""
        if drawn.dropout is not None:
            x = jnp.where(number == 0, x, noise.dropped(x, drawn.dropout, self.config.dropout))
        return x if drawn.variational is None else x * drawn.variational.astype(x.dtype)


def _at(k: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[k], tree)


def flipped(x: Float[Array, "T B H"], lengths: Int[Array, "B"] | None) -> Float[Array, "T B H"]:
    """Each sequence backwards within its length; what stands past it stays."""
    if lengths is None:
        return x[::-1]
    t = jnp.arange(len(x), dtype="int32")[:, None]
    ends = jnp.clip(jnp.asarray(lengths, "int32"), 0, len(x))
    return jnp.take_along_axis(x, jnp.where(t < ends, ends - 1 - t, t)[..., None], axis=0)


def masked(cell: Cell) -> Cell:
    """The cell for below = (x, valid [B]): where a sequence has ended it keeps its left and hands zeros on."""

    def with_mask(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        x, valid = below
        right, above = cell(p, left, x)
        if valid is None:
            return right, above

        def select(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(valid.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        return jax.tree.map(select, right, left), jax.tree.map(lambda a: select(a, jnp.zeros_like(a)), above)

    return with_mask
