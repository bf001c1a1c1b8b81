"""An nnx module in the place of `nnx.RNN(nnx.OptimizedLSTMCell(D, H, rngs=rngs))`, running our LSTM."""

from dataclasses import fields
from typing import Any

import jax
from flax import nnx

from lstm_rot.branches import lstm as branch
from lstm_rot.interop import layers, sequences
from lstm_rot.models import lstm


class LSTM(nnx.Module):
    """A stack of LSTMs: `nnx.LSTM(D, H, rngs=rngs)` for `nnx.RNN(nnx.OptimizedLSTMCell(D, H, rngs=rngs))`.

    options: those of `models.lstm.Config`, num_layers to stream_dtype; a flax dtype serves too. time_major,
    return_carry, reverse and keep_order are flax's, and `__call__` may override them. Its weights are nnx.Param at
    runs/0/wx and so on; `params` and `from_params` exchange them with ours. Dropout and zoneout draw from the stream
    rngs.dropout unless deterministic, which `module.eval()` and `module.train()` set.

    Where it differs from flax's: outputs past a sequence's length are zero (flax leaves what the cell makes of the
    padding); a sequence of length 0 ends in its initial carry (flax's in that after all T steps); forget_bias starts
    at 1, not 0; the carry's c is float32 where the weights are bfloat16.

    Raises TypeError for options that Config does not have, ValueError as Config does.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        deterministic: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        options |= {name: layers.dtype_name(value) for name, value in options.items() if name.endswith("_dtype")}
        self.config = lstm.Config(in_features, hidden_features, **options)
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.deterministic = deterministic
        self.rngs = rngs.dropout.fork() if sequences.draws(self.config) else nnx.data(None)
        self.runs = _held(layers.to_dict(lstm.init(rngs.params(), self.config)))

    @classmethod
    def from_params(
        cls, params: tuple[branch.Params, ...], config: lstm.Config, *, rngs: nnx.Rngs | None = None, **options: bool
    ) -> "LSTM":
        """A module with these weights; a reversed config's has reverse and keep_order on. options: flax's, as above.

        rngs: needed only where the config draws random numbers; from seed 0 without.
        """
        layers.check(params, config)
        ours = {field.name: getattr(config, field.name) for field in fields(lstm.Config)}
        width, hidden, reverse = (ours.pop(name) for name in ("input_size", "hidden_size", "reverse"))
        options = {"reverse": reverse, "keep_order": reverse} | options
        module = cls(width, hidden, rngs=rngs or nnx.Rngs(0), **ours, **options)
        module.runs = _held(layers.to_dict(jax.tree.map(jax.numpy.asarray, params)))
        return module

    @property
    def params(self) -> tuple[branch.Params, ...]:
        """The weights as `models.lstm.apply` takes them, with `self.config`."""
        return layers.from_dict(_values(self.runs))

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """The outputs [*batch, T, H], or with return_carry the pair of the last carry (c, h) and the outputs.

        inputs: [*batch, T, D], or with time_major [T, *batch, D]; there may be no batch axis, or several.
        initial_carry: (c, h), each [*batch, H], of L layers [L, *batch, H], of two directions [L, 2, *batch, H];
        zeros without. seq_lengths: [*batch]; the carry is that after each sequence's last step. reverse: each
        sequence is read from its end and the outputs come in that order, or with keep_order in that of the inputs.
        rngs: draws the dropout in the place of the module's own, but a stream for carries, which need none.

        Raises ValueError for wrong shapes, lengths outside 0..T, and reverse of a bidirectional stack.
        """
        carry, ys = sequences.run(
            self.params,
            inputs,
            config=self.config,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            time_major=self.time_major if time_major is None else time_major,
            reverse=self.reverse if reverse is None else reverse,
            keep_order=self.keep_order if keep_order is None else keep_order,
            key=self._key(rngs),
        )
        return (carry, ys) if (self.return_carry if return_carry is None else return_carry) else ys

    def _key(self, rngs: nnx.Rngs | nnx.RngStream | None) -> Any:
        if self.deterministic or not sequences.draws(self.config):
            return None
        of_a_carry = isinstance(rngs, nnx.RngStream) and rngs.tag == "carry"  # what nnx.Bidirectional hands on
        stream: Any = self.rngs if rngs is None or of_a_carry else rngs
        return stream.dropout() if isinstance(stream, nnx.Rngs) else stream()


def _held(tree: Any) -> Any:
    """The nested dict as nnx modules, its leaves nnx.Param."""
    return nnx.Dict({k: _held(v) for k, v in tree.items()}) if isinstance(tree, dict) else nnx.Param(tree)


def _values(node: Any) -> Any:
    return node[...] if isinstance(node, nnx.Variable) else {k: _values(v) for k, v in node.items()}
