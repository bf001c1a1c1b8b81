"""The experiment of very deep nets: that all do the same work, what the numbers are taken to say, and what is drawn."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import jax
import pytest
from rich.progress import Progress

from experiments import harness, very_deep
from experiments.speed import goals as of_speed
from experiments.speed import worker as of_worker
from experiments.very_deep import contenders, drawing, goals, worker
from experiments.very_deep.case import CLASSES, Case
from lstm_rot.training import log

TINY = Case(8, 4, 4, width=4, analysed=8)


@pytest.mark.filterwarnings("ignore")  # of the peers at their imports
@pytest.mark.usefixtures("settings_of_a_user")
def test_all_libraries_do_the_same_work(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    losses = {}
    for name in contenders.installed((contenders.OURS, contenders.FLAX, contenders.TORCH_LAST))[0]:
        job = worker.Job(name, asdict(TINY))
        small = job.compile(worker.STEP)
        assert job.versions
        if name == contenders.OURS:
            assert small["temporary"] < job.compile(worker.ANALYSED)["temporary"]
        losses[name] = [job.calls[worker.STEP]() for _ in range(3)]
        assert len(job.call(worker.STEP, 2)) == 2
    for name in losses:
        assert losses[name] == pytest.approx(losses[contenders.OURS], rel=1e-4)
    first, *_, last = losses[contenders.OURS]
    assert last < first


def test_the_weights_are_the_papers():
    sizes = {depth: Case(depth, 1, 32).sizes() for depth in (20, 110, 1202)}
    assert {depth: len(each) + 1 for depth, each in sizes.items()} == {20: 20, 110: 110, 1202: 1202}
    millions = {depth: sum(9 * c * k for c, k in each) / 1e6 for depth, each in sizes.items()}
    assert millions == pytest.approx({20: 0.27, 110: 1.7, 1202: 19.4}, rel=0.02)  # He et al. 2015, Table 6


def test_the_long_compiling_of_the_peer_comes_last_and_the_quick_preset_has_every_part():
    *others, (case, names) = very_deep.cases(very_deep.PRESETS["cpu"])
    assert (case.depth, names) == (1202, (contenders.FLAX,))
    assert [(case.depth, case.part) for case, _ in others] == [
        (20, "rate"),
        (20, "deep"),
        (1202, "deep"),
        (110, "deep"),
    ]
    assert {case.part for case, _ in very_deep.cases(very_deep.PRESETS["quick"])} == {"deep", "rate"}


SCRIPT = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[2]))
assert sys.argv[3] == "very_deep"
name, case = connection.recv()
connection.send(("ok", {"jax": "1.0"}))
while True:
    method, *args = connection.recv()
    if name == "flax linen" and case["depth"] == 1202:
        continue
    answers = {"compile": {"seconds": 2.0, "temporary": 10**9}, "cost": {"flops": 10**12, "peak": 4e12}}
    connection.send(("ok", answers[method] if method in answers else [0.5] * args[1]))
"""


def test_a_run_is_written_drawn_and_told_and_a_peer_that_does_not_answer_is_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(of_worker, "BEGIN", SCRIPT)
    monkeypatch.setattr(contenders, "find_spec", lambda package: None if package == "torch" else package)
    config = replace(very_deep.PRESETS["cpu"], seconds=0.02, least=1, most=1, patience=1)
    harness.execute(very_deep.EXPERIMENT, "cpu", config, tmp_path, Progress(disable=True))
    written = harness.read(tmp_path / "very_deep.json")
    assert (tmp_path / "very_deep.png").read_bytes().startswith(b"\x89PNG")
    assert written["claims"] == [] and written["versions"]["jax"] == "1.0"
    compiling = goals.figure(goals.deep(written["measurements"])[1202], goals.COMPILING, contenders.FLAX)
    assert compiling == (1, True)
    said = json.dumps(written["table"])
    assert "flax linen more than 1 s" in said and "torch: not installed" in said and "more than 0.5" in said
    harness.report(harness.Console(width=100), written)


