"""One run: a model trained by `lstm_rot.training` from its newest checkpoint on, and what is measured of it."""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from experiments.data import Text
from experiments.fit import rate
from experiments.language_model.bodies import count, sized
from lstm_rot.models import language_model
from lstm_rot.training import cost, data, log, sharding
from lstm_rot.training.checkpoints import Checkpoints
from lstm_rot.training.log import JSON_LINES
from lstm_rot.training.mesh import make_mesh
from lstm_rot.training.pipeline import STAGE, Pipeline
from lstm_rot.training.run import Options, train
from lstm_rot.training.step import State, init_state, make_train_step

NUMBERS = "numbers.json"  # in the folder of a run that has ended
VALIDATED = 64  # windows of the validation text read at each point of a curve
BATCH = 64  # windows read at once when nothing is trained
WRITTEN = 200  # bytes of a sample


class Setup(NamedTuple):
    """All of a run but its data."""

    model: language_model.Config
    pipeline: Pipeline | None  # where the mesh has stages: the body's implementation in training
    folder: Path
    identity: dict[str, Any]  # of its checkpoints
    shardings: State
    batch_sharding: Any
    init: Callable[[], State]
    optimizer: optax.GradientTransformation


def setup(config: Any, name: str, seed: int) -> Setup:
    """The run of this model and seed. Raises ValueError for a mesh or sizes that do not fit."""
    model, mesh = sized(name, config.parameters, config.layers, config.compute), make_mesh(config.mesh)
    warm = max(config.steps // 10, 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm, max(config.steps, warm + 1))
    optimizer = optax.adam(rate)
    init = partial(init_state, lambda key: language_model.init(key, model), optimizer, jax.random.key(seed))
    shardings = sharding.of_state(mesh, language_model.specs(model), jax.eval_shape(init), optimizer)
    identity = {"model": name, "seed": seed, "parameters": count(model)}
    kept = ("data", "layers", "context", "batch", "steps", "learning_rate", "compute", "accumulate")
    identity |= {field: getattr(config, field) for field in kept}
    return Setup(
        model=model,
        pipeline=Pipeline(mesh, config.chunks) if mesh.shape[STAGE] > 1 else None,
        folder=Path(config.runs) / f"{name}-{seed}",
        identity=identity,
        shardings=shardings,
        batch_sharding=sharding.batch(mesh),
        init=partial(init, shardings=shardings),
        optimizer=optimizer,
    )


def trained(config: Any, name: str, seed: int, text: Text) -> dict:
    """The run's numbers. One that was stopped goes on, but not with other steps, from which its learning rate follows.

    One that has ended begins anew; of another config, it is moved aside first. Raises CheckpointError, naming what
    differs, where one that was stopped is of another config.
    """
    run = setup(config, name, seed)
    if jax.process_index() == 0 and (run.folder / NUMBERS).exists():
        _make_way(run)
    multihost_utils.sync_global_devices("begun anew")
    state = trained_state(config, run, text, seed)
    rows = [json.loads(line) for line in (run.folder / JSON_LINES).read_text().splitlines()]
    curve = [row for row in rows if "valid" in row]
    positions = by_position(run.model, state.params, windows(text.test, config.context))
    numbers = {
        "model": name,
        "seed": seed,
        "parameters": count(run.model),
        "bytes": [row["items"] for row in curve],
        "valid": [row["valid"] for row in curve],
        "test": float(positions.mean()),
        "by_position": positions.tolist(),
        "bytes_per_second": rate(rows),
        "sample": written(run.model, state.params, text.test[:1], WRITTEN, seed),
    }
    if jax.process_index() == 0:
        (run.folder / NUMBERS).write_text(json.dumps({"config": run.identity, **numbers}) + "\n")
    return numbers


def _make_way(run: Setup) -> None:
    told = run.folder / NUMBERS
    if json.loads(told.read_text())["config"] == run.identity:
        shutil.rmtree(run.folder)
        return
    aside = run.folder.with_name(
        f"{run.folder.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(told.stat().st_mtime))}"
    )
    run.folder.rename(aside)
    print(f"{run.folder} was of another config: it is {aside} now", file=sys.stderr)


def trained_state(config: Any, run: Setup, text: Text, seed: int) -> State:
    """The state after all steps."""
    examples = windows(text.train, config.context)
    plan = data.Epochs(len(examples), batch=config.batch, seed=seed)
    batches = data.batches(examples, plan, rows=data.local_rows(run.batch_sharding, config.batch))
    step = make_train_step(
        partial(loss, run.model, run.pipeline),
        run.optimizer,
        accumulate=config.accumulate,
        clip=1.0,
        shardings=run.shardings,
        batch_sharding=run.batch_sharding,
    )
    every = config.steps // config.points
    options = Options(
        steps=config.steps,
        save_every=config.save_every,
        log_every=max(every // 4, 1),
        evaluate_every=every,
        profile=config.profile or 0,
    )
    valid = windows(text.valid, config.context)
    chosen = valid(np.linspace(0, len(valid) - 1, min(VALIDATED, len(valid))).astype(int))
    with Checkpoints(run.folder / "checkpoints", config=run.identity, keep=1) as checkpoints:
        return train(
            run.init,
            step,
            batches,
            options=options,
            folder=run.folder,
            checkpoints=checkpoints,
            shardings=run.shardings,
            batch_sharding=run.batch_sharding,
            evaluate=lambda state: {"valid": float(bits(run.model, state.params, chosen).mean())},
            flops=_flops(step, run, examples(np.arange(config.batch))),
            items="bytes",
        )


def _flops(step: Callable[..., Any], run: Setup, batch: dict) -> float | None:
    """Of a step, where the devices' peak is known, of which the run then tells its share."""
    return float(cost.flops(step, jax.eval_shape(run.init), batch)) if log.peak() else None


def windows(text: bytes, context: int) -> data.Windows:
    return data.Windows(np.frombuffer(text, np.uint8).astype(np.int32), context)


def loss(
    model: language_model.Config, pipeline: Pipeline | None, params: Any, batch: dict, key: Any
) -> tuple[Any, Any]:
    """What `make_train_step` asks for."""
    return language_model.loss(params, tokens(batch), config=model, key=key, implementation=pipeline)


def tokens(batch: dict) -> Any:
    """Windows [B, T + 1] from their inputs and targets."""
    return jnp.concatenate([batch["inputs"][:, :1], batch["targets"]], axis=1)


def bits(model: language_model.Config, params: Any, batch: dict) -> np.ndarray:
    """Bits of each byte, [B, T]."""
    nats = language_model.losses(params, tokens(batch), config=model)
    return multihost_utils.process_allgather(nats, tiled=True) / math.log(2)


def by_position(model: language_model.Config, params: Any, examples: data.Windows) -> np.ndarray:
    """Mean bits at each position, over all windows but those that fill no batch: [T]."""
    size = min(BATCH, len(examples))
    starts = range(0, len(examples) - size + 1, size)
    return np.mean([bits(model, params, examples(np.arange(start, start + size))).mean(0) for start in starts], axis=0)


def written(
    model: language_model.Config, params: Any, prompt: bytes, length: int, seed: int, temperature: float = 0.8
) -> str:
    """`length` bytes drawn after the prompt, as text; what is no UTF-8 becomes a mark."""
    words = np.frombuffer(prompt, np.uint8).astype(np.int32)[:, None]
    drawn = language_model.generate(
        params, words, config=model, length=length, key=jax.random.key(seed), temperature=temperature
    )
    return bytes(multihost_utils.process_allgather(drawn[:, 0], tiled=True).astype(np.uint8)).decode(errors="replace")
