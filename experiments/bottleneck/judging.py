"""The rules, written before the runs."""

from collections.abc import Iterator

import numpy as np

from experiments.bottleneck.layers import LAYERS, dilated
from experiments.harness import CONTRADICTED, INCONCLUSIVE, OUT_OF_REACH, REPRODUCED, Finding

GROWS, STAYS = 0.9, 0.2  # exponents a where operations grow as T^a
LONG_ENOUGH = 8  # times the shortest line, at least, for an exponent
FAST = 10  # times as fast, where the papers have hundreds, on an accelerator
MIN_STEPS, DEER_STEPS = 512, 10_000
BUDGET = 4e9  # bytes that the process of the long line may take at most
PAPERS = {  # of which layer, at how many steps: how many times as fast as step by step, on a GPU
    "GRU, Newton": {1000: 18, 10_000: 138},  # Lim et al. 2023
    "minLSTM, at once": {512: 235},  # Feng et al. 2024
}


def judge(measurements: dict) -> list[Finding]:
    rules = table_1, bottleneck, minimal, newton, diagonal, kernels
    return [rule(measurements) for rule in rules]


def line_of(measurements: dict, layer: str, width: int) -> list[dict]:
    """The layer's rows, by length, but for those that failed."""
    rows = [row for row in measurements["rows"] if (row["layer"], row["width"]) == (layer, width)]
    return sorted((row for row in rows if "failed" not in row), key=lambda row: row["steps"])


def exponent(rows: list[dict], name: str) -> float:
    """a, where the number grows as T^a from the shortest line to the longest."""
    first, last = rows[0], rows[-1]
    return float(np.log(last[name] / first[name]) / np.log(last["steps"] / first["steps"]))


def ratios(measurements: dict, layer: str, other: str, width: int) -> list[tuple[int, float]]:
    """(steps, how many times as fast as the other), where both were measured."""
    slower = {row["steps"]: row["seconds"] for row in line_of(measurements, other, width)}
    rows = [row for row in line_of(measurements, layer, width) if row["steps"] in slower]
    return [(row["steps"], slower[row["steps"]] / row["seconds"]) for row in rows]


def speed_ups(measurements: dict, layer: str) -> Iterator[tuple[int, int, float]]:
    """(width, steps, how many times as fast as step by step)."""
    for width in widths(measurements):
        for steps, ratio in ratios(measurements, layer, LAYERS[layer].same or layer, width):
            yield width, steps, ratio


def crossing(told: list[tuple[int, float]]) -> str:
    """From which length on, as far as was measured, it is the faster."""
    slower = max((steps for steps, ratio in told if ratio <= 1), default=0)
    faster = [steps for steps, _ in told if steps > slower]
    return f"from T={faster[0]:,}" if faster else f"none up to T={slower:,}"


def crossings(measurements: dict) -> Iterator[tuple[int, str, str, str]]:
    """(width, layer at once, the other, from which length on it is faster): against step by step, and cuDNN."""
    for width in widths(measurements):
        for layer in LAYERS:
            others = [LAYERS[layer].same] + ["LSTM, cuDNN"] * layer.endswith("LSTM, Newton")
            for other in others if at_once(layer) else ():
                if other and (told := ratios(measurements, layer, other, width)):
                    yield width, layer, other, crossing(told)


def at_once(layer: str) -> bool:
    return LAYERS[layer].same is not None and not LAYERS[layer].cudnn


def fits(row: dict) -> str:
    """Whether the long line kept to its memory."""
    return f"{'within' if row['peak'] <= BUDGET else 'above'} the {1e-6 * BUDGET:,.0f} allowed"


def widths(measurements: dict) -> list[int]:
    return sorted({row["width"] for row in measurements["rows"]})


def widest(measurements: dict) -> int:
    return widths(measurements)[-1]


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
        ours += f"; between the two ends of {_paths(min(rows[-1]['steps'] for rows in lines.values()))}"
    return Finding(
        "VAS17-t1",
        ours,
        verdict,
        f"of the compiled forward programs, over lines one of which is {LONG_ENOUGH} times as long as another: "
        f"reproduced if the LSTM's operations in a row grow as T^{GROWS} or faster, attention's and the convolution's "
        f"at most as T^{STAYS}; contradicted if the LSTM's grow slower than T^0.5 or another's faster; else "
        "inconclusive; the paths follow from the layers' form",
    )


