"""What is killed: a small LSTM with dropout that learns the bytes of Python's manual, in a process of its own."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.data import text
from experiments.language_model.bodies import BYTES
from experiments.language_model.training import loss, windows
from lstm_rot.models import language_model, lstm
from lstm_rot.training import checkpoints, data, distributed, mesh, sharding
from lstm_rot.training.run import Options, train
from lstm_rot.training.step import State, init_state, make_train_step


@dataclass(frozen=True)
class Trainee:
    """The net, its data and how often it is saved."""

    hidden_size: int = 32
    layers: int = 2
    dropout: float = 0.1
    batch: int = 8
    length: int = 32
    steps: int = 40
    save_every: int = 5
    learning_rate: float = 3e-3
    seed: int = 0


def run(
    folder: Path,
    config: Trainee,
    told: Connection | None = None,
    *,
    processes: distributed.Processes | None = None,
    options: Options | None = None,
    devices: int = 1,
    examples: Any = None,
    compiled: Path,
) -> None:
    """Trains in `folder`, or goes on there.

    `told` gets ("from", step), ("step", step) and ("save", step) as they begin, at last ("end", digest of the state).
    """
    folder.mkdir(parents=True, exist_ok=True)
    _settings(compiled, devices)
    distributed.connect(processes or distributed.Processes())
    made = parts(config, examples)
    same = {name: value for name, value in asdict(config).items() if name not in ("steps", "save_every")}
    kept = _Told(folder / "checkpoints", same, told)
    with kept:
        last = train(
            made.first,
            kept.telling(made.step),
            made.batches(),
            options=options or Options(steps=config.steps, save_every=config.save_every, log_every=1),
            folder=folder,
            checkpoints=kept,
            shardings=made.shardings,
            batch_sharding=made.batch_sharding,
            items="bytes",
        )
        kept.tell("end", digest(last))


class Parts(NamedTuple):
    """What `train` is given."""

    first: Callable[[], State]
    step: Callable[[State, Any], tuple[State, dict]]
    batches: Callable[[], data.Batches]
    shardings: State
    batch_sharding: jax.sharding.Sharding


def parts(config: Trainee, examples: Any = None) -> Parts:
    """Over all devices, the batch divided; `examples` are the manual's bytes, where no others are given."""
    size = config.hidden_size
    model = language_model.Config(BYTES, lstm.Config(size, size, config.layers, dropout=config.dropout))
    layout, optimizer = mesh.make_mesh(), optax.adam(config.learning_rate)
    first = partial(init_state, partial(language_model.init, config=model), optimizer, jax.random.key(config.seed))
    shardings = sharding.of_state(layout, language_model.specs(model), jax.eval_shape(first), optimizer)
    over_data = sharding.batch(layout)
    examples = examples or windows(text("manual").train, config.length)
    plan = data.Epochs(len(examples), batch=config.batch, seed=config.seed)
    rows = data.local_rows(over_data, config.batch)
    step = make_train_step(
        partial(loss, model, None), optimizer, clip=1.0, shardings=shardings, batch_sharding=over_data
    )
    return Parts(
        first=partial(first, shardings=shardings),
        step=step,
        batches=lambda: data.batches(examples, plan, rows=rows, threads=1, prefetch=2),
        shardings=shardings,
        batch_sharding=over_data,
    )


def digest(state: Any) -> str:
    """SHA-256 of all that a state holds."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))).hexdigest()


def _settings(compiled: Path, devices: int) -> None:
    """Before JAX begins: so many virtual devices, and compiled programs kept between two starts."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class _Told(checkpoints.Checkpoints):
    """Checkpoints that say what begins."""

    def __init__(self, folder: Path, config: dict, told: Connection | None):
        super().__init__(folder, config=config)
        self._told, self._at = told, 0

    def tell(self, what: str, step: int | str) -> None:
        if self._told is not None:
            self._told.send((what, step))

    def restore(self, like: Any) -> checkpoints.Restored | None:
        restored = super().restore(like)
        self._at = 0 if restored is None else restored.step
        self.tell("from", self._at)
        return restored

    def save(self, step: int, *args: Any, **kwargs: Any) -> None:
        self.tell("save", step)
        super().save(step, *args, **kwargs)

    def telling(self, step: Any) -> Any:
        def told(state: Any, batch: Any) -> Any:
            self._at += 1
            self.tell("step", self._at)
            return step(state, batch)

        return told
