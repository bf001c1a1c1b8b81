"""What a program costs: the FLOPs of its products, and what its devices send each other, loops counted in full.

XLA's own `cost_analysis` counts a loop's body once, however often it runs, and so does `jax.experimental.roofline`.
Here products are counted in the jaxpr and collectives in the compiled program, each times the trip counts of all loops
around it.
"""

import re
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from lstm_rot.training.hlo import Instruction, Program, arrays


def flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the products (dot_general, convolutions) of function(*args), on all devices together.

    A product of [M, K] and [K, N] is 2 M K N, a convolution 2 times its outputs times what each is summed over, borders
    as if they were inside. Nothing pointwise is counted: of a layer it is less than the product by about its width. A
    `cond` counts as its dearest branch, a `platform_dependent` as that of JAX's default backend. args may be shapes
    (`jax.ShapeDtypeStruct`).

    Raises ValueError for products in a `while_loop` of unknown length, and for kernels that cannot be looked into.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # a gradient that nobody asks for is not computed
    return _flops(live)


def _flops(jaxpr: Any) -> int:
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def _flops_of(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "ffi_call" and "flops" in (told := dict(params["attributes"])):  # our own kernels say theirs
        return int(told["flops"])
    if name in OPAQUE:
        raise ValueError(f"{name}: what is computed in it cannot be counted; count the function without it")
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return (
            2 * equation.outvars[0].aval.size * (kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]])
        )
    if name == "cond":
        branches, platforms = params["branches"], params.get("branches_platforms")
        if platforms:  # lax.platform_dependent
            here = {"gpu": {"cuda", "rocm"}}.get(backend := jax.default_backend(), {backend})
            chosen = (k for k, of in enumerate(platforms) if of is None or here & {*of})
            branches = [branches[k] for k in chosen][:1] or branches
        return max(map(_flops, branches))
    inside = sum(_flops(jaxpr) for value in params.values() for jaxpr in _jaxprs(value))
    if name == "while" and inside:
        raise ValueError("a while_loop with products in it: its trips are not known; use scan, or fori_loop with ints")
    if name == "scan":
        return params["length"] * inside
    if name == "shard_map":  # its body is what one device does
        return inside * prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return inside


OPAQUE = frozenset({"pallas_call", "ffi_call", "ragged_dot_general"})


def _jaxprs(value: Any) -> list:
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if hasattr(each, "eqns")]


class Traffic(NamedTuple):
    """Of one kind of collective: how often a step runs one, and the bytes that one device sends for all of them."""

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Traffic]:
    """What one device sends in a run of the compiled program (`compiled.as_text()`), by kind, loops counted in full.

    The bytes are those of the ring algorithms among n devices, for operands of S bytes on each: all-reduce
    2 (n - 1) / n S, all-gather (n - 1) S, reduce-scatter and all-to-all (n - 1) / n S, collective-permute S. Every
    branch of a `cond` counts.

    Raises ValueError for a collective in a loop whose trips are not known, and for groups it cannot read.
    """
    program = Program(text)
    total: dict[str, Traffic] = {}
    for instruction, computation, times, _ in program.runs():
        kind, beside = instruction.opcode.removesuffix("-start"), program.computations[computation]
        if kind not in SENT or _goes_on(instruction, beside):
            continue
        if times is None:
            raise ValueError(
                f"the trips of a loop around {instruction.name} are not known: give it a length, as scan has"
            )
        size = sum(each.bytes for name in instruction.operands for each in arrays(beside[name].shape))
        before = total.get(kind, Traffic(0, 0))
        sent = SENT[kind](_group(instruction), size)
        total[kind] = Traffic(before.count + times, before.bytes + times * sent)
    return total


SENT = {  # bytes sent by one device, of S bytes on each of n
    "all-reduce": lambda n, size: 2 * size * (n - 1) // n,
    "all-gather": lambda n, size: size * (n - 1),
    "reduce-scatter": lambda n, size: size * (n - 1) // n,
    "all-to-all": lambda n, size: size * (n - 1) // n,
    "collective-permute": lambda n, size: size,
}


def _goes_on(collective: Instruction, beside: dict[str, Instruction]) -> bool:
    """Whether it is one that another instruction starts: a TPU's stands in every fusion that runs meanwhile."""
    if "async_collective_fusion_config" not in collective.attributes:
        return False
    return not any(
        "AsyncCollectiveStart" in each.attributes and collective.name in each.operands for each in beside.values()
    )


def _group(collective: Instruction) -> int:
    """How many devices take part together."""
    attributes = collective.attributes
    if collective.opcode.startswith("collective-permute"):
        return 2
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
    raise ValueError(f"the groups of {collective.name} are not read here: {attributes[:300]}")
