"""What the numbers say: the goals, set before the run, and the table."""

import math
from collections.abc import Iterator
from typing import Any

from experiments.speed.goals import NAN, NOT_JUDGED, busy, verdict
from experiments.speed.worker import NO_ANSWER
from experiments.very_deep.contenders import CHECKPOINTED, FLAX, FLAX_CORES, OURS, OURS_CORES, TORCH, TORCH_LAST
from experiments.very_deep.worker import STEP

SHALLOW, DEEP, RATED = 20, 1202, (20, 128, 32)  # what the goals are about: layers; layers, batch, pixels
LONGER, FASTER, SMALLER = 1.3, 20, 5  # of compiling, ours over ours and flax's over ours; of memory, ours over ours
COMPILING, MEMORY, STEPPING, RATE = "compiling", "temporary memory", "step", "images/s"
UNITS = {COMPILING: ("s", 1), MEMORY: ("MB", 1e-6), STEPPING: ("ms", 1e3)}
Measured = dict[str, Any]  # what was measured of one case


def deep(measurements: dict) -> dict[int, list[Measured]]:
    """layers -> its cases, of all but the one whose images are counted."""
    found: dict[int, list[Measured]] = {}
    for case in sorted(measurements["cases"], key=lambda case: case["case"]["depth"]):
        if case["case"]["part"] == "deep":
            found.setdefault(case["case"]["depth"], []).append(case)
    return found


def rated(measurements: dict) -> Measured:
    """The case whose images are counted."""
    return next(case for case in measurements["cases"] if case["case"]["part"] == "rate")


def figure(cases: list[Measured], what: str, name: str) -> tuple[float, bool]:
    """Seconds or bytes, NaN where there are none; and whether that is all that is known: it is more."""
    for case in cases:
        numbers = case["contenders"].get(name, {})
        if what == COMPILING:
            if STEP in numbers.get("compile", {}):
                return numbers["compile"][STEP], False
            if case["failed"].get(name, "").startswith(NO_ANSWER):
                return case["patience"], True
        elif what == MEMORY and "temporary" in numbers:
            return numbers["temporary"], False
        elif what == STEPPING and STEP in numbers:
            return numbers[STEP]["median"], False
    return NAN, False


def rate(case: Measured, *names: str) -> float:
    """Images per second of the fastest of them; NaN where any is missing, for it may be the fastest."""
    seconds = [figure([case], STEPPING, name)[0] for name in names]
    return NAN if any(map(math.isnan, seconds)) else case["case"]["batch"] / min(seconds)


def rates_of(case: Measured) -> list[str]:
    """Those whose images were counted."""
    return [name for name, numbers in case["contenders"].items() if STEP in numbers]


def rate_of_ours(case: Measured) -> float:
    """On a CPU, the faster of ours on one device and on one for each core."""
    return rate(case, *((OURS, OURS_CORES) if case["case"]["device"] == "cpu" else (OURS,)))


def share_of_peak(case: Measured, name: str) -> float:
    """What part of the device's FLOP/s, as its maker gives them, a step does; NaN where they are not known."""
    if "cost" not in case:
        return NAN
    return case["cost"]["flops"] / figure([case], STEPPING, name)[0] / case["cost"]["peak"]


def goals(measurements: dict) -> list[dict]:
    """Each goal: what was measured, what was wanted, and the verdict; of other sizes told, and not judged.

    They are about a CPU.
    """
    if rated(measurements)["case"]["device"] != "cpu":
        return []
    cases = deep(measurements)
    shallow, deepest = cases[min(cases)], cases[max(cases)]
    small, large = min(cases), max(cases)
    sized = (small, large) == (SHALLOW, DEEP)
    of_large = figure(deepest, COMPILING, OURS)[0]
    theirs, more = figure(deepest, COMPILING, FLAX)
    counted = rated(measurements)
    size = tuple(counted["case"][key] for key in ("depth", "batch", "pixels"))
    mine = rate_of_ours(counted)
    told = [
        _goal(
            COMPILING,
            f"ours, {large} layers over {small}",
            of_large / figure(shallow, COMPILING, OURS)[0],
            at_most=LONGER,
            judged=sized,
        ),
        _goal(COMPILING, f"{large} layers, flax over ours", theirs / of_large, wanted=FASTER, more=more, judged=sized),
        _goal(
            MEMORY,
            f"{large} layers, ours over ours, Checkpointed",
            figure(deepest, MEMORY, OURS)[0] / figure(deepest, MEMORY, CHECKPOINTED)[0],
            wanted=SMALLER,
            judged=sized,
        ),
    ]
    of = f"{size[0]} layers, batch {size[1]}, ours over"
    best = {"flax linen's better": (FLAX, FLAX_CORES), "torch's better": (TORCH, TORCH_LAST)}
    for (name, peers), (wanted, floor) in zip(best.items(), ((1, 1), (1, 0.6)), strict=True):
        told.append(
            _goal(RATE, f"{of} {name}", mine / rate(counted, *peers), wanted=wanted, floor=floor, judged=size == RATED)
        )
    return told


