"""One contender in a process of its own: it prepares its functions, then waits to be asked for a call.

No two libraries share a process, for one's threads slow the other's. Both ends of the pipe are here: `Worker` is the
asking one, `main` and `Job` are the process's.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.case import Case, Eager, LeftOut, Traced
from experiments.speed.contenders import CONTENDERS

FOLDER = Path(__file__).parents[1]
# The process imports the packages' files without their own `__init__`, which would bring JAX to all.
BEGIN = """
import importlib, sys, types
folder, descriptor, package = sys.argv[1:]
for name in {"speed", package}:
    module = sys.modules["experiments." + name] = types.ModuleType("experiments." + name)
    module.__path__ = [folder + "/" + name]
importlib.import_module("experiments." + package + ".worker").main(int(descriptor))
"""
NO_ANSWER = "no answer within"
DISTRIBUTIONS = {"haiku": "dm-haiku"}  # package -> its name on PyPI, where that is another


class Failed(Exception):
    """The contender raised, died or did not answer; the message says which."""


class Worker:
    """A process for one contender and case, made at once; `ask` waits for its answers.

    package: the experiment whose `worker.py` holds the process's `main`.
    """

    def __init__(self, name: str, case: dict, package: str = "speed"):
        self.connection, theirs = Pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        environment = os.environ | {
            "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[case["device"]],
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # or compiling would take no time
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # all contenders share one GPU
            "KERAS_BACKEND": "jax",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH")))),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, str(FOLDER), str(theirs.fileno()), package],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            env=environment,
        )
        theirs.close()
        self.connection.send((name, case))

    def ask(self, *request: Any, patience: float) -> Any:
        """The answer to a request, (method, *arguments); with none, that of its beginning. Waits `patience` seconds.

        Raises LeftOut, or Failed, after which the process is to be closed.
        """
        try:
            if request:
                self.connection.send(request)
            if not self.connection.poll(patience):
                raise Failed(f"{NO_ANSWER} {patience:g} s")
            kind, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Failed(f"its process died, exit status {self.process.wait()}: {self._last_words()}") from error
        if kind == "left out":
            raise LeftOut(answer)
        if kind == "failed":
            raise Failed(answer)
        return answer

    def close(self) -> None:
        """Ends the process and waits for it."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Job:
    """What the process does: the model of one contender, ready to be asked for `compile` and `call`."""

    def __init__(self, name: str, case: dict):
        contender = CONTENDERS[name]
        self.case = Case(**case)
        self.model = contender.build(self.case)
        self.versions = {}
        self.calls: dict[str, Callable[[], Any]] = {}
        if isinstance(self.model, Eager):
            self.versions = self.model.versions
            self.calls = {"forward": self.model.forward, "both": self.model.both}
        else:
            self.programs = programs(self.case, self.model)
            self.versions = versions_of(contender.package)

    def compile(self, mode: str) -> dict:
        """Seconds of lowering and compiling, and the bytes of temporary memory; nothing where neither is known."""
        if mode in self.calls:
            return {}
        import jax

        function, args = self.programs[mode]
        held: Any = ()
        in_place = isinstance(self.model, Traced) and self.model.in_place
        if in_place:
            held = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args))
        jitted = jax.jit(lambda held, args: function(*args), donate_argnums=0, keep_unused=True)
        jax.clear_caches()  # of what asking for the outputs' shapes has traced
        start = time.perf_counter()
        compiled = jitted.lower(held, args).compile()
        seconds = time.perf_counter() - start

        def call() -> Any:
            nonlocal held
            results = jax.block_until_ready(compiled(held, args))
            held = results if in_place else ()
            return results

        self.calls[mode] = call
        memory = compiled.memory_analysis()
        return {"seconds": seconds} | ({} if memory is None else {"temporary": int(memory.temp_size_in_bytes)})

    def call(self, mode: str, times: int) -> list[float]:
        """Seconds of each of so many calls, until the results are there."""
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            results = self.calls[mode]()
            seconds.append(time.perf_counter() - start)
            del results
        return seconds


def programs(case: Case, model: Traced) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """mode -> a function for `jax.jit` and its arguments: 'forward', ys; 'both', ys and the gradients."""
    import jax
    import jax.numpy as jnp

    def forward(weights: Any, xs: Any, beside: tuple) -> Any:
        return model.apply(weights, xs, *beside)

    def both(weights: Any, xs: Any, beside: tuple, gradient: Any) -> Any:
        ys, pull = jax.vjp(lambda weights, xs: model.apply(weights, xs, *beside), weights, xs)
        return ys, pull(gradient)

    xs = jnp.asarray(case.xs(batch_major=model.batch_major), case.dtype)
    args = model.weights, xs, model.beside
    rng = np.random.default_rng(2)
    gradient = jax.tree.map(
        lambda ys: jnp.asarray(rng.standard_normal(ys.shape, np.float32), ys.dtype), jax.eval_shape(forward, *args)
    )
    return {"forward": (forward, args), "both": (both, (*args, gradient))}


def versions_of(package: str) -> dict[str, str]:
    """Of JAX, of the package and, on a GPU, of the cuDNN that came with JAX; and the GPU's name."""
    import jax

    versions = {}
    for name in ("jax", DISTRIBUTIONS.get(package, package), "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return versions | ({"GPU": device.device_kind} if device.platform == "gpu" else {})


def main(descriptor: int, make: Callable[[str, dict], Any] = Job) -> None:
    """Answers, for the job make(name, case), until the pipe closes.

    Answers are ('ok', answer), ('left out', why) or ('failed', message).
    """
    connection = Connection(descriptor)
    name, case = connection.recv()
    job: Any = None
    request: tuple = ()
    while True:
        try:
            if request:
                method, *args = request
                answer = getattr(job, method)(*args)
            else:
                job = make(name, case)
                answer = job.versions
            connection.send(("ok", answer))
        except BrokenPipeError:
            return
        except Exception as error:
            message = (str(error).strip() or "no message").splitlines()[0][:300]
            left_out = isinstance(error, LeftOut)
            connection.send(("left out", message) if left_out else ("failed", f"{type(error).__name__}: {message}"))
        try:
            request = connection.recv()
        except EOFError:
            return
