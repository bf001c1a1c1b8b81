"""Stacked GRU: `scan(scan(residual(gru), TIME), DEPTH)`."""

from dataclasses import dataclass

from lstm_rot.branches import gru as branch
from lstm_rot.models import recurrent
from lstm_rot.models.without_memory import functions


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes and dtypes."""


Carry = recurrent.Hidden
zeros = recurrent.zeros
KIND = recurrent.without_memory(branch.gru, branch.init)
init, apply, specs = functions(KIND, Config)
