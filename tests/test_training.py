"""Mesh, shardings and the training step: one step's result, however it is divided over devices and in time."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_exact, normal, random_like
from jax.sharding import NamedSharding, PartitionSpec

from lstm_rot.models import classifier, gru, language_model, lstm, resnet, transformer
from lstm_rot.training import mesh as meshes
from lstm_rot.training import sharding
from lstm_rot.training.step import init_state, make_train_step

V, B, T = 16, 16, 5
BODIES = {
    "lstm": lstm.Config(8, 8, 4, param_dtype="float64", projection_size=8, layer_norm=True),
    "lstm of another width": lstm.Config(4, 8, 3, param_dtype="float64", dropout=0.3),
    "gru": gru.Config(8, 8, 2, param_dtype="float64"),
    "transformer": transformer.Config(8, 2, 2, param_dtype="float64"),
}
PAIRS = [
    ("lstm", "data=4,model=2"),
    ("lstm of another width", "data=2,model=2,stage=2"),
    ("transformer", "data=2,model=2,stage=2"),
]
KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def standard_promotion():
    """As optax's own arithmetic needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def batch(number=0, *, examples=B):
    """Words, and how many of each example's count."""
    rng = np.random.default_rng(number)
    return {"tokens": rng.integers(0, V, (examples, T + 1)), "lengths": rng.integers(1, T + 1, examples)}


def loss_of(config):
    def loss(params, batch, key):
        each = language_model.losses(params, batch["tokens"], config=config, key=key)
        counted = jnp.arange(T) < batch["lengths"][:, None]
        return jnp.where(counted, each, 0).sum(), counted.sum()

    return loss


def optimizer():
    return optax.adamw(1e-2)


@cache
def alone(name):
    """Three steps on one device: the states' params and the metrics."""
    return run(language_model.Config(V, BODIES[name]))


def run(config, text=None, *, zero1=False, accumulate=1, steps=3):
    """(state, metrics of every step) of a few steps over a mesh, or on one device."""

    def init(key):
        return language_model.init(key, config)

    options: dict[str, Any] = {}
    if text is not None:
        mesh = meshes.make_mesh(text)
        shapes = jax.eval_shape(lambda key: init_state(init, optimizer(), key), KEY)
        options["shardings"] = sharding.of_state(mesh, language_model.specs(config), shapes, optimizer(), zero1=zero1)
    state = init_state(init, optimizer(), KEY, **options)
    if text is not None:
        options["batch_sharding"] = sharding.batch(mesh)
    step = make_train_step(loss_of(config), optimizer(), accumulate=accumulate, clip=1.0, **options)
    metrics = []
    for number in range(steps):
        state, told = step(state, batch(number))
        metrics.append(told)
    return state, metrics


@pytest.mark.parametrize(("name", "text"), PAIRS)
def test_a_mesh_changes_nothing_but_where_arrays_live(name, text):
    zero1 = "stage" in text
    state, metrics = run(language_model.Config(V, BODIES[name]), text, zero1=zero1)
    expected, theirs = alone(name)
    assert_close((state.params, state.opt_state), (expected.params, expected.opt_state), "float64")
    assert_close(metrics, theirs, "float32")
    out, moment = state.params.out, state.opt_state[0].mu.out
    model, data = (state.step.sharding.mesh.shape[axis] for axis in ("model", "data"))
    assert out.addressable_shards[0].data.shape == (8, V // model)
    assert moment.addressable_shards[0].data.shape == (8 // (data if zero1 else 1), V // model)


@pytest.mark.parametrize("text", [None, "data=2,model=4"])
def test_parts_of_a_batch_weigh_every_item_alike(text):
    config = language_model.Config(V, BODIES["gru"])
    whole, theirs = alone("gru")
    state, metrics = run(config, text, accumulate=4)
    assert_close((state.params, metrics), (whole.params, theirs), "float32")


@pytest.mark.parametrize("body", [resnet.Config(12, 8, 2), resnet.Config(12, 8, 4, resnet.HIGHWAY), lstm.Config(4, 8)])
def test_a_classifier_over_a_mesh_answers_as_on_one_device(body):
    config, mesh = classifier.Config(body, 3), meshes.make_mesh("data=2,model=2,stage=2")
    params = classifier.init(KEY, config)
    params = params._replace(w=random_like(params.w, 0))
    images = normal("float32", 4, 3, 4)
    laid = jax.device_put(params, sharding.named(mesh, classifier.specs(config), params))
    assert any(
        len(leaf.sharding.device_set) == 8 and not leaf.is_fully_replicated for leaf in jax.tree.leaves(laid.body)
    )
    there = classifier.apply(laid, jax.device_put(images, sharding.batch(mesh)), config=config)
    assert_close(there, classifier.apply(params, images, config=config), "float32")


def test_layers_lie_on_their_stages_and_one_alone_on_all():
    mesh = meshes.make_mesh("model=2,stage=2,data=2")
    config = language_model.Config(V, lstm.Config(4, 8, 3))
    shapes = jax.eval_shape(lambda: language_model.init(KEY, config))
    first, others = sharding.named(mesh, language_model.specs(config), shapes).body
    assert first.wh.spec == PartitionSpec(None, None, None, "model")
    assert others.wh.spec == PartitionSpec("stage", None, None, "model")
    with pytest.raises(ValueError, match=r"params\.embed is \(15, 4\): its axis 0 of 15 does not divide over model=2"):
        odd = language_model.Config(15, config.body)
        sharding.named(mesh, language_model.specs(odd), jax.eval_shape(lambda: language_model.init(KEY, odd)))


def test_dropout_is_drawn_anew_at_each_step_and_part():
    def draws(params, batch, key):
        return (params * jax.random.normal(key, params.shape)).sum(), len(batch)

    gradients = []
    for accumulate in (1, 2):
        step = make_train_step(draws, optax.sgd(1.0), accumulate=accumulate)
        state = init_state(lambda key: jnp.zeros(3), optax.sgd(1.0), KEY)
        for _ in range(2):
            before = np.asarray(state.params)
            state, _ = step(state, np.zeros(4))
            gradients.append(before - np.asarray(state.params))
    assert len({gradient.tobytes() for gradient in gradients}) == 4


def test_the_gradient_is_clipped_at_its_norm_and_told_before():
    def plane(params, batch, key):
        return params @ batch.sum(0), batch.shape[0]

    for clip, length in ((1.0, 1.0), (10.0, 5.0), (None, 5.0)):
        state = init_state(lambda key: jnp.zeros(2), optax.sgd(1.0), KEY)
        state, metrics = make_train_step(plane, optax.sgd(1.0), clip=clip)(state, np.array([[6.0, 0.0], [0.0, 8.0]]))
        np.testing.assert_allclose(np.linalg.norm(state.params), length)
        assert (metrics["gradient_norm"], metrics["items"], metrics["loss"]) == (5, 2, 0)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing_from_then_on(bad):
    def root(params, batch, key):
        return (jnp.sqrt(params) * batch).sum() if bad == "gradient" else (params / batch).sum(), len(batch)

    good, zero = np.ones(1), np.zeros(1)
    state = init_state(lambda key: jnp.zeros(1) + (bad == "loss"), optax.adam(0.1), KEY)
    step = make_train_step(root, optax.adam(0.1))
    if bad == "loss":
        state, _ = step(state, good)
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, zero if bad == "loss" else good)
    assert state.halted and not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]))
    state, _ = step(state, good)
    assert state.halted
    assert_exact(state.replace(halted=before.halted), before)  # pyright: ignore


