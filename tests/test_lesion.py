"""The experiment that deletes and exchanges cells of trained nets: its parts as properties, its verdict rules."""

from itertools import product
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifiers import untrained
from helpers import assert_close

from experiments import lesion, lines, nets
from experiments.lesion import damage, paths
from experiments.lesion.judging import PAPER_BLOCKS, PAPER_LENGTHS, PAPER_SHARE
from lstm_rot.branches import by_path, lesioned
from lstm_rot.models import classifier, conv_resnet, resnet
from lstm_rot.models import lstm as lstm_model

pytestmark = pytest.mark.usefixtures("settings_of_a_user")
DEEP, SHALLOW = (conv_resnet.Config(depth, width=4, channels=1) for depth in (14, 8))
HIGHWAY = conv_resnet.Config(8, conv_resnet.HIGHWAY, width=4, channels=1)
LONG = classifier.Config(lstm_model.Config(16, 4), 10)
DENSE = classifier.Config(resnet.Config(64, 8, 4, resnet.HIGHWAY), 10)


def fresh(model):
    """A net that nobody has trained, its head not zero, its running statistics different from block to block."""
    net, rng = untrained(model), np.random.default_rng(0)

    def moved(leaf):
        return leaf + jnp.asarray(0.1 * rng.standard_normal(leaf.shape), leaf.dtype)

    params = net.params._replace(w=moved(net.params.w))
    return net._replace(params=params, statistics=jax.tree.map(moved, net.statistics))


def some(count):
    there = nets.pictures("digits")
    return jnp.asarray(there.test_x[:count]), jnp.asarray(there.test_y[:count])


@pytest.mark.parametrize("model", [DEEP, DENSE, LONG], ids=["depth", "dense", "time"])
def test_cells_exchanged_are_the_weights_or_the_inputs_exchanged_and_twice_nothing(model):
    net, x, there = fresh(model), some(3)[0], nets.pictures("digits")

    @jax.jit
    def run(order):
        return lines.run(net, there, x, order=order).logits

    def exchanged(leaf):
        return leaf[swapped]

    def reversed_(tree):  # of params.net and statistics: the stem, then the first line of two blocks
        return (tree[0], jax.tree.map(lambda leaf: leaf[::-1], tree[1]), *tree[2:])

    order = np.arange(lines.length(net.recipe))
    swapped = np.append([1, 0], order[2:])
    whole = nets.logits(model, net.params, nets.normal(x, there), net.statistics)[0]
    if not net.recipe.convolutional and net.recipe.turned:
        body = net.params.body
        params = net.params._replace(body=body._replace(steps=jax.tree.map(exchanged, body.steps)))
        expected = nets.logits(model, params, nets.normal(x, there), ())[0]
    elif net.recipe.turned:
        params = net.params._replace(net=reversed_(net.params.net))
        expected = nets.logits(model, params, nets.normal(x, there), reversed_(net.statistics))[0]
    else:
        moved = nets.pieces(nets.normal(x, there), 16)[:, swapped].reshape(x.shape)
        expected = nets.logits(model, net.params, moved, ())[0]
    assert_close(run(swapped), expected, "float32")
    assert_close(run(swapped[swapped]), whole, "float32")
    assert np.abs(run(swapped) - whole).max() > 1e-3


@pytest.mark.parametrize("model", [SHALLOW, HIGHWAY, DENSE, LONG], ids=["depth", "highway", "dense", "time"])
def test_the_gradients_along_all_paths_of_a_net_sum_to_the_gradient(model):
    net, (x, y) = fresh(model), some(2)
    cells, able = lines.length(net.recipe), np.concatenate(lines.alike(net.recipe))
    every = np.zeros((2 ** len(able), cells), bool)
    every[:, able] = list(product([False, True], repeat=len(able)))
    each = paths.gradients(net, by_path, x, y, every)
    whole = paths.gradients(net, lesioned, x, y, np.ones((1, cells), bool))
    assert_close(each.sum(0), whole[0], "float32")
    assert np.linalg.norm(each, axis=1).min() > 0  # the path through all reaches the first cell too

    measured = {  # the shares from all paths' norms, against a sum over them one by one
        "length": list(range(len(able) + 1)),
        "log10_of_mean": [
            np.log10(np.linalg.norm(each[every.sum(1) == k], axis=1).mean()) for k in range(len(able) + 1)
        ],
        "log10_whole": paths.log_norms(whole)[0],
    }
    found, norms = paths.shares(measured), np.linalg.norm(each, axis=1)
    expected = [norms[every.sum(1) == k].sum() / norms.sum() for k in range(len(able) + 1)]
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-9)
    np.testing.assert_allclose(found.excess, norms.sum() / np.linalg.norm(whole), rtol=1e-9)
    assert found.excess >= 1


