"""Classifiers of images and how they are trained, by `lstm_rot.training` whole: nets along DEPTH and lines along TIME.

Several experiments look into the same trained nets: a run that has ended is restored from its folder, one that was
stopped goes on.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from platformdirs import user_cache_path

from experiments import data
from experiments.fit import rate
from experiments.harness import Refused
from lstm_rot.models import classifier, conv_resnet
from lstm_rot.training import data as batches
from lstm_rot.training import sharding
from lstm_rot.training.checkpoints import CheckpointError, Checkpoints
from lstm_rot.training.log import JSON_LINES
from lstm_rot.training.mesh import make_mesh
from lstm_rot.training.run import NotFinite, Options, train
from lstm_rot.training.step import State, init_state, make_train_step

EVALUATED = 500  # images at once


class Pictures(NamedTuple):
    """A data set as it is trained on: maps [N, P, P, C] uint8, the mean of each pixel, and the deviation of all."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    mean: np.ndarray
    deviation: float
    provenance: dict

    @property
    def flips(self) -> bool:
        """Whether a mirrored image is an image of the same class."""
        return self.provenance["name"] == "cifar10"


@lru_cache
def pictures(name: str, pixels: int | None = None) -> Pictures:
    """The data set, its maps averaged down to `pixels` per side. Raises DataError where that does not divide."""
    there = data.maps(name)
    side, provenance = there.train_x.shape[1], there.provenance
    if pixels is not None and (pixels > side or side % pixels):
        raise data.DataError(f"pixels={pixels}: {name} has {side} per side; give a divisor of it")
    factor = 1 if pixels is None else side // pixels

    def smaller(x: np.ndarray) -> np.ndarray:
        n, _, _, c = x.shape
        return np.round(x.reshape(n, side // factor, factor, side // factor, factor, c).mean((2, 4))).astype(np.uint8)

    train_x, test_x = (x if factor == 1 else smaller(x) for x in (there.train_x, there.test_x))
    if factor > 1:
        provenance = {**provenance, "note": f"{provenance['note']}; averaged to {pixels} x {pixels}"}
    return Pictures(
        train_x,
        there.train_y,
        test_x,
        there.test_y,
        train_x.mean(0, dtype=np.float64).astype(np.float32),
        float(train_x.std(dtype=np.float64)),
        provenance,
    )


def sgd(recipe: "Recipe") -> optax.GradientTransformation:
    """SGD as He et al. 2015 have it: momentum, weight decay, the learning rate divided by 10 at each of the drops."""
    after_warming = optax.piecewise_constant_schedule(
        recipe.learning_rate, {round(share * recipe.steps) - recipe.warm: 0.1 for share in recipe.drops}
    )
    rate = optax.join_schedules([optax.constant_schedule(recipe.learning_rate / 10), after_warming], [recipe.warm])
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.sgd(rate, recipe.momentum))


def adam(recipe: "Recipe") -> optax.GradientTransformation:
    """Gradients clipped at norm 1, Adam with a cosine decay, no weight decay: for what has no batch norm."""
    rate = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how. The defaults are those of He et al. 2015, section 4.2, but for the length.

    model: a `conv_resnet.Config`, or a `classifier.Config` whose body is a `resnet.Config`: whole images through depth;
    or one with a recurrent body, along time: `body.input_size` values of an image at a step, in the order of its rows.
    """

    model: conv_resnet.Config | classifier.Config
    data: str
    steps: int
    pixels: int | None = None
    """per side, after averaging; None: as they come"""
    batch: int = 128
    learning_rate: float = 0.1
    drops: tuple[float, ...] = (0.5, 0.75)
    """after these shares of the steps the learning rate is divided by 10"""
    warm: int = 0
    """steps at a tenth of the learning rate before all others"""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    optimizer: Callable[["Recipe"], optax.GradientTransformation] = sgd
    """or adam"""
    augment: bool = True
    """each image padded by an eighth of its side, cut out at random and, where that is no other class, mirrored"""
    seed: int = 0

    @property
    def convolutional(self) -> bool:
        """Whether the model is one of convolutions."""
        return isinstance(self.model, conv_resnet.Config)

    @property
    def turned(self) -> bool:
        """Whether the images go through depth."""
        return self.convolutional or self.model.turned  # pyright: ignore

    @property
    def length(self) -> int:
        """How many steps an image is read in, along time."""
        side, channels = (np.shape(pictures(self.data, self.pixels).train_x)[k] for k in (1, 3))
        return side * side * channels // self.model.body.input_size  # pyright: ignore


class Net(NamedTuple):
    """A trained classifier."""

    recipe: Recipe
    params: Any
    statistics: Any
    curve: dict[str, list[float]]
    """by name, at each evaluation: step, loss of the steps before, train_error and test_error in 0..1"""
    images_per_second: float


def logits(model: Any, params: Any, x: jax.Array, statistics: Any) -> tuple[jax.Array, Any]:
    """Of normalised maps [B, P, P, C]: [B, K], and the batch norms' statistics; `statistics` None: the batch's own."""
    if isinstance(model, conv_resnet.Config):
        return conv_resnet.apply(params, x, config=model, statistics=statistics)
    return classifier.apply(params, pieces(x, model.body.input_size), config=model), ()


def pieces(x: jax.Array, width: int) -> jax.Array:
    """Maps [B, P, P, C] in the order of their rows, `width` values at a step: [B, T, width]."""
    return x.reshape(len(x), -1, width)


def normal(x: jax.Array, pictures: Pictures) -> jax.Array:
    """Maps as float32, the mean of each pixel taken away, in units of the standard deviation."""
    return (x.astype("float32") - pictures.mean) / pictures.deviation


def augmented(key: jax.Array, x: jax.Array, *, flips: bool) -> jax.Array:
    """Each map padded with zeros by an eighth of its side, a piece of its old size cut out, half of them mirrored."""
    count, side, pad = len(x), x.shape[1], max(x.shape[1] // 8, 1)
    key_crop, key_flip = jax.random.split(key)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    at = jax.random.randint(key_crop, (count, 2), 0, 2 * pad + 1)
    rows, columns = (at[:, k, None] + jnp.arange(side) for k in (0, 1))
    cut = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1)
    cut = jnp.take_along_axis(cut, columns[:, None, :, None], axis=2)
    if not flips:
        return cut
    return jnp.where(jax.random.bernoulli(key_flip, 0.5, (count, 1, 1, 1)), cut[:, :, ::-1], cut)


def trained(
    recipe: Recipe, runs: str | Path, *, points: int = 1, mesh: str = "", save_every: int = 500, patience: float = 45.0
) -> Net:
    """The net after all steps: restored, gone on with, or trained from the beginning; `points` evaluations on the way.

    Raises Refused for a mesh, a batch or another folder's checkpoint that does not fit, and a loss that is not finite.
    """
    folder = Path(runs) / name_of(recipe, points)
    try:
        state = _state(recipe, folder, points, mesh, save_every, patience)
    except (ValueError, CheckpointError, NotFinite) as error:
        raise Refused(str(error)) from error
    rows = [json.loads(line) for line in (folder / JSON_LINES).read_text().splitlines()]
    curve = [row for row in rows if "test_error" in row]
    return Net(
        recipe,
        state.params,
        state.statistics,
        {name: [row[name] for row in curve] for name in ("step", "loss", "train_error", "test_error")},
        rate(rows),
    )


def name_of(recipe: Recipe, points: int) -> str:
    """Of the folder of a run: its kind, and a digest of all that it follows from."""
    digest = hashlib.sha256(json.dumps(_identity(recipe, points), sort_keys=True).encode()).hexdigest()[:12]
    model: Any = recipe.model
    kind = f"depth-{model.depth}" if recipe.convolutional else type(model.body).__module__.split(".")[-1]
    return f"{recipe.data}-{kind}-{digest}"


def _identity(recipe: Recipe, points: int) -> dict[str, Any]:
    plain = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return json.loads(json.dumps({**plain, "points": points}, default=_named))


def _named(value: Any) -> Any:
    """Configs as their fields, functions and classes as their names, a partial function as what it was made of."""
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return f"{value.__module__}.{value.__qualname__}"


def _state(recipe: Recipe, folder: Path, points: int, mesh: str, save_every: int, patience: float) -> State:
    there, devices = pictures(recipe.data, recipe.pixels), make_mesh(mesh)
    module: Any = conv_resnet if recipe.convolutional else classifier
    optimizer = recipe.optimizer(recipe)
    init = partial(
        init_state,
        lambda key: module.init(key, recipe.model),
        optimizer,
        jax.random.key(recipe.seed),
        statistics=conv_resnet.statistics(recipe.model) if recipe.convolutional else (),  # pyright: ignore
    )
    shardings = sharding.of_state(devices, module.specs(recipe.model), jax.eval_shape(init), optimizer)
    batch_sharding = sharding.batch(devices)
    everywhere = jax.device_put((there.train_x, there.train_y), shardings.step)  # resident, on every device
    step = make_train_step(
        partial(_loss, recipe, there),
        optimizer,
        shardings=shardings,
        batch_sharding=batch_sharding,
    )

    @partial(jax.jit, donate_argnums=0)
    def advance(state: State, numbers: jax.Array, x: jax.Array, y: jax.Array) -> tuple[State, dict]:
        return step(state, {"x": x[numbers], "y": y[numbers]})

    plan = batches.Epochs(len(there.train_x), batch=recipe.batch, seed=recipe.seed)
    rows = batches.local_rows(batch_sharding, recipe.batch)
    every = max(recipe.steps // points, 1)
    with Checkpoints(folder / "checkpoints", config=_identity(recipe, points), keep=1) as checkpoints:
        return train(
            partial(init, shardings=shardings),
            lambda state, batch: advance(state, batch["numbers"], *everywhere),
            batches.batches(lambda numbers, length: {"numbers": numbers.astype(np.int32)}, plan, rows=rows),
            options=Options(
                steps=recipe.steps,
                save_every=save_every,
                log_every=max(every // 4, 1),
                evaluate_every=every,
                patience=patience,
                long_patience=max(patience, 1800.0),
            ),
            folder=folder,
            checkpoints=checkpoints,
            shardings=shardings,
            batch_sharding=batch_sharding,
            evaluate=partial(_evaluate, recipe, there),
            items="images",
        )


def _loss(recipe: Recipe, there: Pictures, params: Any, batch: dict, key: jax.Array) -> tuple[Any, Any, Any]:
    """What `make_train_step` asks for: cross-entropy in nats, images, statistics."""
    x = normal(batch["x"], there)
    if recipe.augment:
        x = augmented(key, x, flips=there.flips)
    scores, statistics = logits(recipe.model, params, x, None)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores.astype("float32"), batch["y"])
    return losses.sum(), len(losses), statistics


def _evaluate(recipe: Recipe, there: Pictures, state: State) -> dict[str, float]:
    """Errors in 0..1: of the test images, and of as many of the first training images, as they are."""
    count = len(there.test_x)
    parts = {"train_error": (there.train_x[:count], there.train_y[:count]), "test_error": (there.test_x, there.test_y)}
    return {name: error(recipe.model, there, state.params, state.statistics, x, y) for name, (x, y) in parts.items()}


def error(model: Any, there: Pictures, params: Any, statistics: Any, x: np.ndarray, y: np.ndarray) -> float:
    """The share of wrong answers, in 0..1."""
    wrong = 0
    for at in range(0, len(x), EVALUATED):
        part, answers = x[at : at + EVALUATED], y[at : at + EVALUATED]
        wrong += int(
            (np.asarray(_answers(model, params, statistics, normal(jnp.asarray(part), there))) != answers).sum()
        )
    return wrong / len(x)


@partial(jax.jit, static_argnums=0)
def _answers(model: Any, params: Any, statistics: Any, x: jax.Array) -> jax.Array:
    return logits(model, params, x, statistics if isinstance(model, conv_resnet.Config) else None)[0].argmax(-1)


def count(params: Any) -> int:
    """The number of weights."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def keep_compiled() -> None:
    """Programs that took long to compile are kept: the runs of all seeds share theirs. In the user's cache, where
    JAX_COMPILATION_CACHE_DIR names no other place.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        jax.config.update("jax_compilation_cache_dir", str(user_cache_path("lstm_rot") / "compiled"))


def use_all_cores() -> None:
    """Every core of a processor as a device of its own, so that they share each batch; before anything is computed."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
