"""Recall and copying: their data, the nets of equal size, and what is measured of them."""

from dataclasses import replace
from itertools import product

import jax
import numpy as np
import pytest
from rich.progress import Progress

from experiments import recall
from experiments.harness import Refused
from experiments.recall import kinds
from experiments.recall.tasks import Copying, Recall, unbound
from experiments.recall.training import Training, errors_at, fresh

pytestmark = pytest.mark.usefixtures("settings_of_a_user")
RECALL, COPYING = TASKS = Recall(pairs=3, symbols=5), Copying(length=4, symbols=5)
NETS = [kinds.sized(kind, 2_000, layers=2, vocabulary=14, answers=5) for kind in kinds.KINDS]
every_net = pytest.mark.parametrize("net", NETS, ids=lambda net: net.kind)


def drawn(task, distances):
    distances = np.array(distances)
    return task.draw(np.random.default_rng(0), distances, task.steps(max(distances)))


def test_a_key_stands_once_among_the_pairs_and_is_asked_for_at_the_distance():
    distances = np.repeat([6, 7, 30], 20)
    symbols, (asked,), (answers,) = drawn(RECALL, distances)
    keys, values = symbols[:6:2], symbols[1:6:2]
    which = []
    for b, at in enumerate(asked):
        (pair,) = np.flatnonzero(keys[:, b] == symbols[at, b])
        assert at - 2 * pair == distances[b] and values[pair, b] == RECALL.symbols + answers[b]
        assert len(set(keys[:, b])) == 3 and keys[:, b].max() < RECALL.symbols
        between = np.delete(symbols[6:, b], at - 6)
        assert (between >= 2 * RECALL.symbols).all() and (between < RECALL.vocabulary).all()
        which.append(pair)
    assert set(which) == {0, 1, 2} and set(answers) == set(range(RECALL.symbols))
    assert asked.max() == RECALL.steps(30) - 1  # no longer than need be


def test_a_string_is_to_be_copied_after_as_many_blanks_as_the_distance():
    distances = np.array([1, 9, 5])
    symbols, asked, answers = drawn(COPYING, distances)
    assert len(symbols) == COPYING.steps(9) == 17
    for b, distance in enumerate(distances):
        np.testing.assert_array_equal(symbols[:4, b], answers[:, b])
        assert (symbols[4 : 4 + distance, b] == COPYING.symbols).all()
        assert (symbols[4 + distance :, b] == COPYING.symbols + 1).all()
        np.testing.assert_array_equal(asked[:, b], 4 + distance + np.arange(4))
    assert set(drawn(COPYING, [1] * 50).answers.ravel()) == set(range(COPYING.symbols))


def looked_up(given):
    """By someone who reads the sequence: the value behind the key's first occurrence; the string as it stands."""
    answers = np.empty(given.asked.shape, int)
    for (q, b), at in np.ndenumerate(given.asked):
        line = given.symbols[:, b]
        found = line[np.flatnonzero(line == line[at])[0] + 1] - RECALL.symbols if len(answers) == 1 else line[q]
        answers[q, b] = found
    return jax.nn.one_hot(answers, 5)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_perfect_lookup_has_no_error_and_one_that_is_wrong_at_a_tenth_has_that(task):
    assert errors_at(task, looked_up, (6, 20), 50) == [0, 0]

    def worse(given):
        return looked_up(given).at[:, ::10].multiply(-1.0)

    np.testing.assert_allclose(errors_at(task, worse, (6, 20), 50), 0.1, rtol=1e-5)


@pytest.mark.parametrize(("count", "symbols"), [(3, 4), (4, 2), (1, 8)])
def test_who_knows_what_was_there_but_not_where_is_wrong_as_often_as_counting_says(count, symbols):
    most = [max(np.bincount(string)) for string in product(range(symbols), repeat=count)]
    np.testing.assert_allclose(unbound(count, symbols), 1 - np.mean(most) / count)


@every_net
def test_all_have_the_parameters_asked_for_and_an_untrained_one_is_at_chance(net):
    params = fresh(jax.random.key(0), net)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == kinds.parameters(net)
    assert abs(kinds.parameters(net) / 2_000 - 1) <= 0.05
    answer = jax.jit(kinds.logits, static_argnums=1)
    (error,) = errors_at(RECALL, lambda given: answer(params, net, given), (6,), 1000)
    assert abs(error - 0.8) < 5 * np.sqrt(0.8 * 0.2 / 1000)


@every_net
def test_no_output_depends_on_what_comes_later(net):
    params, symbols = fresh(jax.random.key(0), net), drawn(RECALL, [9, 9]).symbols
    read = jax.jit(kinds.outputs, static_argnums=1)
    before, after = read(params, net, symbols), read(params, net, np.concatenate([symbols[:7], 13 - symbols[7:]]))
    np.testing.assert_array_equal(before[:7], after[:7])
    assert (np.abs(before[7:] - after[7:]).max((1, 2)) > 1e-3).all()


def test_bytes_carried_are_those_of_the_states():
    lstm, minlstm, mlstm, attention = NETS
    for net, numbers in ((lstm, 2 * lstm.hidden), (minlstm, minlstm.hidden), (mlstm, mlstm.hidden**2 // kinds.HEADS)):
        assert kinds.carried(net, 0) == kinds.carried(net, 100) == 2 * 4 * numbers  # layers, bytes
    assert kinds.carried(attention, 100) == 100 * 2 * 4 * 2 * attention.hidden


def test_training_learns_to_copy_a_symbol():
    """And hands every chunk's error on: the last below a half of the first."""
    net = kinds.sized("minlstm", 2_000, layers=1, vocabulary=14, answers=5)
    seen = []
    train = Training(Copying(1, 5), net, trained=2, steps=200, batch=16)
    _, errors = train(0.02, 0, seen.append)
    assert len(errors) == len(seen) == 4 and errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kinds": ("lstm", "gru")}, "--kinds gru: known are lstm, minlstm, mlstm, attention"),
        ({"pairs": 9}, "--pairs 9: .* there are 8; give at most as many"),
        ({"trained": 3}, "--trained 3: the 2 pairs alone reach over 4 symbols; give at least"),
        ({"distances": (8, 3)}, "--distances 3: .* give at least"),
        ({"steps": 120}, "--steps 120: give a multiple of 50"),
        ({"parameters": 50}, "--parameters 50: lstm: the nearest has [0-9]+ parameters; give more"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(wrong, said):
    with pytest.raises(Refused, match=said):
        recall.run(replace(recall.PRESETS["quick"], **wrong), Progress(disable=True))


def test_the_finding_says_how_far_each_is_right():
    def row(kind, *errors):
        return {"task": "copying", "kind": kind, "error": [list(errors), [error / 3 for error in errors]]}

    rows = [row("lstm", 0.01, 0.06, 0.3), row("mlstm", 0.01, 0.01, 0.01), row("attention", 0.3, 0.01, 0.3)]
    said = recall.found({"tasks": {"copying": {}}, "rows": rows, "distances": [8, 16, 32]})
    assert said == "at most 5% wrong up to distance: copying: lstm 16, mlstm 32, attention none"
