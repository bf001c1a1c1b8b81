# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
"""What users could pick instead, each as its documentation would have it; a library is imported by its own builder."""

from typing import Any

import numpy as np

from experiments.speed.case import Case, Eager, LeftOut, Traced


def flax_linen(case: Case) -> Traced:
    """flax.linen.RNN of OptimizedLSTMCell; the weights and the carry float32, the products in the case's dtype."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, xs: Any, lengths: Any = None) -> Any:
            for _ in range(case.layers):
                xs = nn.RNN(nn.OptimizedLSTMCell(case.hidden, dtype=case.half), time_major=True)(
                    xs, seq_lengths=lengths
                )
            return xs

    stack = Stack()
    weights = jax.jit(stack.init)(jax.random.key(0), jnp.zeros((1, case.batch, case.inputs), case.dtype))

    def apply(weights: Any, xs: Any, lengths: Any = None) -> Any:
        return _without_padding(stack.apply(weights, xs, lengths), lengths)

    return Traced(apply, weights, _lengths(case))


def flax_nnx(case: Case) -> Traced:
    """flax.nnx.RNN of OptimizedLSTMCell, split and merged under jit; dtypes as flax_linen's."""
    from flax import nnx

    cells = [
        nnx.OptimizedLSTMCell(width, case.hidden, dtype=case.half, rngs=nnx.Rngs(layer))
        for layer, width in enumerate(case.widths)
    ]
    layers = nnx.List([nnx.RNN(cell, time_major=True) for cell in cells])
    graph, weights, rest = nnx.split(layers, nnx.Param, ...)

    def apply(weights: Any, xs: Any, rest: Any, lengths: Any = None) -> Any:
        layers: Any = nnx.merge(graph, weights, rest, copy=True)
        for layer in layers:
            xs = layer(xs, seq_lengths=lengths)
        return _without_padding(xs, lengths)

    return Traced(apply, weights, (rest, *_lengths(case)))


def haiku(case: Case) -> Traced:
    """haiku.dynamic_unroll of DeepRNN of LSTMs; its weights and states take the dtype of the inputs."""
    import haiku as hk
    import jax
    import jax.numpy as jnp

    def network(xs: Any) -> Any:
        core = hk.LSTM(case.hidden) if case.layers == 1 else hk.DeepRNN([hk.LSTM(case.hidden) for _ in case.widths])
        state = jax.tree.map(lambda zeros: zeros.astype(xs.dtype), core.initial_state(case.batch))
        return hk.dynamic_unroll(core, xs, state)[0]

    net = hk.without_apply_rng(hk.transform(network))
    weights = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, case.batch, case.inputs), case.dtype))
    return Traced(net.apply, weights)


def equinox(case: Case) -> Traced:
    """equinox.nn.LSTMCell, scanned over time and vmapped over the batch; weights and states in the case's dtype."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), case.layers)
    cells = [
        eqx.nn.LSTMCell(width, case.hidden, dtype=jnp.dtype(case.dtype), key=key)
        for width, key in zip(case.widths, keys, strict=True)
    ]

    def apply(cells: Any, xs: Any) -> Any:
        zeros = jnp.zeros((case.batch, case.hidden), xs.dtype)
        for cell in cells:

            def step(state: Any, x: Any, cell: Any = cell) -> tuple[Any, Any]:
                state = jax.vmap(lambda x, state: cell(x, state))(x, state)
                return state, state[0]

            xs = jax.lax.scan(step, (zeros, zeros), xs)[1]
        return xs

    return Traced(apply, cells)


def keras(case: Case) -> Traced:
    """keras.layers.LSTM, stateless and batch-major; its cuDNN path where it finds it; half types as mixed policies."""
    import jax.numpy as jnp
    import keras as k

    policy = f"mixed_{case.half}" if case.half else "float32"
    layers: list[Any] = [k.layers.LSTM(case.hidden, return_sequences=True, dtype=policy) for _ in case.widths]
    for layer, width in zip(layers, case.widths, strict=True):
        layer.build((case.batch, case.time, width))
    weights = [[weight.value for weight in layer.trainable_variables] for layer in layers]
    rest = [[weight.value for weight in layer.non_trainable_variables] for layer in layers]
    valid = jnp.arange(case.time) < case.lengths()[:, None]

    def apply(weights: Any, xs: Any, rest: Any, mask: Any = None) -> Any:
        for layer, mine, others in zip(layers, weights, rest, strict=True):
            xs = layer.stateless_call(mine, others, xs, mask=mask)[0]
        return xs

    return Traced(apply, weights, (rest, valid) if case.part == "masked" else (rest,), batch_major=True)


def cudnn(case: Case) -> Traced:
    """jax.experimental.rnn: cuDNN's LSTM, batch-major, float32; TF32 where the GPU has it, as in torch."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import rnn

    weights = rnn.init_lstm_weight(jax.random.key(0), case.inputs, case.hidden, case.layers, bidirectional=False)
    zeros = jnp.zeros((case.layers, case.batch, case.hidden))
    lengths = jnp.asarray(case.lengths() if case.part == "masked" else np.full(case.batch, case.time, np.int32))

    run: Any = rnn.lstm

    def apply(weights: Any, xs: Any, lengths: Any) -> Any:
        sizes = case.inputs, case.hidden, case.layers
        return run(xs, zeros, zeros, weights, lengths, *sizes, dropout=0.0, bidirectional=False)[0]

    return Traced(apply, weights, (lengths,), batch_major=True)


def torch(case: Case) -> Eager:
    """torch.nn.LSTM, time-major; all of it in the case's dtype; the forward under no_grad."""
    import torch as t

    gpu = case.device == "gpu"
    if gpu and not t.cuda.is_available():
        raise LeftOut("this torch has no CUDA")
    device, dtype = "cuda" if gpu else "cpu", getattr(t, case.dtype)
    t.manual_seed(0)
    module = t.nn.LSTM(case.inputs, case.hidden, case.layers, proj_size=case.projection or 0).to(device, dtype)
    xs = t.from_numpy(case.xs()).to(device, dtype).requires_grad_()
    lengths = t.from_numpy(case.lengths()).long() if case.part == "masked" else None
    width = case.projection or case.hidden
    gradient = t.randn((case.time, case.batch, width), device=device, dtype=dtype)
    of = [xs, *module.parameters()]

    def run() -> Any:
        if lengths is None:
            return module(xs)[0]
        packed = t.nn.utils.rnn.pack_padded_sequence(xs, lengths, enforce_sorted=False)
        return t.nn.utils.rnn.pad_packed_sequence(module(packed)[0], total_length=case.time)[0]

    def finished(results: Any) -> Any:
        if gpu:
            t.cuda.synchronize()
        return results

    def forward() -> Any:
        with t.no_grad():
            return finished(run())

    def both() -> Any:
        ys = run()
        return finished((ys, t.autograd.grad(ys, of, gradient)))

    versions = {"torch": t.__version__, "torch's threads": str(t.get_num_threads())}
    if gpu:
        versions |= {"torch's cuDNN": str(t.backends.cudnn.version()), "GPU": t.cuda.get_device_name()}
    return Eager(forward, both, versions)


def _lengths(case: Case) -> tuple:
    import jax.numpy as jnp

    return (jnp.asarray(case.lengths()),) if case.part == "masked" else ()


def _without_padding(ys: Any, lengths: Any) -> Any:
    """Zeros past each length: flax reads the lengths for the last carry alone."""
    import jax.numpy as jnp

    if lengths is None:
        return ys
    return jnp.where((jnp.arange(len(ys))[:, None] < lengths)[..., None], ys, 0)
