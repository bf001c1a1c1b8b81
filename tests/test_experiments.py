"""The experiments: their verdict rules, their data, what they write, and what they say when they cannot run."""

import gzip
import json
import re
import urllib.error
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifiers import untrained
from rich.progress import Progress

from experiments import __main__ as everything
from experiments import (
    cifar,
    data,
    degradation,
    dial,
    files,
    gradient_flow,
    harness,
    language_model,
    lesion,
    mixing,
    nets,
    newton,
    recall,
    rotation,
    seq2seq,
    streams,
)
from experiments.claims import CLAIMS
from experiments.dial import order, probing
from experiments.rotation import ladder, laws
from experiments.translation import generated
from lstm_rot.branches import conv
from lstm_rot.models import conv_resnet

pytestmark = pytest.mark.usefixtures("settings_of_a_user")
EXPERIMENTS = list(everything.EXPERIMENTS.values())
ROOT = Path(__file__).parents[1]
TINY = {
    "gradient_flow": replace(
        gradient_flow.PRESETS["quick"], steps=6, hidden_size=4, images=2, seeds=2, scales=(0.01, 0.1)
    ),
    "rotation": replace(rotation.PRESETS["quick"], hidden_size=8, steps=3, batch=4, seeds=2),
    "degradation": replace(
        degradation.PRESETS["quick"], depths=(1, 2), pieces=(32,), hidden_size=4, steps=50, batch=4, seeds=2
    ),
    "cifar": replace(
        cifar.PRESETS["quick"],
        width=2,
        depths=(8,),
        kinds=("plain", "residual"),
        steps=2,
        batch=8,
        values=(16,),
        time_steps=2,
        hidden_size=4,
        points=1,
        seeds=2,
    ),
    "language_model": replace(
        language_model.PRESETS["quick"],
        models=("lstm",),
        parameters=5000,
        layers=1,
        context=256,
        batch=8,
        steps=2,
        points=1,
        seeds=2,
    ),
    "seq2seq": replace(
        seq2seq.PRESETS["quick"],
        beside=("luong",),
        vocabulary=280,
        limit=200,
        hidden=4,
        epochs=0.3,
        beams=(1, 2),
        ensembles=(2,),
        buckets=1,
        sentences=8,
        points=1,
        seeds=2,
    ),
    "streams": replace(
        streams.PRESETS["quick"],
        depths=(8,),
        kinds=("residual",),
        width=2,
        values=(16,),
        hidden_size=4,
        seeds=2,
        images=8,
    ),
    "newton": replace(
        newton.PRESETS["quick"], lengths=(2,), gains=(1.0,), hidden_size=2, leaks=(0.5,), steps=2, training=2, seeds=2
    ),
    "mixing": replace(
        mixing.PRESETS["quick"],
        depth=("attention",),
        time=("LSTM",),
        layers=2,
        piece=16,
        hidden_size=4,
        steps=2,
        batch=4,
        images=2,
        seeds=2,
    ),
    "recall": replace(
        recall.PRESETS["quick"],
        kinds=("minlstm",),
        parameters=1000,
        layers=1,
        distances=(8, 16),
        steps=50,
        batch=2,
        sequences=50,
        seeds=2,
    ),
    "lesion": replace(
        lesion.PRESETS["quick"],
        kinds=("residual",),
        depths=(8,),
        width=4,
        values=(16,),
        hidden_size=4,
        batch=8,
        steps=2,
        time_steps=2,
        points=1,
        images=16,
        samples=1,
        path_images=8,
        path_samples=2,
        dense_depth=3,
        dense_size=4,
        seeds=2,
    ),
    "dial": replace(
        dial.PRESETS["quick"],
        width=2,
        shortcuts=("exclusive:0",),
        steps=2,
        batch=8,
        cells=("GRU",),
        length=10,
        hidden_size=2,
        stretches=1,
        sequences=1000,
        probes=2,
        seeds=2,
    ),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_a_run_writes_json_and_a_figure_drawn_from_it_alone(experiment, tmp_path, monkeypatch):
    few = laws._laws()[:3]  # all of them have tests of their own
    monkeypatch.setattr(laws, "_laws", lambda: few)
    monkeypatch.setattr(ladder, "LADDER", ladder.LADDER[::6])
    monkeypatch.setattr(cifar, "READERS", {"LSTM": cifar.READERS["LSTM"]})
    text = data._divided("manual", data.text("manual").train[:50_000], "the beginning")
    monkeypatch.setitem(data.TEXTS, "manual", lambda: text)
    if experiment is not cifar.EXPERIMENT:  # the training of these nets has tests of its own
        monkeypatch.setattr(nets, "trained", lambda recipe, *_, **__: untrained(recipe.model, recipe.seed))
    monkeypatch.setattr(generated, "SIZES", (200, 20, 20))
    generated.parts.cache_clear()
    monkeypatch.chdir(tmp_path)  # where runs keep their checkpoints
    published = tmp_path / experiment.name / "published.json"
    published.parent.mkdir()
    monkeypatch.setattr(harness, "PUBLISHED", tmp_path)
    result = harness.execute(experiment, "quick", TINY[experiment.name], tmp_path, Progress(disable=True), publish=True)

    written = json.loads((tmp_path / f"{experiment.name}.json").read_text())
    assert written == json.loads(published.read_text())
    assert [claim["id"] for claim in written["claims"]] == list(experiment.claims)
    assert all(claim["verdict"] in harness.VERDICTS and claim["rule"] and claim["ours"] for claim in written["claims"])
    assert written["seeds"] == 2 and len(written["data"]["sha256"]) == 64
    assert "--seeds 2" in written["command"] and f"experiments.{experiment.name} --preset quick" in written["command"]
    assert {"hardware", "load", "seconds", "date", "versions", "config"} <= written.keys()
    assert result["table"]["rows"] and all(
        len(row) == len(result["table"]["columns"]) for row in result["table"]["rows"]
    )

    figures = [path.with_suffix(".png") for path in (tmp_path / f"{experiment.name}.json", published)]
    for figure in figures:
        figure.write_bytes(b"")
    harness.main(experiment, ["--redraw", "--results", str(tmp_path)])
    assert json.loads(published.read_text()) == written
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


@pytest.mark.parametrize(
    "experiment", [each for each in everything.known().values() if each.published.exists()], ids=lambda each: each.name
)
def test_the_published_verdicts_follow_from_the_published_numbers(experiment):
    published = json.loads(experiment.published.read_text())
    findings = {finding.id: finding for finding in experiment.judge(published["measurements"])}
    for claim in published["claims"]:
        assert (claim["verdict"], claim["rule"]) == (findings[claim["id"]].verdict, findings[claim["id"]].rule)
        assert (claim["statement"], claim["paper"]) == (CLAIMS[claim["id"]].statement, CLAIMS[claim["id"]].paper)
    assert experiment.published.with_suffix(".png").stat().st_size < 300_000


def test_the_readme_says_of_the_leading_claims_what_was_published():
    rows = dict(
        re.findall(r"^\| `([\w-]+)` \|.*\| \**([\w ]+?)\** \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    verdicts = {
        claim["id"]: claim["verdict"]
        for experiment in everything.known().values()
        if experiment.published.exists()
        for claim in json.loads(experiment.published.read_text())["claims"]
    }
    assert rows == {claim.id: verdicts.get(claim.id, "not run yet") for claim in CLAIMS.values() if claim.leading}


# Verdict rules: code, so they have tests of their own.


def degraded(plain, highway, last=100, seeds=3):
    kinds = {"plain": plain, "highway": highway}
    return {
        "rows": [
            {"axis": "depth", "kind": kind, "size": size, "train_error": [error - 0.01, error, error + 0.01][:seeds]}
            for kind, errors in kinds.items()
            for size, error in zip((5, last), errors, strict=True)
        ]
    }


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (degraded((0.1, 0.8), (0.1, 0.1)), "reproduced"),
        (degraded((0.1, 0.8), (0.1, 0.1), last=50), "inconclusive"),
        (degraded((0.1, 0.11), (0.1, 0.1)), "inconclusive"),
        (degraded((0.8, 0.1), (0.1, 0.1)), "contradicted"),
        (degraded((0.1, 0.8), (0.1, 0.3)), "contradicted"),
        (degraded((0.1, 0.14), (0.13, 0.13)), "inconclusive"),
        (degraded((0.1, 0.8), (0.1, 0.1), seeds=2), "inconclusive"),
        (degraded((0.1, 0.9), (0.7, 0.7)), "inconclusive"),  # it has not learnt
    ],
)
def test_degradation_judges_by_rise_and_spread(measured, verdict):
    assert [finding.verdict for finding in degradation.judge(measured)] == [verdict]


