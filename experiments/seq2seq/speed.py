"""`python -m experiments.seq2seq.speed`: training words per second, ours against the same model in torch, in one run.

The model of 2014: an LSTM encoder whose last carry an LSTM decoder goes on from, `torch.nn.LSTM` there; the same
batches, vocabulary, dropout and Adam, gradients clipped. The unit is the paper's: source and target words together.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.harness import processor
from experiments.seq2seq import PRESETS, recipes
from experiments.seq2seq.training import loss, model_of, plan_of, task_of
from experiments.translation.vocabulary import PAD
from lstm_rot.models import seq2seq
from lstm_rot.training.step import init_state, make_train_step


@dataclass(frozen=True)
class Options:
    """Training words per second, ours against torch's."""

    preset: Literal["quick", "cpu"] = "cpu"
    rounds: int = 15
    """of each, one after the other, the batches of `steps` steps"""
    steps: int = 6


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, prog="python -m experiments.seq2seq.speed")
    recipe = recipes(PRESETS[options.preset])[0]
    there = task_of(recipe, "results/seq2seq")
    model = model_of(recipe, there.vocabularies)
    sequences, plan, _ = plan_of(recipe, there.train)
    batches = [sequences(*plan[n]) for n in range(options.steps)]
    predicted = sum(int((batch["target_lengths"] - 1).sum()) for batch in batches)
    words = predicted * there.words_per_pair / there.numbers_per_pair
    contenders: dict[str, Callable[[], None]] = {"ours": _ours(recipe, model, batches)}
    if find_spec("torch"):
        contenders["torch"] = _torch(recipe, model, batches)
    for once in contenders.values():
        once()  # compiles, and touches all memory
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, once in list(contenders.items())[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            once()
            rates[name].append(words / (time.perf_counter() - start))
    table = Table(title=f"training, {recipe.data}, hidden {recipe.hidden}, batch {recipe.batch}; {processor()}")
    for column in ("", "source + target words/s, median", "least", "greatest"):
        table.add_column(column)
    for name, mine in rates.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(mine), min(mine), max(mine))))
    console = Console()
    console.print(table)
    if "torch" in rates:
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["torch"], strict=True))
        console.print(f"ours / torch, median of {options.rounds} rounds: {ratio:.2f}")
    else:
        console.print('torch is left out: pip install "torch==2.13.0"')


def _ours(recipe: Any, model: seq2seq.Config, batches: list[dict]) -> Callable[[], None]:
    optimizer = optax.adam(recipe.learning_rate, b2=0.98)
    step = make_train_step(partial(loss, model, 0.0, False), optimizer, clip=1.0)
    state = init_state(lambda key: seq2seq.init(key, model), optimizer, jax.random.key(0))

    def once() -> None:
        nonlocal state
        for batch in batches:
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)  # pyright: ignore

    return once


def _torch(recipe: Any, model: seq2seq.Config, batches: list[dict]) -> Callable[[], None]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    hidden, layers, rate = recipe.hidden, recipe.layers, recipe.dropout or 0.0
    source, target = model.source_vocab_size, model.decoder.vocab_size
    parts = nn.ModuleDict(
        {
            "source": nn.Embedding(source, hidden),
            "target": nn.Embedding(target, hidden),
            "encoder": nn.LSTM(hidden, hidden, layers),
            "decoder": nn.LSTM(hidden, hidden, layers),
            "out": nn.Linear(hidden, target, bias=False),
        }
    )
    drop, entropy = nn.Dropout(rate), nn.CrossEntropyLoss(ignore_index=PAD, reduction="mean")
    adam = torch.optim.Adam(parts.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98))
    given = [{name: torch.from_numpy(np.asarray(rows, np.int64)) for name, rows in batch.items()} for batch in batches]

    def once() -> None:
        for batch in given:
            adam.zero_grad(set_to_none=True)
            packed = nn.utils.rnn.pack_padded_sequence(
                drop(parts["source"](batch["source"].T)), batch["source_lengths"], enforce_sorted=False
            )
            _, carry = parts["encoder"](packed)
            words = batch["target"].T
            hs, _ = parts["decoder"](drop(parts["target"](words[:-1])), carry)
            entropy(parts["out"](drop(hs)).flatten(0, 1), words[1:].flatten()).backward()
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            adam.step()

    return once


if __name__ == "__main__":
    main()
