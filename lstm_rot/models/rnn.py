"""Stacked plain recurrent net: `scan(scan(residual(rnn), TIME), DEPTH)`."""

from dataclasses import dataclass

from lstm_rot.branches import rnn as branch
from lstm_rot.models import recurrent
from lstm_rot.models.without_memory import functions


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes and dtypes."""


Carry = recurrent.Hidden
zeros = recurrent.zeros
KIND = recurrent.without_memory(branch.rnn, branch.init)
init, apply, specs = functions(KIND, Config)
