# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""Who trains: one builder a contender, each library imported by its own. All do one work from the same weights.

The work is a training step: the mean cross-entropy, its gradient by all weights, plain SGD, the running statistics.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from experiments.speed.case import LeftOut
from experiments.very_deep.case import CLASSES, EPSILON, KEPT, RATE, STAGES, Case


class Traced(NamedTuple):
    """In JAX: loss(params, running, x, y) -> (loss, running) to be differentiated."""

    loss: Callable[..., Any]
    params: Any
    running: Any


class Eager(NamedTuple):
    """step() -> the loss, after one more update."""

    step: Callable[[], float]
    versions: dict[str, str]


def ours(case: Case, *, checkpointed: bool = False) -> Traced:
    """lstm_rot.models.conv_resnet."""
    import jax
    import jax.numpy as jnp
    import optax

    from lstm_rot import Checkpointed, Sequential
    from lstm_rot.models import conv_resnet

    config = conv_resnet.Config(case.depth, width=case.width)
    schedule = Checkpointed() if checkpointed else Sequential()

    def loss(params: Any, running: Any, x: Any, y: Any) -> tuple[Any, Any]:
        scores, used = conv_resnet.apply(params, x, config=config, schedule=schedule)
        running = jax.tree.map(lambda old, new: KEPT * old + (1 - KEPT) * new, running, used)
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean(), running

    weights = case.weights()
    layers = iter(weights.convolutions)
    stem, *net = conv_resnet.init(jax.random.key(0), config).net
    parts = [stem._replace(w=jnp.asarray(next(layers)))]
    for part, run in zip(net, config.runs, strict=True):
        pairs = [(next(layers), next(layers)) for _ in range(run or 1)]
        w1, w2 = (jnp.stack(each) if run else jnp.asarray(each[0]) for each in zip(*pairs, strict=True))
        parts.append(part._replace(w1=w1, w2=w2))
    params = conv_resnet.Params(tuple(parts), jnp.asarray(weights.head), jnp.zeros(CLASSES))
    return Traced(loss, params, conv_resnet.statistics(config))


