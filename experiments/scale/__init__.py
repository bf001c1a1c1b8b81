"""Training on pods of TPUs, as far as it can be known without one: the real compiler's program of a whole step.

libtpu compiles forward, backward and optimizer for the chips of a topology. Memory is the compiler's own figure;
FLOPs and bytes are counted in the program, every loop in full; a time is a roofline, a model, and is called so. Tests
no claim of a paper.
"""

from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from typing import ClassVar, Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rich.progress import Progress

from experiments.data import DataError
from experiments.harness import Experiment, processor
from experiments.scale.chips import CHIPS, LATENCY, chip_of, step_times
from experiments.scale.program import Case, compiled


@dataclass(frozen=True)
class Config:
    """What is compiled: each of the models for each of the topologies."""

    size: Literal["small", "1B"] = "1B"
    models: tuple[Literal["LSTM", "Transformer"], ...] = ("LSTM", "Transformer")
    topologies: tuple[Literal["v5e:4x4", "v5p:4x4x4"], ...] = ("v5e:4x4", "v5p:4x4x4")
    seeds: ClassVar[int] = 1  # nothing is drawn


PRESETS = {"quick": Config(size="small", models=("LSTM",), topologies=("v5e:4x4",)), "cpu": Config()}

LSTM = Case(
    "LSTM", "v5e:4x4", "data=4,model=4", vocabulary=32_768, hidden=4096, layers=6, length=512, examples=1024, kept=64
)
TRANSFORMER = Case(
    "Transformer",
    "v5e:4x4",
    "data=4,model=4",
    vocabulary=32_768,
    hidden=2048,
    layers=18,
    mlp=8704,
    length=1024,
    examples=512,
    accumulate=8,
    kept=1,
)
LARGE = [
    LSTM,
    TRANSFORMER,
    replace(LSTM, topology="v5p:4x4x4", mesh="data=16,model=4", examples=2048),
    replace(TRANSFORMER, topology="v5p:4x4x4", mesh="data=16,model=4", examples=1024, accumulate=1),
]
SMALL = [
    replace(LSTM, vocabulary=8192, hidden=512, layers=2, length=64, examples=64, kept=8),
    replace(
        TRANSFORMER, vocabulary=8192, hidden=512, layers=2, mlp=2048, length=64, examples=64, accumulate=2, head=64
    ),
]


def cases(config: Config) -> list[Case]:
    """Those asked for. Of the small size there is v5e:4x4 alone."""
    known = LARGE if config.size == "1B" else SMALL
    return [case for case in known if case.body in config.models and case.topology in config.topologies]


def run(config: Config, progress: Progress) -> dict:
    if find_spec("libtpu") is None:
        raise DataError(
            'libtpu, the compiler for TPUs, is not installed: pip install "jax[tpu]", or libtpu in the version that it '
            "asks for; it needs no TPU"
        )
    todo = cases(config)
    if not todo:
        raise DataError(
            f"nothing is {config.size} on {', '.join(config.topologies)}: the small ones are on v5e:4x4 alone"
        )
    rows, task = [], progress.add_task("scale", total=len(todo))
    for row in compiled(todo):
        rows.append(row | {"times": step_times(row)})
        progress.advance(task)
    progress.remove_task(task)
    return {
        "rows": rows,
        "chips": {name: chip._asdict() for name, chip in CHIPS.items()} | {"latency": LATENCY},
        "hardware": f"none of the TPUs named: compiled on {processor()}",
        "versions": {"libtpu": metadata.version("libtpu")},
    }


def table(measurements: dict) -> dict:
    """A column for each step that was compiled."""
    rows = measurements["rows"]
    columns = ["", *[f"{row['body']} on {row['topology']}" for row in rows]]
    said = [_said(row) for row in rows]
    return {"columns": columns, "rows": [[name, *[each[name] for each in said]] for name in said[0]], "title": TITLE}


