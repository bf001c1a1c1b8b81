"""Sequence to sequence (Sutskever et al. 2014): one net reads the source, and a language model goes on from there.

    carry = encode(source words)         p(target) = that of a language model whose first carry this is

2014: the carries of all layers, and nothing else goes from one to the other. An attending decoder's carry holds what
the encoder gave at each position too, a Transformer's only that. Whether the source is reversed is a property of the
data.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.models import attending, checks, language_model, transformer
from lstm_rot.models.checks import Lengths
from lstm_rot.schedules import Schedule, Sequential

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config:
    """The number of source words, and the decoder, a language model of the target. The encoder is as its body.

    joint: source and target words are the same and share their embedding. bidirectional: the encoder reads both ways,
    each with half of the hidden size.

    Raises ValueError for a source without words, a decoder that is a Transformer and not of the kind that attends to a
    source, joint words that differ in number, and both ways where there are none or no halves.
    """

    source_vocab_size: int
    decoder: language_model.Config
    joint: bool = False
    bidirectional: bool = False

    def __post_init__(self):
        checks.sizes(self, "source_vocab_size")
        body = self.decoder.body
        if isinstance(body, transformer.Config) and body.kind != "decoder":
            raise ValueError(f"kind={body.kind!r}: a Transformer that goes on from a source is of kind='decoder'")
        if self.joint and self.source_vocab_size != self.decoder.vocab_size:
            raise ValueError(
                f"joint=True: {self.source_vocab_size} source words, {self.decoder.vocab_size} target words; the same "
                f"ones have one number"
            )
        if self.bidirectional and (
            isinstance(body, transformer.Config) or self.encoder.output_size != body.output_size
        ):
            raise ValueError(
                "bidirectional=True: the two halves of a recurrent stack's hidden size read both ways; give a "
                "recurrent decoder of an even one, without projection"
            )

    @property
    def encoder(self) -> Any:
        """The config of the encoder's body."""
        body = self.decoder.body
        if isinstance(body, transformer.Config):
            return replace(body, kind="encoder")
        stack = body.encoder if isinstance(body, attending.Config) else body
        return replace(stack, hidden_size=stack.hidden_size // 2, bidirectional=True) if self.bidirectional else stack

    @property
    def encoder_model(self) -> Any:
        """The module of the encoder's body."""
        return language_model.BODIES[type(self.encoder)]


class Params(NamedTuple):
    """Weights: the source words' embedding, None where it is the decoder's; the encoder's body; the decoder's."""

    embed: Float[Array, "S D"] | None
    encoder: Any
    decoder: language_model.Params


def init(key: PRNGKeyArray, config: Config, *, uniform: float | None = None) -> Params:
    """Fresh params, as their models make them; with `uniform` all of them uniform in +-uniform (the paper: 0.08).

    Raises ValueError for what is not one key, another model's config, and a uniform that is not above 0.
    """
    checks.fresh(key, config, Config)
    if uniform is not None and not uniform > 0:
        raise ValueError(f"uniform={uniform!r}: give the bound of the weights, above 0, or None for the models' own")
    return _init(key, config, None if uniform is None else float(uniform))


@partial(jax.jit, static_argnums=(1, 2))
def _init(key: jax.Array, config: Config, uniform: float | None) -> Params:
    key_embed, key_encoder, key_decoder = jax.random.split(key, 3)
    body = config.decoder.body
    embed = jax.random.normal(key_embed, (config.source_vocab_size, body.input_size), body.param_dtype)
    params = Params(
        embed=None if config.joint else embed / sqrt(body.input_size) if config.decoder.tied else embed,
        encoder=config.encoder_model.init(key_encoder, config.encoder),
        decoder=language_model.init(key_decoder, config.decoder),
    )
    if uniform is None:
        return params
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        jax.random.uniform(k, leaf.shape, leaf.dtype, -uniform, uniform) for k, leaf in zip(keys, leaves, strict=True)
    ]
    return treedef.unflatten(drawn)


def specs(config: Config) -> Params:
    """How the params lie over a mesh: words and hidden sizes over `model`, layers over `stage`."""
    encoder = config.encoder_model.specs(config.encoder)
    return Params(None if config.joint else P("model"), encoder, language_model.specs(config.decoder))