def _goal(
    what: str,
    of: str,
    measured: float,
    *,
    judged: bool,
    wanted: float = NAN,
    floor: float = NAN,
    at_most: float = NAN,
    more: bool = False,
) -> dict:
    """`more`: it is known to be more than measured."""
    floor = wanted if math.isnan(floor) else floor
    said = verdict(measured, wanted, floor) if math.isnan(at_most) else verdict(-measured, -at_most, -at_most)
    if not judged or (more and measured < wanted):
        said = NOT_JUDGED
    words = f"at least {wanted:g}" + f" (floor {floor:g})" * (floor < wanted)
    words = words if math.isnan(at_most) else f"at most {at_most:g}"
    return {"what": what, "of": of, "measured": measured, "more": more, "wanted": words, "verdict": said}


def table(measurements: dict) -> dict:
    """The goals; at each depth and of the images ours and the others; who failed, and who was left out."""
    judged = goals(measurements)
    rows = [[f"goal: {goal['what']}", goal["of"], told(goal["measured"], goal["more"]), _said(goal)] for goal in judged]
    for depth, cases in deep(measurements).items():
        for what in UNITS:
            batch = cases[0]["case"]["batch" if what == STEPPING else "analysed"]
            where = f"{depth} layers" + f", batch {batch}" * (what != COMPILING)
            each = {name: _in_unit(cases, what, name) for name in (OURS, CHECKPOINTED, FLAX)}
            rows.append([what, where, each.pop(OURS), "; ".join(f"{name} {said}" for name, said in each.items())])
    counted = rated(measurements)
    where = f"{counted['case']['depth']} layers, batch {counted['case']['batch']}"
    rates = {name: f"{rate(counted, name):.0f}" for name in rates_of(counted)}
    rows.append([RATE, where, rates.pop(OURS, "-"), "; ".join(f"{name} {said}" for name, said in rates.items()) or "-"])
    if not math.isnan(share_of_peak(counted, OURS)):
        shares = {name: f"{100 * share_of_peak(counted, name):.2g} %" for name in rates_of(counted)}
        peak = f"{where}, share of {counted['cost']['peak'] / 1e12:.0f} TFLOP/s, the peak in bfloat16"
        rows.append([RATE, peak, shares.pop(OURS), "; ".join(f"{name} {said}" for name, said in shares.items()) or "-"])
    by_default = rate_of_ours(counted) / rate(counted, TORCH)
    rows.append([RATE, f"{where}, ours over torch's default order of the maps", told(by_default), ""])
    rows += list(_absent(measurements))
    columns = ["what", "of", OURS, "the others"]
    return {"title": title(measurements), "columns": columns, "rows": rows, "goals": judged}


def _said(goal: dict) -> str:
    return f"wanted {goal['wanted']}: {goal['verdict'].upper()}"


def _in_unit(cases: list[Measured], what: str, name: str) -> str:
    (value, more), (unit, scale) = figure(cases, what, name), UNITS[what]
    return "-" if math.isnan(value) else "more than " * more + f"{value * scale:.3g} {unit}"


def told(number: float, more: bool = False) -> str:
    """Three digits; '-' for NaN."""
    return "-" if math.isnan(number) else "more than " * more + f"{number:.3g}"


def _absent(measurements: dict) -> Iterator[list[str]]:
    for case in measurements["cases"]:
        for kind in ("failed", "left_out"):
            for name, why in case[kind].items():
                yield [kind.replace("_", " "), f"{case['case']['depth']} layers", "", f"{name}: {why}"]


def title(measurements: dict) -> str:
    """What it is, and how many of the cases were measured on a busy machine."""
    return "Very deep: ours against a Python loop over the blocks" + busy({"busy": False} | measurements)
