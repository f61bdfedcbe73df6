"""Programs: compiled as quickly as they are worth, and forgotten before they are too many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import compiling


def test_what_runs_once_gives_the_same_numbers_also_inside_of_programs():
    def draw(key, size):
        return jax.random.normal(key, (size,)) / 3.0

    once = compiling.jit_once(draw, static_argnums=1)
    key = jax.random.key(0)
    np.testing.assert_allclose(once(key, 5), draw(key, 5), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda key: once(key, 5))(key), draw(key, 5), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda: once(key, 5))(), draw(key, 5), rtol=1e-6)
    assert jax.eval_shape(lambda: once(key, 5)).shape == (5,)


@pytest.mark.skipif(not compiling._MAPS.exists(), reason="only Linux tells and limits memory maps")
@pytest.mark.parametrize(("limit", "kept"), [("10", 0), ("100000000", 1)])
def test_programs_are_forgotten_when_they_take_most_of_the_memory_maps(limit, kept, tmp_path, monkeypatch):
    given = tmp_path / "max_map_count"
    given.write_text(limit)
    monkeypatch.setattr(compiling, "_LIMIT", given)
    program = jax.jit(lambda x: x + 1.0)
    program(jnp.zeros(2))
    compiling.make_room()
    assert program._cache_size() == kept
    assert float(program(jnp.zeros(2))[0]) == 1.0


def test_where_there_are_no_such_files_nothing_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_MAPS", tmp_path / "absent")
    program = jax.jit(lambda x: x + 1.0)
    program(jnp.zeros(2))
    compiling.make_room()
    assert program._cache_size() == 1
