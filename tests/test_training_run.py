"""The training loop: what it keeps of a bad step, what its log holds after a resume, what it tells."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_exact
from jax.sharding import PartitionSpec
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
from tensorboardX.record_writer import masked_crc32c

from lstm_rot.training import data, log, mesh, sharding
from lstm_rot.training.checkpoints import Checkpoints
from lstm_rot.training.distributed import Processes, connect
from lstm_rot.training.events import EventFile
from lstm_rot.training.run import NotFinite, Options, train
from lstm_rot.training.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("settings_of_a_user")  # optax's Adam mixes dtypes
OPTIONS = Options(steps=12, save_every=5, log_every=1, evaluate_every=4)
BATCH, EXAMPLES = 4, 64


class Numbers:
    """Inputs and what they should give, read by number; `broken` ends the reading, `poison` makes an example NaN."""

    def __init__(self, *, broken=None, poison=None):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(EXAMPLES, 3)).astype("float32")
        self.y = self.x @ np.array([1, -2, 3], "float32") + 1
        self.broken = broken
        if poison is not None:
            self.y[poison] = np.nan

    def __call__(self, numbers, length=None):
        if self.broken in numbers:
            raise OSError("the disk is gone")
        return {"x": self.x[numbers], "y": self.y[numbers]}


def loss(params, batch, key):
    noise = jax.random.normal(key, batch["y"].shape, "float32")  # as dropout would
    errors = batch["x"] @ params["w"] + params["b"] + 0.01 * noise - batch["y"]
    return (errors**2).sum(), jnp.asarray(errors.size)


OPTIMIZER = optax.adam(0.1)
MESH = mesh.make_mesh("data=4", jax.devices()[:4])
PLAN = data.Epochs(EXAMPLES, batch=BATCH, seed=0)


def first(**options):
    def init(key):
        return {"w": jnp.zeros(3, "float32"), "b": jnp.zeros((), "float32")}

    return init_state(init, OPTIMIZER, jax.random.key(0), **options)


SHAPES = jax.eval_shape(first)
SHARDINGS = sharding.of_state(MESH, jax.tree.map(lambda _: PartitionSpec(), SHAPES.params), SHAPES, OPTIMIZER)
OVER_DATA = sharding.batch(MESH)


@pytest.fixture(scope="module")
def step():
    return make_train_step(loss, OPTIMIZER, shardings=SHARDINGS, batch_sharding=OVER_DATA)


def run(folder, step, examples=None, options=OPTIONS, **more):
    """The state after a run in `folder`."""
    with Checkpoints(folder / "checkpoints", config={}) as kept:
        return train(
            lambda: first(shardings=SHARDINGS),
            step,
            data.batches(examples or Numbers(), PLAN, threads=1, prefetch=1),
            options=options,
            folder=folder,
            checkpoints=kept,
            shardings=SHARDINGS,
            batch_sharding=OVER_DATA,
            **more,
        )


def rows(folder):
    """Of the JSON lines, without times."""
    lines = [json.loads(line) for line in (folder / log.JSON_LINES).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in log.TIMES} for line in lines]


def events(folder):
    """Of TensorBoard's files, read by TensorBoard's own messages, every checksum tested: as `rows`."""
    found = []
    for path in sorted((folder / log.EVENTS).iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event = content[12 : 12 + size]
            checks = content[8:12], content[12 + size : 16 + size]
            assert checks == tuple(masked_crc32c(part).to_bytes(4, "little") for part in (content[:8], event))
            found.append(Event.FromString(event))
            content = content[16 + size :]
        assert found[-1].file_version == "brain.Event:2" or found[-1].step
    values = [{"step": e.step} | {v.tag: v.simple_value for v in e.summary.value} for e in found if e.step]
    return [{name: value for name, value in row.items() if name not in log.TIMES} for row in values]


def test_event_files_are_cut_at_any_step(tmp_path):
    steps = [1, 127, 128, 300, 16384, 10**6]
    for after in (0, 127, 128, 16384, 10**7):
        folder = tmp_path / str(after)
        file = EventFile(folder / log.EVENTS, 0)
        for step in steps:
            file.write(step, 1.7e9, {"loss": step / 8, "längst": -1.0})
        EventFile(folder / log.EVENTS, after).close()
        file.close()
        assert events(folder) == [{"step": n, "loss": n / 8, "längst": -1.0} for n in steps if n <= after]


def evaluate(state):
    return {"evaluation/w": state.params["w"].sum()}


def test_after_a_resume_the_log_and_the_events_hold_every_step_once(tmp_path, step):
    after_eight = Numbers(broken=PLAN[8].numbers[0])
    with pytest.raises(OSError, match="the disk is gone"):
        run(tmp_path / "a", step, after_eight, evaluate=evaluate)
    assert [row["step"] for row in rows(tmp_path / "a")] == list(range(1, 9))  # the last checkpoint is of step 5
    with (tmp_path / "a" / log.JSON_LINES).open("a") as file:
        file.write('{"step": 7, "lo')  # as a kill can leave it
    with next((tmp_path / "a" / log.EVENTS).iterdir()).open("ab") as file:
        file.write(b"\x40\0\0\0\0\0\0\0half a record")

    resumed = run(tmp_path / "a", step, evaluate=evaluate)
    in_peace = run(tmp_path / "b", step, evaluate=evaluate)

    assert_exact(resumed, in_peace)
    assert [row["step"] for row in rows(tmp_path / "a")] == list(range(1, 13))
    assert rows(tmp_path / "a") == rows(tmp_path / "b") == events(tmp_path / "a")
    assert [row["step"] for row in rows(tmp_path / "a") if "evaluation/w" in row] == [4, 8, 12]
    assert rows(tmp_path / "a")[-1]["items"] == 12 * BATCH

    assert_exact(run(tmp_path / "a", step, evaluate=evaluate), resumed)  # nothing is left to do
    assert rows(tmp_path / "a") == events(tmp_path / "a") and len(rows(tmp_path / "a")) == 12
    run(tmp_path / "c", step, options=replace(OPTIONS, log_every=5))
    assert [row["step"] for row in rows(tmp_path / "c")] == [5, 10, 12]


@pytest.mark.parametrize("bad", [1, 6, 9])  # the first step, the first after a checkpoint, one amid
def test_a_step_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path, step, bad):
    poison = PLAN[bad - 1].numbers[2]
    examples = Numbers(poison=poison)
    file = tmp_path / "nonfinite" / f"step-{bad}.npz"
    with pytest.raises(
        NotFinite, match=rf"step {bad} is not finite .*loss nan.*{re.escape(str(file))}.*of step {bad - 1}"
    ):
        run(tmp_path, step, examples)

    batch = dict(np.load(file))
    np.testing.assert_equal(batch, examples(PLAN[bad - 1].numbers))
    with Checkpoints(tmp_path / "checkpoints", config={}) as kept:
        restored = kept.restore(
            jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), SHAPES, SHARDINGS)
        )
    assert restored is not None and restored.step == bad - 1 and not restored.state.halted
    good = run(tmp_path / "good", step, options=replace(OPTIONS, steps=bad - 1)) if bad > 1 else first()
    assert_exact(restored.state, good)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, bad))

    state, metrics = step(restored.state, data.to_devices(batch, OVER_DATA))
    assert math.isnan(metrics["loss"]) and state.halted
    told = json.loads(file.with_suffix(".json").read_text())
    assert told["step"] == bad and told["batches"]["next"] == bad - 1
    resumed = run(tmp_path, step)  # the data mended
    assert_exact(resumed, run(tmp_path / "mended", step))


def test_a_profile_and_the_line(tmp_path, step, capfd, monkeypatch):
    monkeypatch.setattr(log, "PEAKS", {"cpu": 1e6})
    run(tmp_path, step, options=replace(OPTIONS, profile=2), flops=1e3, items="numbers")
    assert list((tmp_path / log.PROFILE).rglob("*.xplane.pb"))
    assert re.search(r"step 12/12  loss [\d.]+  [\d,]+ numbers/s  [\d,]+% of peak  0 s left", capfd.readouterr().err)
    lines = [json.loads(line) for line in (tmp_path / log.JSON_LINES).read_text().splitlines()]
    for before, line in pairwise(lines):
        assert line["items_per_second"] * 1e3 / BATCH == pytest.approx(line["share_of_peak"] * 1e6 * 4 * 2)
        assert line["items_per_second"] == pytest.approx(BATCH / (line["time"] - before["time"]), rel=0.5)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Options(steps=0), "steps=0: give at least 1"),
        (lambda: Options(steps=1, save_every=0), "save_every=0: give at least 1"),
        (lambda: Options(steps=1, profile=-1), "profile=-1: give the number of steps to trace"),
        (lambda: Options(steps=1, patience=0.0), "patience=0.0, long_patience=1800.0: give seconds above 0"),
        (lambda: Options(steps=1, patience=9.0, long_patience=8.0), "patience=9.0, long_patience=8.0"),
        (lambda: Processes("a:1", 2), "process missing: give all of address, processes, process, or none"),
        (lambda: Processes(process=0), "address and processes missing"),
        (lambda: Processes("a:1", 2, 2), "process=2 of processes=2: they count from 0"),
        (lambda: Processes("a", 2, 0), "address='a': give host:port"),
        (lambda: Processes(heartbeat_timeout=0), "heartbeat_timeout=0: give at least 1 second"),
    ],
)
def test_wrong_options_are_refused(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


def test_one_process_needs_no_others():  # nor, in test_processes.py, one that is not told so
    connect(Processes("nowhere:1", 1, 0))
    assert not jax.distributed.is_initialized()