def trained_nets(plain, residual, test=(8.8, 7.0), seeds=3, paper=False):
    """Training errors at 8, 20 and 56 layers in %, and the residual nets' test errors at the last two."""
    return {
        "at paper size": paper,
        "rows": [
            {
                "axis": "depth",
                "kind": kind,
                "size": size,
                "step": [100, 200],
                "train_error": [[0.9, (error + shift) / 100] for shift in (-1, 0, 1)[:seeds]],
                "test_error": [[0.9, (at_test + shift / 9) / 100] for shift in (-1, 0, 1)[:seeds]],
            }
            for kind, errors in {"plain": plain, "residual": residual}.items()
            for size, error, at_test in zip((8, 20, 56), errors, (12.0, *test), strict=True)
        ],
    }


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        (trained_nets((40, 30, 40), (30, 20, 10)), ["reproduced", "out of reach here"]),
        (trained_nets((40, 30, 30), (30, 20, 10)), ["inconclusive", "out of reach here"]),
        (trained_nets((40, 30, 40), (30, 20, 19)), ["inconclusive", "out of reach here"]),
        (trained_nets((40, 30, 40), (30, 20, 10), seeds=2), ["inconclusive", "out of reach here"]),
        (trained_nets((40, 40, 30), (30, 20, 10)), ["contradicted", "out of reach here"]),
        (trained_nets((40, 30, 40), (30, 10, 20)), ["inconclusive", "out of reach here"]),  # not trained to the end
        (trained_nets((40, 30, 40), (30, 10, 20), paper=True), ["contradicted", "reproduced"]),
        (trained_nets((40, 30, 40), (30, 20, 10), test=(7.0, 8.8), paper=True), ["reproduced", "inconclusive"]),
        (trained_nets((40, 30, 40), (30, 20, 10), test=(9.9, 9.0), paper=True), ["reproduced", "contradicted"]),
    ],
)
def test_the_image_nets_are_judged_by_order_and_by_table_6(measured, verdicts):
    assert [finding.verdict for finding in cifar.judge(measured)] == verdicts


