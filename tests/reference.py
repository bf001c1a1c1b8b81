"""The oracles: every cell, line and model again, as plain numpy loops. No jax and nothing of the library's code.

A cell here has the library's form, cell(p, left, below) -> (right, above), and reads the fields of its weights by name.
"""

from typing import Any

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


def diagonal_lstm(p, left, x):
    c, h = left
    i, g, o = (h * p.wh[k] + p.b[k] + (0 if x is None else x @ p.wx[:, k]) for k in range(3))
    i = sigmoid(i + p.peephole[0] * c)
    c = (1 - i) * c + i * np.tanh(g)
    h = sigmoid(o + p.peephole[1] * c) * np.tanh(c)
    return (c, h), h


def minlstm(p, left, x):
    h, memory = left
    i, f, g = (x @ p.wx[:, k] + p.b[k] for k in range(3))
    i, f = sigmoid(i), sigmoid(f)
    h = f / (f + i) * h + i / (f + i) * g
    return (h, memory), h


def mlstm(p, left, x):
    state, memory = left
    new, hs = np.empty_like(state), []
    for head in range(p.wk.shape[1]):
        q, k, v = x @ p.wq[:, head], x @ p.wk[:, head] / np.sqrt(p.wk.shape[2]), x @ p.wv[:, head]
        i, f = (sigmoid(x @ p.gates[:, gate, head] + p.b[gate, head]) for gate in (0, 1))
        for row in range(len(x)):
            new[row, head] = f[row] * state[row, head] + i[row] * np.outer(k[row], v[row])
        read = np.stack([q[row] @ new[row, head] for row in range(len(x))])
        hs.append(sigmoid(x @ p.wo[:, head]) * norm(read, p.scale))
    return (new, memory), np.concatenate(hs, -1)


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
    return norm(layers(params.body.layers, x), params.body.scale) @ params.out


def lstm_variant(p, left, x, masks=(None,) * 4, *, gates, rate=0.0, zoneout=(0.0, 0.0)):
    """One step of an LSTM with every option, of one sequence; what p has not is None.

    gates: "forget" (Gers 2000), "coupled" (Greff 2015) or "1997". Peepholes: Gers & Schmidhuber 2000. Norms: Ba et al.
    2016, Eq. 29 to 31, their statistics over all gates jointly. wp: Sak et al. 2014. masks: of h (Gal & Ghahramani
    2016, a factor), of what is added (Semeniuta et al. 2016, at `rate`), of c and of h (Krueger et al. 2017, at
    `zoneout`; True: new); each may be None.
    """
    c, h = left
    names = "ifgo" if gates == "forget" else "igo"
    of_hidden, of_add, of_cell, of_output = masks
    seen = h if of_hidden is None else h * of_hidden
    from_h = np.concatenate([seen @ p.wh[:, k] for k in range(len(names))])
    from_x = np.concatenate([x @ p.wx[:, k] for k in range(len(names))])
    if p.norm is not None:
        from_h, from_x = norm(from_h, np.concatenate(p.norm.h)), norm(from_x, np.concatenate(p.norm.x))
    a = dict(zip(names, np.split(from_h + from_x + np.concatenate(p.b), len(names)), strict=True))
    if p.peephole is not None:
        w = dict(zip(names.replace("g", ""), p.peephole, strict=True))
        for gate in names[: names.index("g")]:
            a[gate] = a[gate] + w[gate] * c
    i = sigmoid(a["i"])
    keep = {"forget": lambda: sigmoid(a["f"]), "coupled": lambda: 1 - i, "1997": lambda: 1}[gates]()
    g = 4 * sigmoid(a["g"]) - 2 if gates == "1997" else np.tanh(a["g"])
    g = g if of_add is None else g * of_add / (1 - rate)
    new = keep * c + i * g
    if p.peephole is not None:
        a["o"] = a["o"] + w["o"] * new
    read = new if p.norm is None else norm(new, p.norm.c) + p.norm.bias
    out = sigmoid(a["o"]) * (2 * sigmoid(read) - 1 if gates == "1997" else np.tanh(read))
    out = out if p.wp is None else out @ p.wp
    out = zoned(out, h, of_output, zoneout[1])
    return (zoned(new, c, of_cell, zoneout[0]), out), out


