"""A linen module in the place of `linen.RNN(linen.OptimizedLSTMCell(features))`, running our LSTM."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from flax import linen

from lstm_rot.branches import lstm as branch
from lstm_rot.interop import layers, sequences
from lstm_rot.models import lstm


class LSTM(linen.Module):
    """A stack of LSTMs: `linen.LSTM(H)` for `linen.RNN(linen.OptimizedLSTMCell(H))`.

    The fields from num_layers to stream_dtype are `models.lstm.Config`'s and mean the same; a flax dtype serves too.
    time_major, return_carry, reverse and keep_order are flax's, and `__call__` may override them. Its params are one
    plain tree, {"runs": {"0": {"wx", "wh", "b", ...}}}: `to_variables` and `from_variables` exchange it with ours.
    Dropout and zoneout draw where the rng "dropout" is given: `apply(variables, xs, rngs={"dropout": key})`.

    Where it differs from flax's: outputs past a sequence's length are zero (flax leaves what the cell makes of the
    padding); a sequence of length 0 ends in its initial carry (flax's in that after all T steps); forget_bias starts
    at 1, not 0; the carry's c is float32 where the weights are bfloat16.
    """

    features: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    forget_bias: float = 1.0
    gates: branch.Gates = branch.FORGET
    peepholes: bool = False
    layer_norm: bool = False
    projection_size: int | None = None
    variational_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout_cell: float = 0.0
    zoneout_hidden: float = 0.0
    param_dtype: Any = "float32"
    compute_dtype: Any = None
    stream_dtype: Any = None
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False

    @linen.compact
    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        init_key: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """The outputs [*batch, T, H], or with return_carry the pair of the last carry (c, h) and the outputs.

        inputs: [*batch, T, D], or with time_major [T, *batch, D]; there may be no batch axis, or several.
        initial_carry: (c, h), each [*batch, H], of L layers [L, *batch, H], of two directions [L, 2, *batch, H];
        zeros without. init_key: flax's, and as its LSTMs do, ours starts at zeros whatever it is.
        seq_lengths: [*batch]; the carry is that after each sequence's last step. reverse: each sequence is read from
        its end and the outputs come in that order, or with keep_order in that of the inputs.

        Raises ValueError for wrong shapes, lengths outside 0..T, and reverse of a bidirectional stack.
        """
        config = _config(self, inputs.shape[-1] if getattr(inputs, "ndim", 0) else 1)
        runs = self.param("runs", lambda key: layers.to_dict(lstm.init(key, config)))
        key = self.make_rng("dropout") if sequences.draws(config) and self.has_rng("dropout") else None
        carry, ys = sequences.run(
            layers.from_dict(runs),
            inputs,
            config=config,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            key=key,
        )
        return (carry, ys) if (self.return_carry if return_carry is None else return_carry) else ys


def _config(module: LSTM, width: int) -> lstm.Config:
    sizes: dict[str, Any] = {"input_size": width, "hidden_size": module.features, "reverse": False}
    options = {field.name: getattr(module, field.name) for field in fields(lstm.Config) if field.name not in sizes}
    dtypes = {name: layers.dtype_name(value) for name, value in options.items() if name.endswith("_dtype")}
    return lstm.Config(**(sizes | options | dtypes))


def to_variables(params: tuple[branch.Params, ...]) -> dict[str, Any]:
    """The variables of an `LSTM` module with these weights, for its `apply`."""
    return {"params": {"runs": layers.to_dict(params)}}


def from_variables(variables: Mapping[str, Any]) -> tuple[branch.Params, ...]:
    """The params in an `LSTM` module's variables, for `models.lstm.apply`; the inverse of `to_variables`.

    Raises ValueError for variables of another module.
    """
    tree = variables.get("params", variables)
    if "runs" not in tree:
        raise ValueError(f"no 'runs' among {layers.listed(tree)}: give the variables or params of an LSTM module")
    return layers.from_dict(linen.unbox(tree["runs"]))