def faded(factors, at_two=0.88):
    curve = {"factor": [0.5], "keep": [0.5]}
    return {
        "scale": 0.1,
        "curves": {"time": {f"LSTM, forget bias {bias}": curve for bias in gradient_flow.BIASES}},
        "scales": [
            {"scale": 0.1}
            | {
                f"bias {bias}": {"factor": [factor], "keep": [0.5]}
                for bias, factor in zip((0, 1, 2), (at_zero, 0.73, at_two), strict=True)
            }
            for at_zero in factors
        ],
    }


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (faded([0.5, 0.54]), "reproduced"),
        (faded([0.5, 0.6]), "inconclusive"),
        (faded([0.6, 0.6]), "contradicted"),
        (faded([0.5, 0.5], at_two=0.84), "contradicted"),
    ],
)
def test_gradient_flow_judges_by_the_factor_a_step(measured, verdict):
    assert [finding.verdict for finding in gradient_flow.judge(measured)] == [verdict]


def climbed(gap=0.0, from_numpy=0.0, worst=0.95):
    rung = {"rung": "a rung", "from_numpy": from_numpy, "arrives": [1.0]}
    ladder = [{**rung, "accuracy": [accuracy]} for accuracy in (0.96, worst, 0.97)]
    rows = [
        {"law": claim, "claim": claim, "dtype": dtype, "difference": gap, "allowed": 0.0}
        for claim in rotation.EXPERIMENT.claims
        for dtype in ("float32", "float64")
    ]
    return {"laws": rows, "ladder": ladder, "trained_on": "digits"}


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        (climbed(), ["reproduced"] * 3),
        (climbed(worst=0.9), ["inconclusive", "reproduced", "reproduced"]),
        (climbed(from_numpy=1e-3), ["contradicted", "reproduced", "reproduced"]),
        (climbed(gap=1e-30), ["contradicted"] * 3),
        (climbed(gap=float("nan")), ["contradicted"] * 3),
    ],
)
def test_rotation_judges_laws_rungs_and_training(measured, verdicts):
    assert [finding.verdict for finding in rotation.judge(measured)] == verdicts


