"""The oracles: every cell, line and model again, as plain numpy loops. No jax and nothing of the library's code.

A cell here has the library's form, cell(p, left, below) -> (right, above), and reads the fields of its weights by name.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gates(p, h, x):
    """The affine map of h and x (or None), one gate after the other."""
    out = []
    for gate in range(p.wh.shape[1]):
        a = h @ p.wh[:, gate] + p.b[gate]
        out.append(a if x is None else a + x @ p.wx[:, gate])
    return out


def norm(x, scale):
    if scale is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    return scale * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def lstm(p, left, x):
    c, h = left
    i, f, g, o = gates(p, h, x)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


def lstm_1997(p, left, x):
    c, h = left
    i, g, o = gates(p, h, x)
    c = c + sigmoid(i) * (4 * sigmoid(g) - 2)
    h = sigmoid(o) * (2 * sigmoid(c) - 1)
    return (c, h), h


def gru(p, left, x):
    h, memory = left
    r, z, _ = gates(p, h, x)
    r, z = sigmoid(r), sigmoid(z)
    inner = r * (h @ p.wh[:, 2] + p.bn) + p.b[2]
    n = np.tanh(inner if x is None else inner + x @ p.wx[:, 2])
    h = (1 - z) * n + z * h
    return (h, memory), h


def rnn(p, left, x):
    h, memory = left
    a = h @ p.wh + p.b
    h = np.tanh(a if x is None else a + x @ p.wx)
    return (h, memory), h


def dense(p, left, x, keep=1):
    stream, memory = left
    add = np.maximum(norm(stream, p.scale), 0) @ p.wh + p.b
    stream = keep * stream + (add if x is None else add + x @ p.wx)
    return (stream, memory), stream


def plain(p, left, x):
    return dense(p, left, x, keep=0)


def highway(p, left, x):
    stream, memory = left
    f, t = gates(p, stream, x)
    t = sigmoid(t)
    stream = (1 - t) * stream + t * np.maximum(f, 0)
    return (stream, memory), stream


def at(tree, index):
    """Slice `index` of every array of a tree of tuples, as a tree of the same kind."""
    if tree is None:
        return None
    if isinstance(tree, np.ndarray):
        return tree[index]
    entries = [at(entry, index) for entry in tree]
    return type(tree)(*entries) if hasattr(tree, "_fields") else tuple(entries)


def joined(trees):
    """The reverse of `at`: a list of equal trees as one tree with a leading axis."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        return np.stack(trees)
    entries = [joined(list(entry)) for entry in zip(*trees, strict=True)]
    return type(first)(*entries) if hasattr(first, "_fields") else tuple(entries)


def line(cell, p, left, belows, steps, *, tied):
    """A line of cells along time: one cell after another."""
    aboves = []
    for t in range(steps):
        left, above = cell(p if tied else at(p, t), left, at(belows, t))
        aboves.append(above)
    return left, joined(aboves)


def stack(cell, layers, lefts, xs, lengths=None):
    """Recurrent layers above each other, each a loop over time; past a sequence's length nothing changes.

    `layers` and `lefts` are lists, one entry a layer. Returns the last rights and the outputs of the top layer.
    """
    steps, batch = xs.shape[:2]
    valid = np.arange(steps)[:, None] < (np.full(batch, steps) if lengths is None else lengths)
    below, rights = np.where(valid[..., None], xs, 0), []
    for p, left in zip(layers, lefts, strict=True):
        above = []
        for t in range(steps):
            right, out = cell(p, left, below[t])
            on = valid[t][:, None]
            left = tuple(
                np.where(on, new, old) if isinstance(new, np.ndarray) else new
                for new, old in zip(right, left, strict=True)
            )
            above.append(np.where(on, out, 0))
        below = np.stack(above)
        rights.append(left)
    return rights, below


def resnet(cell, params, xs):
    stream = xs @ params.w + params.b
    for layer in range(len(params.steps.wh)):
        (stream, _), _ = cell(at(params.steps, layer), (stream, ()), None)
    return norm(stream, params.scale)


def attention(p, x):
    """Masked self-attention of [T, B, H]: for every sequence, head and position a loop over what it may see."""
    added = np.zeros_like(x)
    normed = norm(x, p.scale)
    steps, batch, _ = x.shape
    for b in range(batch):
        for head in range(p.wq.shape[1]):
            q, k, v = (normed[:, b] @ w[:, head] for w in (p.wq, p.wk, p.wv))
            for t in range(steps):
                scores = np.array([q[t] @ k[s] for s in range(t + 1)]) / np.sqrt(q.shape[-1])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                added[t, b] += sum(weights[s] * v[s] for s in range(t + 1)) @ p.wo[head]
    return x + added


def mlp(p, x):
    return x + np.maximum(norm(x, p.scale) @ p.w1 + p.b1, 0) @ p.w2 + p.b2


def layers(params, x):
    """The layers (attention, mlp) of a Transformer, one after another."""
    for index in range(len(params[0].wq)):
        x = mlp(at(params[1], index), attention(at(params[0], index), x))
    return x


def transformer(params, tokens):
    hidden = params.embed.shape[1]
    x = params.embed[tokens]
    for t in range(len(tokens)):
        half = -(-hidden // 2)
        angles = [t / 10000 ** (2 * i / hidden) for i in range(half)]
        x[t] += np.array([np.sin(a) for a in angles] + [np.cos(a) for a in angles])[:hidden]
    return norm(layers(params.layers, x), params.scale) @ params.out
