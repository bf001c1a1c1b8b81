"""What the numbers say: the goals, set before the run, and the table.

Every ratio is theirs / ours: of seconds, how many times as fast ours is; of bytes, how many times as small. A goal is
judged where all of its shapes were measured on a CPU, at one layer and float32; `ours` is what None picks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.speed.contenders import CHECKPOINTED, CONTENDERS, CUDNN, JAX_PEERS, OURS, PRODUCTS

SHAPES = ("32x100x256x256", "64x50x512x512", "1x512x128x128", "128x30x1000x1000", "16x1000x64x64", "8x4096x128x128")
LONG = "8x4096x128x128"
MET, FLOOR_MET, NOT_MET, NOT_JUDGED = "met", "only its floor is met", "not met", "not judged"
NAN = float("nan")
WORDS = {
    "forward": "forward",
    "both": "forward + backward",
    "compile": "compiling",
    "temporary": "temporary memory",
}
UNITS = {"forward": ("ms", 1e3), "both": ("ms", 1e3), "compile": ("s", 1), "temporary": ("MB", 1e-6)}
Measured = dict[str, Any]  # what `measure` gave of one case


def shape(case: Measured) -> str:
    of = case["case"]
    return f"{of['batch']}x{of['time']}x{of['inputs']}x{of['hidden']}"


def setting(case: Measured) -> str:
    """'1 layer, float32', and what else."""
    of = case["case"]
    layers = f"{of['layers']} layer{'s' * (of['layers'] > 1)}"
    also = {"plain": "", "masked": ", masked, projected, zoneout", "wavefront": ", wavefront"}[of["part"]]
    return f"{layers}, {of['dtype']}{also}"


def figure(case: Measured, what: str, name: str) -> float:
    """Median seconds, seconds of compiling, or bytes; NaN where there are none."""
    numbers = case["contenders"].get(name, {})
    if what in ("forward", "both"):
        return numbers.get(what, {}).get("median", NAN)
    if what == "compile":
        return numbers.get("compile", {}).get("both", NAN)
    return numbers.get("temporary", NAN)


def ratio(case: Measured, what: str, name: str, ours: str = OURS) -> float:
    """Theirs / ours; NaN where either is missing."""
    return _over(figure(case, what, name), figure(case, what, ours))


def best(case: Measured, what: str, names: Sequence[str] = JAX_PEERS, ours: str = OURS) -> float:
    """The least of theirs / ours: that of the best of them in this very case."""
    there = [each for name in names if not math.isnan(each := ratio(case, what, name, ours))]
    return min(there, default=NAN)


def geometric_mean(ratios: Sequence[float]) -> float:
    """NaN of none, and where any is NaN."""
    return float(np.exp(np.mean(np.log(ratios)))) if len(ratios) else NAN


class Goal(NamedTuple):
    """The best of `against` over `ours`, by the shapes' `summary`, is to be at least `wanted`, or at least `floor`."""

    what: str
    against: Sequence[str]
    summary: str
    wanted: float
    floor: float
    ours: str = OURS
    shapes: Sequence[str] = SHAPES


GOALS = (
    Goal("both", JAX_PEERS, "geometric mean", 1.5, 1.35),
    Goal("both", ("torch",), "geometric mean", 1.0, 0.9),
    Goal("both", JAX_PEERS, "least", 0.85, 0.85),
    Goal("forward", JAX_PEERS, "geometric mean", 1.3, 1.3),
    Goal("forward", ("torch",), "geometric mean", 1.1, 1.1),
    Goal("temporary", JAX_PEERS, "least", 1, 1),
    Goal("temporary", (*JAX_PEERS, OURS), "least", 4, 4, ours=CHECKPOINTED, shapes=(LONG,)),
)
BEST_PEER = "best JAX peer"
SAID = {JAX_PEERS: BEST_PEER, ("torch",): "torch", (*JAX_PEERS, OURS): f"{BEST_PEER} or ours, over {CHECKPOINTED}"}


def goals(measurements: dict) -> list[dict]:
    """Each goal: what was measured, of each shape and in one figure, what was wanted, and the verdict.

    They are about a CPU; of shapes that are none of the goal's the figures are told, and not judged. Nor is a goal met
    against the best of some peers while others are missing.
    """
    if measurements["device"] != "cpu":
        return []
    cases = {shape(case): case for case in measurements["cases"] if _is(case, "plain", 1, "float32")}
    told = []
    for goal in GOALS:
        there = {name: case for name, case in cases.items() if goal.shapes is SHAPES or name in goal.shapes}
        if not there:
            continue
        shapes = {name: best(case, goal.what, goal.against, goal.ours) for name, case in there.items()}
        values = list(shapes.values())
        measured = geometric_mean(values) if goal.summary == "geometric mean" else float(np.min(values))  # NaN of NaNs
        missing = [
            name for name in goal.against if any(math.isnan(figure(case, goal.what, name)) for case in there.values())
        ]
        said = verdict(measured, goal.wanted, goal.floor)
        if set(there) != set(goal.shapes) or (missing and said != NOT_MET):
            said = NOT_JUDGED  # who is missing may be the best
        told.append(
            goal._asdict()
            | {
                "against": SAID[goal.against],
                "of": f"{goal.summary} of {len(there)} shapes" if len(there) > 1 else next(iter(there)),
                "shapes": shapes,
                "measured": measured,
                "verdict": said,
                "missing": missing,
            }
        )
    return told


