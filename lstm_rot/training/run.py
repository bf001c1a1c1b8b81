"""The training loop: restores, runs, tells, saves, and loses nothing when it is stopped."""

import json
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from lstm_rot.training import data, log, watchdog
from lstm_rot.training.checkpoints import Checkpoints
from lstm_rot.training.step import State

LAG = 2  # steps that the device has in hand while the host reads the metrics of the one before
NOT_FINITE = "nonfinite"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How long a run is, and what it does beside training."""

    steps: int
    """the run ends after this many steps"""
    save_every: int = 1000
    """steps between two checkpoints; the last step has one too"""
    log_every: int = 10
    """steps between two lines of the log"""
    evaluate_every: int = 1000
    """steps between two evaluations; the last step has one too"""
    profile: int = 0
    """steps to trace, soon after the start"""
    patience: float = 45.0
    """seconds that a batch or a step may take, before the process says what it waits for, and ends"""
    long_patience: float = 1800.0
    """the same of a first step, which compiles, a save and an evaluation"""

    def __post_init__(self):
        for name in ("steps", "save_every", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        if self.profile < 0:
            raise ValueError(f"profile={self.profile}: give the number of steps to trace, or 0 for none")
        if not 0 < self.patience <= self.long_patience:
            raise ValueError(
                f"patience={self.patience}, long_patience={self.long_patience}: give seconds above 0, the second "
                f"at least as many"
            )


class NotFinite(Exception):
    """A loss or gradient was not finite: the message says where its batch and the state before it are kept."""


class Stopped(SystemExit):
    """The run was stopped by a signal and saved; `code` is the exit status, `step` the steps made."""

    def __init__(self, step: int, code: int):
        super().__init__(code)
        self.step = step


def train(
    init: Callable[[], State],
    step: Callable[[State, Any], tuple[State, dict]],
    batches: data.Batches,
    *,
    options: Options,
    folder: str | Path,
    checkpoints: Checkpoints,
    shardings: State,
    batch_sharding: jax.sharding.Sharding,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    flops: float | None = None,
    items: str = "items",
) -> State:
    """Runs `options.steps` steps, from the newest checkpoint where there is one, and returns the last state.

    init() -> State: the first, as `init_state` makes it. step: as `make_train_step` makes it. shardings and
    batch_sharding: see `training.sharding`. evaluate(state) -> {name: number}. flops: of one step, on all devices
    together. items: what the loss function counts, as in "tokens". folder: for log, events and profile, shared by all
    processes.

    A run that was killed and is called again goes on as if nothing had been: the same batches, losses, log.

    Raises NotFinite at a step whose loss or gradient is not finite; its batch is kept in the folder, and the state
    before it as a checkpoint. On SIGTERM and Ctrl-C finishes the step under way, saves, says how to go on, and raises
    Stopped, a SystemExit of status 143 or 130; of several processes all stop after the same step. A second Ctrl-C ends
    at once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = _restore(init, checkpoints, batches, shardings)
    with ExitStack() as stack:
        dog = stack.enter_context(watchdog.Watchdog(folder, jax.process_index(), jax.process_count()))
        tells = log.Log(folder, start.step, options.steps, items=items, seen=start.items, flops=flops)
        stack.callback(tells.close)
        profile = log.Profile(folder, start.step, options.profile)
        stack.callback(profile.close)
        signals = stack.enter_context(_Signals())
        run = _Run(start, step, batches, options, folder, checkpoints, batch_sharding, evaluate, tells, profile, dog)
        try:
            return run.to_the_end(signals)
        except NotFinite:
            raise  # on every process alike
        except Exception:
            dog.explain_error()
            raise


class _Start(NamedTuple):
    """Where a run begins: steps made, the state, items seen, and whether this is a checkpoint already."""

    step: int
    state: State
    items: int
    saved: bool