def test_damage_is_what_it_says():
    rng, alike = np.random.default_rng(0), [range(3), range(4, 6), range(7, 8)]
    for pairs in (1, 2, 5):
        moved = damage.exchanged(8, alike, pairs, rng)
        assert moved.alive.all() and sorted(moved.order) == list(range(8))
        assert all(sorted(moved.order[line]) == list(line) for line in map(list, alike)) and moved.order[3] == 3
    taus = [damage.tau(damage.none(8)), damage.tau(damage.none(8)._replace(order=np.arange(8)[::-1]))]
    np.testing.assert_allclose(taus, [1, -1])
    assert damage.deleted(4, [1, 2]).alive.tolist() == [True, False, False, True]


def test_the_papers_lengths_are_its_share_of_all_paths():
    first, last = PAPER_LENGTHS
    share = sum(comb(PAPER_BLOCKS, k) for k in range(first, last + 1)) / 2**PAPER_BLOCKS
    assert round(share, 4) == PAPER_SHARE  # in blocks; 10 to 34 blocks would be 98% of them
    n = PAPER_BLOCKS
    flat = {"length": [0, n], "log10_of_mean": [0.0, 0.0], "log10_whole": 0.0}  # every path carries as much
    found = paths.shares(flat)
    np.testing.assert_allclose(found.gradient, found.paths, rtol=1e-6)
    np.testing.assert_allclose(found.paths[first : last + 1].sum(), share, rtol=1e-6)
    assert found.until(0.5) == n // 2


def damaged(kept, plain, *, whole=40, size=56, fading=-0.5, seeds=2):
    """Rises in points, and how fast a path's norm fades with its length, in powers of ten a block."""

    def row(kind, rise):
        n = (size - 2) // 2
        row = {"axis": "depth", "kind": kind, "size": size, "alike": list(range(n)), "paths": []}
        return row | {"whole": [whole / 100] * seeds, "single": [[(whole + rise) / 100] * n] * seeds}

    lengths = {"length": [0, 25], "log10_of_mean": [0, 25 * fading], "log10_whole": 0.0}
    rows = [row("residual", kept) | {"paths": [lengths] * seeds}, row("plain", plain)]
    return {"rows": rows, "data of dense nets": {"name": "digits"}}


def gated(first, idle, last=0.0, *, size=50, data="mnist", whole=3, seeds=3):
    """Of a dense highway net, the rises in points of its costliest layers: of the first, of 15 to 45, of the last."""
    rises = np.zeros(size)
    rises[[3, size // 2, size - 1]] = first, idle, last
    row = {"axis": "depth", "kind": "dense highway", "size": size, "alike": list(range(size)), "paths": []}
    row |= {"whole": [whole / 100] * seeds, "single": [((whole + rises) / 100).tolist()] * seeds}
    return {"rows": [row], "data of dense nets": {"name": data}}


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        (damaged(2, 40), ["reproduced", "reproduced"]),
        (damaged(6, 40), ["inconclusive", "reproduced"]),
        (damaged(2, 15), ["inconclusive", "reproduced"]),
        (damaged(25, 40), ["contradicted", "reproduced"]),
        (damaged(2, 4), ["contradicted", "reproduced"]),
        (damaged(2, 40, whole=70), ["inconclusive", "reproduced"]),  # little to lose
        (damaged(2, 40, size=20), ["inconclusive", "inconclusive"]),
        (damaged(2, 40, fading=0.1), ["reproduced", "contradicted"]),
        (damaged(2, 40, fading=-0.1), ["reproduced", "inconclusive"]),
    ],
)
def test_lesion_judges_by_the_rise_and_by_the_lengths(measured, verdicts):
    assert [finding.verdict for finding in lesion.judge(measured)] == [*verdicts, "inconclusive"]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (gated(6, 0.3), "reproduced"),
        (gated(6, 0.3, last=20), "reproduced"),
        (gated(6, 1.2), "inconclusive"),
        (gated(0.5, 0.3), "inconclusive"),
        (gated(2, 6), "contradicted"),
        (gated(6, 0.3, size=20), "inconclusive"),
        (gated(6, 0.3, data="digits"), "inconclusive"),
        (gated(6, 0.3, whole=11), "inconclusive"),
    ],
)
def test_idle_layers_are_judged_by_the_costliest_of_each_kind(measured, verdict):
    assert lesion.judge(measured)[-1].verdict == verdict
