"""Trained nets taken apart into lines of cells: wrappers of branches that skip, look, and choose the gradient's way."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifiers import untrained
from helpers import CELLS, assert_close, flow, normal, on_device, weights

from experiments import lines, nets
from lstm_rot import TIME, Axis, residual, scan
from lstm_rot.branches import by_path, dense, lesioned, lstm
from lstm_rot.models import classifier, conv_resnet, residual_rnn, resnet, rnn
from lstm_rot.models import lstm as lstm_model

UNTIED = Axis("left", tied=(True, False))
BRANCHES = {"lstm": lstm.lstm, "dense": dense.dense}
MODELS = {
    "depth": conv_resnet.Config(14, conv_resnet.PLAIN, width=4, channels=1),
    "pre-activated": conv_resnet.Config(8, conv_resnet.PRE_ACTIVATED, width=4, channels=1),
    "dense": classifier.Config(resnet.Config(64, 8, 3, resnet.HIGHWAY), 10),
    "LSTM": classifier.Config(lstm_model.Config(8, 4), 10),
    "plain RNN": classifier.Config(rnn.Config(8, 4), 10),
    "residual RNN": classifier.Config(residual_rnn.Config(8, 4), 10),
}


@pytest.fixture(params=MODELS)
def net(request, settings_of_a_user):
    net = untrained(MODELS[request.param])
    head = jax.random.normal(jax.random.key(1), net.params.w.shape)  # a recurrent one's begins at zero
    return net._replace(params=net.params._replace(w=head))


def test_a_line_is_the_net_and_alive_it_is_the_net_still(net):
    pictures = nets.pictures("digits")
    x, cells = jnp.asarray(pictures.test_x[:3]), lines.length(net.recipe)
    expected, _ = nets.logits(net.recipe.model, net.params, nets.normal(x, pictures), net.statistics)
    assert_close(jax.jit(lambda: lines.run(net, pictures, x).logits)(), expected, "float32")
    look = jax.jit(lambda alive: lines.run(net, pictures, x, wrap=lesioned, extra=alive, look=lambda *seen: seen[3]))
    alive, one_dead = look(jnp.ones(cells, bool)), look(jnp.arange(cells) != cells - 1)
    assert_close(alive.logits, expected, "float32")
    assert [len(seen) for seen in alive.seen] == [len(stage) for stage in lines.stages(net.recipe)]
    assert np.abs(one_dead.logits - expected).max() > 1e-3


@pytest.mark.parametrize("name", BRANCHES)
def test_a_skipped_step_is_no_step(name):
    example = CELLS[name]
    p, left, xs = weights(example, "float64"), flow(example, "float64"), normal("float64", 5, 2, 4)
    p, left, xs = on_device(p, left, xs)
    alive = jnp.array([True, False, True, True, False])
    line = scan(residual(lesioned(BRANCHES[name])), UNTIED)
    short = scan(residual(BRANCHES[name]), TIME)
    assert_close(line((p, alive), left, xs)[0], short(p, left, xs[alive])[0], "float64")


@pytest.mark.parametrize("name", BRANCHES)
def test_the_gradients_along_all_paths_sum_to_the_gradient(name):
    example, steps = CELLS[name], 3
    p, left, xs = weights(example, "float64"), flow(example, "float64"), normal("float64", steps, 2, 4)
    p, left, xs = on_device(p, left, xs)

    def end(line, p, left):
        (stream, _), _ = line(p, left, xs)
        return (stream * jnp.arange(1.0, 9.0).reshape(stream.shape)).sum()

    along = scan(residual(by_path(BRANCHES[name])), UNTIED)
    value = jax.jit(jax.value_and_grad(lambda left, through: end(along, (p, through), left)))
    paths = [value(left, jnp.array(path)) for path in product([False, True], repeat=steps)]
    whole = jax.value_and_grad(lambda left: end(scan(residual(BRANCHES[name]), TIME), p, left))(left)
    assert_close(jax.tree.map(lambda *leaves: sum(leaves), *[gradient for _, gradient in paths]), whole[1], "float64")
    for one, _ in paths:
        assert_close(one, whole[0], "float64")
