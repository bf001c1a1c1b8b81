"""LSTM weights and their config in one safetensors file.

The weights' names are runs.{run}.{weight}, as runs.0.wx: a run is one array of equal layers, [L, D, G, H], or of two
directions [L, 2, D, G, H]. The file's metadata has under "lstm_rot" a JSON object: version, model and config, its
gates by name. Every option of the config and every floating dtype come back as they were.
"""

import json
import os
import uuid
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_rot.branches import lstm as branch
from lstm_rot.interop import layers
from lstm_rot.interop.torch import from_torch
from lstm_rot.models import checks, lstm, recurrent

VERSION = 1
_GATES = {"FORGET": branch.FORGET, "COUPLED": branch.COUPLED, "GATES_1997": branch.GATES_1997}


def save(path: str | os.PathLike, params: tuple[branch.Params, ...], config: lstm.Config) -> None:
    """Writes the file, whole or not at all: under another name beside `path`, which it then takes the place of.

    For a file with torch's names: `safetensors.numpy.save_file(interop.torch.state_dict(params, config), path)`.

    Raises ImportError without safetensors, ValueError for params of another config or gates of one's own.
    """
    safetensors = _package()
    checks.like("params", params, recurrent.shapes(lstm.KIND, config, 1)[0])
    names = [name for name, gates in _GATES.items() if gates == config.gates]
    if not names:
        raise ValueError(f"gates of order {config.gates.order!r} have no name: choose one of {layers.listed(_GATES)}")
    options = {field.name: getattr(config, field.name) for field in fields(config)} | {"gates": names[0]}
    record = json.dumps({"version": VERSION, "model": "lstm", "config": options})
    tensors = {name: np.array(leaf, order="C") for name, leaf in _flat(params).items()}
    _replace(Path(path), safetensors.save(tensors, {"lstm_rot": record}))


def load(path: str | os.PathLike, *, prefix: str = "") -> tuple[lstm.Config, tuple[branch.Params, ...]]:
    """The config and params in a file of ours, or of a torch.nn.LSTM's weights, the latter's names after `prefix`.

    Raises ImportError without safetensors, FileNotFoundError, and ValueError for a file that is neither (the message
    lists what it has), of a later version, or whose weights are not of its config, and for float64 without x64.
    """
    tensors, metadata = _read(path)
    if "lstm_rot" not in metadata:
        try:
            return from_torch(tensors, prefix=prefix)
        except ValueError as error:
            raise ValueError(f"{path} has no config of ours, and as a torch.nn.LSTM: {error}") from error
    config = _config(path, json.loads(metadata["lstm_rot"]))
    expected = recurrent.shapes(lstm.KIND, config, 1)[0]
    if tensors.keys() != _flat(expected).keys():
        raise ValueError(
            f"{path} has {layers.listed(tensors)}, its config makes {layers.listed(_flat(expected))}: write it anew"
        )
    flat: dict[str, dict] = {}
    for name, leaf in tensors.items():
        _, run, *rest, last = name.split(".")
        place = flat.setdefault(run, {})
        for part in rest:
            place = place.setdefault(part, {})
        place[last] = jnp.asarray(leaf)
    params = layers.from_dict(flat)
    checks.like(f"{path}: params", params, expected)
    return config, params


def _config(path: Any, record: dict[str, Any]) -> lstm.Config:
    if record.get("version") != VERSION or record.get("model") != "lstm":
        raise ValueError(
            f"{path} is of version {record.get('version')!r}, model {record.get('model')!r}: "
            f"this lstm_rot reads version {VERSION}, model 'lstm'; upgrade it"
        )
    options = record["config"]
    known = {field.name for field in fields(lstm.Config)}
    unknown = sorted(options.keys() - known)
    if unknown or options.get("gates") not in _GATES:
        strange = layers.listed(unknown) if unknown else f"gates={options.get('gates')!r}"
        raise ValueError(f"{path}: this lstm_rot does not know the config's {strange}; upgrade it")
    return lstm.Config(**(options | {"gates": _GATES[options["gates"]]}))


def _flat(params: Any) -> dict[str, Any]:
    paths = jax.tree.leaves_with_path(layers.to_dict(params))
    return {"runs." + jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _package() -> Any:
    try:
        import safetensors.numpy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("interop.safetensors needs a package: pip install safetensors") from error
    return safetensors.numpy


def _read(path: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    _package()
    import safetensors  # pyright: ignore[reportMissingImports]

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
