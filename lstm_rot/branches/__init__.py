"""What differs between networks: pure functions of one cell's weights and flows, which never know who scans them.

    branch(p, stream, memory, below) -> keep, add, read        stream = keep * stream + add
    read(stream) -> memory, above

Letters: *B any batch axes, D input width, H hidden size. The product runs in the dtype of the weights (compute), the
pointwise arithmetic and the stream in the dtype of the stream.
"""

from lstm_rot.branches import attention, attnres, conv, dense, gru, highway, lstm, minlstm, mlp, mlstm, rnn
from lstm_rot.branches.wrappers import by_path, lesioned, probed, watched, with_keep

__all__ = [
    "attention",
    "attnres",
    "by_path",
    "conv",
    "dense",
    "gru",
    "highway",
    "lesioned",
    "lstm",
    "minlstm",
    "mlp",
    "mlstm",
    "probed",
    "rnn",
    "watched",
    "with_keep",
]
