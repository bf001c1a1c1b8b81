"""What is killed: a small LSTM with dropout that learns the bytes of Python's manual, in a process of its own."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_rot.models import lstm
from lstm_rot.training import checkpoints, data, distributed, mesh, sharding
from lstm_rot.training.run import Options, train
from lstm_rot.training.step import State, init_state, make_train_step

BYTES = 256


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
    layout, optimizer, (init, loss) = mesh.make_mesh(), optax.adam(config.learning_rate), _model(config)
    first = partial(init_state, init, optimizer, jax.random.key(config.seed))
    shapes = jax.eval_shape(first)
    everywhere = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), shapes.params)
    shardings, over_data = sharding.of_state(layout, everywhere, shapes, optimizer), sharding.batch(layout)
    examples = examples or data.Windows(np.frombuffer(text(), np.uint8).astype(np.int32), config.length)
    plan = data.Epochs(len(examples), batch=config.batch, seed=config.seed)
    rows = data.local_rows(over_data, config.batch)
    return Parts(
        first=partial(first, shardings=shardings),
        step=make_train_step(loss, optimizer, clip=1.0, shardings=shardings, batch_sharding=over_data),
        batches=lambda: data.batches(examples, plan, rows=rows, threads=1, prefetch=2),
        shardings=shardings,
        batch_sharding=over_data,
    )


def digest(state: Any) -> str:
    """SHA-256 of all that a state holds."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))).hexdigest()


def text() -> bytes:
    """Python's own manual."""
    return "".join(topics[name] for name in sorted(topics)).encode()


def _settings(compiled: Path, devices: int) -> None:
    """Before JAX begins: so many virtual devices, and compiled programs kept between two starts."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _model(config: Trainee) -> tuple[Any, Any]:
    """init(key) -> params, and loss(params, batch, key) -> (sum over the bytes in nats, number of bytes)."""
    stack = lstm.Config(config.hidden_size, config.hidden_size, config.layers, dropout=config.dropout)

    def init(key: Any) -> dict:
        keys = jax.random.split(key, 3)
        return {
            "embed": jax.random.normal(keys[0], (BYTES, config.hidden_size)),
            "lstm": lstm.init(keys[1], stack),
            "out": jax.random.normal(keys[2], (config.hidden_size, BYTES)) / config.hidden_size**0.5,
        }

    def loss(params: dict, batch: dict, key: Any) -> tuple[Any, Any]:
        xs = params["embed"][batch["inputs"].T]
        _, ys = lstm.apply(params["lstm"], xs, config=stack, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(ys @ params["out"], batch["targets"].T)
        return losses.sum(), jnp.asarray(losses.size)

    return init, loss


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
