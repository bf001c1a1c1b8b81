"""What the numbers say of He et al. 2015, Fig. 7, and of Greff et al. 2016."""

from itertools import pairwise

import numpy as np

from experiments.cifar.judging import LEAST_DEPTH, SEEDS
from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Finding

TO_THE_END = "at the paper's size, whose nets are trained to the end"
SMALL = 0.2  # of a standard deviation: what Cohen 1988 calls a small difference of means


def judge(measurements: dict) -> list[Finding]:
    return [responses(measurements), estimation(measurements)]


def of_depth(measurements: dict, kind: str) -> dict[int, dict]:
    """The rows of the nets as deep as the paper's, by depth."""
    rows = [row for row in measurements["rows"] if (row["axis"], row["kind"]) == ("depth", kind)]
    return {row["size"]: row for row in sorted(rows, key=lambda row: row["size"]) if row["size"] >= LEAST_DEPTH}


def responses(measurements: dict) -> Finding:
    plain, kept = (
        {depth: np.mean(row["layers"], axis=1) for depth, row in of_depth(measurements, kind).items()}
        for kind in ("plain", "residual")
    )
    pairs = [(kept[depth], plain[depth]) for depth in kept if depth in plain]
    deeper = [(kept[deep], kept[shallow]) for shallow, deep in pairwise(kept)]
    enough = pairs and deeper and min(len(means) for pair in pairs + deeper for means in pair) >= SEEDS
    verdict = INCONCLUSIVE
    if enough and all(below(*pair) for pair in pairs + deeper):
        verdict = REPRODUCED
    elif enough and measurements["at paper size"] and any(below(*pair[::-1]) for pair in pairs + deeper):
        verdict = CONTRADICTED
    said = [", ".join(f"{depth} layers {spread(means[depth])}" for depth in means) for means in (plain, kept)]
    return Finding(
        "HE15-fig7",
        f"mean over the 3x3 layers of their responses' standard deviation, plain: {said[0] or '-'}; "
        f"residual: {said[1] or '-'}; residual below plain at {held(pairs)} depths, deeper below shallower in "
        f"{held(deeper)} steps of depth{_early(measurements)}",
        verdict,
        f"of the nets of {LEAST_DEPTH} layers or more, the mean over all 3x3 layers; below is by more than the two "
        "standard deviations over the seeds together; reproduced if residual nets' is below plain nets' at each depth, "
        "and each deeper residual net's below the next shallower's; contradicted if one of these is clearly the other "
        f"way round {TO_THE_END}; else, or with fewer than {SEEDS} seeds or a single depth, inconclusive",
    )


def below(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether the first is the lower beyond the seeds' spread."""
    return bool(high.mean() - low.mean() > low.std() + high.std())


def held(pairs: list) -> str:
    """In how many of these pairs the first is below the second, in words."""
    return f"{sum(below(*pair) for pair in pairs)} of {len(pairs)}"


def estimation(measurements: dict) -> Finding:
    rows = of_depth(measurements, "residual")
    parts = [stage for row in rows.values() for stage in by_stage(row)]
    near = [abs(d.mean(0)) + d.std(0) <= SMALL for d, _ in parts]
    far_somewhere = [(abs(d.mean(0)) - d.std(0) > SMALL).any() for d, _ in parts]
    steps = [pair for _, distance in parts for pair in pairwise(distance.T)]
    enough = parts and min(len(d) for d, _ in parts) >= SEEDS
    verdict = INCONCLUSIVE
    if enough and np.concatenate(near).all() and all(after.mean() < before.mean() for before, after in steps):
        verdict = REPRODUCED
    elif enough and measurements["at paper size"] and (np.any(far_somewhere) or any(below(*pair) for pair in steps)):
        verdict = CONTRADICTED
    said = "; ".join(f"{depth} layers: {told(row)}" for depth, row in rows.items())
    return Finding(
        "GREFF16",
        f"residual nets, in each of the three stages, largest |E[x_l - x_end]| in deviations of x_end, and median "
        f"||x_l - x_end|| / ||x_end|| from the first estimate to the one before the last: {said or '-'}"
        f"{_early(measurements)}",
        verdict,
        f"of residual nets of {LEAST_DEPTH} layers or more, x_l what block l hands on, x_end what the last of its "
        "stage does; reproduced if in every stage |E[x_l - x_end]| over the seeds, its standard deviation added, stays "
        f"within {SMALL} deviations of x_end, and the mean over the seeds of the median distance falls at every block; "
        f"contradicted if the difference is somewhere above {SMALL} with the standard deviation taken away, or the "
        f"distance somewhere rises beyond the seeds' spread, {TO_THE_END}; else, or with fewer than {SEEDS} seeds, "
        "inconclusive",
    )


def _early(measurements: dict) -> str:
    """That the nets are not the paper's, in words."""
    return "" if measurements["at paper size"] else "; smaller nets than the papers', not trained to the end"


def by_stage(row: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each stage, [seeds, cells]: difference and distance."""
    difference, distance = (np.split(np.array(row[name]), row["stages"], axis=1) for name in ("difference", "distance"))
    return list(zip(difference, distance, strict=True))


def told(row: dict) -> str:
    parts = by_stage(row)
    largest = ", ".join(f"{abs(difference.mean(0)).max():.2g}" for difference, _ in parts)
    falls = ", ".join(f"{d.mean(0)[0]:.2g} to {d.mean(0)[-2:][0]:.2g}" for _, d in parts)
    return f"{largest} and {falls}"
