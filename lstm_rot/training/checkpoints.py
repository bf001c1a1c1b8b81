"""Checkpoints by Orbax: asynchronous, atomic, the last and the best kept, every file checked before it is restored.

    <folder>/<step>/state/        the arrays, in Orbax's format
                    about/        JSON: config, versions, the data's position, metrics, the shapes in the state
                    digests.json  size and CRC-32 of each file, written last, before the folder gets its name
    <folder>/<step>.damaged/      one that failed the check, moved aside and left to you

A folder <step> is whole or is not there, whenever a process dies. What is altered later the digests tell: Orbax alone
would restore an altered array without a word.
"""

import dataclasses
import json
import platform
import shutil
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
from orbax.checkpoint.type_handlers import ArrayHandler, create_type_handler_registry

from lstm_rot.training.files import (
    CheckpointError,
    difference,
    newest_to_read,
    newest_whole,
    read_about,
    refuse,
    steps,
    write_digests,
)

# Without files about shardings and layouts: what is restored is told both. Nor compression: weights become no smaller.
ARRAYS = create_type_handler_registry(
    (jax.Array, ArrayHandler(array_metadata_store=None, enable_write_sharding_file=False))
)
PACKAGES = "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "lstm_rot"


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
        self._config = _identity(config)
        self._versions = _versions()
        self._found = _agreed(lambda: newest_whole(self._folder, self._config))
        self._last: int | None = None  # the step saved or restored last
        self._scores = {step: _score(self._folder / str(step), best) for step in steps(self._folder)}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LastAndBest(keep, self._scores),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=ARRAYS),
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
        about, arrays = _arrays(self._folder / str(self._found), like)
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
            whole = max((there for there in steps(self._folder) if there != step), default=None)
            raise CheckpointError(
                f"step {step} was not saved to {self._folder}, {shutil.disk_usage(self._folder).free:,} bytes free: "
                f"{str(error)[:500]}; "
                + ("no checkpoint is there" if whole is None else f"start again, and the run goes on from step {whole}")
            ) from error

    def _write_digests(self) -> None:
        """Called on the first process, when the files of all are written and the folder has not got its name."""
        (unnamed,) = self._folder.glob(f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}*")
        write_digests(unnamed)


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


def read(folder: str | Path, *, config: Any, like: Any) -> Restored | None:
    """The newest whole checkpoint of a folder where another process may be saving: nothing is written.

    None for a folder without one, or that is not there. Raises CheckpointError as `Checkpoints` and its `restore`, and
    where the checkpoint was removed while it was read.
    """
    folder = Path(folder).absolute()
    step = newest_to_read(folder, _identity(config))
    if step is None:
        return None
    about, arrays = _arrays(folder / str(step), like)
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=ARRAYS)
    try:
        with ocp.Checkpointer(handler) as reader:
            state = reader.restore(folder / str(step) / "state", args=arrays)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder / str(step)} was replaced by a newer one while it was read: try again"
        ) from error
    return Restored(step, state, about["data"], about["metrics"])


def _arrays(folder: Path, like: Any) -> tuple[dict[str, Any], Any]:
    """What a checkpoint says of itself, and how Orbax is asked for its state. Raises CheckpointError if it differs."""
    about = read_about(folder)
    refuse(folder, difference("state", about["state"], _leaves(like)))
    like = _placed(like)
    return about, ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))


def _score(folder: Path, best: str | None) -> float | None:
    """The metric by which the best is kept; None if an older checkpoint has none, or cannot be read."""
    try:
        return read_about(folder)["metrics"].get(best)
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


def _identity(config: Any) -> Any:
    return _plain("config", dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config)  # pyright: ignore


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


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
