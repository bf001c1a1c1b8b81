"""He et al. 2016's shortcuts, along depth: what each keeps of the stream, constant or by a gate."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax

from lstm_rot.branches import conv
from lstm_rot.models import conv_resnet
from lstm_rot.models.conv_resnet import Step

GATES = {"exclusive": conv.exclusive, "shortcut": conv.shortcut_only}
CONSTANTS = {"0.5/0.5": (0.5, 0.5), "0.5/1": (0.5, 1.0), "0.9/1": (0.9, 1.0), "0.99/1": (0.99, 1.0)}  # keep / add
BIASES = {"exclusive": (0, -2, -4, -6, -8), "shortcut": (0, -3, -6)}

# The residual function is that of 2015, the addition followed by a rectifier, as in Table 1 of the paper.
STEPS = {
    "identity": Step(),
    **{name: Step(shortcut=partial(conv.scaled, keep=keep, add=add)) for name, (keep, add) in CONSTANTS.items()},
    **{
        f"{kind}:{bias}": Step(shortcut=GATES[kind], gate_bias=float(bias))
        for kind, biases in BIASES.items()
        for bias in biases
    },
}


def start(key: jax.Array, model: conv_resnet.Config) -> conv_resnet.Params:
    """`conv_resnet.init`, its weights first and then the gates' bias: that is compiled once for all settings."""
    bias = model.step.gate_bias
    params = conv_resnet.init(key, replace(model, step=Step(gate_bias=None if bias is None else 0.0)))

    def biased(leaf: Any) -> Any:
        return leaf._replace(b=leaf.b + (bias or 0.0)) if isinstance(leaf, conv.Gate) else leaf

    return jax.tree.map(biased, params, is_leaf=lambda leaf: isinstance(leaf, conv.Gate))
