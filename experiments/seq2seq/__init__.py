"""Sequence to sequence on real translation: Sutskever et al. 2014's tables and figures, attention and the Transformer
beside them, all trained on the same pairs by the same code.

A translator that has been trained is kept in its folder: another run takes it from there, `python -m
experiments.translate` translates with it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from rich.progress import Progress

from experiments.harness import Experiment, Refused
from experiments.nets import keep_compiled
from experiments.seq2seq.drawing import draw
from experiments.seq2seq.judging import judge
from experiments.seq2seq.measuring import measured
from experiments.seq2seq.table import table
from experiments.seq2seq.training import Cell, Recipe

LEAST = 8  # sentences


@dataclass(frozen=True)
class Config:
    """What is trained. LSTM, the cells beside it and all depths forward and reversed or reversed alone, as named."""

    data: Literal["numbers", "multi30k", "tatoeba", "wmt14"] = "numbers"
    source: str = "de"
    target: str = "en"
    vocabulary: int = 800
    """numbers of words, four marks with them: byte pairs of both languages together, or --words of the target"""
    words: bool = False
    """whole words and one for all unknown, twice as many of the source, as in 2014: 160,000 and 80,000"""
    limit: int = 30
    """numbers in a sentence at most; pairs with longer ones are left out, and said"""
    cells: tuple[Cell, ...] = ("lstm",)
    """trained with the source forward and reversed, with every seed"""
    beside: tuple[Cell, ...] = ("luong", "transformer")
    """trained forward, with the first seed"""
    depths: tuple[int, ...] = (1,)
    """layers; the least is that of all, the others of reversed LSTMs, with every seed"""
    hidden: int = 64
    dropout: float | None = 0.1
    """on words, between layers and on what the softmax reads; None: none"""
    batch: int = 64
    """pairs in a step"""
    epochs: float = 1.0
    learning_rate: float = 4e-3
    """the highest, of the cells that have none of their own below"""
    residual_rnn_learning_rate: float = 8e-3
    transformer_learning_rate: float = 2e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or, but for a Transformer, that of Sutskever et al. 2014"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """of the matrix products"""
    beams: tuple[int, ...] = (1, 12)
    ensembles: tuple[int, ...] = ()
    """of reversed LSTMs, of which as many are trained"""
    sentences: int = 32
    """of the test text, from all over it; more than it has: all"""
    buckets: int = 1
    """lengths that batches are padded to, each a program to compile"""
    points: int = 3
    """of the learning curves"""
    seeds: int = 1
    mesh: str = ""
    """as in data=4; empty: all devices share the batch"""
    runs: str = "results/seq2seq"
    """where translators are kept"""


MULTI30K = Config(
    data="multi30k",
    vocabulary=4000,
    limit=60,
    cells=("lstm", "rnn", "residual_rnn"),
    depths=(1, 2),
    beams=(1, 2, 12),
    ensembles=(2, 5),
    hidden=256,
    dropout=0.2,
    epochs=5.0,
    transformer_learning_rate=1e-3,
    sentences=10_000,
    buckets=8,
    points=10,
    seeds=3,
)
PRESETS = {
    "quick": Config(),
    "cpu": MULTI30K,
    "multi30k": dataclasses.replace(
        MULTI30K,
        beside=("luong", "bahdanau", "transformer"),
        depths=(1, 2, 3, 4),
        hidden=512,
        dropout=0.3,
        vocabulary=8000,
        epochs=20.0,
        compute="bfloat16",
        seeds=5,
    ),
    "wmt14": Config(
        data="wmt14",
        source="en",
        target="fr",
        vocabulary=80_000,
        words=True,
        limit=100,
        depths=(4,),
        beams=(1, 2, 12),
        ensembles=(2, 5),
        hidden=1000,
        dropout=None,
        batch=128,
        epochs=7.5,
        learning_rate=0.7,
        transformer_learning_rate=7e-4,
        optimizer="sgd",
        compute="bfloat16",
        sentences=10_000,
        buckets=8,
        points=30,
        seeds=3,
    ),
}


def recipes(config: Config) -> list[Recipe]:
    """What is trained, the first seed of everything before the second."""

    def of(cell: Cell, *, turned: bool, layers: int = min(config.depths), seed: int = 0) -> Recipe:
        names = {field.name for field in dataclasses.fields(Recipe)} & {f.name for f in dataclasses.fields(config)}
        plain = {name: getattr(config, name) for name in names}
        plain["learning_rate"] = getattr(config, f"{cell}_learning_rate", config.learning_rate)
        if cell == "transformer":
            plain["optimizer"], layers = "adam", max(layers, 2)
        return Recipe(**plain, cell=cell, layers=layers, reversed=turned, seed=seed)

    made = [of(cell, turned=turned, seed=0) for cell in config.cells[:1] for turned in (False, True)]
    made += [of(cell, turned=False) for cell in config.beside]
    made += [of(c, turned=t, seed=s) for s in range(config.seeds) for c in config.cells for t in (False, True)]
    made += [of("lstm", turned=True, seed=seed) for seed in range(max(config.ensembles, default=0))]
    made += [of("lstm", turned=True, layers=n, seed=s) for n in sorted(config.depths)[1:] for s in range(config.seeds)]
    return list(dict.fromkeys(made))


def run(config: Config, progress: Progress) -> dict:
    """The numbers of every translator, every row of the table and every figure."""
    if config.words and config.data == "numbers":
        raise Refused("--words with --data numbers: its words are made of parts; leave --words out")
    if "lstm" not in config.cells:
        raise Refused(f"--cells {' '.join(config.cells)}: the rows and figures are the LSTM's; name lstm too")
    if wrong := sorted({*config.beside} - {"luong", "bahdanau", "transformer"}):
        raise Refused(f"--beside {' '.join(wrong)}: give luong, bahdanau or transformer there, others as --cells")
    if config.sentences < LEAST:
        raise Refused(f"--sentences {config.sentences}: give at least {LEAST}, which fill the bins of the figures")
    keep_compiled()
    return measured(recipes(config), config, progress)


EXPERIMENT = Experiment(
    name="seq2seq",
    title="Sequence to sequence: translation without attention, with it, and by attention alone",
    claims=("SEQ14-t1", "SEQ14-reverse", "SEQ14-open", "SEQ14-depth", "SEQ14-fig2", "SEQ14-fig3", "VAS17-t2"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Above: the validation text's perplexity while training; the test text's perplexity and BLEU at the end, "
    "the source read forward or from its end; BLEU of the test text by sacrebleu, and the papers', of other data and "
    "nets ten to a hundred times as large. Below: BLEU by the length of the source and by how rare its words are, in "
    "bins of as many sentences; perplexity by depth; and the two main directions of what the reversed LSTM hands from "
    "encoder to decoder.",
    table=table,
)
