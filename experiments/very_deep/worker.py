"""One contender in a process of its own: see `experiments.speed.worker`, whose machinery this is."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from experiments.speed import worker
from experiments.very_deep.case import RATE, Case
from experiments.very_deep.contenders import CONTENDERS, Eager, Traced

STEP, ANALYSED = "step", "analysed"
AGAIN = 10  # seconds of compiling after which it is not timed again


class Job(worker.Job):
    """Ready to be asked for `compile` and `call`: a step of the case's batch, or of the batch only compiled for."""

    def __init__(self, name: str, case: dict):
        contender = CONTENDERS[name]
        self.case, self.devices = Case(**case), contender.devices
        if self.devices > 1:
            import jax

            jax.config.update("jax_num_cpu_devices", self.devices)  # before anything is computed
        self.model: Any = contender.build(self.case)
        self.calls: dict[str, Callable[[], Any]] = {}
        if isinstance(self.model, Eager):
            self.versions = self.model.versions
            self.calls[STEP] = self.model.step
        else:
            self.versions = worker.versions_of(contender.package)

    def compile(self, mode: str) -> dict:
        """Seconds of tracing and compiling, and the bytes of temporary memory on all devices; {} if not known."""
        if isinstance(self.model, Eager):
            return {}
        import jax

        step, state, images = program(self.case, self.model, self.devices)
        if mode == ANALYSED:
            state, images = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), (state, images)
            )
            images = [each.update(shape=(self.case.analysed, *each.shape[1:])) for each in images]
        seconds: list[float] = []
        while not seconds or (mode == STEP and len(seconds) < self.case.compiles and sum(seconds) < AGAIN):
            jax.clear_caches()
            start = time.perf_counter()
            compiled = step.lower(state, *images).compile()
            seconds.append(time.perf_counter() - start)
        if mode == STEP:
            self.calls[STEP] = partial(self._call, compiled, [state], images)
        memory = compiled.memory_analysis()
        told = {} if memory is None else {"temporary": int(memory.temp_size_in_bytes) * self.devices}
        return {"seconds": median(seconds)} | told

    def cost(self) -> dict[str, float]:
        """Of a step: its FLOPs as `lstm_rot.training.cost` counts them, a strided convolution's zeros included, and the
        FLOP/s that its devices have at most, in bfloat16; NaN if not known.
        """
        import jax

        from lstm_rot.training import cost, log

        step, state, images = program(self.case, self.model, self.devices)
        of_all = log.peak() or float("nan")
        return {"flops": cost.flops(step, state, *images), "peak": of_all / jax.device_count() * self.devices}

    @staticmethod
    def _call(compiled: Callable[..., Any], state: list, images: list) -> float:
        """The loss, after one more update of the state."""
        state[0], loss = compiled(state[0], *images)
        return float(loss)


def program(case: Case, model: Traced, devices: int = 1) -> tuple[Any, Any, list]:
    """The jitted step(state, x, y) -> (state, loss), the state donated; the first state; x and y, over the devices."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def step(state: tuple, x: Any, y: Any) -> tuple[tuple, Any]:
        params, running = state
        (loss, running), gradient = jax.value_and_grad(model.loss, has_aux=True)(params, running, x, y)
        return (jax.tree.map(lambda p, g: p - RATE * g, params, gradient), running), loss

    jitted = jax.jit(step, donate_argnums=0, out_shardings=everywhere)
    state = jax.device_put((model.params, model.running), everywhere)
    return jitted, state, [jax.device_put(each, split) for each in case.images()]


main = partial(worker.main, make=Job)
