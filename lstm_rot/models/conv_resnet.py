"""The residual net of He et al. 2015 for small images, 6n + 2 layers, and its kin: one chain of turned steps.

A stem; three stages of n blocks, each a line `scan(turn(residual(...)), DEPTH)`, whose first block, where the maps are
halved and the channels doubled, stands alone before it; and a linear classifier of the mean over the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.branches import conv, mlp, with_keep
from lstm_rot.core import DEPTH, Branch, Cell, chain, residual, scan, turn
from lstm_rot.models import checks
from lstm_rot.schedules import Schedule, Sequential

P: Any = PartitionSpec  # stands where the weights stand
STAGES = 3


class Step(NamedTuple):
    """What a block is: its residual function pre-activated (He et al. 2016) or not (2015), and its shortcut.

    shortcut(branch) -> branch sets keep and add; gate_bias, where it is a gate's, is that gate's at the start.
    """

    pre_activated: bool = False
    shortcut: Callable[[Branch], Branch] = lambda branch: branch
    gate_bias: float | None = None


def _plain(branch: Branch) -> Branch:
    return with_keep(branch, 0)


RESIDUAL = Step()
PRE_ACTIVATED = Step(pre_activated=True)
PLAIN = Step(shortcut=_plain)
HIGHWAY = Step(shortcut=conv.exclusive, gate_bias=-2.0)  # Srivastava et al. 2015


@dataclass(frozen=True)
class Config(checks.Dtypes):
    """Sizes and dtypes, the step and the norm. Raises ValueError for a depth that is not 6n + 2, and sizes below 1.

    `width` is the number of filters of the first stage; the others have twice and four times as many.
    """

    depth: int
    step: Step = RESIDUAL
    norm: type = conv.BatchNorm
    width: int = 16
    channels: int = 3
    num_classes: int = 10

    def __post_init__(self):
        super().__post_init__()
        checks.sizes(self, "depth", "width", "channels", "num_classes")
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(f"depth={self.depth}: give 6n + 2 layers, as 8, 20, 32, 44, 56, 110")
        if self.norm not in (conv.BatchNorm, conv.GroupNorm):
            raise ValueError(f"norm={self.norm!r}: give branches.conv.BatchNorm or branches.conv.GroupNorm")

    @property
    def blocks(self) -> int:
        """n, of each stage."""
        return (self.depth - 2) // 6

    @property
    def runs(self) -> tuple[int | None, ...]:
        """How the 3n blocks lie in params: the lengths of the lines of equal blocks, None for a block alone."""
        rest = (None, self.blocks - 1)[: self.blocks]  # no line of no blocks
        return (self.blocks, *rest * (STAGES - 1))


class Params(NamedTuple):
    """Weights. net: of the stem, of each of `config.runs`, and with pre-activation of the last norm; then the head."""

    net: tuple
    w: Float[Array, "F K"]
    b: Float[Array, "K"]


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params: He normal weights (He et al. 2015b); block l's key is the key folded with l.

    Raises ValueError for what is not one key, and another model's config.
    """
    checks.fresh(key, config, Config)
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    dtype, step, norm = config.param_dtype, config.step, config.norm
    key_stem, key_blocks, key_head = jax.random.split(key, 3)

    def block(number: Any, channels: int, width: int) -> Any:
        key_block, key_gate = jax.random.split(jax.random.fold_in(key_blocks, number))
        weights = conv.init(key_block, channels, width, dtype, norm=norm, pre=step.pre_activated)
        if step.gate_bias is None:
            return weights
        return weights, conv.init_gate(key_gate, channels, width, dtype, bias=step.gate_bias)

    parts, number, channels = [], 0, config.width
    for run in config.runs:
        width = channels if run is not None else 2 * channels
        make = partial(block, channels=channels, width=width)
        parts.append(make(number) if run is None else jax.vmap(make)(number + jnp.arange(run)))
        number, channels = number + (1 if run is None else run), width
    stem = conv.init_stem(key_stem, config.channels, config.width, dtype, norm=None if step.pre_activated else norm)
    end = [conv.fresh(norm, channels, dtype)] * step.pre_activated
    head = jax.nn.initializers.lecun_normal()(key_head, (channels, config.num_classes), dtype)
    return Params((stem, *parts, *end), head, jnp.zeros(config.num_classes, dtype))


