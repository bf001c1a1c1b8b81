"""Batches: what a plan promises, the same for every number of processes, threads and restarts."""

import json
import re
import threading
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lstm_rot.training import data
from lstm_rot.training.mesh import make_mesh

LENGTHS = np.random.default_rng(0).integers(1, 50, 200)
BOUNDS = [8, 16, 50]
PLANS = {
    "epochs": lambda **options: data.Epochs(103, **options),
    "buckets": lambda **options: data.Buckets(LENGTHS, BOUNDS, **options),
}


def numbered(numbers, length):
    """Examples that are their own numbers."""
    return {"number": numbers}


def first(plan, count, **options):
    stream = data.batches(numbered, plan, **options)
    return [next(stream)["number"] for _ in range(count)]


@pytest.mark.parametrize("kind", PLANS)
def test_every_example_comes_once_an_epoch_but_for_those_that_fill_no_batch(kind):
    plan = PLANS[kind](batch=4, seed=1)
    count = 103 if kind == "epochs" else len(LENGTHS)
    buckets = np.searchsorted(BOUNDS, LENGTHS) if kind == "buckets" else np.zeros(count, int)
    expected = np.bincount(buckets) // 4 * 4
    left_out = set()
    for epoch in range(8):
        picks = [plan[epoch * plan.batches + n] for n in range(plan.batches)]
        numbers = np.concatenate([pick.numbers for pick in picks])
        assert len(set(numbers)) == len(numbers)
        assert (np.bincount(buckets[numbers]) == expected).all()
        left_out |= set(range(count)) - set(numbers)
        for pick in picks if kind == "buckets" else []:
            (bucket,) = set(buckets[pick.numbers])
            assert pick.length == BOUNDS[bucket] >= LENGTHS[pick.numbers].max()
    assert len(left_out) > count - expected.sum()  # others in other epochs