SHORTCUTS = ("identity", "shortcut:-6", "exclusive:-6", "0.5/0.5", "shortcut:0", "0.5/1", "exclusive:0")


def turned(errors=(0.3, 0.3, 0.4, 0.5, 0.51, 0.9, 0.9), until=(20, 20, 60, 60, 90), seeds=3, paper=False):
    """Of each shortcut the errors; of each cell after how many stretches it is solved, 0 for never."""
    rows = [
        {"axis": "depth", "setting": name, "error": [error - 0.01, error, error + 0.01][:seeds]}
        for name, error in zip(SHORTCUTS, errors, strict=True)
    ]
    for name, solved in zip(("1997", "bias:5", "bias:1", "GRU", "bias:0"), until, strict=True):
        curve = [0.0 if solved and k >= solved else 0.9 for k in range(1, 101)]
        rows.append({"axis": "time", "setting": name, "errors": [curve] * seeds})
    return {"rows": rows, "depth": 8, "steps": 2, "at paper size": paper}


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        (turned(), ["reproduced"] * 3),
        (turned(seeds=2), ["inconclusive"] * 3),
        (turned((0.31, 0.3, 0.4, 0.52, 0.5, 0.9, 0.9)), ["reproduced"] * 3),  # what is near in the paper may change
        (
            turned((0.3, 0.3, 0.4, 0.5, 0.5, 0.51, 0.9)),
            ["inconclusive", "reproduced", "reproduced"],
        ),  # it does not fail
        (turned((0.3, 0.3, 0.6, 0.5, 0.5, 0.9, 0.9)), ["inconclusive", "reproduced", "reproduced"]),
        (turned((0.3, 0.3, 0.6, 0.5, 0.5, 0.9, 0.9), paper=True), ["contradicted", "reproduced", "reproduced"]),
        (turned((0.3, 0.3, 0.4, 0.5, 0.5, 0.51, 0.9), paper=True), ["inconclusive", "reproduced", "reproduced"]),
        (turned(until=(20, 20, 30, 30, 90)), ["reproduced", "inconclusive", "reproduced"]),  # only half as long again
        (turned(until=(20, 20, 20, 20, 90)), ["reproduced", "contradicted", "reproduced"]),
        (turned(until=(10, 20, 60, 60, 90)), ["reproduced", "contradicted", "reproduced"]),
        (turned(until=(20, 20, 0, 40, 0)), ["reproduced", "reproduced", "contradicted"]),
        (turned(until=(0, 0, 60, 60, 80)), ["reproduced", "contradicted", "inconclusive"]),  # no gap to close
        (turned(until=(0, 0, 0, 60, 0)), ["reproduced", "inconclusive", "inconclusive"]),  # bounds, and too wide
        (turned(until=(20, 20, 60, 0, 0)), ["reproduced", "reproduced", "inconclusive"]),
    ],
)
def test_the_dial_judges_by_spread_and_by_ratios_of_sequences(measured, verdicts):
    assert [finding.verdict for finding in dial.judge(measured)] == verdicts


def test_every_shortcut_has_a_folder_of_its_own():
    recipes = [dial.nets.Recipe(conv_resnet.Config(8, step), "digits", 1) for step in dial.STEPS.values()]
    assert len({dial.nets.name_of(recipe, 1) for recipe in recipes}) == len(recipes)


def test_temporal_order_asks_for_what_stands_in_its_sequences():
    given = order.sequences(jax.random.key(0), 500, 100)
    symbols = np.asarray(given.xs.argmax(-1)).T
    assert set(np.asarray(given.lengths)) == set(range(100, 111))
    for row, length, label in zip(symbols, np.asarray(given.lengths), np.asarray(given.classes), strict=True):
        (places,) = np.nonzero(np.isin(row[:length], (order.X, order.Y)))
        assert all(low <= at <= high for at, (low, high) in zip(places, order.PLACES, strict=True))
        assert label == ((row[places] == order.Y) * [4, 2, 1]).sum()
        assert row[0] == order.START and row[length - 1] == order.END
        assert set(np.delete(row[:length], np.append(places, [0, length - 1]))) <= {1, 2, 3, 4}


def nothing_added(branch):
    return conv.scaled(branch, 0.5, 0.0)