def test_a_batch_of_padding_alone_has_loss_zero():
    state = init_state(lambda key: jnp.ones(2), optax.sgd(1.0), KEY)
    state, metrics = make_train_step(lambda p, b, k: (0 * p.sum(), 0), optax.sgd(1.0))(state, np.ones(1))
    assert metrics["loss"] == 0 and not state.halted and (state.params == 1).all()


def test_products_in_bfloat16_train_float32_params():
    config = language_model.Config(V, lstm.Config(8, 8, compute_dtype="bfloat16"))
    exact = language_model.Config(V, lstm.Config(8, 8))
    (state, half), (_, single) = run(config), run(exact)
    assert state.params.embed.dtype == "float32"
    losses = [[float(m["loss"]) for m in metrics] for metrics in (half, single)]
    np.testing.assert_allclose(*losses, rtol=1e-2)
    assert losses[0] != losses[1]


def test_factored_moments_are_everywhere():
    adafactor = optax.adafactor(1e-2, min_dim_size_to_factor=4)
    config = language_model.Config(V, BODIES["gru"])
    shapes = jax.eval_shape(lambda key: init_state(lambda k: language_model.init(k, config), adafactor, key), KEY)
    made = sharding.of_state(meshes.make_mesh("model=8"), language_model.specs(config), shapes, adafactor)
    assert all(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(made))
    assert jax.tree.structure(made) == jax.tree.structure(shapes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data=3", "has 3 devices, there are 8: what fits is data=8; data=4,model=2; data=2,model=4; model=8"),
        ("data=4,stage=4", "has 16 devices, there are 8: what fits is data=8; data=4,stage=2; data=2,stage=4; stage=8"),
        ("date=8", "'date=8' is no part of it; name each of data, model, stage"),
        ("data=8,data=1", "'data=1' is no part"),
        ("data=0", "'data=0' is no part"),
        ("data=four", "'data=four' is no part"),
        ("data=8,", "'' is no part"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_those_that_do(text, said):
    with pytest.raises(ValueError) as error:
        meshes.make_mesh(text)
    assert said in str(error.value)


def test_meshes():
    sizes = {text: tuple(meshes.make_mesh(text).shape.values()) for text in ("", "stage=8", " data=2, model = 4")}
    assert sizes == {"": (8, 1, 1), "stage=8": (1, 1, 8), " data=2, model = 4": (2, 4, 1)}
    assert meshes.make_mesh("", jax.devices()[:1]).size == 1


def test_wrong_steps_and_batches():
    def loss(params, batch, key):
        return params.sum(), len(batch)

    with pytest.raises(ValueError, match="accumulate=0"):
        make_train_step(loss, optimizer(), accumulate=0)
    with pytest.raises(ValueError, match="clip=0"):
        make_train_step(loss, optimizer(), clip=0.0)
    state = init_state(lambda key: jnp.zeros(2), optimizer(), KEY)
    for examples, said in ((3, "has 3 examples"), (0, "has 0 examples")):
        with pytest.raises(ValueError, match=said + r", shape \(\d,\): give a multiple of accumulate=2 times data=1"):
            make_train_step(loss, optimizer(), accumulate=2)(state, np.zeros(examples))
