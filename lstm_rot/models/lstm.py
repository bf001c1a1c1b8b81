"""Stacked LSTM: `scan(scan(residual(lstm), TIME), DEPTH)`, and its variants."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.branches import gates, noise
from lstm_rot.branches import lstm as branch
from lstm_rot.core import Branch
from lstm_rot.models import checks, recurrent
from lstm_rot.schedules import Schedule, Sequential

_NOISE = "variational_dropout", "recurrent_dropout", "zoneout_cell", "zoneout_hidden"  # within the cells


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes, dtypes and what the cells are; all of it goes together.

    forget_bias: added to the forget gate's bias at the start (1: Jozefowicz et al. 2015).
    gates: `branches.lstm.FORGET`, `COUPLED` (CIFG, Greff et al. 2015) or `GATES_1997`.
    peepholes: Gers & Schmidhuber 2000. layer_norm: in the cell, Ba et al. 2016. projection_size: P, Sak et al. 2014.

    Probabilities, in use where `apply` gets a key: dropout, between layers; variational_dropout, one mask a sequence on
    each layer's input and on h (Gal & Ghahramani 2016); recurrent_dropout, on what is added to c (Semeniuta et al.
    2016); zoneout_cell and zoneout_hidden, of keeping the old c and h (Krueger et al. 2017; without a key, expected).
    """

    forget_bias: float = 1.0
    gates: branch.Gates = branch.FORGET
    peepholes: bool = False
    layer_norm: bool = False
    projection_size: int | None = None
    variational_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_cell: float = 0.0
    zoneout_hidden: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.projection_size is not None:
            checks.sizes(self, "projection_size")
        checks.rates(self, *_NOISE)
        number = isinstance(self.forget_bias, int | float | np.integer | np.floating)
        if not number or not np.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias={self.forget_bias!r}: give a finite number, 1 as a rule")
        if not isinstance(self.gates, branch.Gates):
            raise ValueError(f"gates={self.gates!r}: choose branches.lstm.FORGET, COUPLED or GATES_1997")

    @property
    def unpacked(self) -> str | None:
        plain = {field.name: field.default for field in fields(self)}
        for name in ("gates", "peepholes", "layer_norm", "projection_size", *_NOISE):
            if getattr(self, name) != plain[name]:
                return f"{name}={getattr(self, name)!r}"
        wrong = {self.compute.name, self.stream.name} - {"float32"}
        return f"products or streams in {wrong.pop()}" if wrong else None

    @property
    def cell_output_size(self) -> int:
        return self.projection_size or self.hidden_size


class Carry(NamedTuple):
    """What a chunk of time hands to the next: cell states (in the stream's dtype) and outputs.

    Of a bidirectional stack [L, 2, B, H]: the second direction's is that after each sequence's first step.
    """

    c: Float[Array, "L B H"] | Float[Array, "L 2 B H"]
    h: Float[Array, "L B P"] | Float[Array, "L 2 B P"]


def zeros(config: Config, batch: int) -> Carry:
    """The carry before the first step."""
    c = jnp.zeros((*config.layer_axes, batch, config.hidden_size), config.stream)
    return Carry(c, jnp.zeros((*config.layer_axes, batch, config.cell_output_size), config.compute))


def _branch(config: Config, fast: bool, noisy: bool) -> Branch:
    """The config's branch, its p being (weights, masks)."""
    made = branch.variant(
        config.gates,
        peepholes=config.peepholes,
        layer_norm=config.layer_norm,
        projected=config.projection_size is not None,
        activate=gates.at_once if fast else gates.separately,
    )
    made = noise.on_weights(made)
    if noisy and config.variational_dropout:
        made = noise.variational(made)
    if noisy and config.recurrent_dropout:
        made = noise.without_memory_loss(made, config.recurrent_dropout)
    if config.zoneout_cell or config.zoneout_hidden:
        made = noise.zoneout(made, config.zoneout_cell, config.zoneout_hidden)
    return made


def _draw(config: Config, key: jax.Array, times: Int[Array, "T"], batch: int, width: int) -> recurrent.Noise:
    """The masks of one layer and direction."""
    keys = [jax.random.fold_in(key, purpose) for purpose in range(6)]
    cell, output = (batch, config.hidden_size), (batch, config.cell_output_size)

    def factor(key: jax.Array, shape: tuple[int, int]) -> Any:
        rate = config.variational_dropout
        return jax.random.bernoulli(key, 1 - rate, shape).astype(config.stream) / (1 - rate) if rate else None

    return recurrent.Noise(
        dropout=noise.each_step(keys[0], config.dropout, times, (batch, width)),
        variational=factor(keys[1], (batch, width)),
        cells=noise.Masks(
            hidden=factor(keys[2], output),
            add=noise.each_step(keys[3], config.recurrent_dropout, times, cell),
            cell=noise.each_step(keys[4], config.zoneout_cell, times, cell),
            output=noise.each_step(keys[5], config.zoneout_hidden, times, output),
        ),
    )


