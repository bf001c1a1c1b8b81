"""One image, either way: its rows as time steps of a recurrent stack, or the whole of it through the depth of a net."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from lstm_rot.models import checks, gru, highway, lstm, residual_rnn, resnet, rnn
from lstm_rot.schedules import Schedule, Sequential

P: Any = PartitionSpec  # stands where the weights stand
BODIES: dict[type, Any] = {module.Config: module for module in (lstm, gru, rnn, residual_rnn, highway, resnet)}


@dataclass(frozen=True)
class Config:
    """A body, by its config, and the number of classes.

    The body's input_size is the image's width P where it is recurrent, and all P * P pixels where it is a ResNet.
    Raises ValueError for a body that is neither, and fewer classes than 1.
    """

    body: lstm.Config | gru.Config | rnn.Config | residual_rnn.Config | highway.Config | resnet.Config
    num_classes: int

    def __post_init__(self):
        checks.sizes(self, "num_classes")
        if type(self.body) not in BODIES:
            known = ", ".join(f"{model.__name__.split('.')[-1]}.Config" for model in BODIES.values())
            raise ValueError(f"body={self.body!r}: give one of {known}")

    @property
    def turned(self) -> bool:
        """Whether the image goes through depth."""
        return isinstance(self.body, resnet.Config)


class Params(NamedTuple):
    """The body's params, and the linear head."""

    body: Any
    w: Float[Array, "H K"]
    b: Float[Array, "K"]


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params; the head starts at zero, so that every class is equally likely.

    Raises ValueError for what is not one key, and another model's config.
    """
    checks.fresh(key, config, Config)
    dtype = config.body.param_dtype
    return Params(
        BODIES[type(config.body)].init(key, config.body),
        jnp.zeros((config.body.hidden_size, config.num_classes), dtype),
        jnp.zeros(config.num_classes, dtype),
    )


def specs(config: Config) -> Params:
    """How the params lie over a mesh: the body's as it says, the head's hidden units over `model`."""
    return Params(body=BODIES[type(config.body)].specs(config.body), w=P("model"), b=P())


def apply(
    params: Params,
    images: Float[Any, "B R P"],
    *,
    config: Config,
    schedule: Schedule = Sequential(),
) -> Float[Array, "B K"]:
    """The logits of each class, jitted.

    Raises ValueError, before any compilation, for images of another rank, width or dtype, and foreign params.
    """
    width = jnp.shape(images)[-1] if jnp.ndim(images) == 3 else 0
    checks.floats("images", images, "B R P", width, config_field="")
    pixels = images.shape[1] * width if config.turned else width
    if pixels != config.body.input_size:
        way = "pixels in all, through depth," if config.turned else "pixels a row, along time,"
        raise ValueError(f"images have {pixels} {way} config.body.input_size={config.body.input_size}")
    checks.like("params", params, _shapes(config))
    run = partial(_apply, config=config, schedule=schedule)
    return checks.automatic(run, images, P(jax.typeof(images).sharding.spec[0], None))(params, images)


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


@partial(jax.jit, static_argnames=("config", "schedule"))
def _apply(params: Params, images: Any, *, config: Config, schedule: Schedule) -> jax.Array:
    body, model = config.body, BODIES[type(config.body)]
    if config.turned:
        top = model.apply(params.body, images.reshape(len(images), -1), config=body, schedule=schedule)
    else:
        carry, _ = model.apply(params.body, images.swapaxes(0, 1), config=body, schedule=schedule)
        top = carry.h[-1].astype(body.compute)
    return top @ params.w.astype(body.compute) + params.b.astype(body.compute)
