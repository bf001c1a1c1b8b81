"""A language model: one head, an embedding and a softmax split over the vocabulary, on any body that reads tokens.

The body is a recurrent stack along TIME or a Transformer along DEPTH. The softmax is computed by blocks of steps, so
that the logits of a whole batch never exist at once, and with its vocabulary over the mesh axis `model` no device has
a whole row of them.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.models import checks, gru, highway, lstm, recurrent, residual_rnn, rnn, transformer
from lstm_rot.schedules import Schedule, Sequential

BODIES: dict[type, Any] = {module.Config: module for module in (lstm, gru, rnn, residual_rnn, highway, transformer)}
BLOCK = 1 << 25  # logits
Implementation = recurrent.Implementation | recurrent.Spread | None

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config:
    """The number of words, and a body, by its config.

    Raises ValueError for a body that is neither a recurrent stack nor a Transformer, or reads words not yet written.
    """

    vocab_size: int
    body: lstm.Config | gru.Config | rnn.Config | residual_rnn.Config | highway.Config | transformer.Config

    def __post_init__(self):
        checks.sizes(self, "vocab_size")
        if type(self.body) not in BODIES:
            known = ", ".join(f"{model.__name__.split('.')[-1]}.Config" for model in BODIES.values())
            raise ValueError(f"body={self.body!r}: give one of {known}")
        if isinstance(self.body, recurrent.Config) and (self.body.bidirectional or self.body.reverse):
            raise ValueError("a language model reads forwards: its body can be neither bidirectional nor reversed")

    @property
    def model(self) -> Any:
        """The module of the body."""
        return BODIES[type(self.body)]


class Params(NamedTuple):
    """Weights: the words' embedding; the body's; of the words in the softmax."""

    embed: Float[Array, "V D"]
    body: Any
    out: Float[Array, "H V"]


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params: embeddings standard normal, Lecun normal `out`, the body as it makes itself."""
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    key_embed, key_body, key_out = jax.random.split(key, 3)
    body, dtype = config.body, config.body.param_dtype
    return Params(
        embed=jax.random.normal(key_embed, (config.vocab_size, body.input_size), dtype),
        body=config.model.init(key_body, body),
        out=jax.nn.initializers.lecun_normal()(key_out, (body.output_size, config.vocab_size), dtype),
    )


def specs(config: Config) -> Params:
    """How the params lie over a mesh: words and hidden sizes over `model`, layers over `stage`."""
    return Params(embed=P("model"), body=config.model.specs(config.body), out=P(None, "model"))


def zeros(config: Config, batch: int, positions: int) -> Any:
    """The carry before the first word; `positions` is the room that a Transformer's cache has, which alone needs it."""
    room = (positions,) if isinstance(config.body, transformer.Config) else ()
    return config.model.zeros(config.body, batch, *room)


def apply(
    params: Params,
    tokens: Integer[Any, "T B"],
    *,
    config: Config,
    carry: Any = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: Implementation = None,
) -> tuple[Any, Float[Array, "T B V"]]:
    """Reads T words and returns the carry and the logits of the next ones, jitted; with a carry the words continue it.

    The carry is None for a Transformer that was given none. key: the body's dropout draws from it. implementation: the
    body's; a `training.pipeline.Pipeline` serves all bodies. Raises ValueError, before any compilation, for wrong ranks
    and dtypes, words outside 0..V-1 (seen where they are not traced), params or a carry of another config, and a cache
    without room.
    """
    _check(params, tokens, config, "T B")
    _check_carry(params, carry, jnp.shape(tokens), config)
    return _apply(params, tokens, carry, key, config=config, schedule=schedule, implementation=implementation)


@partial(jax.jit, static_argnames=("config", "schedule", "implementation"))
def _apply(params: Params, tokens: Any, carry: Any, key: Any, *, config: Config, **how: Any) -> Any:
    carry, hs = _features(params, tokens, carry, key, config, **how)
    return carry, hs @ params.out.astype(hs.dtype)


def losses(
    params: Params,
    tokens: Integer[Any, "B N"],
    *,
    config: Config,
    carry: Any = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: Implementation = None,
    block: int = BLOCK,
) -> Float[Array, "B N-1"]:
    """-log p(word t + 1 | words 0 to t) in nats, float32 at least, jitted: examples first, as batches are.

    carry: what was read before word 0, as `apply` returns it. key: the body's dropout draws from it. implementation:
    the body's, as in `apply`. block: about how many logits are computed at once, on all devices together: as many
    times more on a mesh, for the gradient of `out` is summed over `data` once a block. Raises ValueError as `apply`
    does, for examples of fewer than two words, and a block below 1.
    """
    _check(params, tokens, config, "B N")
    if jnp.shape(tokens)[1] < 2:
        raise ValueError(f"tokens has shape {jnp.shape(tokens)}: an example is at least two words, one to be predicted")
    if block < 1:
        raise ValueError(f"block={block}: compute at least one logit at once")
    _check_carry(params, carry, (jnp.shape(tokens)[1] - 1, jnp.shape(tokens)[0]), config)
    how = {"schedule": schedule, "implementation": implementation}
    return _losses(params, tokens, carry, key, config=config, block=block, **how)


