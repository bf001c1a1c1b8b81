"""The rotation itself: its laws as numbers, and an LSTM changed one thing at a time until it is a ResNet."""

from dataclasses import dataclass

import numpy as np
from rich.progress import Progress

from experiments import data
from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Experiment, Finding
from experiments.rotation import grid, ladder, laws
from experiments.rotation.drawing import draw


@dataclass(frozen=True)
class Config:
    """Every rung of the ladder is trained alike: `steps` steps of Adam on images read row by row."""

    hidden_size: int = 32
    steps: int = 150
    batch: int = 64
    learning_rate: float = 5e-3
    seeds: int = 5
    data: str = "digits"


PRESETS = {"quick": Config(), "cpu": Config(hidden_size=64, steps=2000, batch=128, learning_rate=2e-3)}
LOOP_TOLERANCE = 1e-12  # float64, relative where values exceed 1
FALL = 0.05  # of test accuracy


def run(config: Config, progress: Progress) -> dict:
    images = data.images(config.data)
    table = laws.measure(images.test_x[:16], progress)
    rungs = ladder.measure(config, images, progress)
    turning = grid.measure(config, images, progress)
    return {"laws": table, "ladder": rungs, "grid": turning, "data": images.provenance, "trained_on": config.data}


def judge(measurements: dict) -> list[Finding]:
    rungs = measurements["ladder"]

    def holds(claim: str) -> tuple[bool, str]:
        rows = [row for row in measurements["laws"] if row["claim"] == claim]
        exact = [row["difference"] for row in rows if row["allowed"] == 0]
        rounded = {
            dtype: np.max([row["difference"] for row in rows if row["dtype"] == dtype])
            for dtype in dict.fromkeys(row["dtype"] for row in rows)
        }
        kept = all(row["difference"] <= row["allowed"] for row in rows)
        said = f"{sum(row['difference'] <= row['allowed'] for row in rows)} of {len(rows)} laws hold: "
        said += f"{sum(gap == 0 for gap in exact)} of {len(exact)} bit for bit, " * bool(exact)
        return kept, said + ", ".join(f"{dtype} within {gap:.1g}" for dtype, gap in rounded.items())

    law, said = holds("SUT24-rotate")
    built = all(rung["from_numpy"] <= LOOP_TOLERANCE for rung in rungs)
    accuracies = [np.mean(rung["accuracy"]) for rung in rungs]
    trains = min(accuracies) >= accuracies[0] - FALL
    worst = rungs[int(np.argmin(accuracies))]
    ours = (
        f"{said}. Trained on {measurements['trained_on']}: LSTM {spread(rungs[0]['accuracy'])}, ResNet "
        f"{spread(rungs[-1]['accuracy'])}, lowest rung '{worst['rung']}' {spread(worst['accuracy'])}"
    )
    verdict = CONTRADICTED if not (law and built) else REPRODUCED if trains else INCONCLUSIVE
    rule = (
        "reproduced if every law holds (bit for bit, or to rounding: 5e-6 in float32, 1e-13 in float64), every rung "
        f"equals a loop in numpy within {LOOP_TOLERANCE:g} in float64, and no trained rung's accuracy is more than "
        f"{FALL:g} below the LSTM's; contradicted if a law or a rung fails; else inconclusive"
    )
    findings = [Finding("SUT24-rotate", ours, verdict, rule)]
    for claim in ("LP16-tied", "SCH-open"):
        law, said = holds(claim)
        rule = "reproduced if each of its laws holds, in float32 and float64; else contradicted"
        findings.append(Finding(claim, said, REPRODUCED if law else CONTRADICTED, rule))
    return findings


def table(measurements: dict) -> dict:
    columns = [
        "law, or rung against numpy",
        "float32",
        "float64",
        "test accuracy",
        "gradient norm",
        "first / last step",
    ]
    laws: dict[str, dict[str, str]] = {}
    for row in measurements["laws"]:
        bound = "bit for bit" if row["allowed"] == 0 else f"≤ {row['allowed']:.0e}"
        laws.setdefault(row["law"], {})[row["dtype"]] = f"{row['difference']:.1e} ({bound})"
    rows = [[law, gaps["float32"], gaps["float64"], "", "", ""] for law, gaps in laws.items()]
    for rung in measurements["ladder"]:
        gap = f"{rung['from_numpy']:.1e} (≤ {LOOP_TOLERANCE:.0e})"
        norm = f"{np.mean(rung['gradient']):.2g}"
        rows.append([f"rung: {rung['rung']}", "", gap, spread(rung["accuracy"]), norm, spread(rung["arrives"])])
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="rotation",
    title="The rotation: its laws, and the ladder from LSTM to ResNet",
    claims=("SUT24-rotate", "LP16-tied", "SCH-open"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Above: the grid of cells at 0, 45 and 90 degrees, coloured by the gradient of the loss with respect to "
    "the stream at each cell of the trained nets. Below: an LSTM changed one thing at a time until it is a ResNet: how "
    "far each change moves the output of the untrained net, all else equal (0: not at all); accuracy after training "
    "each rung alike; how much of the loss's gradient with respect to the stream arrives at the first step.",
    table=table,
)
