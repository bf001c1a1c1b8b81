"""The language-model experiment: equal sizes, its rule, a run that was stopped, and what it writes on."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.progress import Progress

from experiments import data, files, harness, language_model
from experiments.language_model import generate, judging, training
from experiments.language_model.bodies import count, sized
from lstm_rot.training import log
from lstm_rot.training.log import JSON_LINES
from lstm_rot.training.mesh import make_mesh
from lstm_rot.training.run import Stopped, _Signals

pytestmark = pytest.mark.usefixtures("settings_of_a_user")


@pytest.mark.parametrize("parameters", [20_000, 200_000, 5_000_000])
def test_all_models_have_about_as_many_parameters(parameters):
    counts = [count(sized(name, parameters, 2)) for name in ("lstm", "gru", "highway", "transformer")]
    assert max(abs(n / parameters - 1) for n in counts) < 0.1, counts


def run_of(model, seed, early, gain, length=256, parameters=2_000_000):
    """A curve of `early` at first, then from position 64 to the last quarter `gain` bits better."""
    curve = np.concatenate([np.full(64, early), np.full(32, 2.0), np.full(length - 96, 2.0 - gain)])
    return {"model": model, "seed": seed, "by_position": curve[:length].tolist(), "parameters": parameters}


def measured(lstm, turned, early=(3.0, 3.0), **options):
    return {
        "runs": [
            run_of(name, seed, start, gain, **options)
            for name, start, gains in (("lstm", early[0], lstm), ("transformer", early[1], turned))
            for seed, gain in enumerate(gains)
        ]
    }


@pytest.mark.parametrize(
    ("measurements", "verdict"),
    [
        (measured([-0.01, 0.0, 0.01], [0.2, 0.21, 0.22]), "reproduced"),
        (measured([0.05, 0.05, 0.06], [0.2, 0.21, 0.22]), "inconclusive"),  # the LSTM goes on improving
        (measured([-0.01, 0.0, 0.01], [0.0, 0.01, 0.02]), "inconclusive"),
        (measured([0.2, 0.21, 0.22], [0.0, 0.01, 0.02]), "contradicted"),
        (measured([-0.01, 0.0, 0.01], [0.2, 0.21, 0.22], early=(3.0, 3.3)), "inconclusive"),
        (measured([-0.01, 0.01], [0.2, 0.22]), "inconclusive"),  # two seeds
        (measured([-0.01, 0.0, 0.01], [0.2, 0.21, 0.22], length=128), "inconclusive"),
        (measured([-0.01, 0.0, 0.01], [0.2, 0.21, 0.22], parameters=200_000), "inconclusive"),
        (measured([0.2, 0.21, 0.22], [0.0, 0.01, 0.02], parameters=200_000), "inconclusive"),
        ({"runs": [run_of("lstm", 0, 3.0, 0.0)]}, "inconclusive"),
    ],
)
def test_kaplans_claim_is_judged_by_gain_and_spread(measurements, verdict):
    (finding,) = judging.judge(measurements)
    assert (finding.id, finding.verdict) == ("KAP20-fig7", verdict), finding.ours


TINY = replace(
    language_model.PRESETS["quick"],
    models=("transformer",),
    parameters=5000,
    layers=1,
    context=16,
    batch=8,
    steps=8,
    points=4,
    save_every=4,
)


@pytest.fixture
def short(monkeypatch):
    """The beginning of the manual as all of it."""
    text = data._divided("manual", data.text("manual").train[:9000], "the beginning")
    monkeypatch.setitem(data.TEXTS, "manual", lambda: text)


@pytest.mark.usefixtures("short")
def test_a_run_that_was_stopped_ends_with_the_numbers_of_one_that_was_not(tmp_path, monkeypatch):
    whole = language_model.run(replace(TINY, runs=str(tmp_path / "whole")), Progress(disable=True))
    config = replace(TINY, runs=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(_Signals, "stop_after", lambda self, step: step == 5)
        with pytest.raises(Stopped):
            language_model.run(config, Progress(disable=True))
    with pytest.raises(harness.Refused, match=r"config.*steps"):
        language_model.run(replace(config, steps=9), Progress(disable=True))
    gone_on = language_model.run(config, Progress(disable=True))
    for each, other in zip(whole["runs"], gone_on["runs"], strict=True):
        assert {**each, "bytes_per_second": 0} == {**other, "bytes_per_second": 0}
    assert whole["data"]["name"] == "manual"

    # and what was trained writes on
    options = generate.Options("def", model="transformer", runs=config.runs, length=20)
    likeliest, drawn = (
        [generate.generated(replace(options, temperature=heat, draw=draw)) for draw in (0, 1)] for heat in (0.0, 1.0)
    )
    assert likeliest[0] == likeliest[1] and drawn[0] != drawn[1]
    with pytest.raises(ValueError, match=r"no model in .*gru-0: there is transformer-0 in .*--models gru"):
        generate.generated(replace(options, model="gru"))

    # another config takes its place without destroying it
    training._make_way(training.setup(config, "transformer", 0)._replace(identity={"steps": 9}))
    with pytest.raises(ValueError, match=r"there is transformer-0-\d{8}-\d{6} in"):
        generate.generated(options)


@pytest.mark.usefixtures("short")
def test_a_run_tells_its_share_of_the_peak_and_leaves_a_profile(tmp_path, monkeypatch):
    """The FLOPs of a step are those of its products: about 6 a weight and byte, the embedding's aside."""
    monkeypatch.setattr(log, "peak", lambda: 1e9)
    config = replace(TINY, models=("lstm",), seeds=1, points=1, profile=1, runs=str(tmp_path))
    language_model.run(config, Progress(disable=True))
    rows = [json.loads(line) for line in (tmp_path / "lstm-0" / JSON_LINES).read_text().splitlines()]
    shares = [row["share_of_peak"] / row["items_per_second"] for row in rows if "share_of_peak" in row]
    model = training.setup(config, "lstm", 0).model
    products = count(model) - 256 * model.body.input_size
    assert shares and shares[-1] * 1e9 == pytest.approx(6 * products, rel=0.5)
    assert list((tmp_path / "lstm-0" / "profile").rglob("*.xplane.pb"))


