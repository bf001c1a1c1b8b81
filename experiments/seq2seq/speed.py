"""`python -m experiments.seq2seq.speed`: training words per second, ours against the same model in torch, in one run.

The model of 2014: an LSTM encoder whose last carry an LSTM decoder goes on from, `torch.nn.LSTM` there; the same
batches, vocabulary, dropout and optimizer, gradients clipped. The unit is the paper's: source and target words
together. `--preset paper`: the sizes of Sutskever et al. 2014, beside the speeds they tell.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from experiments.files import DataError
from experiments.harness import Refused, processor
from experiments.seq2seq import PRESETS, recipes
from experiments.seq2seq.training import loss, model_of, plan_of, task_of
from experiments.translation.vocabulary import BOS, EOS, PAD, SPECIAL
from lstm_rot.models import language_model, lstm, seq2seq
from lstm_rot.training.step import init_state, make_train_step

PAPER = {"Sutskever et al. 2014, one GPU": 1_700, "the same, eight GPUs": 6_300}


class Sizes(NamedTuple):
    """Of a model, and of the words in a pair on average."""

    source_vocabulary: int
    target_vocabulary: int
    hidden: int
    layers: int
    batch: int
    source_words: int
    target_words: int


OF_THE_PAPER = Sizes(160_000, 80_000, 1000, 4, 128, 25, 29)  # 304M English and 348M French words in 12M pairs


@dataclass(frozen=True)
class Options:
    """Training words per second, ours against torch's."""

    preset: Literal["quick", "cpu", "paper"] = "cpu"
    """whose data, sizes and optimizer; paper: random words, for which speed is the same"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """of the matrix products; torch is measured in float32 alone"""
    rounds: int = 15
    """of each, one after the other, the batches of `steps` steps"""
    steps: int = 6


class Case(NamedTuple):
    """What is trained, on what: `words` are the source's and the target's, of all batches."""

    title: str
    model: seq2seq.Config
    batches: list[dict]
    words: float
    sgd: bool


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, prog="python -m experiments.seq2seq.speed")
    if min(options.rounds, options.steps) < 1:
        sys.exit(f"speed: --rounds {options.rounds} --steps {options.steps}: give at least 1 of each")
    try:
        case = _paper(options) if options.preset == "paper" else _published(options)
    except (Refused, DataError) as error:
        sys.exit(f"speed: {error}")
    contenders: dict[str, Callable[[], None]] = {"ours": _ours(case)}
    if find_spec("torch") and options.compute == "float32":
        contenders["torch"] = _torch(case)
    for once in contenders.values():
        once()  # compiles, and touches all memory
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, once in list(contenders.items())[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            once()
            rates[name].append(case.words / (time.perf_counter() - start))
    table = Table(title=f"training, {case.title}, {options.compute}; {processor()}")
    for column in ("", "source + target words/s, median", "least", "greatest"):
        table.add_column(column)
    for name, mine in rates.items():
        table.add_row(name, *(f"{value:,.0f}" for value in (statistics.median(mine), min(mine), max(mine))))
    for name, theirs in PAPER.items() if options.preset == "paper" else ():
        table.add_row(name, f"{theirs:,}", "", "")
    console = Console()
    console.print(table)
    if "torch" in rates:
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["torch"], strict=True))
        console.print(f"ours / torch, median of {options.rounds} rounds: {ratio:.2f}")
    else:
        console.print('torch is left out: pip install "torch==2.13.0", and measure in float32')


def _published(options: Options) -> Case:
    recipe = replace(recipes(PRESETS[options.preset])[0], compute=options.compute)
    there = task_of(recipe, "results/seq2seq")
    sequences, plan, _ = plan_of(recipe, there.train)
    batches = [sequences(*plan[n]) for n in range(options.steps)]
    predicted = sum(int((batch["target_lengths"] - 1).sum()) for batch in batches)
    return Case(
        f"{recipe.data}, hidden {recipe.hidden}, batch {recipe.batch}",
        model_of(recipe, there.vocabularies),
        batches,
        predicted * there.words_per_pair / there.numbers_per_pair,
        sgd=False,
    )


def _paper(options: Options) -> Case:
    """Batches of one length, as theirs (section 3.4)."""
    sizes = OF_THE_PAPER
    body = lstm.Config(sizes.hidden, sizes.hidden, sizes.layers, compute_dtype=options.compute)
    model = seq2seq.Config(sizes.source_vocabulary, language_model.Config(sizes.target_vocabulary, body))
    random = np.random.default_rng(0)

    def drawn(vocabulary: int, words: int) -> np.ndarray:
        return random.integers(SPECIAL, vocabulary, (sizes.batch, words), np.int32)

    def batch() -> dict[str, np.ndarray]:
        said = drawn(sizes.target_vocabulary, sizes.target_words)
        return {
            "source": drawn(sizes.source_vocabulary, sizes.source_words),
            "target": np.pad(said, ((0, 0), (1, 1)), constant_values=((0, 0), (BOS, EOS))),
            "source_lengths": np.full(sizes.batch, sizes.source_words, np.int32),
            "target_lengths": np.full(sizes.batch, sizes.target_words + 2, np.int32),
        }

    title = (
        f"random words of {sizes.source_vocabulary:,} and {sizes.target_vocabulary:,}, {sizes.layers} layers of "
        f"{sizes.hidden}, batch {sizes.batch}"
    )
    words = options.steps * sizes.batch * (sizes.source_words + sizes.target_words)
    return Case(title, model, [batch() for _ in range(options.steps)], words, sgd=True)


def _ours(case: Case) -> Callable[[], None]:
    optimizer = optax.sgd(0.7) if case.sgd else optax.adam(1e-3, b2=0.98)
    step = make_train_step(partial(loss, case.model, 0.0, case.sgd), optimizer, clip=5.0 if case.sgd else 1.0)
    uniform = 0.08 if case.sgd else None
    state = init_state(lambda key: seq2seq.init(key, case.model, uniform=uniform), optimizer, jax.random.key(0))

    def once() -> None:
        nonlocal state
        for batch in case.batches:
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)  # pyright: ignore

    return once


def _torch(case: Case) -> Callable[[], None]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    body: Any = case.model.decoder.body
    hidden, rate = body.hidden_size, case.model.decoder.dropout
    source, target = case.model.source_vocab_size, case.model.decoder.vocab_size
    between = rate if body.num_layers > 1 else 0.0
    parts = nn.ModuleDict(
        {
            "source": nn.Embedding(source, hidden),
            "target": nn.Embedding(target, hidden),
            "encoder": nn.LSTM(hidden, hidden, body.num_layers, dropout=between),
            "decoder": nn.LSTM(hidden, hidden, body.num_layers, dropout=between),
            "out": nn.Linear(hidden, target, bias=False),
        }
    )
    drop, entropy = nn.Dropout(rate), nn.CrossEntropyLoss(ignore_index=PAD, reduction="mean")
    weights = list(parts.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.7) if case.sgd else torch.optim.Adam(weights, lr=1e-3, betas=(0.9, 0.98))
    given = [
        {name: torch.from_numpy(np.asarray(rows, np.int64)) for name, rows in batch.items()} for batch in case.batches
    ]

    def once() -> None:
        for batch in given:
            optimizer.zero_grad(set_to_none=True)
            packed = nn.utils.rnn.pack_padded_sequence(
                drop(parts["source"](batch["source"].T)), batch["source_lengths"], enforce_sorted=False
            )
            _, carry = parts["encoder"](packed)
            words = batch["target"].T
            hs, _ = parts["decoder"](drop(parts["target"](words[:-1])), carry)
            entropy(parts["out"](drop(hs)).flatten(0, 1), words[1:].flatten()).backward()
            nn.utils.clip_grad_norm_(weights, 5.0 if case.sgd else 1.0)
            optimizer.step()

    return once


if __name__ == "__main__":
    main()
