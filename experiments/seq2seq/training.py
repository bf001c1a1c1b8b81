"""One translator: trained by `lstm_rot.training` from its newest checkpoint on, and restored from its folder.

net = trained(recipe, "results/seq2seq")
translations = translate([net], sentences, width=12)
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
import optax

from experiments.fit import rate
from experiments.harness import Refused
from experiments.translation import examples, texts, vocabulary
from experiments.translation.pairs import Pairs
from lstm_rot.models import attending, gru, language_model, lstm, residual_rnn, rnn, seq2seq, transformer
from lstm_rot.training import data, sharding
from lstm_rot.training.checkpoints import CheckpointError, Checkpoints, read
from lstm_rot.training.log import JSON_LINES
from lstm_rot.training.mesh import make_mesh
from lstm_rot.training.run import NotFinite, Options, train
from lstm_rot.training.step import State, init_state, make_train_step

Cell = Literal["lstm", "gru", "rnn", "residual_rnn", "luong", "bahdanau", "transformer"]
RECIPE = "recipe.json"  # in the folder of a run
STACKS: dict[str, Any] = {"lstm": lstm, "gru": gru, "rnn": rnn, "residual_rnn": residual_rnn}
VALIDATED = 512  # pairs read at each point of a curve
IN_MEMORY = 1_000_000  # pairs; more are written to files and read where they lie


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how: plain values, from which all else follows."""

    data: str
    source: str
    target: str
    vocabulary: int
    """numbers of words, the four marks with them"""
    words: bool
    """whether these are whole words, twice as many of the source; else byte pairs, one for both languages"""
    limit: int
    """numbers in a sentence at most"""
    cell: Cell
    layers: int
    hidden: int
    reversed: bool
    """whether the source is read from its end"""
    dropout: float | None
    batch: int
    epochs: float
    learning_rate: float
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or as Sutskever et al. 2014: weights begin within 0.08, the rate is halved each half epoch at the end"""
    compute: Literal["float32", "bfloat16"] = "float32"
    buckets: int = 5
    """lengths that batches are padded to"""
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the folder of a run: in words, and a digest of all that it follows from."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        way = "reversed" if self.reversed else "forward"
        return f"{self.data}-{self.source}-{self.target}-{self.cell}-{self.layers}-{way}-{self.seed}-{digest}"

    @property
    def order(self) -> slice:
        """In which the numbers of a source are read."""
        return slice(None, None, -1 if self.reversed else 1)


class Task(NamedTuple):
    """A data set as it is trained on."""

    parallel: texts.Parallel
    vocabularies: vocabulary.Vocabularies
    train: examples.Encoded
    valid: examples.Encoded
    left_out: str
    words_per_pair: float  # words of both languages, in the texts to train on
    numbers_per_pair: float  # that are predicted


@lru_cache
def task(name: str, source: str, target: str, size: int, words: bool, limit: int, folder: str) -> Task:
    """The texts, their vocabularies made from the training side alone, and the pairs as numbers.

    folder: where pairs that memory does not hold are written to. Raises DataError for bad texts, Refused for sizes
    that do not fit.
    """
    parallel = texts.parallel(name, source, target)
    if not len(parallel.train):
        raise Refused(f"--data {name} is there to test on: train on {', '.join(n for n in texts.TEXTS if n != name)}")
    try:
        vocabularies = _vocabularies(parallel.train, size, words)
        if len(parallel.train) > IN_MEMORY:
            place = Path(folder) / f"{name}-{source}-{target}-{vocabularies.digest[:12]}-{limit}"
            train, left_out = examples.stored(place, parallel.train, vocabularies, limit=limit, sha256=parallel.sha256)
        else:
            train, left_out = examples.encoded(parallel.train, vocabularies, limit=limit)
        valid, _ = examples.encoded(parallel.valid, vocabularies, limit=limit)
    except ValueError as error:
        raise Refused(str(error)) from error
    some = range(0, len(parallel.train), max(len(parallel.train) // 10_000, 1))
    said = sum(len(vocabulary.words(text)) for at in some for text in parallel.train[at])
    asked = sum(len(vocabularies.target.encode(parallel.train[at][1])) + 1 for at in some)
    return Task(parallel, vocabularies, train, valid, str(left_out), said / len(some), asked / len(some))


def _vocabularies(pairs: Pairs, size: int, words: bool) -> vocabulary.Vocabularies:
    if words:
        return vocabulary.Vocabularies(
            vocabulary.train_words(pairs.source, 2 * size), vocabulary.train_words(pairs.target, size)
        )
    joint = vocabulary.train_bpe(chain(pairs.source, pairs.target), size)
    return vocabulary.Vocabularies(joint, joint)


def task_of(recipe: Recipe, folder: str | Path) -> Task:
    """The recipe's."""
    return task(recipe.data, recipe.source, recipe.target, recipe.vocabulary, recipe.words, recipe.limit, str(folder))


