"""What the errors and the sequences until solved say of the three claims."""

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from experiments.dial.order import SOLVED, STRETCH, solved_after
from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Finding

SEEDS = 3
FAILED = float("inf")
PAPER_DEPTH = 110
PAPER = {  # He et al. 2016, Table 1: test error, %, the best first
    "identity": 6.61,
    "shortcut:-6": 6.91,
    "exclusive:-6": 8.70,
    "0.5/0.5": 12.35,
    "shortcut:0": 12.86,
    "0.5/1": FAILED,
    "exclusive:0": FAILED,
}
APART = 1.0  # points between two of the paper's whose order is asked
AS_FAST = (0.67, 1.5)  # a ratio of sequences within which two nets learn as fast
CLOSED = 1.25  # a ratio up to which there is no gap left
FAR = 2.0  # a ratio from which one net is clearly slower


def judge(measurements: dict) -> list[Finding]:
    return [shortcuts(measurements), gers(measurements), jozefowicz(measurements)]


def worse(a: Any, b: Any) -> bool:
    """Whether b's errors are higher than a's by more than the two standard deviations over the seeds together."""
    return min(len(a), len(b)) >= SEEDS and bool(b.mean() - a.mean() > a.std(ddof=1) + b.std(ddof=1))


def shortcuts(measurements: dict) -> Finding:
    rows = [row for row in measurements["rows"] if row["axis"] == "depth"]
    errors = {row["setting"]: 100 * np.array(row["error"]) for row in rows}
    apart = [(a, b) for a, b in combinations(PAPER, 2) if PAPER[b] - PAPER[a] > APART]
    there = [(a, b) for a, b in apart if {a, b} <= errors.keys()]
    right = [(a, b) for a, b in there if worse(errors[a], errors[b])]
    reversed_ = [(a, b) for a, b in there if worse(errors[b], errors[a])]
    verdict = INCONCLUSIVE
    if right == apart:
        verdict = REPRODUCED
    elif reversed_ and measurements["at paper size"]:
        verdict = CONTRADICTED
    said = ", ".join(f"{name} {spread(error)}" for name, error in errors.items())
    other = ", ".join(f"{a} is worse than {b}" for a, b in reversed_) or "none"
    return Finding(
        "HE16-t1",
        f"a net of {measurements['depth']} layers, trained for {measurements['steps']} steps; test error, %: {said} "
        "(a pair: what is kept and what is added is multiplied by; a number after a gate: its bias at the start); of "
        f"the paper's {len(apart)} orders {len(right)} are found, and clearly the other way round: {other}",
        verdict,
        f"of the paper's {len(PAPER)} shortcuts, every two whose errors it has more than {APART:g} point apart, one "
        "that fails above all that do not: that is an order; it is found, or the other way round, if one error is "
        "higher than the other by more than the two standard deviations over the seeds together; reproduced if all "
        f"are found; contradicted if one is the other way round at the paper's size, {PAPER_DEPTH} layers trained to "
        f"the end; else, or with fewer than {SEEDS} seeds, inconclusive",
    )


def sequences_until_solved(measurements: dict) -> dict[str, np.ndarray]:
    """Of each cell, every seed's; infinite where it was not solved."""
    rows = [row for row in measurements["rows"] if row["axis"] == "time"]
    return {row["setting"]: np.array(solved_after(row["errors"])) for row in rows}


class Ratio(NamedTuple):
    """What is known of a ratio: apart where one of the two was not solved, 0 and infinite where neither was."""

    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:.2g} times"
        if self.low == 0:
            return f"at most {self.high:.2g} times" if np.isfinite(self.high) else "not known"
        return f"at least {self.low:.2g} times"


def ratio(measurements: dict, a: str, b: str) -> Ratio:
    """The median over the seeds of a's sequences until solved, over b's."""
    until = sequences_until_solved(measurements)
    if not {a, b} <= until.keys() or len(until[a]) < SEEDS:
        return Ratio(0.0, float("inf"))
    most = STRETCH * len(next(row for row in measurements["rows"] if row["setting"] == a)["errors"][0])
    over, under = (float(np.median(until[name])) for name in (a, b))
    return Ratio(
        0.0 if np.isinf(under) else min(over, most) / under, float("inf") if np.isinf(over) else over / min(under, most)
    )


def said(measurements: dict, *names: str) -> str:
    until = sequences_until_solved(measurements)

    def of(name: str) -> str:
        median, solved = np.median(until[name]), np.isfinite(until[name]).sum()
        words = "not solved" if np.isinf(median) else f"{median:,.0f}"
        return f"{name} {words} ({solved} of {len(until[name])} seeds)"

    return "sequences until solved, median: " + ", ".join(of(name) for name in names if name in until)


MODERN = (
    f"; trained by Adam on batches, which is not the papers' way, and solved where of {STRETCH:,} new sequences in a "
    f"row at most {SOLVED:.0%} are classified wrongly: only the ratios can be compared"
)


def gers(measurements: dict) -> Finding:
    same, slower = ratio(measurements, "bias:5", "1997"), ratio(measurements, "bias:1", "bias:5")
    verdict = INCONCLUSIVE
    if AS_FAST[0] <= same.low and same.high <= AS_FAST[1] and slower.low >= FAR:
        verdict = REPRODUCED
    elif same.low >= FAR or same.high <= 1 / FAR or slower.high <= 1:
        verdict = CONTRADICTED
    return Finding(
        "GERS00-bias",
        f"{said(measurements, '1997', 'bias:5', 'bias:1')}; bias 5 over 1997: {same}, bias 1 over bias 5: {slower}"
        f"{MODERN}",
        verdict,
        f"of the medians over the seeds: reproduced if bias 5 takes {AS_FAST[0]} to {AS_FAST[1]} times the sequences "
        f"of 1997, and bias 1 at least {FAR:g} times those of bias 5; contradicted if bias 5 takes at least {FAR:g} "
        f"times, or at most 1/{FAR:g} of, those of 1997, or bias 1 no more than bias 5; else, or with fewer than "
        f"{SEEDS} seeds, inconclusive; one not solved takes at least all sequences that it read",
    )


def jozefowicz(measurements: dict) -> Finding:
    gap, closed = ratio(measurements, "bias:0", "GRU"), ratio(measurements, "bias:1", "GRU")
    verdict = INCONCLUSIVE
    if gap.low >= AS_FAST[1]:
        if closed.high <= CLOSED:
            verdict = REPRODUCED
        elif closed.low >= min(gap.high, FAR):
            verdict = CONTRADICTED
    return Finding(
        "JOZ15-bias",
        f"{said(measurements, 'GRU', 'bias:0', 'bias:1')}; bias 0 over GRU: {gap}, bias 1 over GRU: {closed}"
        f"{MODERN}; one task, where the paper has several",
        verdict,
        f"of the medians over the seeds: there is a gap if bias 0 takes at least {AS_FAST[1]} times the sequences of "
        f"GRU; reproduced if there is and bias 1 takes at most {CLOSED} times; contradicted if there is and bias 1 "
        f"still takes {FAR:g} times, or no fewer than bias 0; else, or with fewer than {SEEDS} seeds, inconclusive; "
        "one not solved takes at least all sequences that it read",
    )
