"""Checkpoints by Orbax: asynchronous, atomic, the last and the best kept, every file checked before it is restored.

    <folder>/<step>/state/        the arrays, in Orbax's format
                    about/        JSON: config, versions, the data's position, metrics, the shapes in the state
                    digests.json  size and SHA-256 of each file, written last, before the folder gets its name
    <folder>/<step>.damaged/      one that failed the check, moved aside and left to you

A folder <step> is whole or is not there, whenever a process dies. What is altered later the digests tell: Orbax alone
would restore an altered array without a word.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

PACKAGES = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "lstm_rot"
DIGESTS = "digests.json"


class CheckpointError(Exception):
    """Nothing was saved, restored or overwritten; the message says why and what to do."""


class Restored(NamedTuple):
    """A checkpoint: the state as the template has it, and the data's position for `Batches.set_state`."""

    step: int
    state: Any
    data: Any
    metrics: dict[str, float]


class Checkpoints:
    """A folder with the checkpoints of one run, a context manager; each process of the run makes one and calls alike.

    config: a dataclass or nested dict of plain values. keep: how many of the last are kept. best: the name of a metric;
    the checkpoint where it is least is kept too.

    Looks for the newest whole checkpoint; damaged ones after it are named by a warning and moved aside.

    Raises ValueError for a keep below 1 and a config that is not JSON. Raises CheckpointError, and changes nothing, for
    a folder that cannot be written or holds something else, and checkpoints of another config or all of them damaged.
    """

    def __init__(self, folder: str | Path, *, config: Any, keep: int = 3, best: str | None = None):
        if keep < 1:
            raise ValueError(f"keep={keep}: keep at least the last checkpoint")
        self._folder, self._best = Path(folder).absolute(), best
        self._config = _plain("config", dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config)  # pyright: ignore
        self._versions = _versions()
        self._found = _agreed(lambda: _newest_whole(self._folder, self._config))
        self._last: int | None = None  # the step saved or restored last
        self._scores = {step: _score(self._folder / str(step), best) for step in _steps(self._folder)}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LastAndBest(keep, self._scores),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),  # weights do not become smaller
                "about": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: Any, data: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Copies the state, of jax arrays, off the devices; the rest is written while training goes on.

        Waits for the save before, and raises what went wrong with it. A step saved already is not saved again.

        Metrics without the one that tells the best, as of a run stopped between evaluations, make it none of the best.

        Raises ValueError for data that are not JSON, CheckpointError where a save failed, and in a folder whose
        checkpoints were not restored.
        """
        if self._found is not None and self._last is None:
            raise CheckpointError(
                f"{self._folder} has a checkpoint of step {self._found}: restore it, or choose a new folder"
            )
        self.wait()
        if step in self._manager.all_steps():
            return
        about = {
            "config": self._config,
            "versions": self._versions,
            "data": _plain("data", data),
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
            "state": _leaves(state),
        }
        self._saving = step
        if self._best is not None:
            self._scores[step] = about["metrics"].get(self._best)
        with self._explained(step):
            args = ocp.args.Composite(state=ocp.args.PyTreeSave(state), about=ocp.args.JsonSave(about))
            self._manager.save(step, args=args, force=True)
        self._last = step

    def restore(self, like: Any) -> Restored | None:
        """The newest whole checkpoint; None for a folder without one.

        like: a tree as was saved, of jax.ShapeDtypeStruct or arrays; each leaf comes to lie on its sharding, on the
        first device where it has none. Raises CheckpointError, naming the first leaf that differs.
        """
        if self._found is None:
            return None
        folder = self._folder / str(self._found)
        about = _about(folder)
        _refuse(folder, _difference("state", about["state"], _leaves(like)))
        like = _placed(like)
        arrays = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        state = self._manager.restore(self._found, args=ocp.args.Composite(state=arrays))["state"]
        self._last = self._found
        return Restored(self._found, state, about["data"], about["metrics"])

    def wait(self) -> None:
        """Until what was saved is whole on disk. Raises CheckpointError where it is not."""
        with self._explained(self._last):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        with self._explained(self._last):
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        """Errors of a save as CheckpointErrors. What Orbax raises is of many kinds: a full disk is three of them."""
        try:
            yield
        except Exception as error:
            whole = max((there for there in _steps(self._folder) if there != step), default=None)
            raise CheckpointError(
                f"step {step} was not saved to {self._folder}, {shutil.disk_usage(self._folder).free:,} bytes free: "
                f"{str(error)[:500]}; "
                + ("no checkpoint is there" if whole is None else f"start again, and the run goes on from step {whole}")
            ) from error

    def _write_digests(self) -> None:
        """Called on the first process, when the files of all are written and the folder has not got its name."""
        (folder,) = self._folder.glob(f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*")
        with (folder / DIGESTS).open("w") as file:
            json.dump({str(path.relative_to(folder)): _digest(path) for path in _files(folder)}, file)
            file.flush()
            os.fsync(file.fileno())


@dataclasses.dataclass
class _LastAndBest:
    """Which checkpoints Orbax keeps: the `last` ones, and that of the least score."""

    last: int
    scores: dict[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps[-self.last :])
        scored = {step: score for step in steps if (score := self.scores.get(step)) is not None and score == score}
        if scored:
            kept.add(min(scored, key=scored.__getitem__))
        return [step in kept for step in steps]


def _newest_whole(folder: Path, config: Any) -> int | None:
    """The step of the newest whole checkpoint, once damaged ones after it are moved aside; None of an empty folder.

    What saves that were cut off have left is removed.
    """
    _check_folder(folder)
    damaged, step = {}, None
    for step in reversed(_steps(folder)):
        problem = _problem(folder / str(step))
        if problem is None:
            break
        damaged[step] = problem
    else:
        if damaged:
            all_of_them = "; ".join(f"{step}: {problem}" for step, problem in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {folder} is whole ({all_of_them}): to start anew, choose a new folder"
            )
    if step is not None:
        _refuse(folder / str(step), _difference("config", _about(folder / str(step))["config"], config))
    for half in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(half)
    for bad, problem in damaged.items():
        aside = _aside(folder / str(bad))
        (folder / str(bad)).rename(aside)
        warnings.warn(f"{folder / str(bad)}: {problem}; moved to {aside.name}, going on from {step}", stacklevel=4)
    return step


def _check_folder(folder: Path) -> None:
    """Makes the folder. Raises CheckpointError if it cannot be written, or holds something other than checkpoints."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoints to {folder} ({error}): choose another folder") from error
    ours = re.compile(rf"(0|[1-9]\d*)(\.damaged(-\d+)?|{re.escape(ocp.utils.TMP_DIR_SUFFIX)}.*)?|\..*")
    for name in names:
        if not ours.fullmatch(name):
            raise CheckpointError(f"{folder} holds {name!r}, which is no checkpoint: choose a folder of their own")


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"0|[1-9]\d*", path.name))


