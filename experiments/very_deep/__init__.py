"""What depth costs a compiler: our line of layers against the same net unrolled by a Python loop; images per second.

The CIFAR ResNet of He et al. 2015 at 20, 110 and 1202 layers: seconds of compiling, memory, and seconds of a training
step; and, of 20 layers, how many images a second each library trains on. Each contender runs in a process of its own
(`experiments.speed`'s machinery), all doing the same work (`contenders.py`). Tests no claim of a paper.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from rich.progress import Progress

from experiments.harness import Experiment, Refused, processor
from experiments.speed.measure import asked
from experiments.speed.worker import Worker
from experiments.very_deep.case import Case
from experiments.very_deep.contenders import DEEP, FLAX, OURS, RATES, RATES_GPU, installed
from experiments.very_deep.drawing import draw
from experiments.very_deep.goals import rates_of, table
from experiments.very_deep.worker import ANALYSED, STEP


@dataclass(frozen=True)
class Config:
    """What is measured."""

    depths: tuple[int, ...] = (20, 110, 1202)
    batch: int = 8
    """images of the steps that are timed at every depth: as many as the deepest takes seconds for"""
    analysed: int = 128
    """images of the steps whose memory is asked; they are only compiled"""
    compiles: int = 3
    """how often compiling is timed, where it is a matter of seconds"""
    rate_depth: int = 20
    rate_batch: int = 128
    """of the net whose images are counted"""
    pixels: int = 32
    """per side of an image"""
    device: Literal["cpu", "gpu"] = "cpu"
    """gpu: one of it, where float32 products are as each library has them; the share of its peak is told too"""
    seconds: float = 12
    """for the steps of each case, in `least` to `most` rounds"""
    least: int = 3
    most: int = 15
    patience: float = 600
    """seconds in which a contender must answer: what compiles longer is told as more than that"""
    seeds: ClassVar[int] = 1  # weights and images are drawn once: the times spread over calls


PRESETS = {
    "quick": Config(
        depths=(8, 20), batch=8, analysed=8, compiles=1, rate_depth=8, rate_batch=16, pixels=8, seconds=0.5, least=2
    ),
    "cpu": Config(),
}


def cases(config: Config) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Each case and who does it; last the peer at the greatest depth, which may compile for as long as `patience`.

    Raises Refused for a depth that is none.
    """
    for depth in (*config.depths, config.rate_depth):
        if depth < 8 or depth % 6 != 2:
            raise Refused(f"depth {depth}: give 6n + 2 layers, as 8, 20, 56, 110, 1202")

    def case(depth: int, batch: int, **more: Any) -> Case:
        return Case(depth, batch, config.pixels, device=config.device, **more)

    yield case(config.rate_depth, config.rate_batch, part="rate"), RATES if config.device == "cpu" else RATES_GPU
    deepest = max(config.depths)
    for depth in sorted(config.depths, key=lambda depth: (depth not in (min(config.depths), deepest), depth)):
        there = case(depth, config.batch, analysed=config.analysed, compiles=config.compiles)
        yield there, DEEP if depth < deepest else tuple(name for name in DEEP if name != FLAX)
    yield case(deepest, config.batch, analysed=config.analysed), (FLAX,)


def cost(case: Case, patience: float) -> dict:
    """Of a step of ours on one device: 'flops', and 'peak', the device's FLOP/s in bfloat16, NaN if not known."""
    worker = Worker(OURS, asdict(case), "very_deep")
    try:
        worker.ask(patience=patience)
        return worker.ask("cost", patience=patience)
    finally:
        worker.close()


def run(config: Config, progress: Progress) -> dict:
    """The numbers of every case; the goals are judged by the table. Raises Refused where no library trains."""
    results, todo = [], list(cases(config))
    task = progress.add_task("very deep", total=len(todo))
    for case, names in todo:
        there, left_out = installed(names)
        told = asked(
            case,
            there,
            compiled=(STEP, ANALYSED) if case.analysed not in (0, case.batch) else (STEP,),
            called=(STEP,),
            package="very_deep",
            seconds=config.seconds,
            least=config.least,
            most=config.most,
            patience=config.patience,
        )
        if case.part == "rate" and not rates_of(told):
            why = "; ".join(f"{name}: {reason}" for name, reason in (told["failed"] | told["left_out"]).items())
            raise Refused(f"--device {case.device}: no library trains on it ({why})")
        if case.part == "rate" and case.device != "cpu" and OURS in rates_of(told):
            told["cost"] = cost(case, config.patience)
        results.append(told | {"left_out": left_out | told["left_out"], "patience": config.patience})
        progress.advance(task)
    progress.remove_task(task)
    versions = {name: version for case in results for name, version in case.pop("versions").items()}
    hardware = processor() if config.device == "cpu" else f"1 x {versions.pop('GPU', 'GPU')}, {processor()}"
    return {"cases": results, "cores": os.cpu_count() or 1, "hardware": hardware, "versions": versions}


EXPERIMENT = Experiment(
    name="very_deep",
    title="What depth costs: compiling, memory and time of 20 to 1202 layers, and images per second",
    claims=(),
    presets=PRESETS,
    run=run,
    judge=lambda measurements: [],
    draw=draw,
    caption="A training step (loss, gradient, SGD, running statistics) of the CIFAR ResNet of He et al. 2015, float32, "
    "the same weights and images for all. Ours is a line of equal layers, compiled once however long; flax's is the "
    "usual Python loop over the blocks, which the compiler sees unrolled. Checkpointed keeps for the gradient what "
    "flows into about every sqrt(n)-th of a stage's n blocks. Grey marks: the goals, set before the run. Each "
    "contender ran in a process of its own, those of one depth asked in turn; flax's deepest net came last and alone.",
    table=table,
)