def encode(
    params: Params,
    source: Integer[Any, "S B"],
    *,
    config: Config,
    lengths: Lengths = None,
    positions: int | None = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: language_model.Implementation = None,
) -> Any:
    """The decoder's first carry, jitted: without attention that after the source's last word, the sentence's vector.

    lengths: of each sentence, 0 and S included; what stands behind changes nothing. positions: the room of a
    Transformer's cache, to write word by word; None: it reads a whole target at once. key: dropout draws from it.
    Raises ValueError, before any compilation, for wrong ranks and dtypes, words outside the vocabulary, params of
    another config, and lengths outside 0..S.
    """
    checks.tokens("source", source, "S B", config.source_vocab_size)
    checks.like("params", params, _shapes(config))
    lengths = checks.whole(lengths)
    checks.lengths_in(lengths, jnp.shape(source)[1], len(source), of="the words of source")
    how = {"schedule": schedule, "implementation": implementation}
    return _encode(params, source, lengths, key, config=config, positions=positions, **how)


@partial(jax.jit, static_argnames=("config", "positions", "schedule", "implementation"))
def _encode(
    params: Params, source: Any, lengths: Any, key: Any, *, config: Config, positions: int | None, **how: Any
) -> Any:
    keys = (None, None) if key is None else tuple(jax.random.fold_in(key, part) for part in range(2))
    body, decoder = config.decoder.body, params.decoder.body
    embed = params.decoder.embed if params.embed is None else params.embed
    x = language_model.entering(embed, source, keys[0], config.decoder)
    carry, hs = config.encoder_model.apply(
        params.encoder, x, config=config.encoder, lengths=lengths, key=keys[1], **how
    )
    valid = jnp.ones(source.shape, "bool")
    if lengths is not None:
        valid = jnp.arange(len(source), dtype="int32")[:, None] < jnp.asarray(lengths, "int32")
    if isinstance(body, transformer.Config):
        return transformer.reading(decoder, hs, valid, config=body, positions=positions)
    if config.bidirectional:  # the halves, beside each other: [L, 2, B, H/2] -> [L, B, H]
        carry = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:, 0], leaf[:, 1]], -1), carry)
    return attending.reading(decoder, carry, hs, valid, config=body) if isinstance(body, attending.Config) else carry


def losses(
    params: Params, source: Integer[Any, "B S"], target: Integer[Any, "B N"], **options: Any
) -> Float[Array, "B N-1"]:
    """-log p(target word t + 1 | source, target words 0 to t) in nats, jitted; examples first, as batches are.

    Word 0 of a target begins it and is not predicted; of a target of n words the entries from n - 1 on are 0. The
    options are those of `loss`, and so are the errors.
    """
    return _predicting(language_model.losses, params, source, target, **options)


def loss(
    params: Params, source: Integer[Any, "B S"], target: Integer[Any, "B N"], **options: Any
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of `losses` and the number of words predicted, jitted: what `training.make_train_step` asks for.

    config: the model. source_lengths, target_lengths: words of each, 0 and S, or N, included. key: dropout draws from
    it. schedule, implementation, smoothing, block: as in `language_model.loss`. Raises ValueError as `encode` and it
    do, before any compilation.
    """
    return _predicting(language_model.loss, params, source, target, **options)


def _predicting(
    what: Any,
    params: Params,
    source: Any,
    target: Any,
    *,
    config: Config,
    source_lengths: Lengths = None,
    target_lengths: Lengths = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: language_model.Implementation = None,
    smoothing: float = 0.0,
    block: int | None = None,
) -> Any:
    """What the decoder's language model says of the target, the source being read."""
    checks.tokens("source", source, "B S", config.source_vocab_size)
    checks.like("params", params, _shapes(config))
    how: dict = {"config": config.decoder, "lengths": target_lengths, "smoothing": smoothing, "block": block}
    language_model.checked(params.decoder, target, **how, names=("target", "target_lengths"))
    lengths = checks.whole(source_lengths)
    checks.lengths_in(lengths, *jnp.shape(source), name="source_lengths", of="the words of source")
    if jnp.shape(source)[0] != jnp.shape(target)[0]:
        raise ValueError(f"source has {jnp.shape(source)[0]} examples, target {jnp.shape(target)[0]}: give pairs")
    keys = (None, None) if key is None else tuple(jax.random.fold_in(key, part) for part in range(2))
    run: dict = {"schedule": schedule, "implementation": implementation}
    carry = encode(params, source.T, config=config, lengths=lengths, key=keys[0], **run)
    return what(params.decoder, target, carry=carry, key=keys[1], **how, **run)


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))
