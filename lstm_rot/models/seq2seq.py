"""Sequence to sequence (Sutskever et al. 2014): a stack reads the source, and where it ends a language model goes on.

    carry, _ = body(source words)        p(target) = that of a language model whose first carry this is

The carries of all layers are the sentence's vector; nothing else goes from one to the other. Whether the source is
reversed is a property of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from lstm_rot.models import checks, language_model, transformer
from lstm_rot.schedules import Schedule, Sequential

Lengths = Integer[Any, "B"] | Sequence[int] | None

P: Any = PartitionSpec  # stands where the weights stand


@dataclass(frozen=True)
class Config:
    """The number of source words, and the decoder, a language model of the target; the encoder's body is its body's.

    Raises ValueError for a source without words, and for a Transformer, which has no carry to begin with.
    """

    source_vocab_size: int
    decoder: language_model.Config

    def __post_init__(self):
        checks.sizes(self, "source_vocab_size")
        if isinstance(self.decoder.body, transformer.Config):
            raise ValueError("a sentence becomes the carry of a recurrent stack: give a decoder with such a body")


class Params(NamedTuple):
    """Weights: the source words' embedding; the encoder's stack; the decoder's."""

    embed: Float[Array, "S D"]
    encoder: Any
    decoder: language_model.Params


def init(key: PRNGKeyArray, config: Config, *, uniform: float | None = None) -> Params:
    """Fresh params, as their models make them; with `uniform` all of them uniform in +-uniform (the paper: 0.08).

    Raises ValueError for a uniform that is not above 0.
    """
    if uniform is not None and not uniform > 0:
        raise ValueError(f"uniform={uniform!r}: give the bound of the weights, above 0, or None for the models' own")
    return _init(key, config, None if uniform is None else float(uniform))


@partial(jax.jit, static_argnums=(1, 2))
def _init(key: jax.Array, config: Config, uniform: float | None) -> Params:
    key_embed, key_encoder, key_decoder = jax.random.split(key, 3)
    body, dtype = config.decoder.body, config.decoder.body.param_dtype
    params = Params(
        embed=jax.random.normal(key_embed, (config.source_vocab_size, body.input_size), dtype),
        encoder=config.decoder.model.init(key_encoder, body),
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
    body = config.decoder.model.specs(config.decoder.body)
    return Params(embed=P("model"), encoder=body, decoder=language_model.specs(config.decoder))


def encode(
    params: Params,
    source: Integer[Any, "S B"],
    *,
    config: Config,
    lengths: Lengths = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: language_model.Implementation = None,
) -> Any:
    """The carry after the source's last word, jitted: the sentence's vector, and the decoder's first carry.

    lengths: of each sentence, 0 and S included; what stands behind changes nothing. key: dropout draws from it.
    Raises ValueError, before any compilation, for wrong ranks and dtypes, words outside the vocabulary, params of
    another config, and lengths outside 0..S.
    """
    checks.tokens("source", source, "S B", config.source_vocab_size)
    checks.like("params", params, _shapes(config))
    lengths = checks.whole(lengths)
    checks.lengths_in(lengths, jnp.shape(source)[1], len(source))
    how = {"schedule": schedule, "implementation": implementation}
    return _encode(params, source, lengths, key, config=config, **how)


@partial(jax.jit, static_argnames=("config", "schedule", "implementation"))
def _encode(params: Params, source: Any, lengths: Any, key: Any, *, config: Config, **how: Any) -> Any:
    body = config.decoder.body
    x = params.embed[source].astype(body.compute)
    return config.decoder.model.apply(params.encoder, x, config=body, lengths=lengths, key=key, **how)[0]


def losses(
    params: Params,
    source: Integer[Any, "B S"],
    target: Integer[Any, "B N"],
    *,
    config: Config,
    source_lengths: Lengths = None,
    target_lengths: Lengths = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: language_model.Implementation = None,
    block: int = language_model.BLOCK,
) -> Float[Array, "B N-1"]:
    """-log p(target word t + 1 | source, target words 0 to t) in nats, jitted; examples first, as batches are.

    Word 0 of a target begins it and is not predicted; of a target of length n the entries from n - 1 on are 0. The
    options are those of `language_model.losses`. Raises ValueError as `encode` and it do, and for target lengths
    outside 0..N.
    """
    checks.tokens("source", source, "B S", config.source_vocab_size)
    checks.tokens("target", target, "B N", config.decoder.vocab_size)
    if jnp.shape(source)[0] != jnp.shape(target)[0]:
        raise ValueError(f"source has {jnp.shape(source)[0]} examples, target {jnp.shape(target)[0]}: give pairs")
    target_lengths = checks.whole(target_lengths)
    checks.lengths_in(target_lengths, *jnp.shape(target))
    keys = (None, None) if key is None else tuple(jax.random.fold_in(key, part) for part in range(2))
    how: dict = {"schedule": schedule, "implementation": implementation}
    carry = encode(params, source.T, config=config, lengths=source_lengths, key=keys[0], **how)
    each = language_model.losses(
        params.decoder, target, config=config.decoder, carry=carry, key=keys[1], block=block, **how
    )
    return each if target_lengths is None else jnp.where(_predicted(each, target_lengths), each, 0)


def loss(
    params: Params,
    source: Integer[Any, "B S"],
    target: Integer[Any, "B N"],
    *,
    config: Config,
    source_lengths: Lengths = None,
    target_lengths: Lengths = None,
    key: PRNGKeyArray | None = None,
    schedule: Schedule = Sequential(),
    implementation: language_model.Implementation = None,
    block: int = language_model.BLOCK,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum of `losses` in nats, and the number of words predicted: what `training.make_train_step` asks for."""
    lengths = {"source_lengths": source_lengths, "target_lengths": target_lengths}
    how: dict = {"schedule": schedule, "implementation": implementation, "block": block}
    each = losses(params, source, target, config=config, key=key, **lengths, **how)
    predicted = each.size if target_lengths is None else _predicted(each, checks.whole(target_lengths)).sum()
    return each.sum(), jnp.asarray(predicted, "int32")


def _predicted(each: Any, lengths: Any) -> jax.Array:
    """[B, N - 1], which words are the targets' own."""
    return jnp.arange(1, each.shape[1] + 1, dtype="int32") < jnp.asarray(lengths, "int32")[:, None]


@lru_cache
def _shapes(config: Config) -> Params:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))
