"""The speed experiment: who is measured and on what, how, what the numbers are taken to say, and what is drawn."""

import json
import math
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from experiments import __main__ as everything
from experiments import harness, speed
from experiments.speed import contenders, drawing, goals, measure, worker
from experiments.speed.case import Case, Eager

TINY = Case(3, 5, 4, 6, layers=2)
MASKED = replace(TINY, layers=1, part="masked")
TRACED = [name for name in contenders.CONTENDERS if name not in ("torch", contenders.CUDNN)]
PEERS = dict.fromkeys((*goals.JAX_PEERS, "torch"), 1.0)


def needs(name):
    package = contenders.CONTENDERS[name].package
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def built(name, case, monkeypatch) -> Any:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    return contenders.CONTENDERS[name].build(case)


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


# Who is measured, and on what.


@pytest.mark.filterwarnings("ignore")  # of the peers at their imports
@pytest.mark.usefixtures("settings_of_a_user")
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in TRACED])
def test_outputs_and_gradients_have_the_shapes_of_the_work(name, monkeypatch):
    for case in (TINY, replace(TINY, dtype="bfloat16"), MASKED):
        if case is MASKED and name not in contenders.contenders(case)[0]:
            continue
        model = built(name, case, monkeypatch)
        both, args = worker.programs(case, model)["both"]
        ys, (weights, xs) = jax.eval_shape(both, *args)
        assert shapes((weights, xs)) == shapes(args[:2]) and args[1].dtype == case.dtype
        steps, projected = case.time * case.batch, case.projection if name.startswith("ours") else None
        if name == contenders.PRODUCTS:
            products = [(steps, 4 * case.hidden)] * (2 * case.layers) + [(steps, case.hidden // 2)] * (case is MASKED)
            assert shapes(ys) == products
        else:
            first = (case.batch, case.time) if model.batch_major else (case.time, case.batch)
            assert ys.shape == (*first, projected or case.hidden)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("settings_of_a_user")
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in TRACED[1:]])
def test_an_output_sees_its_own_sequence_up_to_its_step(name, monkeypatch):
    case = replace(TINY, layers=1 + (name == contenders.WAVEFRONT))
    model = built(name, case, monkeypatch)
    both, (weights, xs, beside, gradient) = worker.programs(case, model)["both"]
    where = (1, 2) if model.batch_major else (2, 1)  # step 2 of sequence 1
    ys, (_, dx) = jax.jit(both)(weights, xs, beside, jnp.zeros_like(gradient).at[where].set(1.0))
    seen = np.abs(np.asarray(dx)).sum(-1) > 0
    expected = np.zeros((case.time, case.batch), bool)
    expected[:3, 1] = True
    np.testing.assert_array_equal(seen.T if model.batch_major else seen, expected)
    assert np.isfinite(ys).all()


@pytest.mark.filterwarnings("ignore")
@needs("torch")
@pytest.mark.parametrize("case", [TINY, MASKED], ids=["plain", "masked"])
def test_torch_gives_the_outputs_and_every_gradient(case, monkeypatch):
    model = built("torch", case, monkeypatch)
    assert isinstance(model, Eager) and "torch" in model.versions
    ys, (dx, *weights) = model.both()
    shape = (case.time, case.batch, case.projection or case.hidden)
    assert model.forward().shape == ys.shape == shape and dx.shape == (case.time, case.batch, case.inputs)
    assert len(weights) == (4 + bool(case.projection)) * case.layers


def test_who_is_not_installed_or_cannot_is_named_as_left_out(monkeypatch):
    monkeypatch.setattr(contenders, "find_spec", lambda package: None if package in ("haiku", "torch") else package)
    chosen, left_out = contenders.contenders(TINY)
    assert left_out == {"haiku": "not installed", "torch": "not installed", contenders.CUDNN: "runs on a GPU alone"}
    assert contenders.WAVEFRONT in chosen and contenders.CHECKPOINTED not in chosen
    on_gpu = replace(TINY, device="gpu", layers=1, time=4096)
    assert {contenders.CUDNN, contenders.CHECKPOINTED} < set(contenders.contenders(on_gpu)[0])
    assert contenders.contenders(replace(on_gpu, dtype="float16"))[1][contenders.CUDNN] == "float32 alone"
    assert "neither" in contenders.contenders(MASKED)[1]["equinox"]
    assert contenders.contenders(replace(TINY, part="wavefront")) == (
        ["products", "ours", "ours, hoisted", "ours, wavefront"],
        {},
    )


