"""What the errors say of He et al. 2015, Fig. 6 and Table 6."""

from itertools import pairwise

import numpy as np

from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, OUT_OF_REACH, REPRODUCED, Finding

LEAST_DEPTH = 20  # of the paper's nets: below it depth is not yet what is lacking or too much
SEEDS = 3
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61}  # test error, %
WITHIN = 0.25  # points of test error above the paper's that a single run may have


def judge(measurements: dict) -> list[Finding]:
    return [degradation(measurements), table_6(measurements)]


def last(measurements: dict, kind: str, name: str) -> dict[int, np.ndarray]:
    """Of each depth, the seeds' errors at the end, in %."""
    return {
        row["size"]: 100 * np.array([curve[-1] for curve in row[name]])
        for row in measurements["rows"]
        if (row["axis"], row["kind"]) == ("depth", kind)
    }


def degradation(measurements: dict) -> Finding:
    plain, kept = (last(measurements, kind, "train_error") for kind in ("plain", "residual"))
    rising, falling = (trend(errors) for errors in (plain, kept))
    enough = min((len(errors) for errors in (*plain.values(), *kept.values())), default=0) >= SEEDS
    verdict = INCONCLUSIVE
    if enough and rising == "rises" and falling == "falls":
        verdict = REPRODUCED
    elif enough and (rising == "falls" or (falling == "rises" and measurements["at paper size"])):
        verdict = CONTRADICTED
    said = [
        ", ".join(f"{depth} layers {spread(errors[depth])} %" for depth in sorted(errors)) for errors in (plain, kept)
    ]
    return Finding(
        "HE15-degrade",
        "training error, of the first training images, as many as are tested; plain, it "
        f"{rising} from {LEAST_DEPTH} layers on: {said[0]}; residual, it {falling}: {said[1]}{_short(measurements)}",
        verdict,
        f"of the nets of {LEAST_DEPTH} layers or more, an error rises (or falls) if it does so from each depth to the "
        "next, by more than the two standard deviations over the seeds together; reproduced if the training error "
        "rises for plain nets and falls for residual ones; contradicted if plain's falls, or residual's rises at the "
        "paper's size: the paper sees plain nets degrade all through their training, and residual nets gain by depth "
        f"once they are trained to the end; else, or with fewer than {SEEDS} seeds or a single depth, inconclusive",
    )


def trend(errors: dict[int, np.ndarray]) -> str:
    """Over the depths that the paper has: "rises", "falls", or "neither rises nor falls"."""
    deep = [errors[depth] for depth in sorted(errors) if depth >= LEAST_DEPTH]
    clear = [np.sign(b.mean() - a.mean()) * (abs(b.mean() - a.mean()) > a.std() + b.std()) for a, b in pairwise(deep)]
    if clear and min(clear) > 0:
        return "rises"
    return "falls" if clear and max(clear) < 0 else "neither rises nor falls"


def table_6(measurements: dict) -> Finding:
    errors = last(measurements, "residual", "test_error")
    there = {depth: errors[depth].mean() for depth in sorted(errors) if depth in PAPER}
    good = [error <= PAPER[depth] + WITHIN for depth, error in there.items()]
    if not measurements["at paper size"]:
        verdict = OUT_OF_REACH
    elif len(good) > 1 and all(good) and list(there.values()) == sorted(there.values(), reverse=True):
        verdict = REPRODUCED
    elif not any(good):
        verdict = CONTRADICTED
    else:
        verdict = INCONCLUSIVE
    said = ", ".join(f"{depth} layers {spread(errors[depth])} %" for depth in sorted(errors))
    return Finding(
        "HE15-t6",
        f"test error of residual nets: {said}{_short(measurements)}",
        verdict,
        "at the paper's size, with the paper's recipe: reproduced if at two depths or more the mean test error is at "
        f"most the paper's + {WITHIN} points and falls with depth; contradicted if it is so at none; else "
        "inconclusive; at any other size out of reach here",
    )


def _short(measurements: dict) -> str:
    """How far the training is from the paper's, in words."""
    if measurements["at paper size"]:
        return ""
    steps = max(row["step"][-1] for row in measurements["rows"] if row["axis"] == "depth")
    return f"; after {steps:,} steps on smaller images with fewer filters, where the paper's nets have 64,000"
