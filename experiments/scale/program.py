"""A case compiled by libtpu, the real compiler, in a process of its own, and what its program tells."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.experimental.topologies import get_topology_desc

from experiments.data import DataError
from lstm_rot import Checkpointed, Sequential
from lstm_rot.models import language_model, lstm, transformer
from lstm_rot.training import cost, hlo, mesh, sharding, step

ROOT = Path(__file__).parents[2]
NONE = 2**63 - 1  # cycles, where libtpu has no estimate


@dataclass(frozen=True)
class Case:
    """A language model's training step: Adam, params and moments in float32, products in bfloat16, gradients clipped.

    examples: of `length` words in a step, on all chips together, in `accumulate` parts one after another.
    kept: of a line, along TIME or DEPTH, every so-manieth cell is kept for the gradient; None keeps all.
    zero1: the optimizer's moments are divided over `data` too.
    """

    body: Literal["LSTM", "Transformer"]
    topology: str
    mesh: str
    vocabulary: int
    hidden: int
    layers: int
    length: int
    examples: int
    accumulate: int = 1
    kept: int | None = None
    zero1: bool = True
    mlp: int | None = None
    """of the Transformer"""
    head: int = 128
    """the width of its heads"""

    @property
    def model(self) -> language_model.Config:
        if self.body == "LSTM":
            body: Any = lstm.Config(self.hidden, self.hidden, self.layers, compute_dtype="bfloat16")
        else:
            heads = self.hidden // self.head
            body = transformer.Config(self.hidden, self.layers, heads, self.mlp, compute_dtype="bfloat16")
        return language_model.Config(self.vocabulary, body)


def compiled(cases: list[Case]) -> Iterator[dict]:
    """The numbers of `measure`, one case after another, from a process in which libtpu compiles.

    This process's JAX stays as it is. Raises DataError where the compiler refuses a program, in its own words.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",  # there is no TPU: libtpu only compiles
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # or compiling would take no time
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server which machine this is
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "-c", "from experiments.scale.program import main; main()"]
    asked = json.dumps([asdict(case) for case in cases])
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen([*command, asked], stdout=PIPE, stderr=log, text=True, env=environment) as process:
            assert process.stdout is not None
            yield from (json.loads(line) for line in process.stdout)
        if process.returncode:
            log.seek(0)
            said = log.read().strip().splitlines() or [f"exit status {process.returncode}"]
            raise DataError(next((line for line in said if "RESOURCE_EXHAUSTED" in line), said[-1]))


def training_step(case: Case, devices: Any) -> tuple[Any, Any, Any]:
    """The jitted step over a mesh of the devices, and the shapes of its state and batch."""
    config, over, optimizer = case.model, mesh.make_mesh(case.mesh, devices), optax.adam(1e-4)
    schedule = Sequential() if case.kept is None else Checkpointed(every=case.kept)

    def loss(params: Any, tokens: Any, key: Any) -> Any:
        return language_model.loss(params, tokens, config=config, schedule=schedule)

    init = partial(step.init_state, partial(language_model.init, config=config), optimizer)
    state = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.of_state(over, language_model.specs(config), state, optimizer, zero1=case.zero1)
    train = step.make_train_step(
        loss,
        optimizer,
        accumulate=case.accumulate,
        clip=1.0,
        shardings=shardings,
        batch_sharding=sharding.batch(over),
    )
    return train, state, jax.ShapeDtypeStruct((case.examples, case.length + 1), jnp.int32)


def measure(case: Case) -> dict:
    """Parameters, FLOPs of a step on all chips; of one, its memory by kind and what it sends; seconds of compiling."""
    devices = get_topology_desc(case.topology, platform="tpu").devices
    train, state, batch = training_step(case, devices)
    start = time.perf_counter()
    program = train.lower(state, batch).compile()
    seconds = time.perf_counter() - start
    text, memory = program.as_text(), program.memory_analysis()
    return asdict(case) | {
        "devices": len(devices),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "flops": cost.flops(train, state, batch),
        "memory": {
            "state": memory.argument_size_in_bytes,
            "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
        },
        "collectives": {kind: traffic._asdict() for kind, traffic in cost.collectives(text).items()},
        "largest": max(array.bytes for array in hlo.arrays(text)),
        "cycles": _cycles(text),
        "seconds": seconds,
    }


def _cycles(text: str) -> int:
    """What libtpu notes beside most instructions as its estimate, of a whole step on one chip."""
    noted = [
        (run.times or 0) * int(cycles)
        for run in hlo.Program(text).runs()
        for cycles in re.findall(r'"estimated_cycles":"(\d+)"', run.instruction.attributes)
        if not run.fused and int(cycles) < NONE
    ]
    return sum(noted)


def main() -> None:
    """The numbers of each of the cases in the first argument, a line of JSON."""
    for case in json.loads(sys.argv[1]):
        print(json.dumps(measure(Case(**case))), flush=True)
