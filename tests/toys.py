"""Small tasks that several test files train."""

import jax
import jax.numpy as jnp
import numpy as np

from outeropt import data, tasks
from outeropt.task import Task


def regression(rows: int = 64, features: int = 3, batch_size: int = 8, name: str = "toy") -> Task:
    """Noisy linear regression with an accuracy-like metric."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features)).astype(np.float32)
    y = (x @ np.arange(1, features + 1) + 0.1 * rng.normal(size=rows)).astype(np.float32)

    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (features,)), "b": jnp.zeros(())}

    def loss(params, batch):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        return jnp.mean(error**2), {"within": jnp.mean((jnp.abs(error) < 0.5).astype(jnp.float32))}

    split = {"x": x, "y": y}
    return tasks.from_functions(
        init=init, loss=loss, data=data.from_arrays(split, split, split, batch_size=batch_size), name=name
    )
