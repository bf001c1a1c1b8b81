"""Checkpoints: restored bit by bit on any mesh, and never lost to a crash, a full disk or an altered file."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_exact
from jax.sharding import PartitionSpec

from lstm_rot.training import sharding
from lstm_rot.training.checkpoints import CheckpointError, Checkpoints, read
from lstm_rot.training.mesh import make_mesh
from lstm_rot.training.step import State, init_state


@dataclasses.dataclass(frozen=True)
class Config:
    hidden_size: int = 16
    rates: tuple[float, ...] = (0.1, 0.2)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "adamw", "decay": None})


CONFIG = Config()
OPTIMIZER = optax.adamw(1e-3)
SPECS = {
    "w": PartitionSpec(None, "model"),
    "b": PartitionSpec("model"),
    "half": PartitionSpec("data"),
    "runs": ({"scale": PartitionSpec()}, {"scale": PartitionSpec("model")}),
}


def init(key: jax.Array) -> dict[str, Any]:
    keys, normal = jax.random.split(key, 5), jax.random.normal
    runs = ({"scale": normal(keys[0], (), "float32")}, {"scale": normal(keys[1], (16, 1), "float32")})
    return {
        "w": normal(keys[2], (8, 16), "float32"),
        "b": normal(keys[3], (16,), "float64"),
        "half": normal(keys[4], (24,), "bfloat16"),
        "runs": runs,
    }


@cache
def made(seed: int) -> State:
    """A state in which no number is zero, in numpy arrays."""
    state = jax.device_get(init_state(init, OPTIMIZER, jax.random.key(seed)))
    return jax.tree.map(lambda x: x if x.dtype == bool else x + np.ones((), x.dtype) * 3, state)


def make(seed: int, shardings: Any = None) -> State:
    return jax.device_put(made(seed), shardings)


SHAPES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), made(0))


def on_mesh(text: str, devices: int) -> State:
    """The shardings of a state."""
    mesh = make_mesh(text, jax.devices()[:devices])
    return sharding.of_state(mesh, SPECS, SHAPES, OPTIMIZER, zero1=True)


def like(shardings: State) -> State:
    return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), SHAPES, shardings)


def opened(folder: Path, config: Any = CONFIG, **options: Any) -> Checkpoints:
    return Checkpoints(folder, config=config, **options)


def restored(folder: Path, template: Any = SHAPES, **options: Any) -> Any:
    with opened(folder, **options) as checkpoints:
        return checkpoints.restore(template)


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    with opened(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make(step), {"next": step})
    return folder


@pytest.fixture
def copy(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "copy"))


def test_a_state_comes_back_bit_by_bit_on_every_mesh(tmp_path):
    meshes = [("data=2,model=4", 8), ("model=2", 2), ("data=8", 8)]
    state = make(5, on_mesh(*meshes[0]))
    expected, data = jax.device_get(state), {"next": 7, "plan": {"seed": 0}}
    for step, mesh in enumerate(meshes):
        with opened(tmp_path) as checkpoints:
            if step:
                found: Any = checkpoints.restore(like(on_mesh(*mesh)))
                assert (found.step, found.data, found.metrics) == (step - 1, data, {"loss": 0.5})
                state = found.state
                jax.tree.map(
                    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(), state, on_mesh(*mesh)
                )
            assert_exact(jax.device_get(state), expected)
            checkpoints.save(step, state, data, {"loss": np.float32(0.5)})
    found = restored(tmp_path)  # no shardings: on the first device
    assert_exact(jax.device_get(found.state), expected)
    assert found.state.params["w"].devices() == {jax.devices()[0]}


@pytest.mark.parametrize("devices", (1, 8))
def test_what_is_saved_is_the_state_at_the_call_though_training_goes_on_in_its_place(tmp_path, devices):
    place = sharding.batch(make_mesh("", jax.devices()[:devices]))
    state = jax.device_put({"w": np.arange(1 << 20, dtype="float32")}, place)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    expected, data = jax.tree.map(np.array, state), {"next": 1}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state, data)
        for _ in range(20):
            state = step(state)
        data["next"] = 2
        jax.block_until_ready(state)
    found = restored(tmp_path, state)
    assert_exact(jax.device_get(found.state), expected)
    assert found.data == {"next": 1}


def test_the_last_and_the_best_are_kept(tmp_path):
    small = {"w": jnp.ones(3)}
    losses = {1: {"loss": 4.0}, 2: {"loss": 1.0}, 3: {"loss": 3.0}, 4: {"loss": float("nan")}, 5: {}, 6: {"loss": 2.5}}
    for part in ((1, 2, 3), (4, 5, 6)):  # the second by another run
        with opened(tmp_path, keep=2, best="loss") as checkpoints:
            checkpoints.restore(small)
            for step in part:
                checkpoints.save(step, small, None, losses[step])
    assert steps(tmp_path) == ["2", "5", "6"]
    assert restored(tmp_path, small).metrics == {"loss": 2.5}


def test_an_empty_folder_has_nothing_to_restore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with opened(Path("a/b")) as checkpoints:  # made, and absolute for Orbax
        assert checkpoints.restore(SHAPES) is None
        checkpoints.save(3, make(0), None)
    assert steps(tmp_path / "a" / "b") == ["3"]
    assert restored(Path("a/b")).step == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, Callable[[Path], None]] = {"flipped": flip, "cut": cut, "removed": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(two, tmp_path, damage):
    names = [path.relative_to(two / "2") for path in sorted((two / "2").rglob("*")) if path.is_file()]
    noticed = 0
    for number, name in enumerate(names):
        folder = Path(shutil.copytree(two, tmp_path / str(number)))
        DAMAGE[damage](folder / "2" / name)
        if len(name.parts) == 1 and name.name != "digests.json":  # Orbax's notes of when it wrote, not needed
            found = restored(folder)
            assert found.step in (1, 2)
        else:
            file = "" if name.name == "digests.json" else str(name)  # which may name another file, once altered
            with pytest.warns(UserWarning, match=f"{folder / '2'}: {file}") as warned:
                found = restored(folder)
            assert len(warned) == 1 and found.step == 1
            assert steps(folder) == ["1", "2.damaged"]
            noticed += 1
        assert_exact(jax.device_get(found.state), made(found.step))
        assert found.data == {"next": found.step}
    assert noticed > 5


def test_reading_writes_nothing_into_a_folder_that_another_saves_into(copy, tmp_path):
    """A half-written save stays, a damaged checkpoint is passed over where it lies; another config is refused."""
    (copy / "3.orbax-checkpoint-tmp").mkdir()
    cut(copy / "2" / "digests.json")

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() if path.is_file() else b"" for path in copy.rglob("*")}

    before = content()
    found: Any = read(copy, config=CONFIG, like=SHAPES)
    assert found.step == 1 and found.data == {"next": 1}
    assert_exact(jax.device_get(found.state), made(1))
    with pytest.raises(CheckpointError, match="hidden_size is 16 there, 8 here"):
        read(copy, config=Config(hidden_size=8), like=SHAPES)
    assert content() == before
    assert read(tmp_path / "nowhere", config=CONFIG, like=SHAPES) is None and not (tmp_path / "nowhere").exists()


def test_an_emptied_checkpoint_is_passed_over_and_its_step_can_be_saved_again(copy):
    for _ in range(2):
        shutil.rmtree(copy / "2")
        (copy / "2").mkdir()
        with pytest.warns(UserWarning, match="digests.json cannot be read"), opened(copy) as checkpoints:
            found: Any = checkpoints.restore(SHAPES)
            assert found.step == 1
            checkpoints.save(2, make(2), {"next": 2})
    assert steps(copy) == ["1", "2", "2.damaged", "2.damaged-2"]
    assert_exact(jax.device_get(restored(copy).state), made(2))


def test_if_all_are_damaged_nothing_is_touched_or_begun_anew(copy):
    for step in "12":
        cut(copy / step / "digests.json")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole .2: digests.json was altered; 1: "):
        opened(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_those_of_an_older_version_are_refused_by_name(copy):
    for step in "12":
        path = copy / step / "digests.json"
        path.write_text(path.read_text().replace("crc32", "sha256"))
    with pytest.raises(CheckpointError, match=r"2: digests.json has no CRC-32 of .*: an older version wrote it; 1: "):
        opened(copy)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(hidden_size=32), "config.hidden_size is 16 there, 32 here"),
        (Config(rates=(0.1,)), "config.rates is [0.1, 0.2] there, [0.1] here"),
        (Config(optimizer={"name": "sgd"}), "config.optimizer.name is 'adamw' there, 'sgd' here"),
        (dataclasses.asdict(Config()) | {"new": 1}, "config.new is None there, 1 here"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused_and_left(copy, config, message):
    shutil.rmtree(copy / "2" / "state")  # even a damaged one
    with pytest.raises(CheckpointError, match=re.escape(message)):
        opened(copy, config=config)
    assert steps(copy) == ["1", "2"]


def test_the_first_leaf_that_differs_is_named(copy):
    wider = SHAPES.replace(params=SHAPES.params | {"w": jax.ShapeDtypeStruct((8, 32), "float32")})
    more = SHAPES.replace(params=SHAPES.params | {"v": SHAPES.params["w"]})
    half = SHAPES.replace(params=SHAPES.params | {"b": jax.ShapeDtypeStruct((16,), "bfloat16")})
    for template, message in (
        (wider, "state.params['w'] is 'float32[8, 16]' there, 'float32[8, 32]' here"),
        (more, "state.params['v'] is None there, 'float32[8, 16]' here"),
        (half, "state.params['b'] is 'float64[16]' there, 'bfloat16[16]' here"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            restored(copy, template)
    assert steps(copy) == ["1", "2"]


def test_the_checkpoint_says_what_made_it(two):
    about = json.loads((two / "2" / "about" / "metadata").read_text())
    assert about["config"] == {"hidden_size": 16, "rates": [0.1, 0.2], "optimizer": {"name": "adamw", "decay": None}}
    assert about["versions"]["jax"] == jax.__version__
    assert set(about["versions"]) == {
        "python",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "lstm_rot",
    }


def large() -> dict[str, jax.Array]:
    return {"w": jax.random.normal(jax.random.key(0), (1 << 19,), "float32")}  # 2 MB that no compression makes smaller


def fill_up(folder: Path, kept: Any, resume: Callable[[], Any]) -> None:
    """Saves until there is no room, makes room, and goes on."""
    checkpoints = opened(folder)
    checkpoints.restore(kept)
    checkpoints.save(2, large(), None)
    with pytest.raises(CheckpointError, match=rf"step 2 was not saved to {folder}, .* bytes free: .*from step 1"):
        checkpoints.wait()
    checkpoints.close()  # said once
    resume()
    with opened(folder) as checkpoints:
        found: Any = checkpoints.restore(kept)
        assert_exact(jax.device_get(found.state), jax.device_get(kept))
        assert found.step == 1
        checkpoints.save(2, kept, None)
    assert steps(folder) == ["1", "2"]


def test_a_file_that_cannot_be_written_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    kept = {"w": jnp.arange(10.0)}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, kept, None)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1 << 20, unlimited[1])
    )  # writing more is an error: Python ignores SIGXFSZ
    try:
        fill_up(tmp_path, kept, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, unlimited))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    disk, kept = tmp_path / "disk", {"w": jnp.arange(10.0)}
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("a file system cannot be mounted here")
    try:
        with opened(disk / "run") as checkpoints:
            checkpoints.save(1, kept, None)
        larger = ["mount", "-o", "remount,size=9m", str(disk)]
        fill_up(disk / "run", kept, lambda: subprocess.run(larger, check=True))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_error_of_the_background_comes_with_the_next_call(tmp_path, monkeypatch):
    def fail(checkpoints):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Checkpoints, "_write_digests", fail)
    for call in (lambda c: c.save(2, make(0), None), Checkpoints.wait, Checkpoints.close):
        checkpoints = opened(tmp_path)
        checkpoints.save(1, make(0), None)
        with pytest.raises(CheckpointError, match=r"step 1 was not saved .* the disk is gone; no checkpoint is there"):
            call(checkpoints)
        checkpoints.close()
        assert restored(tmp_path) is None


KILLED = """
import os, sys
import jax.numpy as jnp
from lstm_rot.training.checkpoints import Checkpoints

