"""The convolution in C++ against XLA's: values, gradients, derivatives of these; and where it cannot run."""

import os
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AGREEMENT, assert_close, disagreement, normal

from lstm_rot import native
from lstm_rot.branches import conv
from lstm_rot.native import convolution
from lstm_rot.training import cost

pytestmark = pytest.mark.skipif(native.refusal() is not None, reason=f"{native.refusal()}")

# Images, rows, columns, channels in and out: of one register of filters and less, of several, of several panels; single
# pixels, odd maps, rows of more and fewer pixels than are computed at once.
SIZES = [(1, 1, 1, 1, 1), (3, 5, 7, 3, 16), (2, 4, 33, 16, 16), (5, 8, 8, 16, 32), (2, 6, 6, 5, 33), (1, 9, 4, 70, 127)]


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program of one device, here are eight, on one core."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)


@pytest.fixture
def one_device(monkeypatch):
    alone(monkeypatch)


def operands(sizes: tuple[int, ...], dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    batch, rows, columns, channels, filters = sizes
    return jnp.asarray(normal(dtype, batch, rows, columns, channels)), jnp.asarray(
        normal(dtype, 3, 3, channels, filters, seed=4)
    )


def gradients(stride: int, x: jax.Array, w: jax.Array) -> Any:
    """y, dx and dw, dy being the cosines of whole numbers."""
    y, back = jax.vjp(partial(conv.conv3x3, stride=stride), x, w)
    return y, back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def loops(text: str) -> list[str]:
    return re.findall(r"lstm_rot_(\w+)", text)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients(sizes, stride, monkeypatch):
    x, w = operands(sizes)
    expected = jax.jit(partial(gradients, stride))(x.astype("float64"), w.astype("float64"))
    assert_close(expected[0], reference.conv3x3(np.float64(x), np.float64(w), stride), "float64")
    alone(monkeypatch)
    run = jax.jit(partial(gradients, stride))
    assert loops(run.lower(x, w).as_text()) == ["convolve", "convolve", "weigh"]
    actual = run(x, w)
    assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, expected)
    assert disagreement(actual, expected) < AGREEMENT["float32"]


@pytest.mark.usefixtures("one_device")
def test_derivatives_of_gradients():
    x, w = operands((2, 4, 5, 3, 4))

    def norm(x: jax.Array, w: jax.Array) -> jax.Array:
        y, (dx, dw) = gradients(2, x, w)
        return (dx**2).sum() + (dw**3).sum() + (y**2).sum()

    actual = jax.jit(jax.grad(norm, (0, 1)))(x, w)
    expected = jax.jit(jax.grad(norm, (0, 1)))(x.astype("float64"), w.astype("float64"))
    assert disagreement(actual, expected) < AGREEMENT["float32"]


@pytest.mark.usefixtures("one_device")
def test_under_vmap_and_in_a_loop():
    x, w = operands((2, 4, 4, 3, 3))
    ws = jnp.stack([w, -2 * w, w])
    each = [gradients(1, x, w) for w in ws]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert_close(jax.vmap(partial(gradients, 1), (None, 0))(x, ws), stacked, "float32")

    def of_image(image: jax.Array) -> jax.Array:
        y: Any = conv.conv3x3(image[None], w)
        return y[0]

    images = jax.vmap(of_image)
    assert_close(images(x), conv.conv3x3(x, w), "float32")
    assert "tensor<2x4x4x3xf32>" in re.findall(r"lstm_rot_convolve.*", jax.jit(images).lower(x).as_text())[0]

    def deep(ws: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(conv.conv3x3(x, w)), None), x, ws)[0].sum()

    def unrolled(ws: jax.Array) -> jax.Array:
        y = x
        for w in ws:
            y = jnp.tanh(conv.conv3x3(y, w))
        return y.sum()

    assert_close(jax.jit(jax.grad(deep))(ws), jax.grad(unrolled)(ws), "float32")


@pytest.mark.usefixtures("one_device")
def test_a_map_that_is_not_finite_spoils_no_other():
    x, w = operands((3, 4, 4, 2, 3))
    y: Any = conv.conv3x3(x.at[1, 2, 2].set(jnp.nan), w)
    assert np.isnan(y[1]).any() and np.isfinite(y[jnp.array([0, 2])]).all() and np.isfinite(y[1, 0]).all()


def test_where_it_cannot_run_xla_does(monkeypatch):
    x, w = operands((2, 4, 4, 3, 3))

    def program(x: jax.Array, w: jax.Array, **options: Any) -> list[str]:
        return loops(jax.jit(partial(gradients, 1)).trace(x, w).lower(**options).as_text())

    assert program(x, w) == []  # in a program of eight devices
    alone(monkeypatch)
    assert program(x, w) == ["convolve", "convolve", "weigh"]
    assert program(x, w.astype("float64")) == program(x, w.astype("bfloat16")) == []
    assert program(x, w, lowering_platforms=("tpu",)) == []
    wide = jnp.zeros((3, 3, 3, convolution.WIDEST + 1), "float32")
    assert program(x, wide) == []
    with monkeypatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: len(x) + 1)  # cores without an image
        assert program(x, w) == []
    monkeypatch.setattr(native, "refusal", lambda: "no C++ compiler")
    assert program(x, w) == []


@pytest.mark.usefixtures("one_device")
def test_a_gradient_of_many_terms_keeps_its_digits():
    x, w = operands((64, 32, 32, 3, 16))
    actual = jax.jit(partial(gradients, 1))(x, w)
    expected = jax.jit(partial(gradients, 1))(x.astype("float64"), w.astype("float64"))
    assert disagreement(actual, expected) < AGREEMENT["float32"] / 4


def test_its_flops_are_counted_as_xlas(monkeypatch):
    x, w = operands((2, 6, 6, 3, 5))
    expected = [cost.flops(partial(gradients, stride), x, w) for stride in (1, 2)]
    alone(monkeypatch)
    assert convolution.serves(x, w)
    assert [cost.flops(partial(gradients, stride), x, w) for stride in (1, 2)] == expected