def test_the_cpu_preset_has_every_case_of_the_question():
    cases = speed.cases(speed.PRESETS["cpu"])
    plain = {(case.shape, case.layers, case.dtype) for case in cases if case.part == "plain"}
    assert plain == {(s, n, d) for s in goals.SHAPES for n in (1, 4) for d in ("float32", "bfloat16")}
    assert [case.batch for case in cases if case.part == "wavefront"] == [1, 2, 4, 8]
    assert any(case.part == "masked" for case in cases)


# How.

SCRIPT = """
import os, sys, time
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[2]))
name, case = connection.recv()
if name == "torch":
    connection.send(("left out", "this torch has no CUDA"))
connection.send(("ok", {name: "1.0"}))
while True:
    method, *args = connection.recv()
    if name == "haiku" and method == "call" and args[0] == "both":
        print("out of memory", flush=True)
        os._exit(3)
    if name == "equinox" and method == "call":
        time.sleep(60)
    if name == "keras":
        connection.send(("failed", "ValueError: no such layer"))
    seconds = {"products": 0.001, "ours": 0.002}.get(name, 0.004)
    connection.send(("ok", {"seconds": 0.5, "temporary": 8} if method == "compile" else [seconds] * args[1]))
"""


def test_who_dies_raises_or_is_silent_is_reported_and_the_others_are_measured(monkeypatch):
    some = ("products", "ours", "torch", "haiku", "equinox", "keras")
    monkeypatch.setattr(contenders, "CONTENDERS", {name: contenders.CONTENDERS[name] for name in some})
    monkeypatch.setattr(contenders, "find_spec", lambda package: package)
    monkeypatch.setattr(worker, "BEGIN", SCRIPT)
    case = measure.measured(TINY, seconds=0.05, least=3, most=5, patience=2)
    assert case["left_out"] == {"torch": "this torch has no CUDA"}
    assert case["failed"]["haiku"] == "its process died, exit status 3: out of memory"
    assert case["failed"]["equinox"] == "no answer within 2 s" and "no such layer" in case["failed"]["keras"]
    assert "both" not in case["contenders"]["haiku"] and case["contenders"]["haiku"]["forward"]["median"] == 0.004
    ours = case["contenders"]["ours"]
    assert ours["both"] | {"calls": 0} == {"median": 0.002, "low": 0.002, "high": 0.002, "calls": 0}
    assert 6 <= ours["both"]["calls"] <= 10  # a turn is an unmeasured call and two
    assert ours["compile"] == {"forward": 0.5, "both": 0.5} and ours["temporary"] == 8
    assert case["versions"]["haiku"] == "1.0" and case["others"] >= 0


@pytest.mark.usefixtures("settings_of_a_user")
def test_a_run_is_written_drawn_redrawn_and_stands_last_on_the_page(tmp_path, monkeypatch):
    some = ("products", "ours")
    monkeypatch.setattr(contenders, "CONTENDERS", {name: contenders.CONTENDERS[name] for name in some})
    config = replace(speed.PRESETS["quick"], shapes=("2x4x3x5",), seconds=0.05, least=1, most=2)
    harness.execute(speed.EXPERIMENT, "quick", config, tmp_path, Progress(disable=True))
    written = json.loads((tmp_path / "speed.json").read_text())
    assert "--shapes 2x4x3x5" in written["command"] and written["claims"] == []
    (case,) = written["measurements"]["cases"]
    assert not case["failed"] and set(case["contenders"]) == set(some), case
    assert all({"forward", "both", "compile", "temporary"} <= numbers.keys() for numbers in case["contenders"].values())
    assert written["versions"]["jax"] == jax.__version__ and "cores" in written["hardware"]
    figure = tmp_path / "speed.png"
    figure.write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(harness, "PUBLISHED", tmp_path / "published")
        harness.main(speed.EXPERIMENT, ["--redraw", "--results", str(tmp_path)])
    assert figure.read_bytes().startswith(b"\x89PNG")
    everything.write_page(tmp_path, {"speed"})
    page = (tmp_path / "index.html").read_text()
    assert page.rindex('<section class="experiment" id="on-speed"') > page.rindex('id="on-degradation"')
    harness.report(harness.Console(width=100), harness.read(tmp_path / "speed.json"))


