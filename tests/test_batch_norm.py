"""Batch norm by the batch's own statistics: its closed-form gradient against autodiff's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, normal

from lstm_rot.branches import conv


def plainly(x, scale, shift):
    mean = x.mean((0, 1, 2))
    variance = ((x - mean) ** 2).mean((0, 1, 2))
    y = (x - mean) * (scale * jax.lax.rsqrt(variance + conv.EPSILON)) + shift
    return y, conv.Statistics(mean, variance)


def number(norm):
    """One number that depends on all that the norm gives, the statistics too."""

    def of(x, scale, shift):
        y, (mean, variance) = norm(x, scale, shift)
        return jnp.sin(y).sum() + (mean**3).sum() + (mean * variance**2).sum()

    return of


def own(x, scale, shift):
    return conv.BatchNorm(scale, shift)(x)


@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (1, 2, 2, 1), (2, 3, 3, 16)])
def test_the_closed_form_is_what_autodiff_gives_and_so_is_its_own_gradient(shape):
    args = [jnp.asarray(normal("float64", *each, seed=k)) for k, each in enumerate((shape, shape[-1:], shape[-1:]))]
    args[0] = 3 * args[0] + 7

    def second(norm):
        return lambda x, *beside: (jax.grad(number(norm))(x, *beside) ** 2).sum()

    assert_close(own(*args), plainly(*args), "float64")
    for of in (number, second):
        ours, theirs = (jax.jit(jax.grad(of(norm), (0, 1, 2)))(*args) for norm in (own, plainly))
        scale = max(float(jnp.abs(leaf).max()) for leaf in theirs)
        assert_close([leaf / scale for leaf in ours], [leaf / scale for leaf in theirs], "float64")


def test_a_mean_far_from_zero_costs_the_variance_no_digits():
    x = normal("float32", 8, 4, 4, 3) + np.float32(1000)
    _, (_, variance) = own(jnp.asarray(x), jnp.ones(3, "float32"), jnp.zeros(3, "float32"))
    np.testing.assert_allclose(variance, x.astype("float64").var((0, 1, 2)), rtol=1e-5)