def verdict(measured: float, wanted: float, floor: float) -> str:
    """By the number itself, not as it is rounded."""
    if math.isnan(measured):
        return NOT_JUDGED
    return MET if measured >= wanted else FLOOR_MET if measured >= floor else NOT_MET


def against_cudnn(measurements: dict) -> Iterator[tuple[str, str, float]]:
    """(setting, mode, geometric mean) against the better of torch and jax.experimental.rnn, B >= 32, H 256 .. 1024."""
    if measurements["device"] == "cpu":
        return
    for dtype in dict.fromkeys(case["case"]["dtype"] for case in measurements["cases"]):
        cases = [
            case
            for case in measurements["cases"]
            if _is(case, "plain", 1, dtype) and case["case"]["batch"] >= 32 and 256 <= case["case"]["hidden"] <= 1024
        ]
        for mode in ("both", "forward"):
            yield (
                f"1 layer, {dtype}: {len(cases)} shapes of B >= 32, H 256..1024",
                mode,
                geometric_mean([best(case, mode, ("torch", CUDNN)) for case in cases]),
            )


def table(measurements: dict) -> dict:
    """The goals; of each case ours in its unit, and every other as theirs / ours; who failed, and who was left out."""
    cases, judged = measurements["cases"], goals(measurements)
    rows = []
    for goal in judged:
        wanted = f"{goal['wanted']:g}" + f" (floor {goal['floor']:g})" * (goal["floor"] < goal["wanted"])
        said = f"{goal['against']}: {_told(goal['measured'])}, wanted {wanted}: {goal['verdict'].upper()}"
        said += " (busy machine)" * bool(measurements["busy"])
        said += f", without {', '.join(goal['missing'])}" * bool(goal["missing"])
        each = "; ".join(f"{name} {_told(value)}" for name, value in goal["shapes"].items())
        rows.append([f"goal: {WORDS[goal['what']]}", goal["of"], "", f"{said} ({each})"])
    for where, what, mean in against_cudnn(measurements):
        rows.append([WORDS[what], where, "", f"geometric mean against the better cuDNN: {_told(mean)}"])
    for case in cases:
        rows += _of_case(case)
    for (name, why), where in left_out(cases).items():
        rows.append(["left out", where, "", f"{name}: {why}"])
    columns = ["what", "case: B x T x D x H", OURS, "the others: theirs / ours"]
    return {"title": title(measurements), "columns": columns, "rows": rows, "goals": judged}


def _of_case(case: Measured) -> Iterator[list[str]]:
    where = f"{shape(case)}, {setting(case)}" + " (busy machine)" * bool(case.get("busy"))
    for what, (unit, scale) in UNITS.items():
        of_work = what in ("forward", "both")
        names = [name for name in CONTENDERS if name != OURS and (of_work or name != PRODUCTS)]
        ratios = {BEST_PEER: best(case, what)} | {name: ratio(case, what, name) for name in names}
        mine = figure(case, what, OURS)
        ours = "-" if math.isnan(mine) else f"{mine * scale:.3g} {unit}"
        said = "; ".join(f"{name} {_told(value)}" for name, value in ratios.items() if not math.isnan(value))
        yield [WORDS[what], where, ours, said or "-"]
    does = [f"{name}: {numbers['does']}" for name, numbers in case["contenders"].items() if numbers.get("does")]
    if does:
        yield ["who does what", where, "", "; ".join(does)]
    for name, why in case["failed"].items():
        yield ["failed", where, "", f"{name}: {why}"]


def left_out(cases: Sequence[Measured]) -> dict[tuple[str, str], str]:
    """(name, why) -> the settings in which it was left out; '' for all but the wavefront's, which is ours alone."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for case in cases:
        for pair in case["left_out"].items():
            found.setdefault(pair, {})[setting(case)] = None
    settings = {setting(case) for case in cases if case["case"]["part"] != "wavefront"}
    return {pair: "" if set(where) == settings else "; ".join(where) for pair, where in found.items()}


def title(measurements: dict) -> str:
    """What it is, whether the run was stopped, and where the machine was busy."""
    left = measurements.get("unmeasured", 0)
    stopped = f" (STOPPED: {left} of {left + len(measurements['cases'])} cases not measured)" * bool(left)
    return "Our LSTM against its peers: theirs / ours, above 1 ours is better" + stopped + busy(measurements)


def busy(measurements: dict) -> str:
    """' (on a busy machine ...)', or nothing."""
    marked = sum(case.get("busy", False) for case in measurements["cases"])
    if marked:
        return f" (ON A BUSY MACHINE: {marked} of {len(measurements['cases'])} cases)"
    return " (ON A BUSY MACHINE)" * measurements["busy"]


def _is(case: Measured, part: str, layers: int, dtype: str) -> bool:
    of = case["case"]
    return (of["part"], of["layers"], of["dtype"]) == (part, layers, dtype)


def _over(theirs: float, ours: float) -> float:
    return theirs / ours if ours else NAN


def _told(number: float) -> str:
    """Two digits after the point, rounded down so that none looks better than it is; '-' for NaN."""
    return "-" if math.isnan(number) else f"{math.floor(number * 100 + 1e-9) / 100:.2f}"
