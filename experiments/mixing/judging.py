"""What the mixing matrices say of their forms."""

from typing import Any

from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Finding
from experiments.mixing.nets import ATTENTION, GATED, ONES

LEARNT = 0.5  # a test error below which a net is a trained one; by chance it is 0.9
ROUNDING = 1e-5  # of float32, over a line
DENSE = 1e-2  # a second singular value, in units of the first, that no rounding explains
MEASURES = {  # of a form: which number, of each seed, and the rule for it
    ONES: ("from_ones", lambda value: value <= ROUNDING),
    GATED: ("second", lambda value: value <= ROUNDING),
    ATTENTION: ("second_mean", lambda value: value >= DENSE),
}


def judge(measurements: dict) -> list[Finding]:
    rows = [row for row in measurements["rows"] if row["form"] in MEASURES and known(row)]
    verdict = INCONCLUSIVE
    if not all(holds(row) for row in rows):
        verdict = CONTRADICTED
    elif {(row["axis"], row["form"]) for row in rows} == {
        (axis, form) for axis in ("depth", "time") for form in MEASURES
    }:
        verdict = REPRODUCED
    return [
        Finding(
            "ATTNRES26",
            f"{said(measurements)}. All ones and rank 1 follow from what these nets compute; what is learnt, and so "
            "measured, is the reach",
            verdict,
            f"a net counts if every seed's test error is below {LEARNT:.0%} and its matrix gives its streams again, to "
            f"{ROUNDING:g} of the largest; reproduced if along both axes, in every seed, the nets of keep 1 have "
            f"|M - 1| <= {ROUNDING:g} wherever k <= l; the gated ones, unit by unit, a second singular value of at "
            f"most {ROUNDING:g} times the first in every block of the lower triangle, the diagonal with it; attention "
            f"one of at least {DENSE:g} times in the block where it is largest, the mean over images; contradicted if "
            "a net that counts fails; else, where one is missing, inconclusive",
        )
    ]


def known(row: dict) -> bool:
    """Whether all seeds have learnt, and the matrix is what mixed their streams."""
    return max(row["test_error"]) < LEARNT and max(row["rebuilt"]) <= ROUNDING


def holds(row: dict) -> bool:
    """Whether every seed's matrix has its form."""
    name, rule = MEASURES[row["form"]]
    return all(rule(value) for value in row[name])


def said(measurements: dict) -> str:
    """Each net's number of the seed that is furthest from its form, and the reach of its last stream."""

    def of(form: str, worst: Any, digits: str) -> str:
        name, _ = MEASURES[form]
        rows = [row for row in measurements["rows"] if row["form"] == form]
        return ", ".join(f"{row['kind']} along {row['axis']} {worst(row[name]):{digits}}" for row in rows) or "none"

    far = ", ".join(
        f"{row['kind']} along {row['axis']} {spread([curve[-1] for curve in row['reach']])} of {row['positions'] - 1}"
        for row in measurements["rows"]
    )
    return (
        f"largest |M - 1| of keep 1: {of(ONES, max, '.1e')}; second singular value over the first, of one unit "
        f"of gated nets: {of(GATED, max, '.1e')}; of attention, mean over images: "
        f"{of(ATTENTION, min, '.2g')}; mean reach of the last stream, in steps: {far}"
    )