def test_ctrl_c_keeps_the_cases_measured_and_says_so(monkeypatch):
    config = speed.PRESETS["cpu"]
    answers = iter([case_of() | {"versions": {}}, None, None])

    def interrupted_at_none(case, **_):
        answer = next(answers)
        if answer is None:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(speed, "measured", interrupted_at_none)
    result = speed.run(config, Progress(disable=True))
    left = len(speed.cases(config)) - 1
    assert len(result["cases"]) == 1 and result["unmeasured"] == left
    assert f"STOPPED: {left} of {left + 1} cases not measured" in speed.EXPERIMENT.table(result)["title"]
    with pytest.raises(KeyboardInterrupt):
        speed.run(config, Progress(disable=True))


@pytest.mark.parametrize("shape", ["32x100", "0x5x5x5", "axbxcxd"])
def test_a_shape_that_is_none_is_refused(shape, tmp_path):
    with pytest.raises(SystemExit, match=f"speed: shape '{shape}': give BxTxDxH"):
        harness.main(speed.EXPERIMENT, ["--shapes", shape, "--results", str(tmp_path)])


# What the numbers say.


def case_of(shape="32x100x256x256", *, ours=1.0, busy=False, layers=1, left_out=None, **others):
    """A case in which ours takes `ours` seconds and bytes, forward or both, and the others theirs; products half."""
    figures = {name: others.get(name.replace(" ", "_"), seconds) for name, seconds in PEERS.items()}
    figures |= {"ours": ours, "products": 0.5}
    if shape == goals.LONG:
        figures["ours, checkpointed"] = others.get("checkpointed", 0.25)
    numbers = {
        name: {mode: {"median": value, "low": value, "high": value, "calls": 5} for mode in ("forward", "both")}
        | {"compile": {"forward": 1.0, "both": value}, "temporary": value}
        for name, value in figures.items()
        if value is not None
    }
    sizes = dict(zip(("batch", "time", "inputs", "hidden"), map(int, shape.split("x")), strict=True))
    return {
        "case": asdict(Case(**sizes, layers=layers)),
        "contenders": numbers,
        "left_out": left_out or {},
        "failed": {},
        "others": 0.5 * busy,
        "busy": busy,
    }


def measured(*cases, device="cpu"):
    return {"device": device, "busy": any(case["busy"] for case in cases), "cases": list(cases), "cores": 2}


def all_shapes(**numbers):
    return measured(*[case_of(shape, **numbers) for shape in goals.SHAPES])


def test_ratios_are_theirs_over_ours_and_the_best_peer_is_that_of_the_case():
    case = case_of(ours=0.5, torch=1.0, haiku=0.4, keras=None)
    assert goals.ratio(case, "both", "torch") == 2 and goals.ratio(case, "temporary", "products") == 1
    assert goals.best(case, "forward") == 0.8 and math.isnan(goals.ratio(case, "both", "keras"))
    assert goals.geometric_mean([1.0, 4.0]) == pytest.approx(2)
    assert math.isnan(goals.geometric_mean([])) and math.isnan(goals.geometric_mean([1.0, math.nan]))
    assert goals._told(1.4999) == "1.49" and goals._told(0.29) == "0.29" and goals._told(math.nan) == "-"


