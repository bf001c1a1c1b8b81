"""A layer of LSTM on a CPU as one compiled loop: `packed(cell, axis)` means `scan(cell, axis)` for the plain LSTM.

XLA packs W_h anew at every step, which can cost as much as a small batch's product itself. packed.cc packs the weights
once; each thread takes its share of the batch through all steps; a step's product, gates and states stay in registers.

    forward     a_t = x_t W_x + h_{t-1} W_h + b, the gates, c_t and h_t; for a gradient, the gates and c_t are kept
    backward    da_t from dh_t = da_{t+1} W_h^T, written over the gates, as h_{t-1} over c_t; then dx, dW_x and dW_h are
                one product each

It is C++, which the machine's own compiler ($CXX, or c++) makes on first use, in seconds, and the user's cache keeps.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
from jaxtyping import Array, Float, Int

from lstm_rot.core import Above, Axis, Below, Cell, Left, Params, Right
from lstm_rot.kernels.hoisted import compiled_for, hoisted, weight_gradient
from lstm_rot.schedules import Schedule, Sequential

SOURCE = Path(__file__).with_suffix(".cc")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
HANDLERS = ("values", "kept", "backward")
LEAST = 8  # steps; packing W does not pay for fewer
CACHE = 1 << 20  # bytes; one core alone is slower with a larger W_h than XLA's product is with all of them


class Operands(NamedTuple):
    """What enters the line."""

    x: Float[Array, "T B D"]
    wx: Float[Array, "D 4 H"]
    wh: Float[Array, "H 4 H"]
    b: Float[Array, "4 H"]
    c: Float[Array, "B H"]
    h: Float[Array, "B H"]


Line = Callable[[Operands, Int[Array, "B"]], tuple[Right, Above]]


def packed(cell: Cell, axis: Axis, *, schedule: Schedule = Sequential()) -> Cell:
    """The line `scan(cell, axis)` of masked `residual(lstm)` along time, in float32; p is (weights, masks), all None.

    `refusal` says where it cannot run. Lines of fewer than LEAST steps are hoisted; so are second derivatives, and the
    values, where no gradient is asked for, of a single sequence with a W_h beyond CACHE.
    """
    hoisted_line = hoisted(cell, axis, schedule=schedule)

    def run(p: Params, left: Left, below: Below) -> tuple[Right, Above]:
        (weights, masks), (x, valid) = p, below
        steps, batch, _ = x.shape
        if steps < LEAST:
            return hoisted_line(p, left, below)

        def line(of: Operands, lengths: jax.Array) -> tuple[Right, Above]:
            valid = jnp.arange(steps, dtype="int32")[:, None] < lengths
            p = weights._replace(wx=of.wx, wh=of.wh, b=of.b), masks
            return hoisted_line(p, (of.c, of.h), (of.x, valid))

        lengths = jnp.full(batch, steps, "int32") if valid is None else valid.sum(0, dtype="int32")
        return _compiled(line, Operands(x, weights.wx, weights.wh, weights.b, *left), lengths)

    return run


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compiled(line: Line, of: Operands, lengths: Int[Array, "B"]) -> tuple[Right, Above]:
    """line(of, lengths), the line being the hoisted one, which other platforms run if this is compiled for them."""
    if len(of.c) == 1 and of.wh.nbytes > CACHE:
        return line(of, lengths)

    def loop(of: Operands, lengths: jax.Array) -> tuple[Right, Above]:
        ys, c, h, _ = _call("values", (*_shapes(of)[:3], _room(of)), *of, lengths, flops=_flops(of, of.wx, of.wh))
        return (c, h), ys

    return jax.lax.platform_dependent(of, lengths, cpu=loop, default=line)


def _forward(line: Line, of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
    result, kept = _keeping(line, of, lengths)
    return result, (of, lengths, result[1], kept)


def _backward(line: Line, saved: Any, cotangents: Any) -> tuple[Operands, None]:
    return _gradient(line, *saved, cotangents), None


_compiled.defvjp(_forward, _backward)


# The forward and the backward loop of a gradient; their own derivatives are those of the hoisted line.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _keeping(line: Line, of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
    """What `_compiled` returns, and what its gradient reads: the gates [T, B, 4, H] and the cell states [T, B, H]."""

    def loop(of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
        shapes = *_shapes(of), _room(of)
        ys, c, h, gates, cells, _ = _call("kept", shapes, *of, lengths, flops=_flops(of, of.wx, of.wh))
        return ((c, h), ys), [gates, cells]

    def elsewhere(of: Operands, lengths: jax.Array) -> tuple[tuple[Right, Above], Any]:
        return line(of, lengths), [jnp.zeros(shape, "float32") for shape in _shapes(of)[3:]]

    return jax.lax.platform_dependent(of, lengths, cpu=loop, default=elsewhere)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient(line: Line, of: Operands, lengths: jax.Array, ys: jax.Array, kept: Any, cotangents: Any) -> Operands:
    """The gradient with respect to `of`."""

    def loop(of: Operands, lengths: jax.Array, ys: jax.Array, kept: Any, cotangents: Any) -> Operands:
        (dc, dh), dys = cotangents
        gates, cells = kept
        room = _loaded().lstm_rot_backward_room(of.wh.shape[0])
        shapes = gates.shape, cells.shape, of.c.shape, of.h.shape, (room,)
        operands = of.wh, gates, cells, of.c, of.h, ys, lengths, dys, dc, dh
        da, before, dc, dh, _ = _call("backward", shapes, *operands, flops=_flops(of, of.wh), aliases={1: 0, 2: 1})
        dx = jax.lax.dot_general(da, of.wx, (((2, 3), (1, 2)), ((), ())))
        return Operands(dx, weight_gradient(of.x, da, True), weight_gradient(before, da, True), da.sum((0, 1)), dc, dh)

    def elsewhere(of: Operands, lengths: jax.Array, ys: jax.Array, kept: Any, cotangents: Any) -> Operands:
        return jax.vjp(lambda of: line(of, lengths), of)[1](cotangents)[0]

    return jax.lax.platform_dependent(of, lengths, ys, kept, cotangents, cpu=loop, default=elsewhere)


@_keeping.defjvp
def _(line: Line, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    of, lengths = primals
    result, kept = _keeping(line, of, lengths)
    _, derivative = jax.jvp(lambda of: jax.vjp(lambda of: line(of, lengths), of)[0], (of,), tangents[:1])
    return (result, kept), (derivative, jax.tree.map(jnp.zeros_like, kept))


@_gradient.defjvp
def _(line: Line, primals: tuple, tangents: tuple) -> tuple[Operands, Operands]:
    of, lengths, *_, cotangents = primals

    def gradient(of: Operands, cotangents: Any) -> Operands:
        return jax.vjp(lambda of: line(of, lengths), of)[1](cotangents)[0]

    _, derivative = jax.jvp(gradient, (of, cotangents), (tangents[0], tangents[-1]))
    return _gradient(line, *primals), derivative


def _shapes(of: Operands) -> tuple:
    """Of ys, the last c and h, the gates and the cell states."""
    ys = *of.x.shape[:2], of.c.shape[-1]
    return ys, of.c.shape, of.h.shape, (*of.x.shape[:2], *of.b.shape), ys


def _room(of: Operands) -> tuple[int]:
    """Of the packed weights."""
    return (_loaded().lstm_rot_forward_room(of.wx.shape[0], of.wh.shape[0]),)


def _flops(of: Operands, *weights: jax.Array) -> int:
    """Of the products with these weights, of all steps."""
    steps, batch, _ = of.x.shape
    return 2 * steps * batch * sum(w.size for w in weights)


def _call(name: str, shapes: tuple, *operands: Any, flops: int, aliases: dict[int, int] | None = None) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(_target(name), results, vmap_method="sequential", input_output_aliases=aliases)
    return call(*operands, flops=np.int64(flops))


def _target(name: str) -> str:
    return f"lstm_rot_{name}"


def refusal() -> str | None:
    """Why the compiled loop cannot run in this program; None where it can. The first call compiles it."""
    platform, _ = compiled_for()
    if platform != "cpu":
        return f"it is a CPU's, and this program is compiled for a {platform.upper()}"
    try:
        _loaded()
    except _Unavailable as error:
        return str(error)
    return None


class _Unavailable(ValueError):
    """It cannot be compiled or loaded here."""


@cache
def _loaded() -> ctypes.CDLL:
    """The library, its handlers known to XLA. Raises _Unavailable where it cannot be had."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(compiler[0]):
        raise _Unavailable(f"no C++ compiler: {compiler[0]} is not found; install one, or name it in CXX")
    try:
        library = ctypes.CDLL(str(_library(compiler)))
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip() or str(error)).splitlines()[0]
        raise _Unavailable(f"{shlex.join(compiler)} does not compile it: {said}") from error
    except OSError as error:
        raise _Unavailable(f"it cannot be kept or loaded: {error}") from error
    library.lstm_rot_forward_room.argtypes = [ctypes.c_int64] * 2
    library.lstm_rot_backward_room.argtypes = [ctypes.c_int64]
    library.lstm_rot_forward_room.restype = library.lstm_rot_backward_room.restype = ctypes.c_int64
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, _target(name)))
        jax.ffi.register_ffi_target(_target(name), handler, platform="cpu")
    return library


def _library(compiler: list[str]) -> Path:
    """The compiled file, of this source, compiler, processor and JAX: compiled where it does not lie there yet."""
    ask = [
        *compiler,
        *FLAGS,
        "-dM",
        "-E",
        "-x",
        "c++",
        os.devnull,
    ]  # what the compiler knows of itself and the processor
    told = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    of = SOURCE.read_bytes(), told.encode(), repr((FLAGS, version("jaxlib"))).encode()
    digest = hashlib.sha256(b"\0".join(of)).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("lstm_rot"))
    path = folder / f"packed-{digest}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:  # and moved: another process may do the same
            made = Path(beside) / path.name
            command = [*compiler, *FLAGS, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(path)
    return path
