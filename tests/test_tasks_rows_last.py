"""Convolutions with the rows last: values and derivatives of all orders are those of XLA's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt.tasks import rows_last


SHAPES = [((1, 9, 8, 16), (3, 3, 1, 4)), ((3, 7, 7, 16), (5, 4, 3, 2)), ((2, 4, 5, 17), (4, 5, 2, 3))]


def plain(x, w):
    names = ("CHWN", "HWIO", "CHWN")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=names)


def loss(conv):
    """A loss whose derivatives of all orders differ from 0."""
    return lambda x, w: jnp.sum(jnp.tanh(conv(x, w)) ** 2)


def close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, wanted)


@pytest.fixture(params=SHAPES, ids=str)
def operands(request):
    keys = jax.random.split(jax.random.key(0), 4)
    x, w = request.param
    draws = [jax.random.normal(k, shape) for k, shape in zip(keys, (x, w, x, w))]
    return draws[:2], draws[2:]


def test_the_primitive_is_what_is_tested(operands):
    assert (
        "conv_rows_last" in str(jax.make_jaxpr(rows_last.conv)(*operands[0]))
        or jax.default_backend() != "cpu"
    )


def test_values_and_gradients(operands):
    at, _ = operands
    close(rows_last.conv(*at), plain(*at))
    close(*(jax.grad(loss(conv), argnums=(0, 1))(*at) for conv in (rows_last.conv, plain)))


def test_forward_derivatives(operands):
    at, along = operands
    close(*(jax.jvp(conv, at, along) for conv in (rows_last.conv, plain)))


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse"])
def test_products_with_the_hessian(operands, order):
    at, along = operands

    def product(conv):
        slope = jax.grad(loss(conv), argnums=(0, 1))
        if order == "forward over reverse":
            return jax.jvp(slope, at, along)[1]
        weighted = lambda *at: sum(jnp.sum(g * v) for g, v in zip(slope(*at), along))  # noqa: E731
        return jax.grad(weighted, argnums=(0, 1))(*at)

    close(product(rows_last.conv), product(plain))


def test_a_gradient_of_third_order(operands):
    at, along = operands

    def thrice(conv):
        slope = jax.grad(loss(conv), argnums=1)
        curve = lambda w: jnp.sum(jax.jvp(lambda w: slope(at[0], w), (w,), (along[1],))[1] * along[1])  # noqa: E731
        return jax.grad(curve)(at[1])

    close(thrice(rows_last.conv), thrice(plain))


def test_lanes(operands):
    (x, w), (_, other) = operands
    both = jnp.stack([w, other])
    close(
        *(jax.vmap(jax.grad(loss(conv), argnums=1), (None, 0))(x, both) for conv in (rows_last.conv, plain))
    )


def test_strides_and_few_rows_are_left_to_xla():
    x, w = jnp.ones((2, 7, 7, 4)), jnp.ones((3, 3, 2, 5))
    assert rows_last.conv(x, w, 2).shape == (5, 3, 3, 4)
    close(rows_last.conv(x, w), plain(x, w))


def test_pooling_drops_what_is_left_over():
    x = jnp.arange(2 * 5 * 4 * 3, dtype=jnp.float32).reshape(2, 5, 4, 3)
    assert rows_last.max_pool(x, 2).shape == (2, 2, 2, 3)
    close(rows_last.max_pool(x, 2)[0, 0, 0], x[0, 1, 1])
