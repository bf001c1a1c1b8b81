"""One residual step, scanned along time or along depth: an LSTM is a ResNet rotated by 90 degrees."""

from lstm_rot import branches, models
from lstm_rot.core import DEPTH, TIME, Axis, Branch, Cell, chain, residual, scan, turn
from lstm_rot.models.recurrent import explain
from lstm_rot.newton import DampedNewton, DiagonalNewton, Newton, newton_with_info
from lstm_rot.schedules import Checkpointed, Schedule, Sequential
from lstm_rot.wavefront import wavefront

__all__ = [
    "DEPTH",
    "TIME",
    "Axis",
    "Branch",
    "Cell",
    "Checkpointed",
    "DampedNewton",
    "DiagonalNewton",
    "Newton",
    "Schedule",
    "Sequential",
    "branches",
    "chain",
    "explain",
    "models",
    "newton_with_info",
    "residual",
    "scan",
    "turn",
    "wavefront",
]
