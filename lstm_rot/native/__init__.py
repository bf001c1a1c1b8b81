"""Loops in C++ that a CPU runs faster than what XLA compiles, as calls within a jitted program.

The machine's own compiler ($CXX, or c++) makes them on first use, in seconds, and the user's cache keeps them. A CXX
that is none, as in CXX=none, leaves everything to XLA, as `jax.export` wants it.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
PATIENCE = 300  # seconds for a compiler
LOCK = threading.Lock()
Axes = Sequence[int | None]
HANDLERS = ("values", "kept", "backward", "convolve", "weigh")


def compiled_for() -> tuple[str, int]:
    """The platform that is compiled for, and over how many devices the compiler spreads a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend(), 1
    shares = [mesh.shape[name] for name in mesh.axis_names if name == "data" and name not in mesh.manual_axes]
    return mesh.abstract_device.platform, prod(shares)


def refusal() -> str | None:
    """Why they cannot run in this program; None where they can. The first call of a process may compile them."""
    platform, _ = compiled_for()
    if platform != "cpu":
        return f"it is a CPU's, and this program is compiled for a {platform.upper()}"
    had = _had()
    return had if isinstance(had, str) else None


def library() -> ctypes.CDLL:
    """The compiled library, its handlers known to XLA. Raises ValueError where it cannot be had."""
    had = _had()
    if isinstance(had, str):
        raise ValueError(had)
    return had


def _had() -> ctypes.CDLL | str:
    with LOCK:  # one thread compiles
        return _attempted()


@cache
def _attempted() -> ctypes.CDLL | str:
    """The library, or why it cannot be had, once for each process."""
    said = os.environ.get("CXX", "").strip() or "c++"
    try:
        compiler = shlex.split(said)
    except ValueError as error:
        return f"CXX={said!r} cannot be read: {error}"
    if not shutil.which(compiler[0]):
        return f"no C++ compiler: {compiler[0]} is not found; install one, or name it in CXX"
    try:
        library = ctypes.CDLL(str(_library(compiler)))
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines() or [str(error)]
        return f"{said} does not compile it: {next((line for line in lines if 'error' in line), lines[0])}"
    except subprocess.TimeoutExpired:
        return f"{said} did not compile it within {PATIENCE} s"
    except OSError as error:
        return f"it cannot be kept or loaded: {error}"
    library.lstm_rot_forward_room.argtypes = [ctypes.c_int64] * 2
    library.lstm_rot_backward_room.argtypes = [ctypes.c_int64]
    library.lstm_rot_forward_room.restype = library.lstm_rot_backward_room.restype = ctypes.c_int64
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, _target(name)))
        jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
    return library


def whole(*arrays: jax.Array) -> bool:
    """Whether a call can take these: neither parts that `shard_map` checks, nor of explicit axes, nor of open sizes."""
    parts = any(getattr(getattr(jax.typeof(x), "mat", None), "varying", ()) for x in arrays)
    explicit = jax.sharding.AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    return not parts and not explicit and all(isinstance(size, int) for x in arrays for size in x.shape)


def call(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    *operands: jax.Array,
    axes: tuple[Axes, Axes],
    flops: int,
    aliases: dict[int, int] | None = None,
    **attributes: int,
) -> tuple[jax.Array, ...]:
    """What the handler makes of the operands: float32 arrays of these shapes. flops: of its products, to be counted.

    axes: where the batch is in each operand and each result; None: nowhere, as in weights. Under `jax.vmap` of what has
    a batch it is one call for a larger one; of what has none, one call after another.
    """

    @jax.custom_batching.custom_vmap
    def run(*operands: jax.Array) -> tuple[jax.Array, ...]:
        results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        told = {name: np.int64(value) for name, value in {**attributes, "flops": flops}.items()}
        return tuple(jax.ffi.ffi_call(_target(name), results, input_output_aliases=aliases)(*operands, **told))

    @run.def_vmap
    def _(size: int, mapped: Sequence[bool], *operands: jax.Array) -> tuple[Any, Any]:
        each = [x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(operands, mapped, strict=True)]
        entering, leaving = axes
        if any(own and axis is None for own, axis in zip(mapped, entering, strict=True)):
            return jax.lax.map(lambda each: run(*each), each), (True,) * len(shapes)
        joined = [x if axis is None else _joined(y, axis) for x, y, axis in zip(operands, each, entering, strict=True)]
        larger = [
            shape if axis is None else (*shape[:axis], size * shape[axis], *shape[axis + 1 :])
            for shape, axis in zip(shapes, leaving, strict=True)
        ]
        results = call(name, larger, *joined, axes=axes, flops=size * flops, aliases=aliases, **attributes)
        apart = [x if axis is None else _apart(x, axis, size) for x, axis in zip(results, leaving, strict=True)]
        return tuple(apart), tuple(axis is not None for axis in leaving)

    return run(*operands)


def _joined(x: jax.Array, axis: int) -> jax.Array:
    """The first axis within that one, of what is left without it."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _apart(x: jax.Array, axis: int, size: int) -> jax.Array:
    """And back."""
    return jnp.moveaxis(x.reshape(*x.shape[:axis], size, x.shape[axis] // size, *x.shape[axis + 1 :]), axis, 0)


def _target(name: str) -> str:
    return f"lstm_rot_{name}"


def _library(compiler: list[str]) -> Path:
    """The compiled file, of this source, compiler, processor and jaxlib: compiled where it does not lie there yet."""
    command = [*compiler, *FLAGS]
    told = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])  # what it knows of itself and the processor
    files = sorted(file for file in SOURCES.iterdir() if file.suffix in (".cc", ".h"))
    of = *(file.read_bytes() for file in files), told, repr((command, version("jaxlib"))).encode()
    digest = hashlib.sha256(b"\0".join(of)).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("lstm_rot")) / "native"
    path = folder / f"{digest}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:  # and moved: another process may do the same
            made = Path(beside) / path.name
            sources = [str(file) for file in files if file.suffix == ".cc"]
            _run([*command, "-I", jax.ffi.include_dir(), *sources, "-o", str(made)])
            made.replace(path)
    return path


def _run(command: list[str]) -> bytes:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=True).stdout
