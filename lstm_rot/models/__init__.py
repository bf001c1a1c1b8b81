"""Whole networks: a frozen `Config`, a pure `init(key, config)`, and a jitted `apply(params, ..., config=config)`."""

from lstm_rot.models import classifier, gru, highway, language_model, lstm, resnet, rnn, transformer

__all__ = ["classifier", "gru", "highway", "language_model", "lstm", "resnet", "rnn", "transformer"]
