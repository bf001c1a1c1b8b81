"""A language model: one head, an embedding and a softmax split over the vocabulary, on any body that reads tokens.

The body is a recurrent stack along TIME or a Transformer along DEPTH. The softmax is computed by blocks of steps, so
that the logits of a whole batch never exist at once, and with its vocabulary over the mesh axis `model` no device has
a whole row of them.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.branches import attention
from lstm_rot.branches.noise import dropped as masked
from lstm_rot.models import attending, checks, recurrent, transformer
from lstm_rot.models.checks import Lengths
from lstm_rot.native import compiled_for
from lstm_rot.schedules import Schedule, Sequential, in_pieces

BODIES: dict[type, Any] = attending.STACKS | {module.Config: module for module in (attending, transformer)}
BLOCK = 1 << 25  # logits computed at once
CACHED = 1 << 20  # those that a CPU's cache holds
Implementation = recurrent.Implementation | recurrent.Spread | None

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config:
    """The number of words, and a body, by its config.

    dropout: on what enters a recurrent body and what leaves any (Zaremba et al. 2014; on what enters a Transformer,
    positions among it, its own); its masks are of a whole sequence, and not those of its chunks. tied: the softmax has
    the embedding's weights (Press & Wolf 2017), which are then of the size 1/sqrt(D) and multiplied by sqrt(D) where
    words enter (Vaswani et al. 2017, section 3.4).

    Raises ValueError for a body that is neither a recurrent stack nor a Transformer, or reads words not yet written, a
    rate outside [0, 1), and tied weights where the body's input and output differ in width.
    """

    vocab_size: int
    body: attending.Stack | attending.Config | transformer.Config
    dropout: float = 0.0
    tied: bool = False

    def __post_init__(self):
        checks.sizes(self, "vocab_size")
        checks.rates(self, "dropout")
        if type(self.body) not in BODIES:
            known = ", ".join(f"{model.__name__.split('.')[-1]}.Config" for model in BODIES.values())
            raise ValueError(f"body={self.body!r}: give one of {known}")
        if isinstance(self.body, transformer.Config) and self.body.kind == "encoder":
            raise ValueError("kind='encoder' sees words not yet written: give a causal body, or a decoder")
        if isinstance(self.body, recurrent.Config) and (self.body.bidirectional or self.body.reverse):
            raise ValueError("a language model reads forwards: its body can be neither bidirectional nor reversed")
        if self.tied and self.body.input_size != self.body.output_size:
            raise ValueError(
                f"tied=True: the body reads words of width {self.body.input_size} and gives {self.body.output_size}; "
                f"make them equal"
            )

    @property
    def model(self) -> Any:
        """The module of the body."""
        return BODIES[type(self.body)]

    @property
    def carries(self) -> Any:
        """The module that has `taken` and `reordered`, of the body's carries."""
        return recurrent if isinstance(self.body, recurrent.Config) else self.model


class Params(NamedTuple):
    """Weights: the words' embedding; the body's; of the words in the softmax, None where these are the embedding's."""

    embed: Float[Array, "V D"]
    body: Any
    out: Float[Array, "H V"] | None


def init(key: PRNGKeyArray, config: Config) -> Params:
    """Fresh params: embeddings standard normal (tied, over sqrt(D)), Lecun normal `out`, the body's own.

    Raises ValueError for what is not one key, and another model's config.
    """
    checks.fresh(key, config, Config)
    return _init(key, config)


@partial(jax.jit, static_argnums=1)
def _init(key: jax.Array, config: Config) -> Params:
    key_embed, key_body, key_out = jax.random.split(key, 3)
    body, dtype = config.body, config.body.param_dtype
    embed = jax.random.normal(key_embed, (config.vocab_size, body.input_size), dtype)
    params = Params(embed / sqrt(body.input_size) if config.tied else embed, config.model.init(key_body, body), None)
    if config.tied:
        return params
    return params._replace(
        out=jax.nn.initializers.lecun_normal()(key_out, (body.output_size, config.vocab_size), dtype)
    )


def specs(config: Config) -> Params:
    """How the params lie over a mesh: words and hidden sizes over `model`, layers over `stage`."""
    return Params(P("model"), config.model.specs(config.body), None if config.tied else P(None, "model"))


def zeros(config: Config, batch: int, positions: int) -> Any:
    """The carry before the first word; `positions` is the room that a Transformer's cache has, which alone needs it."""
    _alone(config)
    room = (positions,) if isinstance(config.body, transformer.Config) else ()
    return config.model.zeros(config.body, batch, *room)


def batch_of(carry: Any) -> int:
    """The number of sequences that a carry is of."""
    if isinstance(carry, attending.Carry | transformer.Reading):
        return carry.valid.shape[1]
    return carry.k.shape[2] if isinstance(carry, attention.Cache) else jax.tree.leaves(carry)[0].shape[1]


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
    return carry, hs @ _out(params).astype(hs.dtype)


