"""Several processes that train together: which they are, and the connection between them."""

import os
import threading
from dataclasses import dataclass

import jax

from lstm_rot.training.watchdog import STATUS, say


@dataclass(frozen=True)
class Processes:
    """Which processes train together. With nothing given, JAX asks the cluster: TPU pods, SLURM, Open MPI, Kubernetes.

    Elsewhere each process is told the address of the first, how many there are, and which it is itself.
    """

    address: str | None = None
    """host:port of process 0, the same for all; the port must be free there"""
    processes: int | None = None
    """how many processes there are"""
    process: int | None = None
    """the number of this one, from 0"""
    heartbeat_timeout: int = 20
    """seconds of silence after which a process counts as dead, and the others end"""
    connect_timeout: int = 120
    """seconds to wait at the start until all processes are there"""

    def __post_init__(self):
        given = {"address": self.address, "processes": self.processes, "process": self.process}
        missing = [name for name, value in given.items() if value is None]
        if 0 < len(missing) < len(given):
            raise ValueError(f"{' and '.join(missing)} missing: give all of {', '.join(given)}, or none on a cluster")
        if self.processes is not None and not 0 <= (self.process or 0) < self.processes:
            raise ValueError(f"process={self.process} of processes={self.processes}: they count from 0")
        if self.address is not None and not self.address.rpartition(":")[2].isdecimal():
            raise ValueError(f"address={self.address!r}: give host:port of process 0, as in 10.0.0.1:1234")
        for name in ("heartbeat_timeout", "connect_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1 second")


def connect(processes: Processes) -> None:
    """Connects this process with the others, by `jax.distributed`, before anything else is asked of JAX.

    Does nothing where there is one process alone: none given, and no cluster found. From then on `jax.devices()` are
    those of all processes, and a process that dies ends the others, within `heartbeat_timeout`. Where not all come
    within `connect_timeout`, says so and ends with status 75.

    Raises RuntimeError where JAX has begun already.
    """
    if processes.processes == 1:
        return
    timer = threading.Timer(processes.connect_timeout, _give_up, [processes])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            processes.address,
            processes.processes,
            processes.process,
            cluster_detection_method=None if processes.address is None else "deactivate",
            initialization_timeout=2 * processes.connect_timeout,  # at which JAX would abort, without our words
            heartbeat_timeout_seconds=processes.heartbeat_timeout,
            shutdown_timeout_seconds=processes.heartbeat_timeout,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):  # JAX's word for: no cluster here
            raise
    finally:
        timer.cancel()


def _give_up(processes: Processes) -> None:
    if processes.address is None:
        them = "not all of the cluster's processes"
    else:
        them = f"process {processes.process}: not all of {processes.processes} processes at {processes.address}"
    say(f"{them} came within {processes.connect_timeout} s: was each started, and can process 0 be reached?")
    os._exit(STATUS)
