"""Weights to and from flax's LSTMCell and OptimizedLSTMCell, linen's and nnx's, alone or in RNN and Bidirectional.

    linen, both cells, and nnx.LSTMCell     ii, if, ig, io: kernel [D, H];  hi, hf, hg, ho: kernel [H, H], bias [H]
    nnx.OptimizedLSTMCell                   dense_i: kernel [D, 4 H];  dense_h: kernel [H, 4 H], bias [4 H]

(nnx writes if_ for if.) The order of gates, i, f, g, o, is ours, and one bias is all there is. Weights alone are read:
time_major, reverse and the dtype of the products are the caller's to set.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from lstm_rot.branches import lstm as branch
from lstm_rot.interop import layers
from lstm_rot.models import lstm

Cell = type[nnx.LSTMCell] | type[nnx.OptimizedLSTMCell]
_GATED = {f"{side}{gate}" for side in "ih" for gate in "ifgo"}


def from_flax(source: Any) -> tuple[lstm.Config, tuple[branch.Params, ...]]:
    """The config and params of one layer, or of a list of layers from the bottom up.

    A layer is an nnx module or its state, or linen's variables or params: anything that holds one LSTMCell or
    OptimizedLSTMCell, or the two of a Bidirectional (forward_rnn and backward_rnn) whose outputs are concatenated.

    Raises ValueError where no cell or more than one is found, for sizes that do not fit or several dtypes, for nnx
    cells whose gate_fn and activation_fn are not sigmoid and tanh and an nnx.Bidirectional whose merge_fn does not
    concatenate (linen's variables do not show them), and for float64 without x64.
    """
    stack = source if isinstance(source, list | tuple | nnx.List) else [source]
    if not len(stack):
        raise ValueError("source is empty: give at least one layer")
    cells = [_layer(layer) for layer in stack]
    directions = [len(layer) for layer in cells]
    if len(set(directions)) > 1:
        raise ValueError(f"the layers have {directions} directions: give layers that all have one, or all two")
    config = layers.config_of(cells)
    return config, layers.to_runs(cells, config)


def _layer(source: Any) -> list[branch.Params]:
    """The weights of a layer's one direction, or two."""
    if isinstance(source, nnx.Bidirectional):  # its two may be one and the same, whose state is kept once
        _check_merged(source.merge_fn)
        return [p for way in (source.forward_rnn, source.backward_rnn) for p in _layer(way)]
    if isinstance(source, nnx.Module):
        _check_activations(source)
        source = nnx.state(source, nnx.Param)
    if isinstance(source, nnx.State):
        source = nnx.to_pure_dict(source)
    if not isinstance(source, Mapping):
        raise ValueError(
            f"a layer is a {type(source).__name__}: give an nnx module or its state, or linen's variables "
            f"(a linen module itself holds no weights)"
        )
    found = _cells(linen.unbox(source), ())
    if len(found) == 1:
        return list(found.values())
    ways = [[p for path, p in found.items() if name in path] for name in ("forward_rnn", "backward_rnn")]
    if len(found) == 2 and [len(way) for way in ways] == [1, 1]:
        return [way[0] for way in ways]
    if found:
        paths = layers.listed("/".join(map(str, path)) for path in found)
        raise ValueError(f"{len(found)} LSTM cells, at {paths}: give a list of one layer each, from the bottom up")
    keys = layers.listed(jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(source))
    raise ValueError(f"no LSTM cell among {keys}: give the weights of an LSTMCell or OptimizedLSTMCell")


def _check_merged(merge: Any) -> None:
    one, other = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    if not np.array_equal(merge(one, other), np.concatenate([one, other], axis=-1)):
        raise ValueError(f"merge_fn={merge!r}: our two directions' outputs are concatenated")


def _check_activations(module: nnx.Module) -> None:
    for _, cell in nnx.iter_modules(module):
        if not isinstance(cell, nnx.LSTMCell | nnx.OptimizedLSTMCell):
            continue
        for field, ours in (("gate_fn", jax.nn.sigmoid), ("activation_fn", jnp.tanh)):
            if getattr(cell, field) not in (ours, getattr(nnx, ours.__name__), getattr(jax.lax, ours.__name__, ours)):
                raise ValueError(f"{field}={getattr(cell, field)!r}: our gates are sigmoid, our activation is tanh")


def _cells(tree: Any, path: tuple[Any, ...]) -> dict[tuple[Any, ...], branch.Params]:
    """The cells in a tree of dicts, by their paths."""
    if not isinstance(tree, Mapping):
        return {}
    named = {"if" if name == "if_" else name: child for name, child in tree.items()}
    if named.keys() >= _GATED:
        return {path: _of_gates(named)}
    if named.keys() >= {"dense_i", "dense_h"}:
        wx, wh, b = (_array(named[side][kind]) for side, kind in _DENSE)
        return {path: layers.cell(*(leaf.reshape(*leaf.shape[:-1], 4, -1) for leaf in (wx, wh, b)))}
    found = {}
    for name, child in tree.items():
        found |= _cells(child, (*path, name))
    return found


_DENSE = (("dense_i", "kernel"), ("dense_h", "kernel"), ("dense_h", "bias"))


def _of_gates(named: dict[str, Any]) -> branch.Params:
    def gates(side: str, kind: str) -> np.ndarray:
        return np.stack([_array(named[side + gate][kind]) for gate in "ifgo"], axis=-2)

    return layers.cell(gates("i", "kernel"), gates("h", "kernel"), gates("h", "bias"))


def _array(leaf: Any) -> np.ndarray:
    return np.asarray(leaf[...] if isinstance(leaf, nnx.Variable) else leaf)


def to_linen(params: tuple[branch.Params, ...], config: lstm.Config) -> list[dict[str, Any]]:
    """One tree a layer: the params of linen's LSTMCell and OptimizedLSTMCell.

        linen.RNN(linen.OptimizedLSTMCell(H)).apply({"params": {"cell": to_linen(params, config)[0]}}, xs)

    Of a bidirectional config each is that of linen.Bidirectional of two such RNNs. Raises ValueError, naming the
    field, for what flax's cells lack: as `torch.state_dict`, and a projection.
    """
    made = _of_layers(params, config, "linen.LSTMCell", _gated)
    if not config.bidirectional:
        return [cells[0] for cells in made]
    return [{"forward_rnn": {"cell": cells[0]}, "backward_rnn": {"cell": cells[1]}} for cells in made]


def _of_layers(params: Any, config: lstm.Config, where: str, make: Any) -> list[list[Any]]:
    layers.check_plain(config, where, projection=False)
    return [[make(p) for p in layer] for layer in layers.from_runs(params, config)]


def _gated(p: Any) -> dict[str, dict[str, jax.Array]]:
    tree = {}
    for k, gate in enumerate("ifgo"):
        tree[f"i{gate}"] = {"kernel": jnp.array(p.wx[:, k])}
        tree[f"h{gate}"] = {"kernel": jnp.array(p.wh[:, k]), "bias": jnp.array(p.b[k])}
    return tree


def to_nnx(
    params: tuple[branch.Params, ...], config: lstm.Config, *, cell: Cell = nnx.OptimizedLSTMCell
) -> list[nnx.Module]:
    """One new module a layer with these weights: `cell`, or of a bidirectional config nnx.Bidirectional of two RNNs.

        nnx.RNN(to_nnx(params, config)[0])(xs)

    Raises ValueError as `to_linen` does.
    """
    made = _of_layers(params, config, f"nnx.{cell.__name__}", lambda p: _nnx_cell(p, cell))
    if not config.bidirectional:
        return [cells[0] for cells in made]
    return [nnx.Bidirectional(nnx.RNN(forward), nnx.RNN(backward)) for forward, backward in made]


def _nnx_cell(p: Any, cell: Cell) -> nnx.Module:
    width, _, hidden = p.wx.shape
    zeros = nnx.initializers.zeros_init()  # the cell's own orthogonal start is not to be had in bfloat16
    module: Any = cell(
        width, hidden, kernel_init=zeros, recurrent_kernel_init=zeros, param_dtype=p.wx.dtype, rngs=nnx.Rngs(0)
    )
    if isinstance(module, nnx.OptimizedLSTMCell):
        for (side, kind), leaf in zip(_DENSE, (p.wx, p.wh, p.b), strict=True):
            getattr(getattr(module, side), kind)[...] = jnp.array(leaf.reshape(*leaf.shape[:-2], -1))
        return module
    for name, kinds in _gated(p).items():
        for kind, leaf in kinds.items():
            getattr(getattr(module, "if_" if name == "if" else name), kind)[...] = leaf
    return module
