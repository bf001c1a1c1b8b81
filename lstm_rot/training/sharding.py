"""Where each array of a training state lives: PartitionSpecs, which stand beside a model, made into shardings."""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lstm_rot.training.step import State


def batch(mesh: Mesh) -> NamedSharding:
    """Of a batch: its examples, the leading axis, over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def named(mesh: Mesh, specs: Any, shapes: Any) -> Any:
    """The NamedSharding of each leaf of `shapes`, given a tree of PartitionSpecs like it.

    What there is one of, a layer alone in its run, lives on every stage. Raises ValueError, naming the leaf, where a
    dimension does not divide over its mesh axis.
    """

    def of(path: Any, shape: Any, spec: PartitionSpec) -> NamedSharding:
        axes = [None if size == 1 else axis for size, axis in zip(shape.shape, _padded(spec, shape), strict=True)]
        for number, (size, axis) in enumerate(zip(shape.shape, axes, strict=True)):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"params{jax.tree_util.keystr(path)} is {shape.shape}: its axis {number} of {size} does not divide "
                    f"over {axis}={mesh.shape[axis]}; choose a size that does, or another mesh"
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(of, shapes, specs)


def of_state(
    mesh: Mesh, specs: Any, shapes: State, optimizer: optax.GradientTransformation, *, zero1: bool = False
) -> State:
    """The shardings of a State of these shapes: the optimizer's moments live where their parameters do.

    zero1: the moments are divided over `data` too (ZeRO stage 1: Rajbhandari et al. 2020), each along the first axis
    that divides; the updates made from them are gathered again. Raises ValueError as `named` does.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = named(mesh, specs, shapes.params)

    def of_moment(moment: Any, sharding: NamedSharding, shape: Any) -> NamedSharding:
        if moment.shape != shape.shape:  # a factored one
            return everywhere
        return _over_data(sharding, shape) if zero1 else sharding

    moments: Any = optax.tree_map_params(
        optimizer, of_moment, shapes.opt_state, params, shapes.params, transform_non_params=lambda _: everywhere
    )
    return State(  # pyright: ignore
        step=everywhere,
        params=params,
        opt_state=moments,
        key=everywhere,
        halted=everywhere,
        statistics=jax.tree.map(lambda _: everywhere, shapes.statistics),
    )


def _over_data(sharding: NamedSharding, shape: Any) -> NamedSharding:
    axes = _padded(sharding.spec, shape)
    for number, (size, axis) in enumerate(zip(shape.shape, axes, strict=True)):
        if axis is None and size > 1 and size % sharding.mesh.shape["data"] == 0:
            axes[number] = "data"
            return NamedSharding(sharding.mesh, PartitionSpec(*axes))  # pyright: ignore
    return sharding


def _padded(spec: PartitionSpec, shape: Any) -> list:
    """The mesh axis, or None, of every axis of the array."""
    return [*spec, *[None] * (len(shape.shape) - len(spec))]
