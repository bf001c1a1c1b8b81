"""The chips that are compiled for, by their public specifications, and the roofline: a model of time, not measured."""

from typing import NamedTuple


class Chip(NamedTuple):
    """Of one chip: FLOP/s of bfloat16 products, bytes of its memory, bytes/s that it sends over all links, cycles/s."""

    name: str
    peak: float
    memory: float
    sends: float
    clock: float
    source: str


# cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 400 GB/s both ways together; docs/v5p: 459 TFLOP/s, 95 GB,
# 4,800 Gbit/s each way. The clock is the peak over that of a cycle, 4 and 8 units of 128 x 128 multiply-adds.
CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 16e9, 200e9, 197e12 / (4 * 2 * 128**2), "cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip("TPU v5p", 459e12, 95e9, 600e9, 459e12 / (8 * 2 * 128**2), "cloud.google.com/tpu/docs/v5p"),
}
# Of one link: astra-sim.github.io/astra-sim-docs/validation/hardware/tpu-validation.html (TPU v3).
LATENCY = 1e-6


def chip_of(topology: str) -> Chip:
    """Of a topology's name, v5e:4x4."""
    return CHIPS[topology.split(":")[0]]


def step_times(row: dict) -> dict[str, float]:
    """Seconds of a step. By each of three parts alone, the longest being the roofline: at least so long it takes.

    products: at the chip's peak, shared evenly. bytes: sent over all links at once. waiting: each collective waits for
    one link's latency, one after another. It leaves out the reading of memory, pointwise operations, and that nothing
    reaches its peak.

    estimate: none of the roofline's, but what the compiler expects that computing takes, in its own count of cycles.
    """
    chip = chip_of(row["topology"])
    return {
        "products": row["flops"] / row["devices"] / chip.peak,
        "bytes": sum(each["bytes"] for each in row["collectives"].values()) / chip.sends,
        "waiting": sum(each["count"] for each in row["collectives"].values()) * LATENCY,
        "estimate": row["cycles"] / chip.clock,
    }
