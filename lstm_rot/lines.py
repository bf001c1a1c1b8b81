"""What a line of cells shares, what moves along it, and how long it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split(tied: Any, p: Any) -> tuple[list, list, Callable[[list, list], Any]]:
    """The tied and the untied leaves of p, and the function that joins them again."""
    leaves, treedef = jax.tree.flatten(p)
    flags = [bool(flag) for flag in jax.tree.leaves(jax.tree.broadcast(tied, p))]

    def join(tied: list, untied: list) -> Any:
        sources = {True: iter(tied), False: iter(untied)}
        return treedef.unflatten([next(sources[flag]) for flag in flags])

    def pick(wanted: bool) -> list:
        return [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag is wanted]

    return pick(True), pick(False), join


def line_length(moving: Any, length: int | None) -> int:
    """The common leading axis of all that enters a line cell by cell, checked against `length`."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(moving)]
    if not shapes and length is None:
        raise ValueError("a line without a length: its weights are tied and nothing enters it; pass length=...")
    if () in shapes:
        raise ValueError("a scalar enters a line cell by cell; give it a leading axis, or tie it in the Axis")
    lengths = sorted({shape[0] for shape in shapes} | ({length} if length is not None else set()))
    if len(lengths) > 1:
        raise ValueError(
            f"a line of several lengths, {lengths}: the leading axes of its untied weights, of its inputs "
            f"(and length={length}) must agree; shapes are {shapes}"
        )
    return lengths[0]