@partial(jax.jit, static_argnames=("config", "block", "schedule", "implementation"))
def _losses(params: Params, tokens: Any, carry: Any, key: Any, *, config: Config, block: int, **how: Any) -> jax.Array:
    words = tokens.T.astype("int32")
    _, hs = _features(params, words[:-1], carry, key, config, **how)
    out = params.out.astype(hs.dtype)
    wide = hs.dtype if jnp.finfo(hs.dtype).bits > 32 else jnp.float32

    @jax.checkpoint  # the logits are computed again for the gradient, block by block
    def of_step(x: tuple[Any, Any]) -> jax.Array:
        h, word = x
        logits = (h @ out).astype(wide)
        # Not by indexing, which would gather a split vocabulary: every device sums over its own words.
        theirs = jnp.arange(config.vocab_size, dtype=word.dtype) == word[:, None]
        return jax.nn.logsumexp(logits, axis=-1) - jnp.where(theirs, logits, 0).sum(-1)

    steps = max(block // (tokens.shape[0] * config.vocab_size), 1)
    return jax.lax.map(of_step, (hs, words[1:]), batch_size=min(steps, len(hs))).T


def loss(
    params: Params,
    tokens: Integer[Any, "B N"],
    *,
    config: Config,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: Implementation = None,
    block: int = BLOCK,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of `losses` in nats, and their number: what `training.make_train_step` asks for."""
    how: dict = {"schedule": schedule, "implementation": implementation}
    each = losses(params, tokens, config=config, key=key, block=block, **how)
    return each.sum(), jnp.asarray(each.size, "int32")


def generate(
    params: Params,
    prompt: Integer[Any, "T B"],
    *,
    config: Config,
    length: int,
    key: PRNGKeyArray,
    temperature: float = 1.0,
) -> Int[Array, "N B"]:
    """`length` words drawn after the prompt, one by one, from softmax(logits / temperature), jitted; 0: the likeliest.

    Raises ValueError for an empty prompt, a length below 1 or a temperature below 0, and as `apply` does.
    """
    _check(params, prompt, config, "T B")
    if not len(prompt) or length < 1 or temperature < 0:
        raise ValueError(
            f"prompt of {len(prompt)} words, length={length}, temperature={temperature}: give at least one word to go "
            f"on from, a length of at least 1 and a temperature of at least 0"
        )
    return _generate(params, prompt, key, jnp.asarray(temperature, "float32"), config=config, length=length)


@partial(jax.jit, static_argnames=("config", "length"))
def _generate(params: Params, prompt: Any, key: Any, temperature: Any, *, config: Config, length: int) -> jax.Array:
    steps, batch = prompt.shape

    def draw(logits: jax.Array, key: Any) -> jax.Array:
        logits = logits.astype("float32")
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature == 0, logits.argmax(-1), drawn).astype("int32")

    def step(flow: tuple[Any, Any], key: Any) -> tuple[Any, jax.Array]:
        carry, word = flow
        carry, logits = _apply(params, word[None], carry, None, config=config)
        word = draw(logits[0], key)
        return (carry, word), word

    keys = jax.random.split(key, length)
    room = zeros(config, batch, steps + length)
    carry, logits = _apply(params, prompt, room, None, config=config)
    first = draw(logits[-1], keys[0])
    _, words = jax.lax.scan(step, (carry, first), keys[1:])
    return jnp.concatenate([first[None], words])


def _features(params: Params, tokens: Any, carry: Any, key: Any, config: Config, **how: Any) -> tuple[Any, jax.Array]:
    """The carry, and what the softmax reads: [T, B, H] in the compute dtype."""
    x = params.embed[tokens].astype(config.body.compute)
    if not isinstance(config.body, transformer.Config):
        how["key"] = key
    return config.model.apply(params.body, x, config=config.body, carry=carry, **how)


def _check(params: Params, tokens: Any, config: Config, shape: str) -> None:
    checks.tokens("tokens", tokens, shape, config.vocab_size)
    checks.like("params", params, _shapes(config))


def _check_carry(params: Params, carry: Any, shape: tuple[int, ...], config: Config) -> None:
    """The body's own errors, outside of `jit`, within which the carry's values are not seen; shape: (T, B)."""
    if carry is not None:
        x = jax.ShapeDtypeStruct((*shape, config.body.input_size), config.body.compute)
        jax.eval_shape(lambda x, p: config.model.apply(p, x, config=config.body, carry=carry), x, params.body)


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))
