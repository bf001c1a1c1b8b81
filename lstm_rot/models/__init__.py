"""Whole networks: a frozen `Config`, a pure `init(key, config)`, and a jitted `apply(params, ..., config=config)`."""

from lstm_rot.models import (
    classifier,
    conv_resnet,
    gru,
    highway,
    language_model,
    lstm,
    residual_rnn,
    resnet,
    rnn,
    seq2seq,
    transformer,
)

__all__ = [
    "classifier",
    "conv_resnet",
    "gru",
    "highway",
    "language_model",
    "lstm",
    "residual_rnn",
    "resnet",
    "rnn",
    "seq2seq",
    "transformer",
]