def _restore(init: Callable[[], State], checkpoints: Checkpoints, batches: data.Batches, shardings: State) -> _Start:
    def like(shape: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    restored = checkpoints.restore(jax.tree.map(like, jax.eval_shape(init), shardings))
    if restored is None:
        return _Start(0, init(), 0, False)
    batches.set_state(restored.data["batches"])
    return _Start(restored.step, restored.state, restored.data["items"], True)


class _Pending(NamedTuple):
    """A step that the device has been given: its number, its metrics to come, and what reproduces it."""

    step: int
    metrics: dict[str, jax.Array]
    batch: dict[str, np.ndarray]  # the rows of this process
    position: dict[str, Any]  # of the batches, before this one
    patience: float


@dataclass
class _Run:
    start: _Start
    advance: Callable[[State, Any], tuple[State, dict]]
    batches: data.Batches
    options: Options
    folder: Path
    checkpoints: Checkpoints
    batch_sharding: jax.sharding.Sharding
    evaluate: Callable[[Any], Mapping[str, float]] | None
    journal: log.Log
    profile: log.Profile
    dog: watchdog.Watchdog

    def __post_init__(self):
        self.state, self.step = self.start.state, self.start.step
        self.saved = self.step if self.start.saved else None
        self.pending: deque[_Pending] = deque()
        self.shapes: set[Any] = set()  # of batches: the step has been compiled for these

    def to_the_end(self, signals: "_Signals") -> State:
        while self.step < self.options.steps:
            self.profile.before(self.step + 1, self._wait)
            self._begin_step()
            if len(self.pending) > LAG:
                self._finish_step()
            stopping = signals.stop_after(self.step)
            if self._evaluates(self.step):
                self._evaluate()
            if stopping or self._due(self.options.save_every, self.step):
                self._save()
            if stopping and self.step < self.options.steps:
                self.checkpoints.wait()
                watchdog.say(f"stopped and saved: the same command goes on after step {self.step}")
                raise Stopped(self.step, signals.status)
        self.checkpoints.wait()
        return self.state

    def _due(self, every: int, step: int) -> bool:
        return step % every == 0 or step == self.options.steps

    def _evaluates(self, step: int) -> bool:
        return self.evaluate is not None and self._due(self.options.evaluate_every, step)

    def _begin_step(self) -> None:
        step, position = self.step + 1, self.batches.get_state()
        self.dog.begins(watchdog.DATA, step, self.options.patience if self.shapes else self.options.long_patience)
        batch = next(self.batches)
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        patience = self.options.patience if shapes in self.shapes else self.options.long_patience
        self.shapes.add(shapes)
        self.dog.begins(watchdog.STEP, step, patience)
        # A process alone has whole batches, which `jit` itself puts where they belong, in a tenth of the time.
        whole = batch if jax.process_count() == 1 else data.to_devices(batch, self.batch_sharding)
        self.state, metrics = self.advance(self.state, whole)
        self.pending.append(_Pending(step, metrics, batch, position, patience))
        self.step = step

    def _finish_step(self) -> None:
        """Reads the metrics of the oldest step under way, which waits for it."""
        oldest = self.pending.popleft()
        self.dog.begins(watchdog.STEP, oldest.step, oldest.patience)
        self.metrics = {name: float(value) for name, value in jax.device_get(oldest.metrics).items()}
        if not all(map(math.isfinite, self.metrics.values())):
            self._not_finite(oldest)
        self.journal.seen += int(self.metrics.pop("items"))
        if self._due(self.options.log_every, oldest.step) and not self._evaluates(oldest.step):
            self.journal.write(oldest.step, self.metrics)

    def _wait(self) -> None:
        while self.pending:
            self._finish_step()

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self._wait()
        self.dog.begins(watchdog.EVALUATION, self.step, self.options.long_patience)
        self.metrics |= {name: float(value) for name, value in self.evaluate(self.state).items()}
        self.journal.write(self.step, self.metrics)

    def _save(self) -> None:
        self._wait()
        self._checkpoint(self.step, self.state, self.batches.get_state(), self.metrics)

    def _checkpoint(self, step: int, state: State, position: Any, metrics: Mapping[str, float] | None) -> None:
        if self.saved == step:
            return
        self.dog.begins(watchdog.SAVE, step, self.options.long_patience)
        self.checkpoints.save(step, state, {"batches": position, "items": self.journal.seen}, metrics)
        self.saved = step

    def _not_finite(self, bad: _Pending) -> None:
        """The steps after the bad one have changed nothing: the state is that before it."""
        self.pending.clear()
        folder = self.folder / NOT_FINITE
        folder.mkdir(exist_ok=True)
        name = f"step-{bad.step}" + f".process-{jax.process_index()}" * (jax.process_count() > 1)
        np.savez(folder / f"{name}.npz", **bad.batch)  # pyright: ignore
        metrics = {name: str(value) for name, value in self.metrics.items()}  # JSON has no nan
        told = {"step": bad.step, "metrics": metrics, "batches": bad.position}
        (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
        state = self.state.replace(halted=self.state.halted & False)  # pyright: ignore
        self._checkpoint(bad.step - 1, state, bad.position, None)
        self.checkpoints.wait()
        what = ", ".join(f"{name} {value}" for name, value in self.metrics.items())
        raise NotFinite(
            f"step {bad.step} is not finite ({what}); nothing of it went into the state. Its batch is kept in "
            f"{folder / name}.npz, the state before it is the checkpoint of step {bad.step - 1}. To see it again: "
            f"restore that state, call the step with dict(numpy.load(...)) of the batch; or run the same command again"
        )


class _Signals:
    """SIGTERM and Ctrl-C, noted; the step after which to stop, on which all processes agree."""

    def __init__(self):
        # JAX's preemption service catches SIGTERM itself, and tells the other processes.
        self._several = jax.process_count() > 1
        self._numbers = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._noted: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        if threading.current_thread() is threading.main_thread():  # no other may
            self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._noted = self._noted or number
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_after(self, step: int) -> bool:
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._noted is not None

    @property
    def status(self) -> int:
        return 128 + (self._noted or signal.SIGTERM)