def statistics(config: Config) -> tuple:
    """Where running statistics begin, for `apply`: mean 0 and variance 1 of every channel, float32."""

    def start(leaf: Any) -> Any:
        return conv.Statistics(jnp.zeros(leaf.mean.shape), jnp.ones(leaf.variance.shape))

    return jax.tree.map(start, _statistics(config), is_leaf=lambda leaf: isinstance(leaf, conv.Statistics))


def specs(config: Config) -> Params:
    """How the params lie over a mesh: filters over `model`; the lines are too short to lie over `stage`."""
    params = jax.tree.map(lambda leaf: P(*[None] * (leaf.ndim - 1), "model"), _shapes(config))
    return params._replace(w=P("model"), b=P())


def net(
    config: Config, *, wrap: Callable[[Branch], Branch] = lambda branch: branch, schedule: Schedule = Sequential()
) -> Cell:
    """All that has depth, one cell: net(params.net, statistics, (image, ())) -> (statistics used, (stream, ())).

    image and stream are [B, P, P, channels]. The statistics are a tuple like params.net; a tuple of None has every norm
    use the batch's own. wrap(branch) stands for each block's branch, and may ask more of p: a probe, a mask.
    """
    step = config.step
    propose = conv.pre_activation if step.pre_activated else conv.post_activation
    block = turn(residual(conv.narrowing(wrap(step.shortcut(propose)))))
    if not step.pre_activated:
        block = _rectified(block)
    # The rest is computed anew in the backward pass: it costs less than to write it to memory and to read it again.
    lean = jax.checkpoint(block, policy=jax.checkpoint_policies.save_only_these_names(conv.NAME), prevent_cse=False)
    line = scan(lean, DEPTH, schedule=schedule)
    cells = [turn(residual(conv.stem)), *(block if run is None else line for run in config.runs)]
    return chain(*cells, *[turn(residual(conv.ended))] * step.pre_activated)


def _rectified(block: Cell) -> Cell:
    """A residual step, then a plain one."""
    both = chain(block, turn(residual(mlp.rectify)))

    def cell(p: Any, left: Any, below: Any) -> tuple[Any, Any]:
        (right, _), above = both((p, ()), (left, ()), below)
        return right, above

    return cell


def apply(
    params: Params,
    images: Float[Any, "B P P C"],
    *,
    config: Config,
    statistics: Any = None,
    schedule: Schedule = Sequential(),
) -> tuple[Float[Array, "B K"], Any]:
    """The logits of each class, in the stream's dtype, and the batch norms' statistics that were used; jitted.

    statistics: running ones; None, as in training: each norm uses the batch's own, over the whole of a batch however
    it is sharded, and hands them out.
    Raises ValueError, before any compilation, for images of another rank, width or dtype, and for params or statistics
    of another config.
    """
    checks.floats("images", images, "B P P C", config.channels, config_field="config.channels")
    if min(images.shape[1:3]) < 2 ** (STAGES - 1):
        raise ValueError(
            f"images have shape {images.shape}: their maps are halved twice, so give at least 4 x 4 pixels"
        )
    checks.like("params", params, _shapes(config))
    if statistics is not None:
        checks.like("statistics", statistics, _statistics(config))
    run = partial(_apply, config=config, schedule=schedule)
    results = P(jax.typeof(images).sharding.spec[0], None), P()
    return checks.automatic(run, images, results)(params, images, statistics)


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


@lru_cache
def _statistics(config: Config) -> Any:
    image = jax.ShapeDtypeStruct((1, 4, 4, config.channels), config.stream)
    return jax.eval_shape(
        lambda p, x: _apply(p, x, None, config=config, schedule=Sequential())[1], _shapes(config), image
    )


@partial(jax.jit, static_argnames=("config", "schedule"))
def _apply(params: Params, images: Any, statistics: Any, *, config: Config, schedule: Schedule) -> tuple[Any, Any]:
    params = config.cast(params)
    left = (None,) * len(params.net) if statistics is None else statistics
    used, (stream, _) = net(config, schedule=schedule)(params.net, left, (images.astype(config.stream), ()))
    return head(params, stream, config), used


def head(params: Params, stream: Float[Array, "B P P F"], config: Config) -> Float[Array, "B K"]:
    """The logits, in the stream's dtype: a linear map of each channel's mean over the pixels."""
    pooled = stream.mean((1, 2)).astype(config.compute)
    return (pooled @ params.w + params.b).astype(config.stream)