def _out(params: Params) -> jax.Array:
    return params.embed.T if params.out is None else params.out


def losses(params: Params, tokens: Integer[Any, "B N"], **options: Any) -> Float[Array, "B N-1"]:
    """-log p(word t + 1 | words 0 to t) in nats, float32 at least, jitted: examples first, as batches are.

    The options are those of `loss`, and so are the errors; of an example of n words the entries from n - 1 on are 0.
    """
    return _run(_losses, params, tokens, **options)


def loss(
    params: Params, tokens: Integer[Any, "B N"], *, lengths: Lengths = None, **options: Any
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of `losses` and the number of words predicted, jitted: what `training.make_train_step` asks for.

    lengths: words of each example, 0 and N included. config: the model. carry: what was read before word 0, as `apply`
    returns it. key: dropout draws from it. schedule, implementation: the body's, as in `apply`. smoothing: the share e
    of the loss that is the mean of -log p over all words (label smoothing, Szegedy et al. 2016): (1 - e) (-log p(word))
    + e / V sum over v of -log p(v). block: about how many logits are computed at once, on all devices together; after
    each the gradient of `out` is summed over the mesh axis `data`. None: BLOCK for each device of the axes `data` and
    `model`, of a CPU what its cache holds.

    Differentiable in reverse; `jax.jvp` of it, but not of its gradient, is a TypeError. Raises ValueError as `apply`
    does, for examples of fewer than two words, lengths outside 0..N, a smoothing outside [0, 1), and a block below 1.
    """
    total = _run(_total, params, tokens, lengths=lengths, **options)
    return total, jnp.asarray(_predicted(jnp.shape(tokens), lengths).sum(), "int32")


def _run(
    what: Any,
    params: Params,
    tokens: Any,
    *,
    config: Config,
    lengths: Lengths = None,
    carry: Any = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: Implementation = None,
    smoothing: float = 0.0,
    block: int | None = None,
) -> Any:
    """What it makes of them, once they are known to be right."""
    lengths, block = checked(params, tokens, config=config, lengths=lengths, smoothing=smoothing, block=block)
    _check_carry(params, carry, (jnp.shape(tokens)[1] - 1, jnp.shape(tokens)[0]), config)
    how: dict = {"schedule": schedule, "implementation": implementation}
    return what(params, tokens, lengths, carry, key, config=config, smoothing=float(smoothing), block=block, **how)


def checked(
    params: Params,
    tokens: Any,
    *,
    config: Config,
    lengths: Lengths,
    smoothing: float,
    block: int | None,
    names: tuple[str, str] = ("tokens", "lengths"),
) -> tuple[Any, int]:
    """The lengths as an array or None, and the size of a block. Raises ValueError as `loss` does."""
    _check(params, tokens, config, "B N", names[0])
    if jnp.shape(tokens)[1] < 2:
        raise ValueError(
            f"{names[0]} has shape {jnp.shape(tokens)}: an example is at least two words, one to be predicted"
        )
    checks.rate("smoothing", smoothing)
    lengths = checks.whole(lengths)
    checks.lengths_in(lengths, *jnp.shape(tokens), name=names[1], of=f"the words of {names[0]}")
    if block is not None and block < 1:
        raise ValueError(f"block={block}: compute at least one logit at once")
    mesh = jax.sharding.get_abstract_mesh()
    over = {"data", "model"} & {*mesh.axis_names} - {*mesh.manual_axes}  # of which each device has its share of logits
    return lengths, block or prod(mesh.shape[name] for name in over) * (CACHED if compiled_for()[0] == "cpu" else BLOCK)


STATIC = ("config", "smoothing", "block", "schedule", "implementation")


@partial(jax.jit, static_argnames=STATIC)
def _losses(params: Params, tokens: Any, lengths: Any, *flows: Any, smoothing: float, **how: Any) -> jax.Array:
    each = _entropies(*_entering_softmax(params, tokens, *flows, **how), smoothing)
    return jnp.where(_predicted(tokens.shape, lengths), each.T, 0)


@partial(jax.jit, static_argnames=STATIC)
def _total(params: Params, tokens: Any, lengths: Any, *flows: Any, smoothing: float, **how: Any) -> jax.Array:
    return _summed(*_entering_softmax(params, tokens, *flows, **how), smoothing, _predicted(tokens.shape, lengths).T)


def _entering_softmax(
    params: Params, tokens: Any, carry: Any, key: Any, *, config: Config, block: int, **how: Any
) -> tuple[Any, Any, Any, int]:
    """What the body gives [T, B, H], the weights [H, V], the words to be predicted [T, B], and the steps in a block."""
    words = tokens.T.astype("int32")
    _, hs = _features(params, words[:-1], carry, key, config, **how)
    steps = max(block // max(tokens.shape[0] * config.vocab_size, 1), 1)
    return hs, _out(params).astype(hs.dtype), words[1:], min(steps, len(hs))


def _predicted(shape: tuple[int, ...], lengths: Any) -> Any:
    """[B, N - 1], which words are the examples' own."""
    batch, words = shape
    ends = np.full(batch, words) if lengths is None else jnp.asarray(checks.whole(lengths), "int32")
    return np.arange(1, words, dtype="int32") < ends[:, None]


def _entropy(h: Any, out: Any, word: Any, smoothing: float) -> jax.Array:
    """-log p(word), smoothed: of h [..., H] and words [...]."""
    wide = h.dtype if jnp.finfo(h.dtype).bits > 32 else jnp.float32
    logits = (h @ out).astype(wide)
    # Not by indexing, which would gather a split vocabulary: every device sums over its own words.
    theirs = jnp.arange(out.shape[1], dtype=word.dtype) == word[..., None]
    score = jnp.where(theirs, logits, 0).sum(-1)
    if smoothing:
        score = (1 - smoothing) * score + smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - score


def _entropies(hs: Any, out: Any, words: Any, steps: int, smoothing: float) -> jax.Array:
    """[T, B]; for their gradient the logits are computed again, block by block."""

    @jax.checkpoint
    def of_block(x: tuple[Any, Any]) -> jax.Array:
        return _entropy(x[0], out, x[1], smoothing)

    return in_pieces(lambda _, x, size: ((), of_block(x)), (), (hs, words), len(hs), steps)[1]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _summed(hs: Any, out: Any, words: Any, steps: int, smoothing: float, counted: Any) -> jax.Array:
    """The sum of the entropies that are counted; its gradient is made with it, while a block's logits are there."""
    return jnp.where(counted, _entropies(hs, out, words, steps, smoothing), 0).sum()


def _summed_forward(hs: Any, out: Any, words: Any, steps: int, smoothing: float, counted: Any) -> tuple[Any, Any]:
    def piece(sums: Any, x: Any, _: int) -> tuple[Any, Any]:
        h, word, counts = x

        def total(h: Any, out: Any) -> jax.Array:
            return jnp.where(counts, _entropy(h, out, word, smoothing), 0).sum()

        value, (dh, dout) = jax.value_and_grad(total, (0, 1))(h, out)
        return (sums[0] + value, sums[1] + dout.astype(sums[1].dtype)), dh

    wide = jnp.zeros((), hs.dtype if jnp.finfo(hs.dtype).bits > 32 else "float32")
    beginning = wide, jnp.zeros(out.shape, wide.dtype)
    (value, dout), dhs = in_pieces(piece, beginning, (hs, words, counted), len(hs), steps)
    return value, (dhs, dout, out[:0])


def _summed_backward(steps: int, smoothing: float, saved: Any, g: Any) -> tuple:
    dhs, dout, like = saved
    return (g * dhs.astype(g.dtype)).astype(dhs.dtype), (g * dout).astype(like.dtype), None, None


_summed.defvjp(_summed_forward, _summed_backward)


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
    _alone(config)
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
    keys = (None, None, None) if key is None else tuple(jax.random.fold_in(key, place) for place in range(3))
    x = entering(params.embed, tokens, keys[0], config)
    carry, hs = config.model.apply(params.body, x, config=config.body, carry=carry, key=keys[1], **how)
    return carry, _dropped(hs, keys[2], config.dropout)


def entering(embed: Float[Array, "V D"], tokens: Integer[Any, "T B"], key: Any, config: Config) -> jax.Array:
    """What a body reads of the words, [T, B, D] in the compute dtype."""
    x = embed[tokens].astype(config.body.compute)
    x = x * sqrt(embed.shape[1]) if config.tied else x
    return x if isinstance(config.body, transformer.Config) else _dropped(x, key, config.dropout)


def _alone(config: Config) -> None:
    """Raises ValueError for a body that goes on from a source, of which there is none."""
    body = config.body
    if isinstance(body, attending.Config) or (isinstance(body, transformer.Config) and body.kind == "decoder"):
        raise ValueError(f"body={body!r} goes on from a source: use seq2seq.encode, then decoding.beam or sample")


def _dropped(x: jax.Array, key: Any, rate: float) -> jax.Array:
    return x if key is None or not rate else masked(x, jax.random.bernoulli(key, 1 - rate, x.shape), rate)


def _check(params: Params, tokens: Any, config: Config, shape: str, name: str = "tokens") -> None:
    checks.tokens(name, tokens, shape, config.vocab_size)
    checks.like("params", params, _shapes(config))


def _check_carry(params: Params, carry: Any, shape: tuple[int, ...], config: Config) -> None:
    """The body's own errors, outside of `jit`, within which the carry's values are not seen; shape: (T, B)."""
    if carry is not None:
        x = jax.ShapeDtypeStruct((*shape, config.body.input_size), config.body.compute)
        jax.eval_shape(lambda x, p: config.model.apply(p, x, config=config.body, carry=carry), x, params.body)


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))
