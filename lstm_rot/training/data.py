"""Batches for training: batch n of a run is a pure function of (seed, n), whatever the number of processes.

A *plan* says which examples batch n holds; `batches` has Grain read them ahead, each process its own rows; `to_devices`
makes global arrays of them.

    windows = Windows(tokens, 256)
    plan = Epochs(len(windows), batch=32, seed=0)
    stream = batches(windows, plan, rows=local_rows(sharding, plan.batch))
    batch = to_devices(next(stream), sharding)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from sys import maxsize
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import jax
import numpy as np

# examples(numbers [n], length) -> {name: [n, ...]}: many examples read at once, padded to `length` if they differ in it
Examples = Callable[[np.ndarray, int | None], dict[str, np.ndarray]]


class Pick(NamedTuple):
    """What a batch holds: the numbers of its examples, [batch], and the length they are padded to (None: all alike)."""

    numbers: np.ndarray
    length: int | None


@runtime_checkable
class Plan(Protocol):
    """plan[n] is the whole, global batch n, for n = 0, 1, ... without end; a random-access source for Grain."""

    batch: int  # examples in a batch
    batches: int  # batches in an epoch
    identity: dict[str, Any]  # what the order follows from, in plain values: kept in checkpoints and compared

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pick: ...


class Epochs:
    """Shuffled epochs of `examples` examples that are alike.

    Epoch e is a permutation drawn from (seed, e), cut into batches: no example comes twice in an epoch, and the
    `examples % batch` at its end, others in each epoch, are left out.

    Raises ValueError for fewer examples than a batch.
    """

    def __init__(self, examples: int, *, batch: int, seed: int = 0):
        if not 1 <= batch <= examples:
            raise ValueError(f"batch={batch} of {examples} examples: give a batch from 1 to their number, or more data")
        self.batch, self.batches = batch, examples // batch
        self.identity = {"kind": "epochs", "examples": examples, "batch": batch, "seed": seed}
        # Of two epochs, for at the end of one the threads already read from the next.
        self._order = lru_cache(2)(lambda epoch: _generator(seed, epoch).permutation(examples))

    def __len__(self) -> int:
        return maxsize

    def __getitem__(self, index: int) -> Pick:
        epoch, at = divmod(index, self.batches)
        return Pick(self._order(epoch)[at * self.batch : (at + 1) * self.batch], None)


class Buckets:
    """Shuffled epochs of examples of unequal length, each batch of one bucket and padded to that bucket's bound.

    Bucket k holds the lengths above bounds[k - 1] up to bounds[k], so a step is compiled at most once a bucket. In each
    epoch every bucket is shuffled and cut into batches, then the batches of all are shuffled, drawn from (seed, epoch);
    what does not fill a batch at a bucket's end, other examples in each epoch, is left out.

    Raises ValueError for bounds that do not grow, a length above the last, and a bucket that would never be read
    because it holds some examples but less than a batch.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, bounds: Sequence[int], *, batch: int, seed: int = 0):
        lengths, bounds = np.asarray(lengths), list(bounds)
        _check_buckets(lengths, bounds, batch)
        bucket = np.searchsorted(bounds, lengths)
        self._members = [np.flatnonzero(bucket == k) for k in range(len(bounds))]
        self._lengths = np.repeat(bounds, [len(members) // batch for members in self._members])  # [batches], unshuffled
        self.batch, self.batches = batch, len(self._lengths)
        self.identity = {
            "kind": "buckets",
            "examples": len(lengths),
            "in each bucket": {str(bound): len(m) for bound, m in zip(bounds, self._members, strict=True)},
            "batch": batch,
            "seed": seed,
        }
        self._order = lru_cache(2)(lambda epoch: self._shuffled(_generator(seed, epoch)))

    def _shuffled(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The examples [batches, batch] of an epoch, and the lengths [batches] they are padded to."""
        whole = [generator.permutation(m)[: len(m) // self.batch * self.batch] for m in self._members]
        order = generator.permutation(self.batches)
        return np.concatenate(whole).reshape(-1, self.batch)[order], self._lengths[order]

    def __len__(self) -> int:
        return maxsize

    def __getitem__(self, index: int) -> Pick:
        epoch, at = divmod(index, self.batches)
        numbers, lengths = self._order(epoch)
        return Pick(numbers[at], int(lengths[at]))


def least_padded(lengths: Sequence[int] | np.ndarray, buckets: int, *, batch: int) -> list[int]:
    """The bounds of at most so many `Buckets`, each of a batch at least, between which the least is padded.

    Found by dynamic programming: the least padding of the shortest n lengths in k buckets is that of some shorter ones
    in k - 1, and of the others padded to the longest. Raises ValueError for no lengths, and fewer than one bucket.
    """
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    if buckets < 1 or not len(values):
        raise ValueError(
            f"buckets={buckets} of {len(values)} different lengths: give at least one bucket, and examples"
        )
    below = np.concatenate([[0], np.cumsum(counts)])  # examples shorter than value n
    size = below[None, :] - below[:-1, None]  # [from, to] of a bucket: values from .. to - 1
    padded = np.where(size >= batch, size * np.concatenate([[0], values]), np.inf)
    least = np.concatenate([[0.0], np.full(len(values), np.inf)])  # of the shortest n, in as many buckets as came
    found = [(np.inf, [int(values[-1])])]
    ways: list[np.ndarray] = []
    for _ in range(buckets):
        each = least[:-1, None] + padded
        ways.append(each.argmin(0))
        least = each.min(0)
        bounds, end = [], len(values)
        for way in reversed(ways):
            bounds, end = [int(values[end - 1]), *bounds], way[end]
        found.append((least[-1], bounds))
    return min(found, key=lambda one: one[0])[1]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))


def _check_buckets(lengths: np.ndarray, bounds: list[int], batch: int) -> None:
    if batch < 1:
        raise ValueError(f"batch={batch}: a batch holds at least one example")
    if not bounds or any(a >= b for a, b in pairwise(bounds)) or bounds[0] < 1:
        raise ValueError(f"bounds={bounds}: give the greatest length of each bucket, growing, as in [32, 64, 128]")
    if lengths.size == 0 or lengths.max() > bounds[-1]:
        worst = f"example {lengths.argmax()} has length {lengths.max()}" if lengths.size else "there are no examples"
        raise ValueError(
            f"{worst}, the last bound is {bounds[-1]}: cut or leave out longer ones, or give a further bound"
        )
    counts = np.bincount(np.searchsorted(bounds, lengths), minlength=len(bounds))
    for bound, count in zip(bounds, counts, strict=True):
        if 0 < count < batch:
            raise ValueError(
                f"the bucket up to {bound} has {count} examples, batch={batch}: they would never be read; "
                f"join it with another, or give a smaller batch"
            )


class Windows:
    """The windows of one long row of tokens, each the `length` tokens to read and, for each, the one that follows.

    Window i is tokens[i * length : i * length + length + 1]: inputs [n, length] is all but its last token, targets
    [n, length] all but its first. A part window at the end is left out. Raises ValueError for a text without a window.
    """

    def __init__(self, tokens: np.ndarray, length: int):
        if np.ndim(tokens) != 1:
            raise ValueError(f"tokens has shape {np.shape(tokens)}: give one row of them, [N]")
        if length < 1 or len(tokens) <= length:
            raise ValueError(
                f"length={length} of a text of {len(tokens)} tokens: a window is `length` tokens, at least one, and "
                f"the token after them; give a shorter length or a longer text"
            )
        self._length = length
        # [windows, length + 1], a view: a window and the next share a token
        self._windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]

    def __len__(self) -> int:
        return len(self._windows)

    def __call__(self, numbers: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        if length not in (None, self._length):
            raise ValueError(f"length={length}: these windows have length {self._length}; plan them with Epochs")
        windows = self._windows[numbers]
        return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


class Sequences:
    """Examples of unequal length, under one name or several (a source and its target), each an array [length, ...].

    Read, they are <name> [n, length, ...], zeros behind each example's end, and <name>_lengths [n], int32. `lengths`,
    which `Buckets` takes, is the greatest of each example's. Raises ValueError for unequal numbers of examples.
    """

    def __init__(self, named: Mapping[str, Sequence[np.ndarray]]):
        counts = {name: len(rows) for name, rows in named.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"the number of examples differs: {counts}; give each example all of its sequences")
        self._named = dict(named)  # read row by row: they may lie in files that memory does not hold
        self._lengths = {name: np.array([len(row) for row in rows], "int32") for name, rows in named.items()}
        self.lengths = np.max(list(self._lengths.values()), axis=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __call__(self, numbers: np.ndarray, length: int | None) -> dict[str, np.ndarray]:
        length = int(self.lengths.max()) if length is None else length
        batch = {}
        for name, rows in self._named.items():
            first = np.asarray(rows[0])
            padded = np.zeros((len(numbers), length, *first.shape[1:]), first.dtype)
            for at, number in enumerate(numbers):
                padded[at, : len(rows[number])] = rows[number]
            batch |= {name: padded, f"{name}_lengths": self._lengths[name][numbers]}
        return batch


class Batches(Iterator[dict[str, np.ndarray]]):
    """The batches of a plan, from one on and without end; `batches` makes it."""

    def __init__(self, stream: Any, plan: Plan):
        self._stream, self._plan = stream, plan

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._stream)

    def get_state(self) -> dict[str, Any]:
        """What the next batch is: plain values, the same on every process and for every number of them."""
        return {"next": self._stream.get_state()["next_index"], "plan": self._plan.identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where the state was got. Raises ValueError, naming what differs, for that of another plan."""
        for name in {**state["plan"], **self._plan.identity}:
            there, here = (identity.get(name) for identity in (state["plan"], self._plan.identity))
            if there != here:
                raise ValueError(
                    f"the state is of other batches: {name} is {there!r} there, {here!r} here; "
                    f"go on with the data, batch and seed that it was made with"
                )
        self._stream.set_state({"next_index": state["next"]})


def batches(
    examples: Examples, plan: Plan, *, start: int = 0, rows: slice = slice(None), threads: int = 2, prefetch: int = 8
) -> Batches:
    """The batches start, start + 1, ... of the plan, `rows` of each, `prefetch` of them read ahead by threads.

    examples(numbers, length) must be safe to call from several threads; what it raises, `next` raises.
    """

    def read(pick: Pick) -> dict[str, np.ndarray]:
        return examples(pick.numbers[rows], pick.length)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    stream = iter(grain.MapDataset.source(plan).map(read).to_iter_dataset(options))
    stream.set_state({"next_index": start})
    return Batches(stream, plan)


def local_rows(sharding: jax.sharding.Sharding, batch: int) -> slice:
    """The rows of a batch that lie on this process's devices, which it has to read.

    Raises ValueError where they are not one piece, or where the batch does not divide over the mesh.
    """
    try:
        places = sharding.addressable_devices_indices_map((batch,)).values()
    except ValueError as error:
        raise ValueError(f"batch={batch} does not divide over the mesh: {error}; choose a multiple") from error
    pieces = sorted(
        {(index[0].start or 0, batch if index[0].stop is None else index[0].stop) for index in places if index}
    )
    if any(stop != start for (_, stop), (start, _) in pairwise(pieces)):
        raise ValueError(f"this process's devices hold the rows {pieces} of a batch: order the mesh by process")
    return slice(pieces[0][0], pieces[-1][1])


def to_devices(batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """The rows that each process has read, as global arrays of whole batches."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
