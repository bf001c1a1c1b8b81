"""The rules, written before the runs."""

from collections.abc import Iterator

import numpy as np

from experiments.bottleneck.layers import LAYERS
from experiments.harness import CONTRADICTED, INCONCLUSIVE, OUT_OF_REACH, REPRODUCED, Finding

GROWS, STAYS = 0.9, 0.2  # exponents a where operations grow as T^a
LONG_ENOUGH = 8  # times the shortest line, at least, for an exponent
FAST = 10  # times as fast, where the papers have hundreds, on an accelerator
MIN_STEPS, DEER_STEPS = 512, 10_000


def judge(measurements: dict) -> list[Finding]:
    return [table_1(measurements), bottleneck(measurements), minimal(measurements), newton(measurements)]


def line_of(measurements: dict, layer: str, width: int) -> list[dict]:
    """The layer's rows, by length."""
    rows = [row for row in measurements["rows"] if (row["layer"], row["width"]) == (layer, width)]
    return sorted(rows, key=lambda row: row["steps"])


def exponent(rows: list[dict], name: str) -> float:
    """a, where the number grows as T^a from the shortest line to the longest."""
    first, last = rows[0], rows[-1]
    return float(np.log(last[name] / first[name]) / np.log(last["steps"] / first["steps"]))


def speed_ups(measurements: dict, layer: str) -> Iterator[tuple[int, int, float]]:
    """(width, steps, how many times as fast as step by step)."""
    for row in measurements["rows"]:
        if row["layer"] == layer:
            plain = line_of(measurements, LAYERS[layer].same or layer, row["width"])
            yield from (
                (r["width"], r["steps"], r["seconds"] / row["seconds"]) for r in plain if r["steps"] == row["steps"]
            )


def widest(measurements: dict) -> int:
    return max(row["width"] for row in measurements["rows"])


def table_1(measurements: dict) -> Finding:
    lines = {name: line_of(measurements, name, widest(measurements)) for name in ("LSTM", "attention", "convolution")}
    verdict, ours = INCONCLUSIVE, "too few lengths"
    if all(len(rows) > 1 and rows[-1]["steps"] >= LONG_ENOUGH * rows[0]["steps"] for rows in lines.values()):
        grown = {name: exponent(rows, "depth") for name, rows in lines.items()}
        ours = "operations in a row: " + ", ".join(
            f"{name} {rows[0]['depth']:,} at {rows[0]['steps']:,} positions, {rows[-1]['depth']:,} at "
            f"{rows[-1]['steps']:,} (as T^{grown[name]:.2f})"
            for name, rows in lines.items()
        )
        if grown["LSTM"] >= GROWS and max(grown["attention"], grown["convolution"]) <= STAYS:
            verdict = REPRODUCED
        elif grown["LSTM"] < 0.5 or max(grown["attention"], grown["convolution"]) > 0.5:
            verdict = CONTRADICTED
    return Finding(
        "VAS17-t1",
        ours,
        verdict,
        f"of the compiled forward programs, over lines one of which is {LONG_ENOUGH} times as long as another: "
        f"reproduced if the LSTM's operations in a row grow as T^{GROWS} or faster, attention's and the convolution's "
        f"at most as T^{STAYS}; contradicted if the LSTM's grow slower than T^0.5 or another's faster; else "
        "inconclusive",
    )


def bottleneck(measurements: dict) -> Finding:
    """Who does more work in less time."""
    lstm, attention = (line_of(measurements, name, widest(measurements)) for name in ("LSTM", "attention"))
    pairs = [(a, b) for a, b in zip(lstm, attention, strict=True) if b["flops"] >= a["flops"]]
    told = [
        f"{a['steps']:,} positions: attention does {b['flops'] / a['flops']:.1f} times the LSTM's work in "
        f"{b['seconds'] / a['seconds']:.2f} of its time"
        for a, b in pairs
    ]
    faster = [b["seconds"] < a["seconds"] for a, b in pairs]
    verdict = OUT_OF_REACH if measurements["platform"] == "cpu" else INCONCLUSIVE
    if pairs and measurements["platform"] != "cpu":
        verdict = REPRODUCED if all(faster) else verdict if any(faster) else CONTRADICTED
    return Finding(
        "NOTE-bottleneck",
        f"training steps of one layer of width {widest(measurements)}, a batch of {lstm[0]['batch']}, "
        f"{measurements['device']}: " + ("; ".join(told) or "no length at which attention does more work"),
        verdict,
        "of the argument's half that a clock can test, on an accelerator, at every length at which attention does at "
        "least the LSTM's work: reproduced if its training step takes less time at all of them, contradicted if at "
        "none, else inconclusive; on a processor, with few cores for what need not wait, out of reach here",
    )


def minimal(measurements: dict) -> Finding:
    ratios = list(speed_ups(measurements, "minLSTM, at once"))
    near = [ratio for ratio in ratios if ratio[1] >= MIN_STEPS]
    told = ", ".join(f"{ratio:.2g} at {steps:,} steps of width {width}" for width, steps, ratio in near)
    return Finding(
        "MIN24",
        f"times as fast as step by step: {told}, {measurements['device']}" if near else f"no line of {MIN_STEPS} steps",
        _accelerated(measurements, [ratio[2] for ratio in near]),
        _rule("minLSTM", MIN_STEPS),
    )


def newton(measurements: dict) -> Finding:
    ratios = [ratio for ratio in speed_ups(measurements, "GRU, Newton") if ratio[0] == 1]
    told = ", ".join(f"{ratio:.2g} times at {steps:,}" for _, steps, ratio in ratios)
    return Finding(
        "DEER23",
        f"GRU of one unit, Newton's speed over step by step: {told}, {measurements['device']}"
        if told
        else "no GRU of one unit",
        _accelerated(measurements, [ratio for _, steps, ratio in ratios if steps >= DEER_STEPS]),
        _rule("the GRU of one unit", DEER_STEPS),
    )


def _accelerated(measurements: dict, ratios: list[float]) -> str:
    if measurements["platform"] == "cpu":
        return OUT_OF_REACH
    if not ratios:
        return INCONCLUSIVE
    return REPRODUCED if np.median(ratios) >= FAST else CONTRADICTED if np.median(ratios) < 1 else INCONCLUSIVE


def _rule(what: str, steps: int) -> str:
    return (
        f"on an accelerator, in the median of the lines of {steps:,} steps or more: reproduced, in kind, if {what} "
        f"trains at least {FAST} times as fast at once as step by step, contradicted if not faster, else inconclusive; "
        "on a processor, whose few cores say nothing of an accelerator's many, out of reach here"
    )
