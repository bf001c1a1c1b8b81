"""What each device of a pipeline does, told by the devices themselves while they run.

Marks stand in the program: a number that passes one is told to the host and goes on unchanged, so that the order of the
marks is the order in which the device came to them; its gradient tells of the way back in the same manner.
"""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_rot.schedules import Schedule, Sequential


class Watch:
    """The marks that were passed: (stage, what, number), those of each stage in order."""

    def __init__(self):
        self.passed: list[tuple[int, str, int]] = []
        self.lock = threading.Lock()

    def mark(self, what: str, tree: Any, number: Any = -1) -> Any:
        """The tree, its last leaf of floats marked."""
        leaves, treedef = jax.tree.flatten(tree)
        place = max(k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))
        stage = jax.lax.axis_index("stage")

        def told(what: str, x: jax.Array, stage: jax.Array, number: jax.Array) -> jax.Array:
            """x, after the host was told; what is added is 0, which the compiler cannot know."""

            def tell(stage: Any, number: Any, value: Any) -> np.ndarray:
                with self.lock:
                    self.passed.append((int(stage), what, int(number)))
                return np.zeros((), np.asarray(value).dtype)

            return x + jax.pure_callback(tell, jax.ShapeDtypeStruct((), x.dtype), stage, number, x.ravel()[0])

        @jax.custom_vjp
        def marked(x: jax.Array, stage: jax.Array, number: jax.Array) -> jax.Array:
            return told(what, x, stage, number)

        marked.defvjp(
            lambda x, stage, number: (marked(x, stage, number), (stage, number)),
            lambda saved, dx: (told(f"{what} back", dx, *saved), None, None),
        )
        leaves[place] = marked(leaves[place], stage, jnp.asarray(number, "int32"))
        return treedef.unflatten(leaves)

    def report(self, stages: int, *, size: int) -> dict:
        """The ticks that each device counted, forward and in reverse, and the cells: [device, tick, chunk].

        Forward, a device works at a tick if a chunk enters after that tick's mark, before the next. In reverse, where
        the mark ends a tick, if the gradient of a chunk comes out before it; that the chunk was run again is not told.
        """
        forward: list = []
        reverse: list = []
        counted: dict[str, list[int]] = {"forward": [], "reverse": []}
        for stage in range(stages):
            ticks, back = 0, 0
            for _, what, number in [each for each in self.passed if each[0] == stage]:
                cell = [stage, ticks - 1, number // size]
                if what == "tick":
                    ticks += 1
                elif what == "tick back":
                    back += 1
                elif what == "enter" and not back and cell[:2] not in [each[:2] for each in forward]:
                    forward.append(cell)
                elif what == "enter back":
                    reverse.append([stage, back, number // size])
            counted["forward"].append(ticks)
            counted["reverse"].append(back)
        return {"ticks": counted, "cells": {"forward": forward, "reverse": reverse}}


def schedule_of(watch: Watch) -> Schedule:
    """`Sequential()`, each of whose ticks is marked."""

    def schedule(step: Any, init: Any, xs: Any, length: int) -> Any:
        return Sequential()(lambda flows, x: step(watch.mark("tick", flows), x), init, xs, length)

    return schedule
