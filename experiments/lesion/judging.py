"""What the damaged nets and the paths' gradients say of Veit et al. 2016, and of Srivastava et al. 2015."""

import numpy as np

from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Finding
from experiments.lesion.paths import Shares, shares

SMALL, LARGE = 5.0, 20.0  # points of test error: barely hurt, and destroyed
LEARNT = 60.0  # % test error: 30 points below chance, so that a net has something to lose
LEAST_PLAIN = 20  # layers; the paper's plain net is a VGG, of 15
PAPER_BLOCKS, PAPER_LENGTHS, PAPER_SHARE = 54, (5, 17), 0.0045  # 10 to 34 layers, two a block
LEAST_RESIDUAL = 56  # layers: 27 blocks, half of the paper's; each block of fewer is a larger part of its net
CARRIED = (0.05, 0.5, 0.95)  # the shares of the gradient up to which lengths are told
IDLE, NEARLY = (15, 45), 1.0  # layers of 50, counted from one; points of test error that none of them costs
GOOD = 10.0  # % test error of MNIST that a net has at most which has learnt it
GATED = 50  # layers at least, of which the first are those before the idle ones


def judge(measurements: dict) -> list[Finding]:
    return [lesion(measurements), paths(measurements), idle(measurements)]


def deep(measurements: dict, kind: str, least: int) -> list[dict]:
    """The rows of that kind of convolutional net from that depth on, the deepest last."""
    rows = [row for row in measurements["rows"] if (row["axis"], row["kind"]) == ("depth", kind)]
    return sorted((row for row in rows if row["size"] >= least), key=lambda row: row["size"])


def rises(row: dict, cells: str = "alike") -> np.ndarray:
    """By seed, the median over these cells of the points of test error that it costs to delete one: [seeds]."""
    single, whole = np.array(row["single"])[:, row[cells]], np.array(row["whole"])
    return 100 * np.median(single - whole[:, None], axis=1)


def learnt(row: dict) -> bool:
    return 100 * max(row["whole"]) <= LEARNT


def lesion(measurements: dict) -> Finding:
    kept = [row for row in deep(measurements, "residual", LEAST_RESIDUAL) if learnt(row)][-1:]
    plain = [row for row in deep(measurements, "plain", LEAST_PLAIN) if learnt(row)]
    cost, costs = ([rises(row) for row in rows] for rows in (kept, plain))
    verdict = INCONCLUSIVE
    if cost and costs:
        if cost[0].max() < SMALL and min(map(np.min, costs)) > LARGE:
            verdict = REPRODUCED
        elif cost[0].min() > LARGE or max(map(np.max, costs)) < SMALL:
            verdict = CONTRADICTED
    said = [
        f"{kind}, {row['size']} layers: {spread(100 * np.array(row['whole']))} % whole, "
        f"{spread(rises(row))} points more without one block"
        + ("" if learnt(row) else " (not judged: it has little to lose)")
        for kind in ("residual", "plain")
        for row in deep(measurements, kind, 0)
    ]
    return Finding(
        "VEIT16-lesion",
        "test error, median over the blocks: " + "; ".join(said),
        verdict,
        "of the blocks that do not halve the maps, the median of the points of test error that deleting one costs; "
        f"reproduced if in every seed it is below {SMALL:g} for the deepest residual net and above {LARGE:g} for each "
        f"plain one; contradicted if in every seed it is above {LARGE:g} for the residual net, or below {SMALL:g} for "
        f"the plain ones; of residual nets from {LEAST_RESIDUAL} layers on, half of the paper's blocks, of plain ones "
        f"from {LEAST_PLAIN} on, and only such as have at most {LEARNT:g} % test error whole, for others have little "
        "to lose; else, or without such nets, inconclusive",
    )


def paths(measurements: dict) -> Finding:
    rows = [row for row in deep(measurements, "residual", 0) if row["paths"]]
    verdict = INCONCLUSIVE
    if rows and rows[-1]["size"] >= LEAST_RESIDUAL:
        found = [shares(each) for each in rows[-1]["paths"]]
        half = (len(found[0].gradient) - 1) / 2
        if max(each.until(CARRIED[-1]) for each in found) < half:
            verdict = REPRODUCED
        elif min(each.until(CARRIED[1]) for each in found) >= half:
            verdict = CONTRADICTED
    said = []
    for row in rows:
        each = [shares(measured) for measured in row["paths"]]
        excess = np.median([one.excess for one in each])
        said.append(f"{row['size']} layers: {carried(each)}, the norms adding up to {excess:.3g} times the gradient's")
    return Finding(
        "VEIT16-paths",
        "lengths, in blocks, of the paths that carry the middle 90% of the gradient; " + "; ".join(said),
        verdict,
        "a length's share is the number of its paths times the mean norm of the gradient along one; reproduced if in "
        "every seed the lengths up to which 95% is carried are below half of the blocks, the length that most paths "
        "have; contradicted if in every seed half of it is carried by lengths from there on; of the deepest residual "
        f"net, from {LEAST_RESIDUAL} layers on, half of the paper's blocks; else inconclusive",
    )


def idle(measurements: dict) -> Finding:
    """Whether the layers that were idle in the paper's highway net are so in ours, and the first are not."""
    verdict, said = INCONCLUSIVE, []
    for row in deep(measurements, "dense highway", 0):
        data = measurements["data of dense nets"]["name"]
        first, last = (round(layer * row["size"] / GATED) for layer in IDLE)
        costs = 100 * (np.array(row["single"]) - np.array(row["whole"])[:, None])
        before, within = costs[:, : max(first - 1, 1)].max(1), costs[:, first - 1 : last].max(1)
        said.append(
            f"{data}, {row['size']} layers: {spread(100 * np.array(row['whole']))} % whole; without the one that costs "
            f"most, of layers {first} to {last} {spread(within)} points more, of those before {spread(before)}"
        )
        if row["size"] >= GATED and 100 * max(row["whole"]) <= GOOD and data == "mnist":
            if within.max() < NEARLY < before.min():
                verdict = REPRODUCED
            elif within.min() > max(NEARLY, before.max()):
                verdict = CONTRADICTED
    return Finding(
        "SRI15-lesion",
        "test error, " + "; ".join(said) if said else "no dense highway net",
        verdict,
        f"of a dense highway net of {GATED} layers or more, on MNIST, with at most {GOOD:g} % test error whole: "
        f"reproduced if in every seed none of the layers {IDLE[0]} to {IDLE[1]} of {GATED} costs {NEARLY:g} point of "
        "test error when it is deleted, and one of those before them more than that; contradicted if in every seed one "
        "of them costs more than that, and than each before them in any seed; else inconclusive; the layers after them "
        "are not judged, and the paper's errors are of its training set",
    )


def carried(found: list[Shares]) -> str:
    """Between which lengths the middle 90% of the gradient lies, and how many of all paths those are, in words."""
    low, high = (round(np.mean([each.until(share) for each in found])) for share in (CARRIED[0], CARRIED[-1]))
    n = len(found[0].gradient) - 1
    part = found[0].paths[low : high + 1].sum()
    return f"{low} to {high} of {n}, {100 * part:.2g}% of all paths"
