"""How a step's Jacobian is built: which of the carry's arrays depend on which, and along which of their axes each entry
depends on itself alone. Read from the program of the step's derivative, so that nobody need declare it.

    structure(step, carry, x) -> groups of leaves whose Jacobians are solved for together

A batch axis is such an axis, and so are the hidden units of a cell whose recurrence is diagonal.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal


class Group(NamedTuple):
    """Leaves of the carry that depend on one another, and on no others.

    axes: along which an entry depends only on entries at its own place; all leaves have these, of one size. affine:
    the Jacobian is the same wherever it is taken.
    """

    leaves: tuple[int, ...]
    axes: tuple[int, ...]
    affine: bool


class Reach(NamedTuple):
    """What an array in the program depends on.

    tangents: number of a carry's leaf -> for each axis of that leaf the axis of this array that runs along with it;
    None: an entry may depend on all along that axis. curved: so may the coefficients on the carry itself. carry:
    whether it is computed from the carry and not from its tangents.
    """

    tangents: Mapping[int, tuple[int | None, ...]] = MappingProxyType({})
    curved: bool = False
    carry: bool = False


def structure(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, x: Any) -> list[Group]:
    """The groups of the carry's leaves. carry, x: arrays, or their shapes."""

    def tangent(carry: Any, dcarry: Any, x: Any) -> Any:
        return jax.jvp(lambda carry: step(carry, x)[0], (carry,), (dcarry,))[1]

    shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
    closed = jax.make_jaxpr(tangent)(carry, carry, x)
    of_carry = [Reach(carry=True)] * len(shapes)
    of_tangents = [Reach({k: tuple(range(len(shape)))}) for k, shape in enumerate(shapes)]
    rest = [Reach()] * (len(closed.jaxpr.invars) - 2 * len(shapes))
    outs = _walk(closed.jaxpr, [*of_carry, *of_tangents, *rest])
    groups = []
    for leaves in _connected([set(out.tangents) for out in outs]):
        pairs = [(outs[k].tangents[i], shapes[i], shapes[k]) for k in leaves for i in outs[k].tangents]
        rank = min(len(shapes[k]) for k in leaves)
        same = [a for a in range(rank) if len({shapes[k][a] for k in leaves}) == 1]
        axes = tuple(a for a in same if all(place[a] == a for place, _, _ in pairs))
        groups.append(Group(tuple(leaves), axes, not any(outs[k].curved for k in leaves)))
    return groups


def _connected(depends: Sequence[set[int]]) -> list[list[int]]:
    """The sets of numbers that depend on one another, directly or not, each sorted."""
    group = list(range(len(depends)))
    for k, others in enumerate(depends):
        for other in others:
            old, new = group[other], group[k]
            group = [new if each == old else each for each in group]
    return [[k for k, each in enumerate(group) if each == name] for name in sorted(set(group), key=group.index)]


def _walk(jaxpr: Any, given: Sequence[Reach]) -> list[Reach]:
    """What the results depend on, by what the arguments do."""
    known = dict(zip(jaxpr.invars, given, strict=True))

    def of(var: Any) -> Reach:
        return Reach() if isinstance(var, Literal) else known.get(var, Reach())

    for equation in jaxpr.eqns:
        into = [of(var) for var in equation.invars]
        known |= zip(equation.outvars, _reach(equation, into), strict=True)
    return [of(var) for var in jaxpr.outvars]