def _said(row: dict) -> dict[str, str]:
    memory, traffic, times = row["memory"], row["collectives"].values(), dict(row["times"])
    estimate = times.pop("estimate")
    part, seconds = max(times.items(), key=lambda item: item[1])
    parts = f" in {row['accumulate']} parts" if row["accumulate"] > 1 else ""
    return {
        "parameters": f"{row['parameters'] / 1e6:,.0f} M",
        "mesh": row["mesh"],
        "a step": f"{row['examples']:,} x {row['length']:,} words{parts}",
        "memory of a chip": f"{_short(sum(memory.values()))}B of {_short(chip_of(row['topology']).memory)}B",
        "of it state, temporary": f"{_short(memory['state'])}B, {_short(memory['temporary'])}B",
        "products, all chips": f"{_short(row['flops'])}FLOP",
        "a chip sends": f"{_short(sum(each['bytes'] for each in traffic))}B",
        "in collectives": f"{sum(each['count'] for each in traffic):,}",
        "a step takes at least (a model)": f"{1e3 * seconds:,.0f} ms ({part})",
        "computing, the compiler's estimate": f"{1e3 * estimate:,.0f} ms",
        "compiled in": f"{row['seconds']:.0f} s",
    }


def _short(number: float) -> str:
    """To three digits, with the prefix of its unit."""
    power = next(power for power in (15, 12, 9, 6, 3, 0) if number >= 10**power or not power)
    return f"{number / 10**power:.3g} {PREFIXES[power]}"


PREFIXES = {15: "P", 12: "T", 9: "G", 6: "M", 3: "k", 0: ""}


def draw(result: dict) -> Figure:
    rows = result["measurements"]["rows"]
    names = [f"{row['body']}\n{row['topology']}" for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    at = np.arange(len(rows))
    share = [{kind: size / chip_of(row["topology"]).memory for kind, size in row["memory"].items()} for row in rows]
    bottom = np.zeros(len(rows))
    for kind in ("state", "temporary"):  # results are the state again, in its place
        sizes = np.array([100 * each[kind] for each in share])
        left.bar(at, sizes, 0.6, bottom, label=kind)
        bottom += sizes
    for x, top, row in zip(at, bottom, rows, strict=True):
        left.text(x, top + 1, f"{sum(row['memory'].values()) / 1e9:.1f} GB", ha="center")
    left.axhline(100, color="black", linewidth=1)
    left.set(title="memory of a chip, as the compiler says", ylabel="% of the chip's", xticks=at, ylim=(0, 112))
    left.set_xticklabels(names)
    left.legend(loc="upper right", ncols=3)
    for number, (part, words) in enumerate(PARTS.items()):
        seconds = [1e3 * row["times"][part] for row in rows]
        right.bar(at + 0.2 * (number - 1.5), seconds, 0.19, label=words)
    right.set(title="a step: parts of a roofline, nothing measured", ylabel="ms", xticks=at, yscale="log")
    right.set_ylim(top=20e3 * max(max(row["times"].values()) for row in rows))
    right.set_xticklabels(names)
    right.legend(fontsize=8)
    return figure


PARTS = {
    "estimate": "computing, as the compiler estimates",
    "products": "products, at the chip's peak",
    "bytes": "bytes sent, over all links",
    "waiting": "collectives, at 1 µs each",
}
TITLE = "Training steps compiled for TPU pods"

EXPERIMENT = Experiment(
    name="scale",
    title=TITLE,
    claims=(),
    presets=PRESETS,
    run=run,
    judge=lambda measurements: [],
    draw=draw,
    caption="Language models of 1B parameters, their training step compiled by libtpu without a TPU. Left: memory of a "
    "chip, of what it has; state: params and Adam's moments, float32. Right: what a step takes at least, by each part "
    "alone, from FLOPs and bytes counted in the program, every loop in full, and the chips' specifications; and, with "
    "the reading of memory, what the compiler expects of computing alone. These are models: nothing was run.",
    table=table,
)