def _paths(steps: int) -> str:
    paths = {name: layer.path(steps) for name, layer in LAYERS.items() if layer.path}
    return (
        f"{steps:,} positions a path of {paths['LSTM']:,} cells of the LSTM, {paths['attention']} of attention, "
        f"{paths['convolution']:,} convolutions, {dilated(steps)} dilated ones"
    )


def fastest(measurements: dict, layer: str) -> dict[int, dict]:
    """By length, of the widest layer, the row of less time: ours or cuDNN's."""
    rows = [row for name in (layer, f"{layer}, cuDNN") for row in line_of(measurements, name, widest(measurements))]
    return {row["steps"]: row for row in sorted(rows, key=lambda row: (row["steps"], -row["seconds"]))}


def bottleneck(measurements: dict) -> Finding:
    """Who does more work in less time."""
    lstm, attention = (fastest(measurements, name) for name in ("LSTM", "attention"))
    both = [(lstm[steps], attention[steps]) for steps in lstm if steps in attention]
    pairs = [(a, b) for a, b in both if b["flops"] >= a["flops"]]
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
        f"training steps of one layer of width {widest(measurements)}, a batch of {measurements['rows'][0]['batch']}, "
        f"{measurements['device']}: " + ("; ".join(told) or "no length at which attention does more work"),
        verdict,
        "of the argument's half that a clock can test, on an accelerator, at every length at which attention does at "
        "least the LSTM's work, each by cuDNN where that is faster (its attention in bfloat16): reproduced if its "
        "training step takes less time at all of them, contradicted if at none, else inconclusive; on a processor, "
        "with few cores for what need not wait, out of reach here",
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


def diagonal(measurements: dict) -> Finding:
    layer = "diagonal LSTM, Newton"
    told = list(speed_ups(measurements, layer))
    near = [ratio for ratio in told if ratio[1] >= MIN_STEPS]
    counts = sorted({int(row["iterations"]) for width, *_ in told for row in line_of(measurements, layer, width)})
    ours = ", ".join(f"{ratio:.2g} at {steps:,} steps of width {width}" for width, steps, ratio in near)
    many = " to ".join(map(str, sorted({*counts[:1], *counts[-1:]})))
    return Finding(
        "PARA25",
        f"times as fast as step by step, in {many} iterations: {ours}, {measurements['device']}"
        if near
        else f"no line of {MIN_STEPS} steps",
        _accelerated(measurements, [ratio for *_, ratio in near]),
        _rule("the diagonal LSTM", MIN_STEPS),
    )


def kernels(measurements: dict) -> Finding:
    """Whether anything runs a plain dense LSTM faster than cuDNN."""
    told = [
        (layer, width, steps, ratio)
        for layer in LAYERS
        if "LSTM" in (layer, LAYERS[layer].same) and not LAYERS[layer].cudnn
        for width in widths(measurements)
        for steps, ratio in ratios(measurements, "LSTM, cuDNN", layer, width)
    ]
    verdict, ours = OUT_OF_REACH, "no GPU"
    if told:
        least, most = (pick(told, key=lambda each: each[3]) for pick in (min, max))
        ours = "cuDNN's LSTM trains " + " to ".join(
            f"{ratio:.2g} times as fast as {layer} (width {width}, {steps:,} steps)"
            for layer, width, steps, ratio in (least, most)
        )
        faster = [ratio > 1 for *_, ratio in told]
        verdict = REPRODUCED if all(faster) else INCONCLUSIVE if any(faster) else CONTRADICTED
    return Finding(
        "FLASH24",
        ours,
        verdict,
        "on a GPU, of the claim's half that needs no kernels of theirs: reproduced, in kind, if cuDNN trains a plain "
        "dense LSTM faster than every other way here, at every width and length, contradicted if at none, else "
        "inconclusive; without a GPU out of reach here",
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