def _aside(folder: Path) -> Path:
    """<step>.damaged, or the first <step>.damaged-<n> that is free."""
    number, aside = 1, folder.with_name(f"{folder.name}.damaged")
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    return aside


def _files(folder: Path) -> list[Path]:
    """Of the items, in their folders; what lies beside these is Orbax's own note of when it was written."""
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is."""
    try:
        digests = json.loads((folder / DIGESTS).read_text("utf-8"))
        for name, expected in digests.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            if _digest(folder / name) != expected:
                return f"{name} was altered"
    except OSError as error:
        return f"{error.filename and Path(error.filename).relative_to(folder)} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{DIGESTS} was altered"
    return None


def _about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "about" / "metadata").read_text("utf-8"))


def _score(folder: Path, best: str | None) -> float | None:
    """The metric by which the best is kept; None if an older checkpoint has none, or cannot be read."""
    try:
        return _about(folder)["metrics"].get(best)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _agreed(choose: Callable[[], int | None]) -> int | None:
    """What the first process chooses: it alone reads all files. Raises its error; on the others, one that says so."""
    error, step = None, -2
    if jax.process_index() == 0:
        try:
            chosen = choose()
            step = -1 if chosen is None else chosen
        except CheckpointError as refusal:
            error = refusal
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if error is not None:
        raise error
    if step == -2:
        raise CheckpointError("process 0 refused the folder of the checkpoints: it says why")
    return None if step == -1 else step


def _plain(name: str, value: Any) -> Any:
    """The value as JSON has it: tuples as lists. Raises ValueError for what JSON has not."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(
            f"{name} is kept as JSON ({error}): give numbers, strings, bools, None, lists and dicts"
        ) from error


def _leaves(tree: Any) -> dict[str, str]:
    """Each leaf's path: its dtype and shape."""
    return {
        jax.tree_util.keystr(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _placed(like: Any) -> Any:
    """The shapes, each with a sharding."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here),
        like,
    )


def _difference(path: str, there: Any, here: Any) -> str | None:
    """The first entry in which two trees of plain values differ, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            found = _difference(
                f"{path}{name if name.startswith(('.', '[')) else '.' + name}", there.get(name), here.get(name)
            )
            if found:
                return found
        return None
    return None if there == here else f"{path} is {there!r} there, {here!r} here"


def _refuse(folder: Path, difference: str | None) -> None:
    if difference is not None:
        raise CheckpointError(
            f"{folder} is of another config, {difference}: give what it was made with, or choose a new folder"
        )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