def flax_linen(case: Case) -> Traced:
    """The same net of flax.linen modules, a Python loop over its blocks."""
    import flax.linen as nn
    import jax.numpy as jnp
    import optax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            def layer(x: Any, filters: int, stride: int = 1) -> Any:
                x = nn.Conv(filters, (3, 3), strides=stride, padding=1, use_bias=False)(x)
                return nn.BatchNorm(use_running_average=False, momentum=KEPT, epsilon=EPSILON)(x)

            x = nn.relu(layer(x, case.width))
            for stage in range(STAGES):
                for block in range(case.blocks):
                    filters, stride = case.width << stage, 2 if stage and not block else 1
                    add = layer(nn.relu(layer(x, filters, stride)), filters)
                    if stride == 2:
                        x = jnp.pad(x[:, ::2, ::2], ((0, 0),) * 3 + ((0, filters - x.shape[-1]),))
                    x = nn.relu(x + add)
            return nn.Dense(CLASSES)(x.mean((1, 2)))

    net = Net()

    def loss(params: Any, running: Any, x: Any, y: Any) -> tuple[Any, Any]:
        scores, changed = net.apply({"params": params, "batch_stats": running}, x, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean(), changed["batch_stats"]

    weights, sizes = case.weights(), case.sizes()
    params: dict[str, Any] = {
        f"Conv_{number}": {"kernel": jnp.asarray(w)} for number, w in enumerate(weights.convolutions)
    }
    for number, (_, filters) in enumerate(sizes):
        params[f"BatchNorm_{number}"] = {"scale": jnp.ones(filters), "bias": jnp.zeros(filters)}
    params["Dense_0"] = {"kernel": jnp.asarray(weights.head), "bias": jnp.zeros(CLASSES)}
    running = {
        f"BatchNorm_{number}": {"mean": jnp.zeros(filters), "var": jnp.ones(filters)}
        for number, (_, filters) in enumerate(sizes)
    }
    return Traced(loss, params, running)


def torch(case: Case, *, channels_last: bool = False) -> Eager:
    """The same net of torch.nn modules; its maps [B, C, P, P] in memory as torch has them, or the channels last."""
    import torch as t
    from torch.nn import functional as f

    gpu = case.device == "gpu"
    if gpu and not t.cuda.is_available():
        raise LeftOut("this torch has no CUDA")
    device = "cuda" if gpu else "cpu"

    class Net(t.nn.Module):
        def __init__(self):
            super().__init__()
            weights = case.weights()
            self.convolutions, self.norms = t.nn.ModuleList(), t.nn.ModuleList()
            for w in weights.convolutions:
                channels, filters = w.shape[2:]
                stride = 2 if filters == 2 * channels else 1
                conv = t.nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
                conv.weight = t.nn.Parameter(t.from_numpy(w).permute(3, 2, 0, 1).contiguous())
                self.convolutions.append(conv)
                self.norms.append(t.nn.BatchNorm2d(filters, eps=EPSILON, momentum=1 - KEPT))
            self.head = t.nn.Linear(*weights.head.shape)
            self.head.weight = t.nn.Parameter(t.from_numpy(weights.head).T.contiguous())
            t.nn.init.zeros_(self.head.bias)

        def forward(self, x: Any) -> Any:
            layers = iter(zip(self.convolutions, self.norms, strict=True))

            def layer(x: Any) -> Any:
                conv, norm = next(layers)
                return norm(conv(x))

            x = f.relu(layer(x))
            for _ in range(STAGES * case.blocks):
                add = layer(f.relu(layer(x)))
                if add.shape != x.shape:
                    x = f.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, add.shape[1] - x.shape[1]))
                x = f.relu(x + add)
            return self.head(x.mean((2, 3)))

    order = t.channels_last if channels_last else t.contiguous_format
    net: Any = Net().to(device).to(memory_format=order)  # pyright: ignore (its overloads leave this one out)
    images, classes = case.images()
    x = t.from_numpy(images).permute(0, 3, 1, 2).to(device).contiguous(memory_format=order)
    y = t.from_numpy(classes).long().to(device)
    optimizer = t.optim.SGD(net.parameters(), RATE)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = f.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    versions = {"torch": t.__version__, "torch's threads": str(t.get_num_threads())}
    return Eager(step, versions | ({"torch's cuDNN": str(t.backends.cudnn.version())} if gpu else {}))


class Contender(NamedTuple):
    """`package`: what must be installed. `devices`: over which the batch lies, in JAX."""

    build: Callable[[Case], Traced | Eager]
    package: str
    devices: int = 1


OURS, CHECKPOINTED, FLAX = "ours", "ours, Checkpointed", "flax linen"
OURS_CORES, FLAX_CORES = "ours, a device per core", "flax linen, a device per core"
TORCH, TORCH_LAST = "torch", "torch, channels last"
CORES = os.cpu_count() or 1
CONTENDERS = {
    OURS: Contender(ours, "lstm_rot"),
    CHECKPOINTED: Contender(partial(ours, checkpointed=True), "lstm_rot"),
    OURS_CORES: Contender(ours, "lstm_rot", CORES),
    FLAX: Contender(flax_linen, "flax"),
    FLAX_CORES: Contender(flax_linen, "flax", CORES),
    TORCH: Contender(torch, "torch"),
    TORCH_LAST: Contender(partial(torch, channels_last=True), "torch"),
}
DEEP = (OURS, CHECKPOINTED, FLAX)
RATES = (OURS, OURS_CORES, FLAX, FLAX_CORES, TORCH, TORCH_LAST)
RATES_GPU = (OURS, FLAX, TORCH, TORCH_LAST)


def installed(names: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The names of those who can run, and of the others why not."""
    there = [name for name in names if find_spec(CONTENDERS[name].package) is not None]
    return there, {name: "not installed" for name in names if name not in there}