folder, moment = sys.argv[1:]
write = Checkpoints._write_digests
calls = []

def killed(checkpoints):
    calls.append(1)
    if len(calls) == 2 and moment == "before the digests":
        os.kill(os.getpid(), 9)
    write(checkpoints)
    if len(calls) == 2 and moment == "after the digests":
        os.kill(os.getpid(), 9)

Checkpoints._write_digests = killed
checkpoints = Checkpoints(folder, config={}, keep=1)
checkpoints.save(1, {"w": jnp.arange(4.0)}, {"next": 1})
checkpoints.save(2, {"w": jnp.ones(1 << 22)}, {"next": 2})
if moment == "at once":
    os.kill(os.getpid(), 9)
checkpoints.close()
"""


@pytest.mark.parametrize("moment", ("at once", "before the digests", "after the digests"))
def test_killed_in_the_middle_of_a_save_the_one_before_is_there(tmp_path, moment):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], env=os.environ | {"XLA_FLAGS": ""})
    assert run.returncode == -signal.SIGKILL
    if moment != "at once":
        assert any(name.startswith("2.") for name in steps(tmp_path))  # half of it is there
    small = {"w": jax.ShapeDtypeStruct((4,), "float32")}
    with opened(tmp_path, config={}, keep=1) as checkpoints:
        found: Any = checkpoints.restore(small)
        assert (found.step, found.data) == (1, {"next": 1})
        np.testing.assert_array_equal(found.state["w"], np.arange(4.0))
        checkpoints.save(2, found.state, {"next": 2})
    assert steps(tmp_path) == ["2"]


def test_a_folder_that_will_not_do_is_refused_before_training(tmp_path, copy):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(CheckpointError, match=r"holds 'cat.png', which is no checkpoint: choose"):
        opened(tmp_path / "photos")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoints to .*cat.png/run.*choose another"):
        opened(tmp_path / "photos" / "cat.png" / "run")
    with (
        opened(copy) as checkpoints,
        pytest.raises(CheckpointError, match="has a checkpoint of step 2: restore it, or"),
    ):
        checkpoints.save(5, make(0), None)
    assert steps(copy) == ["1", "2"]


def test_a_step_is_saved_once(copy):
    with opened(copy) as checkpoints:
        checkpoints.restore(SHAPES)
        for step in (2, 3, 3):
            checkpoints.save(step, make(9), {"next": 9})
    assert steps(copy) == ["1", "2", "3"]
    assert json.loads((copy / "2" / "about" / "metadata").read_text())["data"] == {"next": 2}


def test_what_cannot_be_kept_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        opened(tmp_path, keep=0)
    with pytest.raises(ValueError, match=r"config is kept as JSON .*PosixPath.* give numbers"):
        opened(tmp_path, config={"data": tmp_path})
    with opened(tmp_path) as checkpoints, pytest.raises(ValueError, match=r"data is kept as JSON .*int64"):
        checkpoints.save(1, make(0), {"next": np.int64(3)})
    assert steps(tmp_path) == []
