# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Weights to and from torch.nn.LSTM.

Of layer k and direction (suffix _l{k}, or _l{k}_reverse), torch's gates i, f, g, o being ours:

    weight_ih [4 H, D] = W_x^T      weight_hh [4 H, P] = W_h^T      weight_hr [P, H] = W_p^T
    bias_ih + bias_hh [4 H] = b     and back: bias_ih = b, bias_hh = 0

Ours is time-major, [T, B, D]: of a module with batch_first=True the inputs and outputs are to be transposed. torch's
h_n and c_n, [layers * directions, B, .], are our carry's leaves, [L, B, .] or [L, 2, B, .], reshaped.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_rot.branches import lstm as branch
from lstm_rot.interop import layers
from lstm_rot.models import lstm

_KEY = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(\d+)(_reverse)?")


def from_torch(source: Any, *, prefix: str = "") -> tuple[lstm.Config, tuple[branch.Params, ...]]:
    """The config and params of a torch.nn.LSTM or LSTMCell, of a module that holds one, or of a state_dict.

    A state_dict maps names to torch tensors or arrays; torch is not needed for it. Sizes, layers, directions,
    projection and dtype are read off the weights; without biases b is zero. prefix: of the names, "encoder.lstm.".
    The dropout between layers is a module's own; a state_dict has none: `dataclasses.replace(config, dropout=...)`.

    Raises ValueError where weights are missing or not an LSTM's, or of several dtypes, and for float64 without x64.
    """
    prefix = prefix and prefix.rstrip(".") + "."
    state, dropout = source.state_dict() if hasattr(source, "state_dict") else source, 0.0
    if not isinstance(state, Mapping):
        raise ValueError(f"source is a {type(source).__name__}: give a torch.nn.LSTM or its state_dict()")
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    cells = _cells(_renamed(found), prefix, state)
    if state is not source:
        rate = getattr(source.get_submodule(prefix.rstrip(".")), "dropout", 0.0)
        dropout = rate if isinstance(rate, float | int) else 0.0
    config = layers.config_of(cells, dropout=dropout)
    return config, layers.to_runs(cells, config)


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    """A torch.nn.LSTMCell's weights have no layer in their names."""
    if "weight_ih" not in found:
        return found
    return {f"{name}_l0" if _KEY.fullmatch(f"{name}_l0") else name: value for name, value in found.items()}


def _cells(found: dict[str, Any], prefix: str, state: Mapping[str, Any]) -> layers.Layers:
    """Each layer's and direction's weights. Raises ValueError where any is missing."""
    parts = {name: match for name in found if (match := _KEY.fullmatch(name))}
    if not parts:
        places = sorted({key[: match.start()] for key in state if (match := _KEY.search(key))})
        remedy = f"give prefix={places[0]!r}" if places else "give a torch.nn.LSTM or its state_dict()"
        raise ValueError(f"no {prefix}weight_ih_l0 among {layers.listed(state)}: {remedy}")
    kinds = {match[1] for match in parts.values()} | {"weight_ih", "weight_hh"}
    kinds |= {"bias_ih", "bias_hh"} if kinds & {"bias_ih", "bias_hh"} else set()
    suffixes = ["", "_reverse"] if any(match[3] for match in parts.values()) else [""]
    count = 1 + max(int(match[2]) for match in parts.values())
    wanted = [f"{kind}_l{k}{suffix}" for kind in sorted(kinds) for k in range(count) for suffix in suffixes]
    missing = [prefix + name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{layers.listed(missing)} missing beside {layers.listed(parts)}: give a whole state_dict")
    return [[_cell(found, f"_l{k}{suffix}") for suffix in suffixes] for k in range(count)]


def _cell(found: dict[str, Any], suffix: str) -> branch.Params:
    """The weights of one layer in one direction."""
    arrays = {kind: _array(found[kind + suffix]) for kind in _KINDS if kind + suffix in found}
    w_ih, w_hh, w_hr = arrays["weight_ih"], arrays["weight_hh"], arrays.get("weight_hr")
    hidden = w_hh.shape[-1] if w_hr is None else w_hr.shape[-1]
    for name in ("weight_ih", "weight_hh"):
        if arrays[name].ndim != 2 or len(arrays[name]) != 4 * hidden:
            raise ValueError(
                f"{name}{suffix} has shape {arrays[name].shape}, an LSTM of {hidden} units 4 * {hidden} rows: "
                f"give an LSTM's weights, not a GRU's or RNN's"
            )
    biases = [arrays[name] for name in ("bias_ih", "bias_hh") if name in arrays]
    bias = sum(biases[1:], biases[0]) if biases else np.zeros(4 * hidden, w_ih.dtype)
    return layers.cell(
        wx=w_ih.reshape(4, hidden, -1).transpose(2, 0, 1),
        wh=w_hh.reshape(4, hidden, -1).transpose(2, 0, 1),
        b=bias.reshape(4, hidden),
        wp=None if w_hr is None else w_hr.T,
    )


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def _array(value: Any) -> np.ndarray:
    """A torch tensor or any array as a numpy array of the same dtype."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    # torch hands no bfloat16 to numpy; by way of float32 every number is kept.
    return value.float().numpy().astype(jnp.bfloat16) if str(value.dtype) == "torch.bfloat16" else value.numpy()


def state_dict(params: tuple[branch.Params, ...], config: lstm.Config, *, prefix: str = "") -> dict[str, np.ndarray]:
    """The state_dict of a torch.nn.LSTM with biases, of numpy arrays in the params' dtype; torch is not needed.

    `from_torch` gives the same params again. Raises ValueError, naming the field, for what torch's LSTM lacks:
    peepholes, layer norm, zoneout, a reversed stack, other gates than FORGET, projections as wide as the state.
    Dropouts are in use in training alone, and are let through; torch knows only that between layers.
    """
    layers.check_plain(config, "torch.nn.LSTM", projection=True)
    prefix = prefix and prefix.rstrip(".") + "."
    state = {}
    for number, layer in enumerate(layers.from_runs(params, config)):
        for way, p in enumerate(layer):
            wx: Any = p.wx
            b = p.b.reshape(-1)
            cell = {
                "weight_ih": wx.transpose(1, 2, 0).reshape(len(b), -1),
                "weight_hh": p.wh.transpose(1, 2, 0).reshape(len(b), -1),
                "bias_ih": b,
                "bias_hh": np.zeros_like(b),
            }
            cell |= {} if p.wp is None else {"weight_hr": p.wp.T}
            suffix = f"_l{number}{'_reverse' * way}"
            state |= {f"{prefix}{kind}{suffix}": np.array(leaf, order="C") for kind, leaf in cell.items()}
    return state


def to_torch(params: tuple[branch.Params, ...], config: lstm.Config, *, prefix: str = "") -> dict[str, Any]:
    """As `state_dict`, of torch tensors:

        module = torch.nn.LSTM(config.input_size, config.hidden_size, config.num_layers, dtype=...,
                               bidirectional=config.bidirectional, proj_size=config.projection_size or 0)
        module.load_state_dict(to_torch(params, config))

    Raises ImportError without torch, ValueError as `state_dict` does.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "to_torch makes torch tensors: pip install torch; state_dict makes numpy arrays without it"
        ) from error
    tensors = {}
    for name, leaf in state_dict(params, config, prefix=prefix).items():
        half = leaf.dtype == jnp.bfloat16
        tensor = torch.from_numpy(leaf.astype("float32") if half else leaf)
        tensors[name] = tensor.to(torch.bfloat16) if half else tensor
    return tensors