def model_of(recipe: Recipe, vocabularies: vocabulary.Vocabularies) -> seq2seq.Config:
    """The recipe's model. Raises Refused for sizes that do not fit."""
    hidden, layers, dropout = recipe.hidden, recipe.layers, recipe.dropout or 0.0
    how: dict[str, Any] = {"dropout": dropout, "compute_dtype": recipe.compute}
    try:
        if recipe.cell == "transformer":
            heads = max(heads for heads in range(1, max(hidden // 64, 1) + 1) if not hidden % heads)
            body: Any = transformer.Config(hidden, layers, heads, kind="decoder", **how)
        elif recipe.cell in ("luong", "bahdanau"):
            width = 2 * hidden if recipe.cell == "bahdanau" else hidden
            body = attending.Config(lstm.Config(width, hidden, layers, **how), recipe.cell)  # pyright: ignore
        else:
            body = STACKS[recipe.cell].Config(hidden, hidden, layers, **how)
        joint = recipe.cell == "transformer" and not recipe.words
        decoder = language_model.Config(vocabularies.target.size, body, dropout=dropout, tied=joint)
        both = recipe.cell == "bahdanau"  # reads the source both ways: Bahdanau et al. 2015, section 3.2
        return seq2seq.Config(vocabularies.source.size, decoder, joint=joint, bidirectional=both)
    except ValueError as error:
        raise Refused(str(error)) from error


def count(config: seq2seq.Config) -> int:
    """The number of weights."""
    shapes = jax.eval_shape(lambda: seq2seq.init(jax.random.key(0), config))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


class Diverged(Refused):
    """A training whose loss is no longer finite, nor will be when it is taken up again."""


class Net(NamedTuple):
    """A trained translator."""

    recipe: Recipe
    vocabularies: vocabulary.Vocabularies
    model: seq2seq.Config
    params: seq2seq.Params
    curve: dict[str, list[float]]
    """by name, at each evaluation: step, and valid: nats a number of the validation's target"""
    words_per_second: float


def trained(recipe: Recipe, runs: str | Path, *, points: int = 10, save_every: int = 500, mesh: str = "") -> Net:
    """The net after all steps: restored, gone on with, or trained from the beginning.

    Raises Refused for what does not fit, Diverged for a loss that is not finite.
    """
    there = task_of(recipe, runs)
    model, folder = model_of(recipe, there.vocabularies), Path(runs) / recipe.name
    try:
        state = _state(recipe, model, there, folder, points, save_every, mesh)
    except NotFinite as error:
        raise Diverged(str(error)) from error
    except (ValueError, CheckpointError) as error:
        raise Refused(str(error)) from error
    words = there.words_per_pair if recipe.optimizer == "sgd" else there.words_per_pair / there.numbers_per_pair
    return _net(recipe, model, there.vocabularies, state.params, folder, words)


def _net(recipe: Recipe, model: Any, vocabularies: Any, params: Any, folder: Path, words_per_item: float) -> Net:
    log = folder / JSON_LINES
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    curve = [row for row in rows if "valid" in row]
    told = {name: [row[name] for row in curve] for name in ("step", "valid")}
    return Net(recipe, vocabularies, model, params, told, rate(rows) * words_per_item)


def plan_of(recipe: Recipe, train: examples.Encoded) -> tuple[data.Sequences, data.Buckets, int]:
    """The pairs, in batches of one length each (Sutskever et al. 2014, section 3.4), and the number of steps."""
    sequences = data.Sequences(_read(train, recipe)._asdict())
    bounds = data.least_padded(sequences.lengths, recipe.buckets, batch=recipe.batch)
    plan = data.Buckets(sequences.lengths, bounds, batch=recipe.batch, seed=recipe.seed)
    return sequences, plan, max(round(recipe.epochs * plan.batches), 1)


def _read(pairs: examples.Encoded, recipe: Recipe) -> examples.Encoded:
    return examples.reversed_source(pairs) if recipe.reversed else pairs


def optimizer_of(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """Adam, its rate rising over a tenth of the steps and falling along a cosine; or SGD as Sutskever et al. 2014.

    Theirs: 5 of 7.5 epochs at the full rate, then half of it, and half as much again after every half epoch.
    """
    if recipe.optimizer == "sgd":
        halvings = {round(steps * (5 + k / 2) / 7.5): 0.5 for k in range(5)}
        return optax.sgd(optax.piecewise_constant_schedule(recipe.learning_rate, halvings))
    warm = max(steps // 10, 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warm, max(steps, warm + 1))
    return optax.adam(rate, b2=0.98)


def _state(
    recipe: Recipe, model: seq2seq.Config, there: Task, folder: Path, points: int, save_every: int, mesh: str
) -> State:
    sequences, plan, steps = plan_of(recipe, there.train)
    devices, optimizer = make_mesh(mesh), optimizer_of(recipe, steps)
    uniform = 0.08 if recipe.optimizer == "sgd" else None
    key = jax.random.key(recipe.seed)
    init = partial(init_state, lambda key: seq2seq.init(key, model, uniform=uniform), optimizer, key)
    shardings = sharding.of_state(devices, seq2seq.specs(model), jax.eval_shape(init), optimizer)
    batch_sharding = sharding.batch(devices)
    smoothing = 0.1 if recipe.cell == "transformer" else 0.0  # Vaswani et al. 2017, section 5.4
    step = make_train_step(
        partial(loss, model, smoothing, recipe.optimizer == "sgd"),
        optimizer,
        clip=5.0 if recipe.optimizer == "sgd" else 1.0,
        shardings=shardings,
        batch_sharding=batch_sharding,
    )
    every = -(-steps // points)
    with Checkpoints(folder / "checkpoints", config=identity(recipe, there.vocabularies), keep=1) as checkpoints:
        _tell(folder, recipe, there.vocabularies)  # once nothing else is known to lie there
        return train(
            partial(init, shardings=shardings),
            step,
            data.batches(sequences, plan, rows=data.local_rows(batch_sharding, recipe.batch)),
            options=Options(
                steps=steps, save_every=save_every, log_every=max(every // 4, 1), evaluate_every=every, patience=600.0
            ),
            folder=folder,
            checkpoints=checkpoints,
            shardings=shardings,
            batch_sharding=batch_sharding,
            evaluate=lambda state: {"valid": nats(recipe, model, state.params, there.valid)},
            items="pairs" if recipe.optimizer == "sgd" else "target words",
        )


def _tell(folder: Path, recipe: Recipe, vocabularies: vocabulary.Vocabularies) -> None:
    """Writes what a net is restored by, where it does not lie there yet."""
    if not (folder / RECIPE).exists():
        vocabulary.save(folder, vocabularies)
        (folder / RECIPE).write_text(json.dumps(dataclasses.asdict(recipe), indent=1) + "\n")
    elif vocabulary.load(folder).digest != vocabularies.digest:
        raise CheckpointError(f"{folder} has another vocabulary than the texts make now: choose other --runs")


def identity(recipe: Recipe, vocabularies: vocabulary.Vocabularies) -> dict[str, Any]:
    """Of a run's checkpoints."""
    return {**dataclasses.asdict(recipe), "vocabularies": vocabularies.digest}


def loss(
    config: seq2seq.Config, smoothing: float, by_pairs: bool, params: Any, batch: dict, key: Any
) -> tuple[Any, Any]:
    """What `make_train_step` asks for. by_pairs: the mean is over pairs, as in Sutskever et al. 2014, section 3.4."""
    total, words = seq2seq.loss(params, config=config, key=key, smoothing=smoothing, **batch)
    return total, len(batch["source"]) if by_pairs else words


def nats(
    recipe: Recipe, model: seq2seq.Config, params: Any, pairs: examples.Encoded, *, most: int = VALIDATED
) -> float:
    """-log p of a target's number, its end among them, over at most `most` pairs spread over all."""
    chosen = np.linspace(0, len(pairs.source) - 1, min(most, len(pairs.source))).astype(int).tolist()
    some = examples.Encoded([pairs.source[at] for at in chosen], [pairs.target[at] for at in chosen])
    sequences = data.Sequences(_read(some, recipe)._asdict())
    total, items, size = 0.0, 0, min(64, len(chosen))
    for at in range(0, len(chosen), size):
        numbers = np.arange(at, at + size)
        batch: Any = sequences(numbers % len(chosen), int(sequences.lengths.max()))  # all of one shape
        batch["target_lengths"] = np.where(numbers < len(chosen), batch["target_lengths"], 0)
        summed, counted = seq2seq.loss(params, config=model, **batch)
        total, items = total + float(summed), items + int(counted)
    return total / items


def restored(folder: str | Path) -> Net:
    """The net of a run that lies in the folder, to translate with; nothing is written.

    Raises Refused where there is none, or its vocabulary is another.
    """
    folder = Path(folder)
    if not (folder / RECIPE).exists():
        raise Refused(f"no translator in {folder}: train one with python -m experiments.seq2seq")
    try:
        recipe = Recipe(**json.loads((folder / RECIPE).read_text()))
        if recipe.cell not in get_args(Cell):
            raise ValueError(f"cell {recipe.cell!r} is none of {', '.join(get_args(Cell))}")
    except (ValueError, TypeError) as error:
        raise Refused(f"{folder / RECIPE} is no recipe ({error}): restore it, or train anew") from error
    try:
        vocabularies = vocabulary.load(folder)
        model = model_of(recipe, vocabularies)
        like = jax.eval_shape(lambda: init_state(partial(_init, model), optimizer_of(recipe, 1), jax.random.key(0)))
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like)
        there = read(folder / "checkpoints", config=identity(recipe, vocabularies), like=like)
    except (ValueError, CheckpointError) as error:
        raise Refused(str(error)) from error
    if there is None:
        raise Refused(f"no checkpoint in {folder} yet: let its training go on")
    return _net(recipe, model, vocabularies, there.state.params, folder, float("nan"))  # its texts are not read


def _init(model: seq2seq.Config, key: Any) -> seq2seq.Params:
    return seq2seq.init(key, model)
