"""How fast our LSTM is, against its peers and against the bound of its matrix products alone, on this machine.

Each contender runs in a process of its own (`worker.py`); they are asked in turn, so that what slows the machine slows
them all (`measure.py`). All do the same work (`contenders.py`), and what their numbers mean was settled before any run
(`goals.py`). Tests no claim of a paper.
"""

import os
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

from rich.progress import Progress

from experiments.harness import Experiment, Refused, processor
from experiments.speed.case import Case
from experiments.speed.drawing import draw
from experiments.speed.goals import SHAPES, table
from experiments.speed.measure import measured

IDLE = 0.5  # of the cores: a load above it before the run is a busy machine's, where nothing better is known


@dataclass(frozen=True)
class Config:
    """What is measured. Shapes are BxTxDxH: sequences, steps, inputs, hidden size."""

    shapes: tuple[str, ...] = SHAPES
    layers: tuple[int, ...] = (1, 4)
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32", "bfloat16")
    """all shapes with each of the layers and dtypes: the part 'plain'"""
    masked: tuple[str, ...] = (*SHAPES[:2], "16x1000x64x64")
    """shapes of the part 'masked': lengths, a projection and zoneout, in one layer and float32"""
    wavefront: tuple[str, ...] = ("1x512x128x128", "2x512x128x128", "4x512x128x128", "8x512x128x128")
    """shapes of the part 'wavefront': ours alone, in four layers and float32"""
    parts: tuple[Literal["plain", "masked", "wavefront"], ...] = ("plain", "masked", "wavefront")
    device: Literal["cpu", "gpu"] = "cpu"
    seconds: float = 10
    """for each case, and so again for its gradient"""
    least: int = 5
    """rounds, however long they take; and `most`, however short"""
    most: int = 31
    seconds_beside: float = 4
    """the same, of the cases that no goal is about: all but one layer in float32"""
    least_beside: int = 2
    patience: float = 300
    """seconds in which a contender must answer"""
    seeds: ClassVar[int] = 1  # weights and inputs are drawn once: the times spread over calls


PRESETS = {
    "quick": Config(
        shapes=("16x64x128x128", "32x50x256x256"),
        layers=(1,),
        dtypes=("float32",),
        parts=("plain",),
        seconds=2,
        least=3,
    ),
    "cpu": Config(),
    "gpu": Config(
        shapes=(*SHAPES, "64x100x1024x1024"),
        layers=(1,),
        dtypes=("float32", "bfloat16", "float16"),
        parts=("plain", "masked"),
        device="gpu",
        seconds=3,
        seconds_beside=3,
        least_beside=5,
    ),
}


def cases(config: Config) -> list[Case]:
    """All of them; those that the goals judge come first. Raises Refused for a shape that is none."""

    def case(shape: str, layers: int, dtype: str, part: str) -> Case:
        try:
            batch, time, inputs, hidden = map(int, shape.split("x"))
            if min(batch, inputs) < 1 or min(time, hidden) < 2:
                raise ValueError
        except ValueError:
            raise Refused(f"shape {shape!r}: give BxTxDxH, as in {SHAPES[0]}") from None
        return Case(batch, time, inputs, hidden, layers, dtype, part, config.device)

    found = []
    if "plain" in config.parts:
        found += [case(shape, *of, "plain") for of in product(config.layers, config.dtypes) for shape in config.shapes]
    if "masked" in config.parts:
        found += [case(shape, 1, "float32", "masked") for shape in config.masked]
    if "wavefront" in config.parts:
        found += [case(shape, 4, "float32", "wavefront") for shape in config.wavefront]
    return found


def run(config: Config, progress: Progress) -> dict:
    """The numbers of every case, the load before, and whether the machine was busy.

    Ctrl-C ends it with the cases measured by then, `unmeasured` saying how many are not; before the first, it
    is raised.
    """
    todo, load, results = cases(config), os.getloadavg()[0], []
    task = progress.add_task("speed", total=len(todo))
    try:
        for case in todo:
            judged = (case.part, case.layers, case.dtype) == ("plain", 1, "float32")
            results.append(
                measured(
                    case,
                    seconds=config.seconds if judged else config.seconds_beside,
                    least=config.least if judged else config.least_beside,
                    most=config.most,
                    patience=config.patience,
                )
            )
            progress.advance(task)
    except KeyboardInterrupt:
        if not results:
            raise
    progress.remove_task(task)
    versions = {name: version for case in results for name, version in case.pop("versions").items()}
    known = all("busy" in case for case in results)  # else from the load, which our own earlier work may have made
    return {
        "device": config.device,
        "cores": os.cpu_count() or 1,
        "load_before": load,
        "busy": any(case["busy"] for case in results) if known else load > IDLE * (os.cpu_count() or 1),
        "cases": results,
        "unmeasured": len(todo) - len(results),
        "hardware": processor() if config.device == "cpu" else f"1 x {versions.pop('GPU', 'GPU')}, {processor()}",
        "versions": versions,
    }


EXPERIMENT = Experiment(
    name="speed",
    title="How fast our LSTM is, against its peers",
    claims=(),
    presets=PRESETS,
    run=run,
    judge=lambda measurements: [],
    draw=draw,
    caption="Speed as a share of a bound: the matrix products of all time steps at once and nothing else, by XLA, "
    "into memory that is there already. An LSTM in XLA cannot reach it (but in half types on a CPU, where XLA converts "
    "whole arrays first); torch has other products. Each contender ran in a process of its own, all asked in turn. In "
    "the table every other's figure stands over ours: above 1 ours is faster, or smaller.",
    table=table,
)
