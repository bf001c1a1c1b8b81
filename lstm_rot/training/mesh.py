"""The devices as a mesh: examples over `data`, hidden sizes and vocabularies over `model`, layers over `stage`."""

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = "data", "model", "stage"
SHOWN = 12  # of the meshes that would fit


def make_mesh(text: str = "", devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh that a text such as "data=4,model=2" describes, over all devices, or those given.

    An axis left out is 1; of an empty text all devices are `data`. All three axes exist: one code serves every mesh.

    Raises ValueError for a text that is none, an unknown axis, and sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict.fromkeys(AXES, 1) | (_sizes(text) if text else {"data": len(devices)})
    if prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh {text!r} has {prod(sizes.values())} devices, there are {len(devices)}: "
            f"what fits is {_fitting(list(_sizes(text)), len(devices))}"
        )
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _sizes(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in AXES or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh {text!r}: {part.strip()!r} is no part of it; name each of {', '.join(AXES)} at most once, "
                f"with its number of devices, as in data=4,model=2"
            )
        sizes[axis] = int(size)
    return sizes


def _fitting(axes: list[str], devices: int) -> str:
    """The meshes of these axes that take all the devices; of two axes where one alone was named."""
    axes = axes if len(axes) > 1 else [axis for axis in AXES if axis in (*axes, "data", "model")][:2]
    divisors = [n for n in range(devices, 0, -1) if devices % n == 0]
    fitting = [
        ",".join(f"{axis}={size}" for axis, size in zip(axes, sizes, strict=True) if size > 1) or f"{axes[0]}=1"
        for sizes in product(divisors, repeat=len(axes))
        if prod(sizes) == devices
    ]
    return "; ".join(fitting[:SHOWN]) + "; ..." * (len(fitting) > SHOWN)
