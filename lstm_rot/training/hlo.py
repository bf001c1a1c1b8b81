"""The text of a compiled program (`compiled.as_text()`), read: its arrays, its computations, the trips of its loops."""

import re
from collections.abc import Iterator
from math import ceil, prod
from typing import NamedTuple


class Array(NamedTuple):
    """An array in a compiled program, as one device has it."""

    dtype: str  # XLA's name: bf16, pred
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int(re.findall(r"\d+", self.dtype)[0])
        return prod(self.shape) * bits // 8


def arrays(text: str) -> list[Array]:
    """The arrays that a text names, in their order."""
    found = re.findall(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]", text)
    return [Array(dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in found]


class Instruction(NamedTuple):
    """name = shape opcode(inside), attributes."""

    name: str
    shape: str
    opcode: str
    inside: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([^\s,)]+)", self.inside)

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        names = re.findall(CALLED, self.attributes)
        return [name[1:] for found in names for name in found.split(", ")]


MOVES_NOTHING = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast"})
COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
CALLED = r"\b(?:body|condition|calls|to_apply|\w+_computations?)=\{?(%[^\s,})]+(?:, %[^\s,})]+)*)"


class Run(NamedTuple):
    """An instruction of a program and how often it runs; None: in a loop whose trips are not known."""

    instruction: Instruction
    computation: str
    times: int | None
    fused: bool  # within a fusion


class Program:
    """computations: name -> its instructions by name; roots: the name of each one's last; entry: where it begins."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, str] = {}
        self.entry = current = ""
        for line in text.splitlines():
            if found := COMPUTATION.match(line):
                current = found[2]
                self.entry = current if found[1] else self.entry
                self.computations[current] = {}
            elif found := INSTRUCTION.match(line):
                root, name, shape, opcode, rest = found.groups()
                self.computations[current][name] = Instruction(name, shape, opcode, *_closed(rest))
                if root:
                    self.roots[current] = name

    def runs(self) -> Iterator["Run"]:
        """Every instruction, with how often it runs; of a `conditional` every branch, as if all ran."""

        def of(computation: str, times: int | None, fused: bool) -> Iterator[Run]:
            for instruction in self.computations[computation].values():
                yield Run(instruction, computation, times, fused)
                inside = times
                if instruction.opcode == "while":
                    trips = self.trips(computation, instruction)
                    inside = None if times is None or trips is None else times * trips
                for name in instruction.called:
                    yield from of(name, inside, fused or instruction.opcode == "fusion")

        yield from of(self.entry, 1, False)

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often the body of that `while` runs; None where it cannot be known.

        As the compiler noted, else by its counter: where it starts, its step, and what the condition compares it with.
        """
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(noted[1])
        try:
            return self._counted(computation, loop)
        except (KeyError, IndexError, ValueError):  # it is not written as one that counts
            return None

    def _counted(self, computation: str, loop: Instruction) -> int:
        names = dict(re.findall(r"\b(body|condition)=%([^\s,]+)", loop.attributes))
        compared = self.root(names["condition"])
        counter, bound = compared.operands
        number = int(re.findall(r"\bindex=(\d+)", self.computations[names["condition"]][counter].attributes)[0])
        start = self.computations[computation][loop.operands[0]].operands[number]
        next_one = self.computations[names["body"]][self.root(names["body"]).operands[number]]
        if next_one.opcode != "add" or "direction=LT" not in compared.attributes:
            raise ValueError(loop.name)
        step = self.constant(names["body"], next_one.operands[1])
        return ceil((self.constant(names["condition"], bound) - self.constant(computation, start)) / step)

    def depth(self, unknown: int | None = None) -> int:
        """How many operations must run one after another: the longest chain, loops counted in full.

        A fusion is one operation, a loop the chains of its body and condition times its trips, `unknown` where these
        are not known. Raises ValueError for such a loop where `unknown` is None.
        """
        done: dict[str, int] = {}

        def chain(computation: str) -> int:
            if computation not in done:
                longest: dict[str, int] = {}
                for name, instruction in self.computations[computation].items():  # operands stand before their users
                    before = max((longest.get(operand, 0) for operand in instruction.operands), default=0)
                    longest[name] = before + alone(computation, instruction)
                done[computation] = max(longest.values(), default=0)
            return done[computation]

        def alone(computation: str, instruction: Instruction) -> int:
            if instruction.opcode in MOVES_NOTHING:
                return 0
            if instruction.opcode == "while":
                trips = self.trips(computation, instruction)
                if trips is None and unknown is None:
                    raise ValueError(f"{instruction.name}: its trips are not known; say how many there were")
                return (unknown if trips is None else trips) * sum(map(chain, instruction.called))  # pyright: ignore
            if instruction.opcode in ("call", "conditional"):
                return max(map(chain, instruction.called))
            return 1

        return chain(self.entry)

    def root(self, computation: str) -> Instruction:
        return self.computations[computation][self.roots[computation]]

    def constant(self, computation: str, name: str) -> int:
        """The constant of that name, through copies of it. Raises ValueError where there is none."""
        instruction = self.computations[computation][name]
        if instruction.opcode == "constant":
            return int(instruction.inside)
        if instruction.opcode in ("copy", "bitcast"):
            return self.constant(computation, instruction.operands[0])
        raise ValueError(name)


def _closed(rest: str) -> tuple[str, str]:
    """What stands before and after the parenthesis that closes an instruction's operands."""
    depth = 1
    for at, sign in enumerate(rest):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return rest[:at], rest[at + 1 :]
    raise ValueError(f"an instruction without an end: {rest[:300]}")