@pytest.mark.parametrize("kind", PLANS)
def test_batch_n_is_a_pure_function_of_seed_and_n(kind):
    numbers = [5, 70, 0, 5, 1000, 26, 25, 24]  # across the ends of epochs, and back
    plan = PLANS[kind](batch=4, seed=1)
    picks = [plan[n] for n in numbers]
    for n, pick in zip(numbers, picks, strict=True):
        again = PLANS[kind](batch=4, seed=1)[n]
        np.testing.assert_array_equal(pick.numbers, again.numbers)
        assert pick.length == again.length
    other = PLANS[kind](batch=4, seed=2)
    assert any((pick.numbers != other[n].numbers).any() for n, pick in zip(numbers, picks, strict=True))
    epochs = [[set(plan[epoch * plan.batches + n].numbers) for n in range(plan.batches)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("processes", (2, 4))
def test_the_rows_of_all_processes_are_the_batch_of_one(kind, processes):
    whole = first(PLANS[kind](batch=8), 40)
    share = 8 // processes
    rows = [slice(p * share, (p + 1) * share) for p in range(processes)]
    parts = [first(PLANS[kind](batch=8), 40, rows=part, threads=1 + number) for number, part in enumerate(rows)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("prefetch", (0, 1, 8))
def test_a_stream_goes_on_from_its_state_whatever_the_number_of_processes(prefetch):
    plan = data.Epochs(50, batch=8)
    stream = data.batches(numbered, plan, rows=slice(4, 8), prefetch=prefetch)
    for _ in range(9):  # past the first epoch of six
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    following = [next(stream)["number"] for _ in range(9)]

    alone = data.batches(numbered, data.Epochs(50, batch=8), prefetch=3)
    next(alone)  # what is prefetched by now must not come
    alone.set_state(state)
    np.testing.assert_array_equal([next(alone)["number"][4:8] for _ in range(9)], following)
    assert alone.get_state() == stream.get_state()
    np.testing.assert_array_equal(first(plan, 9, start=9, rows=slice(4, 8)), following)


def test_the_order_is_kept_when_reading_takes_unequal_time():
    slow = threading.Event()

    def reader(numbers, length):
        if 0 in numbers:
            slow.wait(0.2)
        return {"number": numbers}

    plan = data.Epochs(40, batch=4)
    stream = data.batches(reader, plan, threads=4)
    for n in range(30):
        np.testing.assert_array_equal(next(stream)["number"], plan[n].numbers)


def test_what_an_example_raises_the_stream_raises():
    def broken(numbers, length):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(data.batches(broken, data.Epochs(40, batch=4)))


def test_windows_are_cut_at_every_length_tokens_and_share_one():
    tokens = np.arange(24, dtype="uint8")
    windows = data.Windows(tokens, 5)
    assert len(windows) == 4  # 20..24 would need a token 25
    batch = windows(np.array([3, 0]))
    np.testing.assert_array_equal(batch["inputs"], [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
    assert batch["inputs"].dtype == "uint8"
    assert len(data.Windows(tokens[:21], 5)) == 4 and len(data.Windows(tokens[:20], 5)) == 3


def test_sequences_are_padded_with_zeros_to_their_buckets_bound():
    rng = np.random.default_rng(0)
    source = [rng.integers(1, 99, n).astype("int32") for n in LENGTHS]
    target = [rng.normal(size=(max(1, n // 2), 3)).astype("float32") for n in LENGTHS]
    sequences = data.Sequences({"source": source, "target": target})
    plan = data.Buckets(sequences.lengths, BOUNDS, batch=4)
    stream = data.batches(sequences, plan)
    for n in range(plan.batches):
        batch, pick = next(stream), plan[n]
        assert batch["source"].shape == (4, pick.length) and batch["target"].shape == (4, pick.length, 3)
        for row, number in enumerate(pick.numbers):
            for name, examples in (("source", source), ("target", target)):
                length = batch[f"{name}_lengths"][row]
                np.testing.assert_array_equal(batch[name][row, :length], examples[number])
                assert not batch[name][row, length:].any()


@pytest.mark.parametrize("seed", range(20))
def test_no_other_bounds_pad_less(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, rng.integers(1, 60))
    buckets, batch = int(rng.integers(1, 6)), int(rng.integers(1, 9))

    def padded(bounds):
        bucket = np.searchsorted(bounds, lengths)
        return np.asarray(bounds)[bucket].sum() if np.bincount(bucket).min() >= batch else np.inf

    *values, longest = np.unique(lengths).tolist()
    choices = [[*some, longest] for count in range(buckets) for some in combinations(values, count)]
    bounds = data.least_padded(lengths, buckets, batch=batch)
    assert bounds in choices
    assert padded(bounds) == min(padded(choice) for choice in choices)


@pytest.mark.parametrize("mesh", ("", "data=2,model=4", "data=4,stage=2", "model=8"))
def test_the_rows_that_a_process_reads_become_the_whole_batch(mesh):
    sharding = NamedSharding(make_mesh(mesh), PartitionSpec("data"))
    rows = data.local_rows(sharding, 16)
    assert rows == slice(0, 16)  # one process has all devices
    batch = next(data.batches(data.Windows(np.arange(1000), 3), data.Epochs(333, batch=16), rows=rows))
    on_devices = data.to_devices(batch, sharding)
    for name in ("inputs", "targets"):
        assert on_devices[name].sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_array_equal(on_devices[name], batch[name])


def holding(*pieces) -> Any:
    """A sharding of which this process holds some of the pieces."""
    return SimpleNamespace(addressable_devices_indices_map=lambda shape: {n: (p,) for n, p in enumerate(pieces)})


def test_a_process_reads_the_rows_of_its_devices(untyped):
    assert data.local_rows(holding(slice(4, 6), slice(2, 4), slice(4, 6)), 8) == slice(2, 6)
    assert data.local_rows(holding(slice(6, None), slice(6, None)), 8) == slice(6, 8)
    assert data.local_rows(holding(slice(None)), 8) == slice(0, 8)
    with pytest.raises(ValueError, match=re.escape("hold the rows [(0, 2), (4, 6)]")):
        data.local_rows(holding(slice(4, 6), slice(0, 2)), 8)


def sharded(batch):
    return data.local_rows(NamedSharding(make_mesh("data=8"), PartitionSpec("data")), batch)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.Epochs(3, batch=4), "batch=4 of 3 examples"),
        (lambda: data.Epochs(3, batch=0), "batch=0 of 3 examples"),
        (lambda: data.Windows(np.arange(5), 5), "length=5 of a text of 5 tokens"),
        (lambda: data.Windows(np.arange(5), 0), "length=0 of a text of 5 tokens"),
        (lambda: data.Windows(np.ones((5, 5)), 2), "tokens has shape (5, 5)"),
        (lambda: data.Windows(np.arange(9), 2)(np.arange(2), 3), "length=3: these windows have length 2"),
        (lambda: data.Buckets([1, 9], [8], batch=1), "example 1 has length 9, the last bound is 8"),
        (lambda: data.Buckets([], [8], batch=1), "there are no examples"),
        (lambda: data.Buckets([1, 9], [16, 8], batch=1), "bounds=[16, 8]"),
        (lambda: data.Buckets([1, 9], [], batch=1), "bounds=[]"),
        (lambda: data.Buckets([1, 9], [16], batch=0), "batch=0"),
        (lambda: data.Buckets([1, 2, 9], [8, 16], batch=2), "the bucket up to 16 has 1 examples, batch=2"),
        (lambda: data.least_padded([1, 9], 0, batch=1), "buckets=0 of 2 different lengths"),
        (lambda: data.least_padded([], 4, batch=1), "buckets=4 of 0 different lengths"),
        (lambda: data.Sequences({"a": [np.ones(2)], "b": []}), "differs: {'a': 1, 'b': 0}"),
        (lambda: sharded(12), "batch=12 does not divide over the mesh"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (data.Epochs(50, batch=4, seed=3), "seed is 0 there, 3 here"),
        (data.Epochs(51, batch=4), "examples is 50 there, 51 here"),
        (data.Buckets([2] * 50, [4], batch=4), "kind is 'epochs' there, 'buckets' here"),
    ],
)
def test_a_state_of_other_batches_is_refused(other, message):
    state = data.batches(numbered, data.Epochs(50, batch=4)).get_state()
    stream = data.batches(numbered, other)
    with pytest.raises(ValueError, match=re.escape(message)):
        stream.set_state(state)
    np.testing.assert_array_equal(next(stream)["number"], other[0].numbers)