def test_a_line_that_adds_nothing_hands_the_product_of_its_keeps_back_along_either_axis():
    key = jax.random.key(0)
    p, xs = order.init(key, order.KINDS["1997"], 3), order.sequences(key, 2, 10).xs
    long = probing.of_cell(lambda p, c, h, x: (0.5, 0 * c, lambda c: (h, h)), p, xs, key)
    model = conv_resnet.Config(8, conv_resnet.Step(shortcut=nothing_added), width=2, channels=1)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), conv_resnet._shapes(model))
    stem = params.net[0]._replace(norm=conv.BatchNorm(jnp.ones(2), 9 * jnp.ones(2)))  # no rectifier closes
    images = jax.random.uniform(key, (2, 8, 8, 1))
    deep = probing.of_net(model, params._replace(net=(stem, *params.net[1:])), images, key)
    assert (long["keep"], deep["keep"]) == (0.5, 0.5)
    assert long["log10_gain"] == pytest.approx(10 * np.log10(0.5), abs=1e-5)
    assert deep["log10_gain"] == pytest.approx(2 * np.log10(0.5), abs=1e-5)


def test_laws_notice_a_cell_that_breaks_them(monkeypatch):
    x = jnp.asarray(data.images("digits").test_x[:4]).swapaxes(0, 1)
    monkeypatch.setattr(laws, "turn", lambda cell: lambda p, left, below: cell(p, left, below))
    table = {law.name: law.measure(x, "float32") for law in laws._laws()[:1]}
    assert table["turn(turn(c)) is c"] == 0  # a turn that does nothing keeps this law ...
    with pytest.raises((TypeError, ValueError)):  # ... and no other
        laws._laws()[1].measure(x, "float32")


# Data.


