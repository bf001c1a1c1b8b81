"""A folder of checkpoints: which are in it, whether their files are whole, and of which config they are."""

import json
import os
import re
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

DIGESTS = "digests.json"
PIECE = 1 << 20  # bytes read at once


class CheckpointError(Exception):
    """Nothing was saved, restored or overwritten; the message says why and what to do."""


def newest_whole(folder: Path, config: Any) -> int | None:
    """The step of the newest whole checkpoint, once damaged ones after it are moved aside; None of an empty folder.

    What saves that were cut off have left is removed.
    """
    _check_folder(folder)
    step, damaged = _newest(folder, config)
    for half in folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
        shutil.rmtree(half)
    for bad, problem in damaged.items():
        aside = _aside(folder / str(bad))
        (folder / str(bad)).rename(aside)
        warnings.warn(f"{folder / str(bad)}: {problem}; moved to {aside.name}, going on from {step}", stacklevel=4)
    return step


def newest_to_read(folder: Path, config: Any) -> int | None:
    """As `newest_whole`, of a folder where another process may be saving: nothing is made, moved or removed."""
    return _newest(folder, config)[0] if folder.is_dir() else None


def _newest(folder: Path, config: Any) -> tuple[int | None, dict[int, str]]:
    """The newest whole checkpoint, and what is wrong with those after it. Raises CheckpointError as `Checkpoints`."""
    damaged, step = {}, None
    for step in reversed(steps(folder)):
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
        refuse(folder / str(step), difference("config", read_about(folder / str(step))["config"], config))
    return step, damaged


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


def steps(folder: Path) -> list[int]:
    """Those of which there is a checkpoint, growing."""
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


def write_digests(folder: Path) -> None:
    """Of all files of a checkpoint, once they are whole."""
    with (folder / DIGESTS).open("w") as file:
        json.dump({str(path.relative_to(folder)): _digest(path) for path in _files(folder)}, file)
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> dict[str, int]:
    """CRC-32: what is torn or altered by mistake it tells, in less than half the time of SHA-256."""
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            crc, size = zlib.crc32(piece, crc), size + len(piece)
    return {"bytes": size, "crc32": crc}


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is."""
    try:
        digests = json.loads((folder / DIGESTS).read_text("utf-8"))
        for name, expected in digests.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            if "crc32" not in expected:
                return f"{DIGESTS} has no CRC-32 of {name}: an older version wrote it"
            if _digest(folder / name) != expected:
                return f"{name} was altered"
    except OSError as error:
        return f"{error.filename and Path(error.filename).relative_to(folder)} cannot be read ({error.strerror})"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{DIGESTS} was altered"
    return None


def read_about(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    return json.loads((folder / "about" / "metadata").read_text("utf-8"))


def difference(path: str, there: Any, here: Any) -> str | None:
    """The first entry in which two trees of plain values differ, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            found = difference(
                f"{path}{name if name.startswith(('.', '[')) else '.' + name}", there.get(name), here.get(name)
            )
            if found:
                return found
        return None
    return None if there == here else f"{path} is {there!r} there, {here!r} here"


def refuse(folder: Path, difference: str | None) -> None:
    """Raises CheckpointError where there is a difference."""
    if difference is not None:
        raise CheckpointError(
            f"{folder} is of another config, {difference}: give what it was made with, or choose a new folder"
        )
