"""A process that waits too long says for what, and which process keeps all waiting, and ends."""

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

DATA, STEP, EVALUATION, SAVE = "the data", "the computation", "the evaluation", "the save"
STATUS = 75  # EX_TEMPFAIL of sysexits.h: worth another try
FOLDER = "progress"


class Doing(NamedTuple):
    """What a process does: with which step, and since when; the seconds it may take."""

    what: str
    step: int
    since: float
    patience: float


class Told(NamedTuple):
    """What a process said last of what it does, for so many seconds; and how long ago."""

    process: int
    what: str
    step: int
    seconds: float
    pid: int
    host: str
    silent: float

    def __str__(self) -> str:
        name = f"process {self.process} (pid {self.pid} on {self.host})"
        said = f"{self.what} of step {self.step} for {self.seconds:.0f} s"
        return (
            f"{name} has been silent for {self.silent:.0f} s; before, in {said}" if self.dead else f"{name}, in {said}"
        )

    @property
    def dead(self) -> bool:
        """Or stopped: it speaks every second."""
        return self.silent > Watchdog.SILENCE


class Watchdog:
    """A thread that ends the process, with status 75, when one thing takes longer than its patience.

    The processes of a run tell one another where they are by small files in the run's folder, which they share. Each
    watches the next, and says when that falls silent. It is JAX that then ends the process: where another has missed
    its heartbeats, and at once where process 0 is gone, which counts them. It does so by `abort`, in a thread of its
    own, which is held up here until a silence can show.
    """

    EVERY = 1.0  # seconds between two looks
    SILENCE = 3.5  # seconds

    def __init__(self, folder: Path, process: int = 0, processes: int = 1):
        self.process, self.processes, self._folder = process, processes, folder / FOLDER
        self._doing = Doing("the start", 0, time.monotonic(), float("inf"))
        self._began = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        # By ctypes, for a handler of Python's own runs in the main thread alone, which JAX keeps waiting.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: self.explain_error())

    def __enter__(self) -> "Watchdog":
        if self.processes > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._began = self._tell()
            ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.processes > 1:
            ctypes.CDLL(None).signal(signal.SIGABRT, None)  # SIG_DFL
        self._end.set()
        self._thread.join()

    def begins(self, what: str, step: int, patience: float) -> None:
        """The process now does this, and may take `patience` seconds."""
        self._doing = Doing(what, step, time.monotonic(), patience)

    def explain_error(self) -> None:
        """An error in one of several processes is mostly another's end: says which."""
        if self.processes > 1:
            doing = self._doing
            time.sleep(self.SILENCE + self.EVERY)  # for a dead one's silence to show
            say(f"process {self.process} failed in {doing.what} of step {doing.step}; {self.furthest_behind()}")

    def furthest_behind(self) -> str:
        """Which process keeps the others waiting, in words: a silent one, else the one at the earliest step."""
        if self.processes == 1:
            return "there is no other process"
        now = self._tell()
        told = [one for one in (self._told(process, now) for process in range(self.processes)) if one is not None]
        missing = set(range(self.processes)) - {one.process for one in told}
        if missing:
            return f"process {min(missing)} never began to train"
        return f"furthest behind: {max(told, key=lambda one: (one.dead, -one.step, one.what == DATA))}"

    def _watch(self) -> None:
        warned = False
        while not self._end.wait(self.EVERY):
            if self.processes > 1:
                following = self._told((self.process + 1) % self.processes, self._tell())
                silent = following is not None and following.dead
                if silent and not warned:
                    say(str(following))
                warned = silent
            doing = self._doing
            seconds = time.monotonic() - doing.since
            if seconds > doing.patience:
                self._give_up(doing, seconds)

    def _give_up(self, doing: Doing, seconds: float) -> None:
        say(
            f"process {self.process}: {doing.what} of step {doing.step} has taken {seconds:.0f} s, "
            f"more than its {doing.patience:g} s of patience; {self.furthest_behind()}"
        )
        faulthandler.dump_traceback()
        os._exit(STATUS)

    def _tell(self) -> float:
        """Writes what this process does, and returns the time by the clock of whoever keeps the files."""
        doing = self._doing
        told = {"what": doing.what, "step": doing.step, "seconds": time.monotonic() - doing.since}
        path = self._folder / f"{self.process}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(told | {"pid": os.getpid(), "host": socket.gethostname()}))
        part.replace(path)
        return path.stat().st_mtime

    def _told(self, process: int, now: float) -> Told | None:
        """None of one that has told nothing since this one began."""
        try:
            path = self._folder / f"{process}.json"
            at, told = path.stat().st_mtime, json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return Told(process, silent=now - at, **told) if at >= self._began - 2 * self.EVERY else None


def say(words: str) -> None:
    print(f"training: {words}", file=sys.stderr, flush=True)
