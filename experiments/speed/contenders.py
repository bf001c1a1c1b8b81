"""Who is measured: one builder a contender, (case) -> a model that does the case's work as its library's users would.

The work is the same for all: the outputs of every step from the inputs xs, the initial state zero; and those with the
gradients of all weights and of xs, from a given gradient of the outputs.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from experiments.speed import peers
from experiments.speed.case import Case, Eager, Traced

CHECKPOINTED_FROM = 4096  # steps
WAVEFRONT_UP_TO = 8  # sequences in the batch
ZONEOUT_CELL, ZONEOUT_HIDDEN = 0.1, 0.05


def products(case: Case) -> Traced:
    """The matrix products alone, each over all T * B at once: x Wx, h Wh, and in the gradient dx, dWx, dh, dWh.

    An ideal: the products with Wh follow from one another step by step in every LSTM. With a projection, that too.
    """
    import jax.numpy as jnp

    rng, steps, read = np.random.default_rng(2), case.time * case.batch, case.projection or case.hidden

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape, np.float32), case.dtype)

    pairs = [(normal(steps, read), normal(read, 4 * case.hidden)) for _ in case.widths]  # h, Wh of each layer
    pairs += [(normal(steps, width), normal(width, 4 * case.hidden)) for width in case.widths[1:]]
    if case.projection:
        pairs += [(normal(steps, case.hidden), normal(case.hidden, case.projection)) for _ in case.widths]
    first = normal(case.inputs, 4 * case.hidden)

    def apply(weights: Any, xs: Any) -> Any:
        first, pairs = weights
        return [xs.reshape(steps, case.inputs) @ first] + [left @ right for left, right in pairs]

    return Traced(apply, (first, pairs), in_place=True)


def ours(case: Case, implementation: str | None = None, *, checkpointed: bool = False) -> Traced:
    """lstm_rot.models.lstm; without a name, by the implementation that None picks."""
    import jax

    from lstm_rot import Checkpointed, Sequential
    from lstm_rot.models import lstm

    masked = case.part == "masked"
    config = lstm.Config(
        input_size=case.inputs,
        hidden_size=case.hidden,
        num_layers=case.layers,
        compute_dtype=case.half,
        projection_size=case.projection,
        zoneout_cell=ZONEOUT_CELL * masked,
        zoneout_hidden=ZONEOUT_HIDDEN * masked,
    )
    how: Any = {
        "config": config,
        "schedule": Checkpointed() if checkpointed else Sequential(),
        "implementation": implementation,
    }

    def apply(params: Any, xs: Any, lengths: Any = None, key: Any = None) -> Any:
        return lstm.apply(params, xs, lengths=lengths, key=key, **how)[1]

    beside = (jax.numpy.asarray(case.lengths()), jax.random.key(1)) if masked else ()
    return Traced(apply, lstm.init(jax.random.key(0), config), beside)


class Contender(NamedTuple):
    """`package`: what must be installed. `masked`: what it does of a masked case, None where none of it."""

    build: Callable[[Case], Traced | Eager]
    package: str
    masked: str | None = None


ALL_OF_IT = "lengths, projection and zoneout"
PRODUCTS = "products"
OURS = "ours"  # as its users get it, which the goals judge: packed, or hoisted where that cannot serve
HOISTED = "ours, hoisted"
CHECKPOINTED = "ours, checkpointed"
WAVEFRONT = "ours, wavefront"
CUDNN = "jax.experimental.rnn"
LENGTHS = "lengths, outputs zeroed afterwards; no projection, no zoneout"
CONTENDERS = {
    PRODUCTS: Contender(products, "jax", "the products, with the projection's, of all T steps"),
    OURS: Contender(ours, "lstm_rot", ALL_OF_IT),
    HOISTED: Contender(lambda case: ours(case, "hoisted"), "lstm_rot"),
    "ours, reference": Contender(lambda case: ours(case, "reference"), "lstm_rot", ALL_OF_IT),
    WAVEFRONT: Contender(lambda case: ours(case, "wavefront"), "lstm_rot"),
    CHECKPOINTED: Contender(lambda case: ours(case, "hoisted", checkpointed=True), "lstm_rot"),
    "torch": Contender(peers.torch, "torch", "packed sequences and projection; no zoneout"),
    "flax linen": Contender(peers.flax_linen, "flax", LENGTHS),
    "flax nnx": Contender(peers.flax_nnx, "flax", LENGTHS),
    "haiku": Contender(peers.haiku, "haiku"),
    "equinox": Contender(peers.equinox, "equinox"),
    "keras": Contender(peers.keras, "keras", "a mask; no projection, no zoneout"),
    CUDNN: Contender(peers.cudnn, "jax", "lengths; no projection, no zoneout"),
}
JAX_PEERS = ("flax linen", "flax nnx", "haiku", "equinox", "keras")


def contenders(case: Case) -> tuple[list[str], dict[str, str]]:
    """The names of those who do this case, and of the others why not; those that are no question here are neither."""
    chosen, left_out = [], {}
    for name, contender in CONTENDERS.items():
        if name == WAVEFRONT and (case.layers == 1 or case.batch > WAVEFRONT_UP_TO or case.part == "masked"):
            continue
        if name == HOISTED and (case.device != "cpu" or case.half or case.part == "masked"):
            continue  # None picks it there
        if name == CHECKPOINTED and (case.time < CHECKPOINTED_FROM or case.part != "plain"):
            continue
        if case.part == "wavefront" and name not in (PRODUCTS, OURS, HOISTED, WAVEFRONT):
            continue
        if find_spec(contender.package) is None:
            left_out[name] = "not installed"
        elif name == CUDNN and (case.device != "gpu" or case.half):
            left_out[name] = "float32 alone" if case.device == "gpu" else "runs on a GPU alone"
        elif case.part == "masked" and contender.masked is None:
            left_out[name] = "knows neither lengths nor projection nor zoneout"
        else:
            chosen.append(name)
    return chosen, left_out
