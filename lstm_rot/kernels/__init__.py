"""Faster ways to run what `scan(residual(...))` specifies, each tested against it for values and gradients."""

from lstm_rot.kernels.hoisted import hoisted

__all__ = ["hoisted"]