def zoned(new, old, mask, rate):
    """Old with probability `rate`; without a mask the expectation."""
    return (1 - rate) * new + rate * old if mask is None else np.where(mask, new, old)


def sequences(cell, layers, lefts, xs, lengths, ways, *, dropout=0.0, noise=None):
    """Recurrent layers above each other, each sequence alone, within its length, from its start (way 0) or end (1).

    layers[l] and lefts[l] have an entry a way, as has noise[l]: its masks (between layers, on the input, in the cell),
    whose entry k is that of the k-th step that is read. Returns the last rights, in the same lists, and the outputs of
    the top layer, those of the ways side by side.
    """
    steps, batch = xs.shape[:2]
    lengths = np.full(batch, steps) if lengths is None else lengths
    below, rights = xs, []
    for number, (of_ways, lefts_of_ways) in enumerate(zip(layers, lefts, strict=True)):
        ends, outs = [], []
        for place, (p, (stream, memory), way) in enumerate(zip(of_ways, lefts_of_ways, ways, strict=True)):
            between, on_input, in_cell = (None, None, None) if noise is None else noise[number][place]
            out = np.zeros((steps, batch, (memory if isinstance(memory, np.ndarray) else stream).shape[-1]))
            end = []
            for b in range(batch):
                left = stream[b], at(memory, b)
                for k in range(lengths[b]):
                    t = lengths[b] - 1 - k if way else k
                    x = below[t, b]
                    if between is not None and number > 0:
                        x = x * between[k, b] / (1 - dropout)
                    if on_input is not None:
                        x = x * on_input[b]
                    if in_cell is None:
                        left, out[t, b] = cell(p, left, x)
                    else:
                        of_hidden, *of_steps = in_cell
                        masks = [at(of_hidden, b), *(at(at(mask, k), b) for mask in of_steps)]
                        left, out[t, b] = cell(p, left, x, masks)
                end.append(left)
            ends.append(joined(end))
            outs.append(out)
        below = np.concatenate(outs, -1)
        rights.append(ends)
    return rights, below


