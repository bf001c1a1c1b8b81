"""The rules, written before the runs."""

from collections.abc import Iterator

import numpy as np

from experiments.harness import CONTRADICTED, INCONCLUSIVE, OUT_OF_REACH, REPRODUCED, Finding

MARGIN = 0.05  # of the exponent, a step: nearer to 0 it is at the threshold
SLOW, FAST = 0.3, 0.7  # iterations growing as T^a: hardly, or with the line
LONGER = 8  # times, at least, from the shortest line to the longest
SPEED = 2  # times as fast at once, on an accelerator


def judge(measurements: dict) -> list[Finding]:
    return [predictable(measurements), layers(measurements)]


def growths(measurements: dict) -> Iterator[tuple[str, np.ndarray, float]]:
    """(kind, each seed's exponent of the longest line, a), iterations growing as T^a, of every gain that was solved."""
    rows = measurements["untrained"]
    for kind, gain in dict.fromkeys((row["kind"], row["gain"]) for row in rows):
        line = sorted((r for r in rows if (r["kind"], r["gain"]) == (kind, gain)), key=lambda row: row["length"])
        first, last = line[0], line[-1]
        if last["length"] >= LONGER * first["length"] and all(all(row["converged"]) for row in line):
            more, longer = np.mean(last["iterations"]) / np.mean(first["iterations"]), last["length"] / first["length"]
            yield kind, np.array(last["exponent"]), float(np.log(more) / np.log(longer))


def predictable(measurements: dict) -> Finding:
    told = list(growths(measurements))
    below, above = [t for t in told if max(t[1]) < -MARGIN], [t for t in told if min(t[1]) > MARGIN]
    verdict, ours = INCONCLUSIVE, "no lines on both sides of 0"
    if below and above:
        ours = (
            f"of {len(below)} lines with an exponent below -{MARGIN}, iterations grow at most as "
            f"T^{max(t[2] for t in below):.2f}; of {len(above)} above {MARGIN}, as T^{min(t[2] for t in above):.2f} "
            f"({min(above, key=lambda t: t[2])[0]}) to T^{max(t[2] for t in above):.2f}; {len(told)} lines in all"
        )
        slow, fast = [t[2] <= SLOW for t in below], [t[2] >= FAST for t in above]
        if all(slow) and all(fast):
            verdict = REPRODUCED
        elif not any(slow) or not any(fast):
            verdict = CONTRADICTED
    return Finding(
        "PRED25",
        ours,
        verdict,
        f"over untrained lines that were solved, the longest at least {LONGER} times the shortest: reproduced if "
        f"iterations grow at most as T^{SLOW} for every line whose exponent, with every seed, is below -{MARGIN} a "
        f"step, and at least as T^{FAST} for every one above {MARGIN}; contradicted if for none below, or for none "
        "above; else inconclusive",
    )


def layers(measurements: dict) -> Finding:
    seconds, rows = measurements["seconds"], measurements["untrained"]
    deep = [r for r in rows if (r["kind"], r["length"]) == ("residual net", seconds["length"])]
    needed = {r["gain"]: np.mean(r["iterations"]) for r in deep}
    ratio = seconds["layer by layer"] / seconds["at once"]
    counts = ", ".join(f"{n:.0f} at gain {gain:g}" for gain, n in needed.items()) or "(not counted)"
    verdict = OUT_OF_REACH
    if measurements["platform"] != "cpu":
        verdict = REPRODUCED if ratio >= SPEED else CONTRADICTED if ratio < 1 else INCONCLUSIVE
    return Finding(
        "PCR23",
        f"a residual net of {seconds['length']} dense layers is solved in {counts} iterations; {ratio:.2g} times as "
        f"fast as layer by layer, {measurements['device']}",
        verdict,
        f"on an accelerator: reproduced if solving the longest residual net at once is at least {SPEED} times as fast "
        "as layer by layer, contradicted if not faster, else inconclusive; on a processor, whose few cores a parallel "
        "scan cannot use, out of reach here",
    )