def _reach(equation: Any, into: list[Reach]) -> list[Reach]:
    name, outs = equation.primitive.name, equation.outvars
    moving = [(reach, var.aval.shape) for reach, var in zip(into, equation.invars, strict=True) if reach.tangents]
    from_carry = any(reach.carry for reach in into)
    if not moving:
        return [Reach(carry=from_carry)] * len(outs)
    inside = equation.params.get(INSIDE.get(name, ""))
    if inside is not None:
        jaxpr = getattr(inside, "jaxpr", inside)
        if len(jaxpr.invars) == len(into):
            return _walk(jaxpr, into)
    if name == "optimization_barrier":
        return into
    curved = from_carry or any(reach.curved for reach, _ in moving)
    reached = []
    for out in outs:
        tangents: dict[int, tuple[int | None, ...]] = {}
        for k, (reach, var) in enumerate(zip(into, equation.invars, strict=True)):
            for leaf, places in reach.tangents.items():
                lands = _lands(equation, k, var.aval.shape, out.aval.shape)
                moved = tuple(None if place is None else lands.get(place) for place in places)
                before = tangents.get(leaf, moved)
                tangents[leaf] = tuple(a if a == b else None for a, b in zip(before, moved, strict=True))
        reached.append(Reach(tangents, curved))
    return reached


def _lands(equation: Any, operand: int, shape: tuple[int, ...], out: tuple[int, ...]) -> dict[int, int]:
    """Axis of the operand -> axis of the result along which an entry depends on its own place alone."""
    name, params = equation.primitive.name, equation.params
    every = {axis: axis for axis in range(len(shape))}
    if name in POINTWISE:
        lands = every if len(shape) == len(out) else {}  # an axis of one entry may be spread over many
    elif name == "broadcast_in_dim":
        lands = dict(enumerate(params["broadcast_dimensions"]))
    elif name == "transpose":
        lands = {axis: place for place, axis in enumerate(params["permutation"])}
    elif name == "squeeze":
        lands = _without(every, params["dimensions"])
    elif name in ("reduce_sum", "argmax", "argmin"):
        lands = _without(every, params["axes"])
    elif name == "reshape":
        lands = _alike(shape, out)
    elif name in ("slice", "pad", "dynamic_slice"):
        lands = every
    elif name in ("split", "cumsum"):
        lands = {axis: axis for axis in every if axis != params["axis"]}
    elif name == "concatenate":
        lands = {axis: axis for axis in every if axis != params["dimension"]}
    elif name == "rev":
        lands = {axis: axis for axis in every if axis not in params["dimensions"]}
    elif name == "dot_general":
        lands = _of_product(params["dimension_numbers"], operand, [len(var.aval.shape) for var in equation.invars])
    elif name == "conv_general_dilated" and operand == 0:
        numbers = params["dimension_numbers"]
        lands = {numbers.lhs_spec[0]: numbers.out_spec[0]} if params["batch_group_count"] == 1 else {}
    else:
        lands = {}
    return {axis: place for axis, place in lands.items() if shape[axis] == out[place]}


INSIDE = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
POINTWISE = {"mul", "div", "neg", "add", "add_any", "sub", "convert_element_type", "select_n", "copy", "copy_p", "name"}


def _without(axes: dict[int, int], gone: Sequence[int]) -> dict[int, int]:
    left = [axis for axis in axes if axis not in gone]
    return {axis: place for place, axis in enumerate(left)}


def _alike(shape: tuple[int, ...], out: tuple[int, ...]) -> dict[int, int]:
    """Of a reshape: the first axes that are the same, and the last."""
    first = 0
    while first < min(len(shape), len(out)) and shape[first] == out[first]:
        first += 1
    last = 0
    while last < min(len(shape), len(out)) - first and shape[-1 - last] == out[-1 - last]:
        last += 1
    middle = prod(shape[first : len(shape) - last]), prod(out[first : len(out) - last])
    if middle[0] != middle[1]:
        return {}
    front = {axis: axis for axis in range(first)}
    return front | {len(shape) - 1 - k: len(out) - 1 - k for k in range(last)}


def _of_product(numbers: Any, operand: int, ranks: list[int]) -> dict[int, int]:
    contracted, batch = numbers
    free = [
        [a for a in range(rank) if a not in (*summed, *shared)]
        for rank, summed, shared in zip(ranks, contracted, batch, strict=True)
    ]
    start = len(batch[0]) + (len(free[0]) if operand else 0)
    lands = {axis: place for place, axis in enumerate(batch[operand])}
    return lands | {axis: start + place for place, axis in enumerate(free[operand])}
