"""Stacked plain recurrent net whose keep is 1, a residual net's along time: h' = h + tanh(h W_h + x W_x + b)."""

from dataclasses import dataclass

from lstm_rot.branches import rnn as branch
from lstm_rot.branches import with_keep
from lstm_rot.models import recurrent
from lstm_rot.models.without_memory import functions


@dataclass(frozen=True)
class Config(recurrent.Config):
    """Sizes and dtypes."""


Carry = recurrent.Hidden
zeros = recurrent.zeros
KIND = recurrent.without_memory(with_keep(branch.rnn, 1), branch.init)
init, apply, specs = functions(KIND, Config)
