"""Between a stack's runs of equal layers and one tree a layer and direction, as other libraries keep weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_rot.branches import lstm as branch
from lstm_rot.models import checks, lstm, recurrent

Layers = list[list[branch.Params]]  # [layer][direction] of one cell's weights, numpy arrays


def cell(wx: Any, wh: Any, b: Any, wp: Any = None) -> branch.Params:
    """The weights of one cell, of numpy arrays."""
    return branch.Params(wx, wh, b, wp=wp)


def config_of(layers: Layers, **options: Any) -> lstm.Config:
    """The config of these layers: its sizes, directions, projection and parameter dtype are read off the first."""
    first: Any = layers[0][0]
    return lstm.Config(
        input_size=first.wx.shape[0],
        hidden_size=first.wh.shape[-1],
        num_layers=len(layers),
        bidirectional=len(layers[0]) == 2,
        projection_size=None if first.wp is None else first.wp.shape[-1],
        param_dtype=np.dtype(first.wx.dtype).name,
        **options,
    )


def to_runs(layers: Layers, config: lstm.Config) -> tuple[branch.Params, ...]:
    """The params that `lstm.apply` takes, of jax arrays of their own.

    Raises ValueError where a layer is not of the config's shapes or dtype.
    """
    hidden, size = config.hidden_size, config.cell_output_size
    for number, layer in enumerate(layers):
        width = config.output_size if number else config.input_size
        want = {"wx": (width, 4, hidden), "wh": (size, 4, hidden), "b": (4, hidden)}
        want |= {} if config.projection_size is None else {"wp": (hidden, size)}
        for direction in layer:
            _check(number, direction, want, config)
    runs, first = [], 0
    for _, count in config.runs:
        run = layers[first : first + count]
        run = [_stacked(layer) if config.bidirectional else layer[0] for layer in run]
        runs.append(jax.tree.map(jnp.asarray, _stacked(run)))
        first += count
    return tuple(runs)


def _check(number: int, p: branch.Params, want: dict[str, tuple[int, ...]], config: lstm.Config) -> None:
    given = {name: leaf for name, leaf in p._asdict().items() if leaf is not None}
    if given.keys() != want.keys():
        raise ValueError(f"layer {number} has {', '.join(given)}, layer 0 {', '.join(want)}: give a stack of one kind")
    for name, leaf in given.items():
        if leaf.shape != want[name]:
            raise ValueError(
                f"layer {number}: {name} has shape {leaf.shape}, a stack of input_size={config.input_size} and "
                f"hidden_size={config.hidden_size} has {want[name]} there: give the layers from the bottom up"
            )
        if np.dtype(leaf.dtype).name != config.param_dtype:
            raise ValueError(f"layer {number}: {name} is {leaf.dtype}, layer 0 {config.param_dtype}: cast them alike")


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def check(params: Any, config: lstm.Config) -> None:
    """Raises ValueError for params of another config."""
    checks.like("params", params, recurrent.shapes(lstm.KIND, config, 1)[0])


def from_runs(params: Any, config: lstm.Config) -> Layers:
    """The weights of each layer and direction. Raises ValueError as `check`."""
    check(params, config)
    layers = []
    for run, (_, count) in zip(jax.tree.map(np.asarray, params), config.runs, strict=True):
        for k in range(count):
            layer = jax.tree.map(lambda leaf, k=k: leaf[k], run)
            ways = range(2) if config.bidirectional else [()]
            layers.append([jax.tree.map(lambda leaf, way=way: leaf[way], layer) for way in ways])
    return layers


def check_plain(config: lstm.Config, where: str, *, projection: bool) -> None:
    """Raises ValueError, naming the field, for a config that `where`, another library's LSTM, cannot compute."""
    keep = "keep it in our own format, lstm_rot.interop.safetensors, or convert a config without it"
    if config.gates != branch.FORGET:
        raise ValueError(f"gates of order {config.gates.order!r}: {where} has branches.lstm.FORGET alone; {keep}")
    for field in ("peepholes", "layer_norm", "zoneout_cell", "zoneout_hidden"):
        if getattr(config, field):
            raise ValueError(f"{field}={getattr(config, field)!r}: {where} has none; {keep}")
    if config.reverse:
        raise ValueError(
            f"reverse=True: {where} reads forwards; convert replace(config, reverse=False) and flip the sequences"
        )
    if config.projection_size is not None and not projection:
        raise ValueError(f"projection_size={config.projection_size}: {where} has none; {keep}")
    if config.projection_size is not None and config.projection_size >= config.hidden_size:
        raise ValueError(
            f"projection_size={config.projection_size}: {where} wants it below hidden_size={config.hidden_size}; {keep}"
        )


def to_dict(params: Sequence[branch.Params]) -> dict[str, dict[str, Any]]:
    """The runs as nested dicts, {"0": {"wx": ..., "wh": ..., "b": ...}, "1": ...}; what a variant lacks is left out."""

    def present(tree: Any) -> dict[str, Any]:
        leaves = {name: leaf for name, leaf in tree._asdict().items() if leaf is not None}
        return {name: present(leaf) if isinstance(leaf, branch.Norm) else leaf for name, leaf in leaves.items()}

    return {str(number): present(run) for number, run in enumerate(params)}


def from_dict(tree: Mapping[str, Any]) -> tuple[branch.Params, ...]:
    """The runs again; the inverse of `to_dict`."""
    runs = []
    for number in range(len(tree)):
        run = dict(tree[str(number)])
        if "norm" in run:
            norm: dict[str, Any] = {"x": None, **run["norm"]}
            run["norm"] = branch.Norm(**norm)
        runs.append(branch.Params(**run))
    return tuple(runs)


def listed(names: Any, limit: int = 12) -> str:
    """The names for a message, the first few of many."""
    names = [str(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "nothing"


def dtype_name(dtype: Any) -> Any:
    """The name that a Config takes for a dtype; names and None stay as they are."""
    return dtype if dtype is None or isinstance(dtype, str) else jnp.dtype(dtype).name
