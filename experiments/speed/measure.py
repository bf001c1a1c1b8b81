"""One case: all its contenders compiled, then asked in turn, so that what slows the machine slows them all."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.case import Case, LeftOut
from experiments.speed.contenders import CONTENDERS, contenders
from experiments.speed.worker import Failed, Worker

MODES = ("forward", "both")
PAUSE = 0.005  # seconds before each turn, in which the threads of the last one, still spinning, fall asleep
SHORT = 0.05  # seconds: where every contender's call is shorter, a turn is an unmeasured call and two measured
BUSY = 0.1  # of the cores, on average in use by others while a case was measured


def measured(case: Case, *, seconds: float, least: int, most: int, patience: float) -> dict:
    """The case's numbers: of each contender the seconds of its calls, of compiling, and the temporary memory in bytes.

    A mode of a case is measured for about `seconds`, in `least` to `most` rounds. Who raises, dies, or does not answer
    within `patience` seconds is in 'failed', with what it said; what it had done by then is kept.
    """
    names, left_out = contenders(case)
    result = asked(case, names, seconds=seconds, least=least, most=most, patience=patience)
    result["left_out"] = left_out | result["left_out"]
    if case.part == "masked":
        for name, numbers in result["contenders"].items():
            numbers["does"] = CONTENDERS[name].masked
    return result


def asked(
    case: Any,
    names: Sequence[str],
    *,
    compiled: Sequence[str] = MODES,
    called: Sequence[str] = MODES,
    package: str = "speed",
    seconds: float,
    least: int,
    most: int,
    patience: float,
) -> dict:
    """What `measured` gives, of these contenders of an experiment: each mode in turn compiled, then called.

    The memory is that of the last mode compiled.
    """
    result: dict[str, Any] = {"case": dataclasses.asdict(case), "left_out": {}, "failed": {}, "versions": {}}
    results: dict[str, dict] = {}
    with _others() as others, _workers(names, case, package) as workers:

        def each(names: Sequence[str], *request: Any) -> Iterator[tuple[str, Any]]:
            """The answers, in turn; those who fail are told and closed."""
            for name in names:
                if name not in workers:
                    continue
                try:
                    yield name, workers[name].ask(*request, patience=patience)
                except (Failed, LeftOut) as error:
                    result["failed" if isinstance(error, Failed) else "left_out"][name] = str(error)
                    workers.pop(name).close()

        for name, versions in each(names):
            result["versions"] |= versions
            results[name] = {}
        for mode in compiled:
            for name, told in each(names, "compile", mode):
                if told:
                    results[name].setdefault("compile", {})[mode] = told["seconds"]
                if mode == compiled[-1] and "temporary" in told:
                    results[name]["temporary"] = told["temporary"]
        for mode in called:
            for name, times in _rounds(each, names, mode, seconds, least, most).items():
                results[name][mode] = _summary(times)
    return result | {"contenders": results} | others


def _rounds(
    each: Callable[..., Iterator[tuple[str, Any]]],
    names: Sequence[str],
    mode: str,
    seconds: float,
    least: int,
    most: int,
) -> dict[str, list[float]]:
    """The seconds of every measured call. Each round goes through all, every second one backwards."""
    warm = {name: answer[0] for name, answer in each(names, "call", mode, 1)}
    quick = [name for name in names if warm.get(name, 1) < 1]  # a first call does more than a later one
    warm |= {name: answer[0] for name, answer in each(quick, "call", mode, 1)}
    calls = 3 if max(warm.values(), default=0) < SHORT else 1
    times: dict[str, list[float]] = {name: [] for name in warm}
    turn, start = 0, time.perf_counter()
    while turn < least or (turn < most and time.perf_counter() - start < seconds):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(PAUSE)
            for _, answer in each([name], "call", mode, calls):
                times[name] += answer[calls > 1 :]
        turn += 1
    return {name: seconds_of for name, seconds_of in times.items() if seconds_of}


def _summary(times: list[float]) -> dict:
    """Median and quartiles, in seconds, and how many calls they are of."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high), "calls": len(times)}


@contextmanager
def _workers(names: Sequence[str], case: Any, package: str) -> Iterator[dict[str, Worker]]:
    """A process for each name; all have ended afterwards."""
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            workers[name] = Worker(name, dataclasses.asdict(case), package)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


@contextmanager
def _others() -> Iterator[dict]:
    """Afterwards {'others': cores that other processes used on average, 'busy': bool}; {} where the system is silent.

    The busy time of the whole machine, less our own and that of our processes, which must have ended by then.
    """
    told: dict[str, Any] = {}
    start, busy, own = time.perf_counter(), _machine(), _own()
    yield told
    if busy is not None:
        cores = max(0.0, ((_machine() or 0.0) - busy - (_own() - own)) / (time.perf_counter() - start))
        told |= {"others": cores, "busy": cores > BUSY * (os.cpu_count() or 1)}


def _machine() -> float | None:
    """Processor-seconds in use since the machine started, of all its cores; None where there is no /proc/stat."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _wait, *rest = map(int, stat.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Processor-seconds that this process and its ended children used."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