MET, FLOOR, MISSED, OPEN = goals.MET, goals.FLOOR_MET, goals.NOT_MET, goals.NOT_JUDGED


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [  # both: peers, torch, least; forward: peers, torch; memory, Checkpointed's
        (all_shapes(ours=0.5), [MET, MET, MET, MET, MET, MET, MISSED]),
        (all_shapes(ours=0.5, checkpointed=0.125), [MET, MET, MET, MET, MET, MET, MET]),
        (all_shapes(ours=0.7), [FLOOR, MET, MET, MET, MET, MET, MISSED]),
        (all_shapes(ours=0.66667), [FLOOR, MET, MET, MET, MET, MET, MISSED]),  # 1.49999 is no 1.5
        (all_shapes(ours=1.05), [MISSED, FLOOR, MET, MISSED, MISSED, MISSED, MET]),
        (all_shapes(ours=1.2), [MISSED, MISSED, MISSED, MISSED, MISSED, MISSED, MET]),
        (all_shapes(ours=None), [OPEN] * 7),
        (all_shapes(ours=0.5, torch=None), [MET, OPEN, MET, MET, OPEN, MET, MISSED]),
        (all_shapes(ours=0.5, keras=None), [OPEN, MET, OPEN, OPEN, MET, OPEN, MISSED]),  # keras may be the best
        (all_shapes(ours=1.2, keras=None)["cases"][:1], [OPEN] * 6),  # one shape of six
        (all_shapes(ours=1.2, layers=4), []),
    ],
)
def test_goals_are_judged_by_the_numbers(numbers, verdicts):
    numbers = measured(*numbers) if isinstance(numbers, list) else numbers
    assert [goal["verdict"] for goal in goals.goals(numbers)] == verdicts
    assert all(set(goal["shapes"]) <= set(goals.SHAPES) for goal in goals.goals(numbers))
    told = goals.table(numbers)
    assert all(len(row) == len(told["columns"]) for row in told["rows"])


def test_one_slow_shape_breaks_the_goal_of_the_least():
    cases = [case_of(shape, ours=0.5) for shape in goals.SHAPES[1:]] + [case_of(goals.SHAPES[0], ours=1.25)]
    mean, _, least, *_ = goals.goals(measured(*cases))
    assert least["verdict"] == MISSED and least["measured"] == 0.8
    assert mean["measured"] == pytest.approx((2**5 * 0.8) ** (1 / 6)) and mean["shapes"][goals.SHAPES[0]] == 0.8


def test_on_a_gpu_the_better_cudnn_is_the_measure():
    case = case_of("64x50x512x512", ours=0.5, torch=0.25)
    small = case_of("1x512x128x128")
    told = list(goals.against_cudnn(measured(case, small, device="gpu")))
    assert [(mode, mean) for _, mode, mean in told] == [("both", 0.5), ("forward", 0.5)] and "1 shapes" in told[0][0]
    assert goals.goals(measured(case, device="gpu")) == []


def test_a_busy_machine_is_marked_in_title_and_chart_and_left_out_is_told():
    quiet = case_of(goals.SHAPES[1], left_out={"haiku": "not installed"})
    busy = case_of(busy=True, left_out={"haiku": "not installed", "keras": "broken"}, layers=4)
    numbers = measured(quiet, busy)
    told = goals.table(numbers)
    assert "ON A BUSY MACHINE: 1 of 2 cases" in told["title"]
    assert ["left out", "", "", "haiku: not installed"] in told["rows"]
    assert ["left out", "4 layers, float32", "", "keras: broken"] in told["rows"]
    assert any("(busy machine)" in row[1] for row in told["rows"])
    figure = drawing.draw({"measurements": numbers, "hardware": "a CPU, 2 cores"})
    assert "BUSY" in figure.get_suptitle()
    assert [tick.get_text() for tick in figure.axes[2].get_yticklabels()] == ["32x100x256x256 (busy)"]
    assert "haiku (not installed)" in figure.legends[0].get_title().get_text()
    drawing.plt.close(figure)
    assert "BUSY" not in goals.title(measured(quiet))


def test_the_published_table_follows_from_the_published_numbers():
    if not speed.EXPERIMENT.published.exists():
        pytest.skip("not published yet")
    published = harness.read(speed.EXPERIMENT.published)
    told = goals.table(published["measurements"])
    assert [goal["verdict"] for goal in told["goals"]] == [goal["verdict"] for goal in published["table"]["goals"]]
    assert told["title"] == published["table"]["title"]
    assert speed.EXPERIMENT.published.with_suffix(".png").stat().st_size < 300_000