def test_on_a_gpu_the_share_of_its_peak_is_told_and_no_goal_is_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(of_worker, "BEGIN", SCRIPT)
    config = replace(very_deep.PRESETS["quick"], depths=(20,), device="gpu", seconds=0.02, least=1, most=1)
    harness.execute(very_deep.EXPERIMENT, "quick", config, tmp_path, Progress(disable=True))
    written = harness.read(tmp_path / "very_deep.json")
    counted = goals.rated(written["measurements"])
    assert goals.share_of_peak(counted, contenders.OURS) == 0.5  # 10^12 in half a second, of 4 * 10^12 in one
    assert contenders.OURS_CORES not in counted["contenders"] and written["table"]["goals"] == []
    assert "--device gpu" in written["command"] and written["hardware"].startswith("1 x GPU")
    assert any("4 TFLOP/s" in row[1] and row[2] == "50 %" for row in written["table"]["rows"])
    assert {case["case"]["device"] for case in written["measurements"]["cases"]} == {"gpu"}


@pytest.mark.filterwarnings("ignore")  # of flax at its import
@pytest.mark.usefixtures("settings_of_a_user")
def test_the_flops_of_a_step_are_those_of_its_convolutions_and_the_peak_that_of_its_devices(monkeypatch):
    job = worker.Job(contenders.FLAX, asdict(TINY))
    monkeypatch.setattr(log, "PEAKS", {"cpu": 1e9})
    cost = job.cost()
    forward = [2 * TINY.batch * 9 * c * k * (TINY.pixels * TINY.width // k) ** 2 for c, k in TINY.sizes()]
    head = 2 * TINY.batch * 4 * TINY.width * CLASSES
    strided = sum(each for each, (c, k) in zip(forward, TINY.sizes(), strict=True) if k == 2 * c)
    # Nobody asks for the images' gradient; that of a strided convolution's maps has zeros between the pixels.
    assert cost["flops"] == 3 * (sum(forward) + head) - forward[0] + 3 * strided
    assert cost["peak"] == 1e9
    monkeypatch.setattr(log, "PEAKS", {})
    assert math.isnan(job.cost()["peak"])


def test_a_depth_that_is_none_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"very_deep: depth 21: give 6n \+ 2 layers"):
        harness.main(very_deep.EXPERIMENT, ["--depths", "21", "--results", str(tmp_path)])


def test_a_device_on_which_nobody_trains_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(of_worker, "BEGIN", "raise SystemExit('no such device')")
    with pytest.raises(SystemExit, match=r"very_deep: --device gpu: no library trains on it \(ours: .*no such device"):
        harness.main(very_deep.EXPERIMENT, ["--device", "gpu", "--results", str(tmp_path)])


def case_of(depth, part="deep", *, batch=8, failed=None, busy=False, **numbers) -> dict:
    """A case; numbers: a contender's seconds of compiling, bytes and seconds of a step."""
    named = {"ours": contenders.OURS, "checkpointed": contenders.CHECKPOINTED, "flax": contenders.FLAX}
    named |= {"cores": contenders.OURS_CORES, "flax_cores": contenders.FLAX_CORES}
    named |= {"torch": contenders.TORCH, "last": contenders.TORCH_LAST}
    entries = {}
    for key, (compiling, temporary, step) in numbers.items():
        times = {"median": step, "low": 0.9 * step, "high": 1.1 * step, "calls": 3}
        entries[named[key]] = {"compile": {"step": compiling}, "temporary": temporary, "step": times}
    case = asdict(Case(depth, batch, 32, part=part, analysed=128 * (part == "deep")))
    told = {"case": case, "contenders": entries, "failed": failed or {}, "left_out": {}, "patience": 600}
    return told | {"busy": busy, "others": 1.0 * busy}


def measured(
    *, deep=3.8, kept=1e9, failed=None, flax=100.0, ours=0.5, torch: float | None = 0.3, busy=False, batch=128
):
    flax_deep: dict[str, Any] = {} if failed else {"flax": (flax, 1, 1)}
    rates: dict[str, Any] = {
        "ours": (1, 1, ours),
        "cores": (1, 1, 2 * ours),
        "flax": (1, 1, 0.6),
        "flax_cores": (1, 1, 9.0),
    }
    rates |= {"torch": (0, 0, 2 * torch), "last": (0, 0, torch)} if torch else {}
    return {
        "cases": [
            case_of(20, "rate", batch=batch, busy=busy, **rates),
            case_of(20, ours=(3.0, 1e8, 0.1), checkpointed=(3.5, 1e8, 0.1), flax=(5.0, 1e8, 0.1)),
            case_of(1202, ours=(deep, 9e9, 2.0), checkpointed=(5.0, kept, 3.0)),
            case_of(1202, failed={contenders.FLAX: failed} if failed else None, **flax_deep),
        ]
    }


MET, FLOOR, MISSED, OPEN = of_speed.MET, of_speed.FLOOR_MET, of_speed.NOT_MET, of_speed.NOT_JUDGED
LATE = "no answer within 600 s"


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [  # compiling against 20 layers, and flax; memory; images/s: flax, torch
        (measured(), [MET, MET, MET, MET, FLOOR]),
        (measured(deep=3.91), [MISSED, MET, MET, MET, FLOOR]),
        (measured(flax=75.0), [MET, MISSED, MET, MET, FLOOR]),
        (measured(failed=LATE), [MET, MET, MET, MET, FLOOR]),
        (measured(deep=31.0, failed=LATE), [MISSED, OPEN, MET, MET, FLOOR]),  # 600 s or more: nothing is known of 20
        (measured(failed="its process died"), [MET, OPEN, MET, MET, FLOOR]),
        (measured(kept=1.9e9), [MET, MET, MISSED, MET, FLOOR]),
        (measured(ours=0.7), [MET, MET, MET, MISSED, MISSED]),
        (measured(ours=0.3), [MET, MET, MET, MET, MET]),
        (measured(torch=None), [MET, MET, MET, MET, OPEN]),
        (measured(batch=16), [MET, MET, MET, OPEN, OPEN]),
    ],
)
def test_goals_are_judged_by_the_numbers(numbers, verdicts):
    assert [goal["verdict"] for goal in goals.goals(numbers)] == verdicts
    told = goals.table(numbers)
    assert all(len(row) == len(told["columns"]) for row in told["rows"])


def test_other_depths_are_told_and_not_judged():
    numbers = measured()
    numbers["cases"] = [case for case in numbers["cases"] if case["case"]["depth"] == 20]
    assert [goal["verdict"] for goal in goals.goals(numbers)][:3] == [OPEN] * 3


def test_a_busy_machine_is_marked_and_torchs_default_is_told():
    numbers = measured(busy=True)
    told = goals.table(numbers)
    assert "ON A BUSY MACHINE: 1 of 4 cases" in told["title"]
    assert any("torch's default" in row[1] and row[2] == "1.2" for row in told["rows"])
    figure = drawing.draw({"measurements": numbers, "hardware": "a CPU, 2 cores"})
    assert "BUSY" in figure.get_suptitle()
    drawing.plt.close(figure)


def test_the_published_table_follows_from_the_published_numbers():
    if not very_deep.EXPERIMENT.published.exists():
        pytest.skip("not published yet")
    published = harness.read(very_deep.EXPERIMENT.published)
    told = goals.table(published["measurements"])
    assert [goal["verdict"] for goal in told["goals"]] == [goal["verdict"] for goal in published["table"]["goals"]]
    assert very_deep.EXPERIMENT.published.with_suffix(".png").stat().st_size < 300_000
