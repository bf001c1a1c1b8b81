"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from lstm_rot import branches

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.usefixtures("settings_of_a_user")
def test_the_code_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["hs"].shape == (28, 32, 64) and names["stream"].shape == (32, 64)
    assert (
        names["ys"].shape == (100, 8, 128) and names["ys"].dtype == "bfloat16" and names["carry"].c.dtype == "float32"
    )

    p = jax.vmap(lambda key: branches.lstm.init(key, 5, 5))(jax.random.split(jax.random.key(0), 3))
    carry, xs = (np.zeros((3, 2, 5), np.float32),) * 2, np.ones((4, 2, 5), np.float32)
    results = [jax.jit(names[order])(p, carry, xs) for order in ("by_layers", "by_steps", "diagonal")]
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), results[0], other)


def test_a_dozen_lines():
    idea = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert idea is not None and len([line for line in idea[1].splitlines() if line.strip()]) <= 13