def test_digits_are_split_once_and_for_all():
    images = data.images("digits")
    assert images.train_x.shape == (1437, 8, 8) and images.test_x.shape == (360, 8, 8)
    assert images.train_x.dtype == np.float32 and images.train_x.min() == 0 and images.train_x.max() == 1
    counts = np.bincount(np.concatenate([images.train_y, images.test_y]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.sha256 == "cf7e26e57b05ca0df6c8c74907284c3304259880cb7ebc523919b068a1ba6454"


@pytest.fixture
def mnist_file(tmp_path, monkeypatch):
    """A small idx file under an official name, its digest in the table, and both places empty."""
    name, pixels = "t10k-images-idx3-ubyte.gz", np.arange(2 * 3 * 3, dtype=np.uint8)
    content = bytes([0, 0, 8, 3]) + np.array([2, 3, 3], ">u4").tobytes() + pixels.tobytes()
    monkeypatch.setitem(files.DIGESTS, f"mnist/{name}", data.hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("LSTM_ROT_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(files, "user_cache_path", lambda app: tmp_path / "cache")
    return name, gzip.compress(content), pixels.reshape(2, 3, 3)


def test_data_is_taken_from_the_folder_the_cache_or_the_address(mnist_file, tmp_path):
    name, packed, pixels = mnist_file
    official = tmp_path / "official" / name
    official.parent.mkdir()
    official.write_bytes(packed)
    address = official.as_uri()
    np.testing.assert_array_equal(data._idx(data.file("mnist", name, address)), pixels)  # downloaded, and kept
    official.unlink()
    np.testing.assert_array_equal(data._idx(data.file("mnist", name, address)), pixels)
    assert [path.name for path in (tmp_path / "cache" / "mnist").iterdir()] == [name]


@pytest.mark.parametrize("case", ["missing", "truncated", "damaged", "other content", "unknown"])
def test_data_errors_name_the_file_the_address_and_the_digest(case, mnist_file, tmp_path, monkeypatch):
    name, packed, _ = mnist_file
    address, place = data.MNIST + name, tmp_path / "mine" / "mnist" / name

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(files.urllib.request, "urlopen", no_network)
    place.parent.mkdir(parents=True)
    if case == "truncated":
        place.write_bytes(packed[:-9])
    elif case == "damaged":
        place.write_bytes(packed[:10] + b"\xff" + packed[11:])
    elif case == "other content":
        place.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(data.DataError) as error:
        data.images("cifar11") if case == "unknown" else data.file("mnist", name, address)
    said = {
        "missing": [name, str(place), str(tmp_path / "cache"), address, files.DIGESTS[f"mnist/{name}"]],
        "truncated": [str(place), "no whole gzip file", files.DIGESTS[f"mnist/{name}"], address],
        "damaged": [str(place), "no whole gzip file", files.DIGESTS[f"mnist/{name}"], address],
        "other content": [str(place), "corrupt", files.DIGESTS[f"mnist/{name}"], address],
        "unknown": ["cifar11", "digits, mnist"],
    }[case]
    assert all(part in str(error.value) for part in said), error.value
    assert case == "missing" or case == "unknown" or place.exists()  # nothing of the user's is deleted


# Command lines.


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda out: harness.main(rotation.EXPERIMENT, ["--preset", "huge", "--results", out]), "known are quick, cpu"),
        (lambda out: everything.main(["--only", "rotations", "--results", out]), "known are gradient_flow, rotation, "),
        (lambda out: everything.main(["--preset", "huge", "--results", out]), "known are quick, cpu"),
        (
            lambda out: harness.main(rotation.EXPERIMENT, ["--results", f"{out}/file/x"]),
            "choose a folder with --results",
        ),
        (lambda out: everything.main(["--results", f"{out}/file/x"]), "choose a folder with --results"),
        (lambda out: harness.main(degradation.EXPERIMENT, ["--data", "cifar11", "--results", out]), "digits, mnist"),
        (lambda out: harness.main(degradation.EXPERIMENT, ["--pieces", "7", "--results", out]), "must divide the 64"),
        (
            lambda out: harness.main(degradation.EXPERIMENT, ["--pieces", "0", "--results", out]),
            "--pieces 0: give a number",
        ),
        (lambda out: harness.main(rotation.EXPERIMENT, ["--seeds", "0", "--results", out]), "--seeds 0: give a number"),
        (lambda out: harness.main(dial.EXPERIMENT, ["--cells", "bias:7", "--results", out]), "known are 1997, bias:-2"),
        (lambda out: harness.main(dial.EXPERIMENT, ["--sequences", "7", "--results", out]), "a divisor of 2000"),
        (lambda out: harness.main(gradient_flow.EXPERIMENT, ["--steps", "65", "--results", out]), "only 64 pixels"),
    ],
)
def test_a_run_that_cannot_begin_says_why_before_it(call, said, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        call(str(tmp_path))
    assert said in str(stop.value.code)
    assert not list(tmp_path.glob("*.json"))


def test_a_run_that_diverges_is_still_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(laws, "_laws", list)
    monkeypatch.setattr(ladder, "LADDER", ladder.LADDER[::6])
    config = replace(TINY["rotation"], learning_rate=1e30)
    measured = {**rotation.EXPERIMENT.run(config, Progress(disable=True)), "laws": climbed()["laws"]}
    diverged = replace(rotation.EXPERIMENT, run=lambda config, progress: measured)
    harness.execute(diverged, "quick", config, tmp_path, Progress(disable=True))
    harness.main(diverged, ["--redraw", "--results", str(tmp_path)])
    assert (tmp_path / "rotation.png").exists() and "null" in (tmp_path / "rotation.json").read_text()


def test_the_page_passes_over_what_it_cannot_read(tmp_path):
    (tmp_path / "rotation.json").write_text("{ half a result")
    everything.write_page(tmp_path, set())
    page = (tmp_path / "index.html").read_text()
    assert "SUT24-rotate" in page and "published result" in page


def test_list_names_every_experiment_and_runs_none(capsys, tmp_path):
    everything.main(["--list", "--results", str(tmp_path / "new")])
    out = capsys.readouterr().out
    assert all(name in out for experiment in EXPERIMENTS for name in (experiment.name, *experiment.claims))
    assert not (tmp_path / "new").exists()


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch):
    def interrupted(config, progress):
        raise KeyboardInterrupt

    small = replace(gradient_flow.EXPERIMENT, presets={"quick": TINY["gradient_flow"]})
    stopped = replace(rotation.EXPERIMENT, run=interrupted)
    monkeypatch.setattr(everything, "EXPERIMENTS", {"gradient_flow": small, "rotation": stopped})
    with pytest.raises(SystemExit, match=r"kept gradient_flow; see .*index\.html"):
        everything.main(["--results", str(tmp_path)])
    page = (tmp_path / "index.html").read_text()
    assert (tmp_path / "gradient_flow.json").exists() and "JOZ15-delta" in page and "not run yet" in page