def _init_layer(key: jax.Array, config: Config, input_size: int, uniform: float | None = None) -> branch.Params:
    return branch.init(
        key,
        input_size,
        config.hidden_size,
        config.param_dtype,
        gates=config.gates,
        peepholes=config.peepholes,
        layer_norm=config.layer_norm,
        projection_size=config.projection_size,
        forget_bias=config.forget_bias,
        uniform=uniform,
    )


KIND = recurrent.Kind(
    branch=_branch,
    init=_init_layer,
    zeros=zeros,
    flows=lambda carry: (carry.c, carry.h),
    carry=Carry,
    draw=_draw,
)

specs = partial(recurrent.specs, KIND)


def init(key: PRNGKeyArray, config: Config, *, uniform: float | None = None) -> tuple[branch.Params, ...]:
    """Fresh params: runs of equal layers, each with a leading layer axis, a bidirectional one's then an axis of two.

    Orthogonal W_h, Lecun normal W_x, zero biases; with `uniform`, all weights and biases uniform in +-uniform:
    1 / sqrt(hidden_size) is torch's start, 0.08 that of Sutskever et al. 2014. `config.forget_bias` is added to either,
    where there is a forget gate. Raises ValueError for what is not one key, another model's config, and a uniform
    that is not finite and above 0.
    """
    checks.fresh(key, config, Config)
    if uniform is not None and not 0 < uniform < float("inf"):
        raise ValueError(f"uniform={uniform!r}: give the bound of the weights, above 0, or None for orthogonal ones")
    return _init(key, config, None if uniform is None else float(uniform))


def apply(
    params: tuple[branch.Params, ...],
    xs: Float[Any, "T B D"],
    *,
    config: Config,
    lengths: Integer[Any, "B"] | Sequence[int] | None = None,
    carry: Carry | None = None,
    key: PRNGKeyArray | None = None,
    start: int | Int[Array, ""] = 0,
    schedule: Schedule = Sequential(),
    implementation: recurrent.Implementation | recurrent.Spread | None = None,
) -> tuple[Carry, Float[Array, "T B P"]]:
    """Runs the stack, jitted, and returns the carry after the last step and the top layer's outputs.

    Steps at or past a sequence's length leave its carry as it was and give zeros; what stands in xs there, NaN
    included, changes nothing. The carry of one chunk continues in the next: two chunks equal one run (but of a
    reversed or bidirectional stack, which needs the whole sequence). The outputs of two directions stand side by side.

    key: dropout and zoneout draw from it; without one nothing is dropped. A mask depends on the key, the layer, the
    direction and the number of the step. start: the number of xs' first step in the whole sequence; with the same key,
    and its own start given to every chunk, two chunks equal one run with dropout too.

    implementation: None, the fastest that serves, or "reference", "hoisted", "packed", "wavefront"; `lstm_rot.explain`
    says which and why. The hoisted and the packed one have gradients, and derivatives of them, but no `jax.jvp` of
    their own; the packed one is compiled for this machine, once, so that `jax.export` wants another. Or a
    `training.pipeline.Pipeline`, which spreads the layers (those of one width) over devices.

    Raises ValueError, before any compilation, for wrong ranks, widths, dtypes, params or a carry of another config,
    for lengths outside 0..T (seen where they are not traced), and for an implementation that cannot serve.
    """
    return recurrent.apply(
        KIND,
        params,
        xs,
        config=config,
        lengths=lengths,
        carry=carry,
        key=key,
        start=start,
        schedule=schedule,
        implementation=implementation,
    )


def step(
    params: tuple[branch.Params, ...], x: Float[Any, "B D"], *, config: Config, carry: Carry
) -> tuple[Carry, Float[Array, "B P"]]:
    """One step, for decoding: jitted, the carry donated, so that its memory is used again and it must not be.

    Raises ValueError as `apply` does, and for a reversed or bidirectional stack.
    """
    if config.bidirectional or config.reverse:
        raise ValueError("a reversed or bidirectional stack has no next step: it reads whole sequences; use apply")
    checks.floats("x", x, "B D", config.input_size, config_field="config.input_size")
    expected_params, expected_carry = recurrent.shapes(KIND, config, np.shape(x)[0])
    checks.like("params", params, expected_params)
    checks.like("carry", carry, expected_carry)
    if carry.c is carry.h:  # a buffer can be donated once
        carry = carry._replace(h=jnp.array(carry.h))
    return _step(params, x, carry, config=config)


@partial(jax.jit, static_argnames="config", donate_argnames="carry")
def _step(params: Any, x: Any, carry: Carry, *, config: Config) -> tuple[Carry, jax.Array]:
    carry, ys = apply(params, x[None], config=config, carry=carry)
    return carry, ys[0]


_init = jax.jit(lambda key, config, uniform: recurrent.init(KIND, key, config, uniform=uniform), static_argnums=(1, 2))
