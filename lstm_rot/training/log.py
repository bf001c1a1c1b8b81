"""What a run tells: a live line, JSON lines, TensorBoard's event files, a profile."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lstm_rot.training.events import EventFile

JSON_LINES, EVENTS, PROFILE = "log.jsonl", "tensorboard", "profile"
TIMES = "time", "items_per_second", "share_of_peak"  # what differs between two runs of the same steps

# Dense bfloat16 FLOP/s of one device as JAX counts them, by the beginning of its kind; from the makers' data sheets.
PEAKS = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


class Sink(Protocol):
    """Where rows go; a row is {"step": n, name: number, ...}."""

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def peak() -> float | None:
    """FLOP/s of all devices together, bfloat16; None where their kind is not known."""
    kind = jax.devices()[0].device_kind
    known = [flops for name, flops in PEAKS.items() if kind.startswith(name)]
    return known[0] * jax.device_count() if known else None


class Log:
    """All that a run of `steps` steps tells, from the step `start` on; of several processes the first alone tells.

    seen: items seen before. items: their name. flops: of a step, all devices together, None where it is not known.
    """

    def __init__(self, folder: Path, start: int, steps: int, *, items: str, seen: int, flops: float | None):
        self.seen, self._flops, self._peak = seen, flops, peak()
        self._last: tuple[int, int, float] | None = None  # of the last row: its step, items and time
        self._sinks: list[Sink] = []
        if jax.process_index() == 0:
            self._sinks = [JsonLines(folder, start), Events(folder, start), Line(steps, items)]

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """A row: the metrics, the items so far, and from the second on their number a second, the share of the peak."""
        now, row = time.perf_counter(), {"step": step, **metrics, "items": self.seen}
        if self._last is not None:
            last_step, last_seen, last_time = self._last
            row["items_per_second"] = (self.seen - last_seen) / (now - last_time)
            if self._flops and self._peak:
                row["share_of_peak"] = self._flops * (step - last_step) / (now - last_time) / self._peak
        row["time"] = time.time()
        self._last = step, self.seen, now
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class JsonLines:
    """One object a row, in `folder/log.jsonl`. Rows past the step `after`, of a run that was killed, are cut off."""

    def __init__(self, folder: Path, after: int):
        path = folder / JSON_LINES
        self._file = path.open("a+", encoding="utf-8")
        self._file.truncate(_whole_lines(path.read_bytes(), after))

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()  # so that a kill loses nothing

    def close(self) -> None:
        self._file.close()


def _whole_lines(content: bytes, after: int) -> int:
    """The length of the part that holds whole lines of steps up to `after`."""
    end = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > after:
            break
        end += len(line)
    return end


class Events:
    """TensorBoard's event files, in `folder/tensorboard`, one a process; cut off as the JSON lines are."""

    def __init__(self, folder: Path, after: int):
        self._file = EventFile(folder / EVENTS, after)

    def write(self, row: dict[str, Any]) -> None:
        values = {name: value for name, value in row.items() if name not in ("step", "time")}
        self._file.write(row["step"], row["time"], values)

    def close(self) -> None:
        self._file.close()


class Line:
    """One line on stderr that stays where it is; where that is no terminal, a new line every `SECONDS`."""

    SECONDS = 10

    def __init__(self, steps: int, items: str):
        self._console = Console(stderr=True)
        self._steps, self._items = steps, items
        self._first: tuple[int, float] | None = None  # step and time of the first row: before, it compiled
        self._shown = float("-inf")
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        if self._console.is_terminal:
            self._live.start()

    def write(self, row: dict[str, Any]) -> None:
        now, step = time.monotonic(), row["step"]
        first_step, began = self._first = self._first or (step, now)
        text = f"step {step}/{self._steps}  loss {row['loss']:.4g}"
        if "items_per_second" in row:
            text += f"  {row['items_per_second']:,.0f} {self._items}/s"
        if "share_of_peak" in row:
            text += f"  {row['share_of_peak']:.0%} of peak"
        if step > first_step:
            text += f"  {_clock((now - began) / (step - first_step) * (self._steps - step))} left"
        if now - self._shown >= (0.1 if self._console.is_terminal else self.SECONDS) or step == self._steps:
            self._shown = now
            self._show(Text(text, no_wrap=True, overflow="ellipsis"))

    def _show(self, text: Text) -> None:
        if self._console.is_terminal:
            self._live.update(text, refresh=True)
        else:
            self._console.print(text)

    def close(self) -> None:
        self._live.stop()


def _clock(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


class Profile:
    """A trace of `count` steps, from this process's `FIRST` on, in `folder/profile`, for TensorBoard or Perfetto."""

    FIRST = 5  # after compiling, and when the data has been read ahead

    def __init__(self, folder: Path, start: int, count: int):
        self._folder, self._from, self._to = folder / PROFILE, start + self.FIRST, start + self.FIRST + count
        self._on = False

    def before(self, step: int, wait: Callable[[], None]) -> None:
        """To be told each step's number before it begins; `wait` until the device has done the steps before."""
        if self._from < self._to and step in (self._from, self._to):
            wait()
            self.close() if self._on else self._open()

    def _open(self) -> None:
        jax.profiler.start_trace(self._folder)
        self._on = True

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
