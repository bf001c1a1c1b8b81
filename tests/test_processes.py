"""Training in real processes: killed, stopped, told to end, left waiting; on several devices, two at once."""

import os
import signal
import socket
import time
from contextlib import contextmanager

import numpy as np
import pytest

from experiments.crash.kills import hear, live, moments, rows, start
from experiments.crash.trainee import Trainee
from experiments.data import text
from lstm_rot.training import data, watchdog
from lstm_rot.training.distributed import Processes
from lstm_rot.training.run import Options

TRAINEE = Trainee(hidden_size=16, layers=1, length=16, dropout=0.2, steps=60)
END = 60  # seconds within which what a process waits for must have come
# Means over 128 bytes in float32: 8 additions deep at most, each off by 6e-8 at most, over 60 steps of training.
REDUCTION_ORDER = 1e-5


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """One cache of compiled programs for all; of processes that compile fast, as conftest.py has it."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # before the first child; JAX is loaded here already
    yield tmp_path_factory.mktemp("compiled")
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]


@pytest.fixture(scope="module")
def peace(tmp_path_factory, compiled):
    """The run that nothing disturbs, on one device: its last state's digest, its log, its folder."""
    folder = tmp_path_factory.mktemp("peace")
    (life,) = live(folder, TRAINEE, [], compiled=compiled)
    return life.digest, rows(folder), folder


@contextmanager
def running(folder, count=1, heartbeat=6, **options):
    """So many processes that train together, with what each tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = [Processes(address, count, n, heartbeat_timeout=heartbeat) if count > 1 else None for n in range(count)]
    each = options.pop("each", [{}] * count)
    started = [start(folder, TRAINEE, f"output-{n}", processes=together[n], **options, **each[n]) for n in range(count)]
    try:
        yield started
    finally:
        for child, told in started:
            child.kill()
            child.join()
            told.close()


def until(told, event):
    assert event in hear(told), f"ended before {event}"


def output(folder, process=0):
    return (folder / f"output-{process}.txt").read_text()


def losses(folder):
    return [row["loss"] for row in rows(folder)]


def test_ten_times_killed_it_gives_what_it_gives_in_peace(peace, compiled, tmp_path):
    lives = live(tmp_path, TRAINEE, moments(10, TRAINEE.save_every, seed=3), compiled=compiled)

    assert sum(life.killed for life in lives) == 10 and sum(life.in_save for life in lives) >= 2
    assert max(life.start for life in lives) > 0
    assert (lives[-1].digest, rows(tmp_path)) == peace[:2]


def test_sigterm_and_ctrl_c_save_and_say_how_to_go_on(peace, compiled, tmp_path):
    began = 0
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with running(tmp_path, compiled=compiled) as [(child, told)]:
            until(told, ("step", began + 7))
            os.kill(child.pid, number)
            stopped = [step for what, step in hear(told) if what == "save"][-1]
            child.join(END)
            assert child.exitcode == status
        assert stopped > began + 6
        assert f"the same command goes on after step {stopped}" in output(tmp_path)
        began = stopped
    (life,) = live(tmp_path, TRAINEE, [], compiled=compiled)
    assert life.start == began and (life.digest, rows(tmp_path)) == peace[:2]


class Hanging(data.Windows):
    """Reads so many batches, and then no more."""

    def __init__(self, batches):
        super().__init__(np.frombuffer(text("manual").train, np.uint8).astype(np.int32), TRAINEE.length)
        self.left = batches

    def __call__(self, numbers, length=None):
        self.left -= 1
        if self.left < 0:
            time.sleep(10 * END)
        return super().__call__(numbers, length)


def test_a_second_ctrl_c_ends_at_once(compiled, tmp_path):
    with running(tmp_path, compiled=compiled, examples=Hanging(3)) as [(child, told)]:
        until(told, ("step", 3))
        while not rows(tmp_path):  # what it does last before it waits for the data of step 4
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(child.pid, signal.SIGINT)
        child.join(1)
        assert child.is_alive()
        os.kill(child.pid, signal.SIGINT)
        child.join(END)
        assert child.exitcode == -signal.SIGINT


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_change_the_losses_by_the_order_of_sums_alone(peace, compiled, tmp_path, devices):
    with running(tmp_path, compiled=compiled, devices=devices) as [(child, _)]:
        child.join(END)
        assert child.exitcode == 0, output(tmp_path)
    np.testing.assert_allclose(losses(tmp_path), [row["loss"] for row in peace[1]], rtol=REDUCTION_ORDER)


def test_two_processes_stop_after_the_same_step_and_go_on(peace, compiled, tmp_path):
    with running(tmp_path, 2, compiled=compiled) as started:
        until(started[0][1], ("step", 7))
        os.kill(started[1][0].pid, signal.SIGTERM)
        saved = [[step for what, step in hear(told) if what == "save"][-1] for _, told in started]
        for child, _ in started:
            child.join(END)
            assert child.exitcode == 143
    assert saved[0] == saved[1] < TRAINEE.steps

    with running(tmp_path, 2, compiled=compiled) as started:
        until(started[0][1], ("from", saved[0]))
        for n, (child, _) in enumerate(started):
            child.join(END)
            assert child.exitcode == 0, output(tmp_path, n)
    np.testing.assert_allclose(losses(tmp_path), [row["loss"] for row in peace[1]], rtol=REDUCTION_ORDER)


@pytest.mark.parametrize(
    "victim, end, status, says",
    [
        (1, signal.SIGKILL, 1, "process 1 (pid {pid} on {host}) has been silent"),
        (1, signal.SIGSTOP, -signal.SIGABRT, "process 1 (pid {pid} on {host}) has been silent"),
        (0, signal.SIGSTOP, -signal.SIGABRT, "process 0 (pid {pid} on {host}) has been silent"),
        (0, signal.SIGKILL, None, "process 0 (pid {pid} on {host}) has been silent"),
        (1, None, watchdog.STATUS, "process 1 (pid {pid} on {host}), in the data of step 9"),
    ],
    ids=["killed", "stopped", "the first stopped", "the first killed", "without data"],
)
def test_where_one_dies_or_hangs_the_other_ends_and_says_which(compiled, tmp_path, victim, end, status, says):
    options = Options(steps=10**6, log_every=1, patience=4.0 if end is None else 45.0)
    each = [{"examples": Hanging(8) if end is None and n == victim else None} for n in range(2)]
    beats = Processes.heartbeat_timeout if status == 1 else 6  # where our error ends it, JAX's abort is not to be first
    with running(tmp_path, 2, beats, compiled=compiled, options=options, each=each) as started:
        until(started[victim][1], ("step", 8))
        child, other = started[victim][0], started[1 - victim][0]
        if end is not None:
            os.kill(child.pid, end)
        other.join(END)
        if status is None:  # JAX's threads are at odds: one aborts, one has an error for us
            assert other.exitcode in (1, -signal.SIGABRT), output(tmp_path, 1 - victim)
        else:
            assert other.exitcode == status, output(tmp_path, 1 - victim)
        assert says.format(pid=child.pid, host=socket.gethostname()) in output(tmp_path, 1 - victim)