def conv3x3(x, w, stride=1):
    """Images [B, P, P, C] by weights [3, 3, C, K], zeros around them, pixel by pixel."""
    batch, rows, columns, _ = x.shape
    out = np.zeros((batch, -(-rows // stride), -(-columns // stride), w.shape[-1]), x.dtype)
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for a in range(3):
                for b in range(3):
                    row, column = stride * i + a - 1, stride * j + b - 1
                    if 0 <= row < rows and 0 <= column < columns:
                        out[:, i, j] += x[:, row, column] @ w[a, b]
    return out


def map_norm(p, x, given):
    """Batch norm by the batch's own mean and variance or those given; group norm where the norm's name says so."""
    if type(p).__name__ == "GroupNorm":
        groups = x.reshape(*x.shape[:3], -1, min(8, x.shape[3]))
        mean, variance = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
        return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * p.scale + p.shift, ()
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if given is None else given
    return (x - mean) / np.sqrt(variance + 1e-5) * p.scale + p.shift, (mean, variance)


def conv_block(p, x, given, *, pre, shortcut) -> Any:
    """One block of a convolutional net: the new stream, and the statistics used."""
    first, second = (None, None) if given is None else given
    p, gate = p if isinstance(shortcut, str) and "gate" in shortcut else (p, None)
    stride = 1 if p.w1.shape[2] == p.w1.shape[3] else 2
    if pre:
        y, first = map_norm(p.norm1, x, first)
        y, second = map_norm(p.norm2, conv3x3(np.maximum(y, 0), p.w1, stride), second)
        y = conv3x3(np.maximum(y, 0), p.w2)
    else:
        y, first = map_norm(p.norm1, conv3x3(x, p.w1, stride), first)
        y, second = map_norm(p.norm2, conv3x3(np.maximum(y, 0), p.w2), second)
    small = x[:, ::stride, ::stride]
    short = np.zeros_like(y)
    short[..., : x.shape[3]] = small
    if gate is not None:
        g = sigmoid(small @ gate.w + gate.b)
        y = (1 - g) * short + (g * y if shortcut == "exclusive gate" else y)
    else:
        y = float(shortcut) * short + y
    return (y if pre else np.maximum(y, 0)), (first, second)


def conv_resnet(params, images, given, *, runs, pre, shortcut):
    """Logits and statistics of a whole net; `runs` are the lengths of its lines of blocks, None a block alone."""
    stem, *parts = params.net
    left = [None] * len(params.net) if given is None else list(given)
    x: Any = conv3x3(images, stem.w)
    used: list[Any] = [()]
    if not pre:
        x, statistics = map_norm(stem.norm, x, left[0])
        x, used = np.maximum(x, 0), [statistics]
    for run, p, before in zip(runs, parts, left[1:], strict=False):
        if run is None:
            x, statistics = conv_block(p, x, before, pre=pre, shortcut=shortcut)
            used.append(statistics)
            continue
        layers = []
        for layer in range(run):
            x, statistics = conv_block(
                at(p, layer), x, None if before is None else at(before, layer), pre=pre, shortcut=shortcut
            )
            layers.append(statistics)
        used.append(stacked(layers))
    if pre:
        x, statistics = map_norm(parts[-1], x, left[-1])
        x = np.maximum(x, 0)
        used.append(statistics)
    return x.mean((1, 2)) @ params.w + params.b, tuple(used)


def stacked(trees) -> Any:
    """Nested tuples of arrays, one a layer, as one with a leading axis."""
    if isinstance(trees[0], tuple):
        return tuple(stacked([tree[k] for tree in trees]) for k in range(len(trees[0])))
    return np.stack(trees)


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def heads(p, x, source, visible):
    """Multi-head attention of x [T, H] to a source [S, H] of which [T, S] is visible; keys and values made here."""
    q, k, v = (np.tensordot(y, w, 1) for y, w in ((x, p.wq), (source, p.wk), (source, p.wv)))
    out = np.zeros_like(x)
    for head in range(q.shape[1]):
        scores = np.where(visible, q[:, head] @ k[:, head].T / np.sqrt(q.shape[-1]), -np.inf)
        out += softmax(scores) @ v[:, head] @ p.wo[head]
    return out


def sinusoids(steps, width):
    half = -(-width // 2)
    angles = np.arange(steps)[:, None] * 10000.0 ** (-np.arange(half) * 2 / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)[:, :width]


def encoder_decoder(encoder, decoder, source, target):
    """A Transformer of both sides on a pair of embedded sentences [S, H], [T, H]; norms where the params have them."""

    def step(p, x, add):  # p has a norm: before the step, or, at the end of a net without a last norm, after it
        return x + add(norm(x, p.scale)) if encoder.scale is not None else norm(x + add(x), p.scale)

    def of(layers, number) -> Any:
        return [at(p, number) for p in layers]

    x = source + sinusoids(*source.shape)
    for number in range(len(encoder.layers[0].wq)):
        attends, dense = of(encoder.layers, number)
        x = step(attends, x, lambda y, p=attends: heads(p, y, y, True))
        x = step(dense, x, lambda y, p=dense: np.maximum(y @ p.w1 + p.b1, 0) @ p.w2 + p.b2)
    read = x if encoder.scale is None else norm(x, encoder.scale)
    x, causal = target + sinusoids(*target.shape), np.tri(len(target), dtype=bool)
    for number in range(len(decoder.layers[0].wq)):
        attends, looks, dense = of(decoder.layers, number)
        x = step(attends, x, lambda y, p=attends: heads(p, y, y, causal))
        x = step(looks, x, lambda y, p=looks: heads(p, y, read, True))
        x = step(dense, x, lambda y, p=dense: np.maximum(y @ p.w1 + p.b1, 0) @ p.w2 + p.b2)
    return x if decoder.scale is None else norm(x, decoder.scale)


def looked_up(query, wk, h, source):
    """The context of h [H] in a source [S, H], and what is made of both: additive scores where the query has them."""
    keys = source @ wk
    scores = keys @ h if query.v is None else np.tanh(h @ query.wq + keys) @ query.v
    context = softmax(scores) @ source
    return context, lambda h: np.tanh(context @ query.wo[0] + h @ query.wo[1])
