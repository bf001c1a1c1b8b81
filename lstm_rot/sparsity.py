"""How a step's Jacobian is built: which of the carry's arrays depend on which, and along which of their axes each entry
depends on itself alone. Read from the programs of the step and of its derivative, so that nobody need declare it.

    structure(step, carry, x) -> groups of leaves whose Jacobians are solved for together

A batch axis is such an axis, and so are the hidden units of a cell whose recurrence is diagonal.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal


class Group(NamedTuple):
    """Leaves of the carry that depend on one another, and on no others.

    axes: along which an entry depends only on entries at its own place; all leaves have these, of one size. affine:
    the new leaves are affine in the old.
    """

    leaves: tuple[int, ...]
    axes: tuple[int, ...]
    affine: bool


class Reach(NamedTuple):
    """Which of the carry's tangents an array is made of: number of a leaf -> for each axis of that leaf the axis of
    this array that runs along with it; None: an entry may depend on all along that axis."""

    leaves: Mapping[int, tuple[int | None, ...]] = MappingProxyType({})


def structure(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, x: Any) -> list[Group]:
    """The groups of the carry's leaves. carry, x: arrays, or their shapes."""

    def tangent(carry: Any, dcarry: Any, x: Any) -> Any:
        return jax.jvp(lambda carry: step(carry, x)[0], (carry,), (dcarry,))[1]

    shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
    program = jax.make_jaxpr(tangent)(carry, carry, x).jaxpr
    tangents = [Reach({k: tuple(range(len(shape)))}) for k, shape in enumerate(shapes)]
    rest = [Reach()] * (len(program.invars) - 2 * len(shapes))
    outs = _walk(program, [Reach()] * len(shapes) + tangents + rest, Reach(), _reach)
    straight = _affine(step, carry, x)
    groups = []
    for leaves in _connected([set(out.leaves) for out in outs]):
        pairs = [(outs[k].leaves[i], shapes[i], shapes[k]) for k in leaves for i in outs[k].leaves]
        rank = min(len(shapes[k]) for k in leaves)
        same = [a for a in range(rank) if len({shapes[k][a] for k in leaves}) == 1]
        axes = tuple(a for a in same if all(place[a] == a for place, _, _ in pairs))
        groups.append(Group(tuple(leaves), axes, all(straight[k] for k in leaves)))
    return groups


def _affine(step: Callable, carry: Any, x: Any) -> list[bool]:
    """Of each leaf of the new carry, whether it is affine in the carry: by the program itself, for a derivative does
    not show what a `stop_gradient` or a rounding adds."""
    program = jax.make_jaxpr(lambda carry, x: step(carry, x)[0])(carry, x).jaxpr
    count = len(jax.tree.leaves(carry))
    degrees = _walk(program, [1] * count + [0] * (len(program.invars) - count), 0, _degree)
    return [degree <= 1 for degree in degrees]


def _degree(equation: Any, into: list[int]) -> list[int]:
    """0: free of the carry, 1: affine in it, 2: any other function."""
    name, highest = equation.primitive.name, max(into, default=0)
    if highest == 1 and name in PRODUCTS:
        highest = 1 if sum(into) == 1 and (name != "div" or into[0]) else 2
    elif highest == 1 and name == "select_n":
        highest = 1 if into[0] == 0 else 2
    elif highest == 1 and name == "convert_element_type":
        highest = 1 if jnp.issubdtype(equation.params["new_dtype"], jnp.floating) else 2
    elif highest == 1 and name in ("dynamic_slice", "pad"):
        highest = 1 if not any(into[2 if name == "pad" else 1 :]) else 2
    elif highest == 1 and name not in LINEAR:
        highest = 2
    return [highest] * len(equation.outvars)


def _connected(depends: Sequence[set[int]]) -> list[list[int]]:
    """The sets of numbers that depend on one another, directly or not, each sorted."""
    group = list(range(len(depends)))
    for k, others in enumerate(depends):
        for other in others:
            old, new = group[other], group[k]
            group = [new if each == old else each for each in group]
    return [[k for k, each in enumerate(group) if each == name] for name in sorted(set(group), key=group.index)]


def _walk(jaxpr: Any, given: Sequence[Any], nothing: Any, rule: Callable[[Any, list], list]) -> list:
    """What is known of the results, by what is of the arguments; `nothing` of constants."""
    known = dict(zip(jaxpr.invars, given, strict=True))
    for equation in jaxpr.eqns:
        into = [nothing if isinstance(var, Literal) else known.get(var, nothing) for var in equation.invars]
        inside = equation.params.get(INSIDE.get(equation.primitive.name, ""))
        inside = getattr(inside, "jaxpr", inside)
        if inside is not None and len(inside.invars) == len(into):
            outs = _walk(inside, into, nothing, rule)
        else:
            outs = rule(equation, into)
        known |= zip(equation.outvars, outs, strict=True)
    return [nothing if isinstance(var, Literal) else known.get(var, nothing) for var in jaxpr.outvars]


def _reach(equation: Any, into: list[Reach]) -> list[Reach]:
    if equation.primitive.name == "optimization_barrier":
        return into
    reached = []
    for out in equation.outvars:
        leaves: dict[int, tuple[int | None, ...]] = {}
        for k, (reach, var) in enumerate(zip(into, equation.invars, strict=True)):
            for leaf, places in reach.leaves.items():
                lands = _lands(equation, k, var.aval.shape, out.aval.shape)
                moved = tuple(None if place is None else lands.get(place) for place in places)
                before = leaves.get(leaf, moved)
                leaves[leaf] = tuple(a if a == b else None for a, b in zip(before, moved, strict=True))
        reached.append(Reach(leaves))
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
    elif name == "reduce_sum":
        lands = _without(every, params["axes"])
    elif name == "unstack":
        lands = _without(every, [params["axis"]])
    elif name == "stack":
        lands = {axis: axis + (axis >= params["axis"]) for axis in every}
    elif name == "reshape":
        lands = _alike(shape, out) if params["dimensions"] is None else {}
    elif name in ("slice", "dynamic_slice"):
        lands = every  # an axis of which a part is taken has another size
    elif name == "pad":
        lands = {axis: axis for axis in every if params["padding_config"][axis] == (0, 0, 0)}
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


INSIDE = {"jit": "jaxpr", "remat2": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
PLACED = {"reshard", "sharding_constraint", "pvary"}  # the same values, elsewhere
POINTWISE = {"mul", "div", "neg", "add", "add_any", "sub", "convert_element_type", "select_n", "copy", "name", *PLACED}
PRODUCTS = {"mul", "div", "dot_general", "conv_general_dilated"}
LINEAR = POINTWISE - {"mul", "div", "select_n", "convert_element_type"} | {
    *("broadcast_in_dim", "transpose", "squeeze", "reshape", "slice", "rev", "optimization_barrier"),
    *("concatenate", "split", "stack", "unstack", "reduce_sum", "cumsum"),
}


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