@pytest.mark.usefixtures("short")
def test_layers_over_stages_train_as_without(tmp_path, monkeypatch):
    """`--mesh stage=2`: a pipeline in chunks of time, or of the batch, and the losses of the run without one."""
    monkeypatch.setattr(training, "make_mesh", lambda text: make_mesh(text, jax.devices()[:2]))
    losses = {}
    for mesh in ("stage=2", "data=2"):
        for name in ("lstm", "transformer"):
            config = replace(TINY, layers=2, steps=3, points=1, chunks=3, mesh=mesh, runs=str(tmp_path / mesh))
            run = training.setup(config, name, 0)
            training.trained_state(config, run, data.text("manual"), 0)
            rows = [json.loads(line) for line in (run.folder / JSON_LINES).read_text().splitlines()]
            losses[mesh, name] = [row["loss"] for row in rows]
    for name in ("lstm", "transformer"):
        np.testing.assert_allclose(losses["stage=2", name], losses["data=2", name], rtol=1e-5)


def test_bits_are_those_of_the_bytes():
    """Of a model that finds all bytes equally likely: 8."""
    model = sized("lstm", 9000, 1)
    params = training.language_model.init(jax.random.key(0), model)
    params = params._replace(out=jnp.zeros((params.body[0].wh.shape[-1], 256)))
    positions = training.by_position(model, params, training.windows(bytes(range(256)) * 3, 16))
    np.testing.assert_allclose(positions, np.full(16, 8.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mesh", "data=3"], "what fits is data=8"),
        (["--batch", "9"], "batch=9 does not divide over the mesh"),
        (["--context", "500000"], "length=500000"),
        (["--points", "50", "--steps", "20"], "at least as many steps as points"),
        (["--data", "novel"], "known are manual, shakespeare, wikitext-2"),
    ],
)
def test_what_cannot_run_is_refused(options, said, tmp_path):
    with pytest.raises(SystemExit) as error:
        harness.main(
            language_model.EXPERIMENT,
            [*options, "--results", str(tmp_path), "--runs", str(tmp_path)],
        )
    assert said in str(error.value)


def test_texts(tmp_path, monkeypatch):
    text = data.text("manual")
    sizes = [len(part) for part in text[1:4]]
    assert sum(sizes) > 300_000 and abs(sizes[0] / sum(sizes) - 0.9) < 1e-3 and len(text.sha256) == 64
    content = b"To be, or not to be. " * 40
    monkeypatch.setitem(files.DIGESTS, "tinyshakespeare/input.txt", data.hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("LSTM_ROT_DATA", str(tmp_path))
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(content)
    assert b"".join(data.text("shakespeare")[1:4]) == content
    assert json.dumps(text.provenance)
