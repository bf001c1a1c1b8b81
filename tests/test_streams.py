"""What is seen in the streams of trained nets: against numpy, against each other, and what the verdict rules say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from classifiers import untrained

from experiments import lines, nets, streams
from experiments.streams.measuring import estimates
from lstm_rot.models import classifier, conv_resnet, residual_rnn

pytestmark = pytest.mark.usefixtures("settings_of_a_user")


def images():
    return jnp.asarray(nets.pictures("digits").test_x[:3])


def test_estimates_are_what_numpy_says():
    x = np.random.default_rng(0).normal(size=(4, 5, 2, 3)).astype("float32")
    ours = jax.jit(estimates)(jnp.asarray(x))
    off, unit = x - x[-1], x[-1].std()
    distance = np.sqrt((off**2).sum((2, 3)) / (x[-1] ** 2).sum((1, 2)))
    expected = {
        "difference": off.mean((1, 2, 3)) / unit,
        "by_unit": np.sqrt((off.mean(1) ** 2).mean((1, 2))) / unit,
        "deviation": off.std((1, 2, 3)) / unit,
        "distance": np.median(distance, 1),
        "distance_25": np.quantile(distance, 0.25, axis=1),
        "distance_75": np.quantile(distance, 0.75, axis=1),
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)
    dead = jax.jit(estimates)(jnp.zeros((2, 5, 3)))
    assert all((np.asarray(curve) == 0).all() for curve in dead.values())


def test_where_keep_is_1_what_is_left_to_the_end_is_what_will_be_added():
    net = untrained(classifier.Config(residual_rnn.Config(8, 4), 10))

    @jax.jit
    def look(x):
        ((adds, news),) = lines.run(net, nets.pictures("digits"), x, look=lambda *seen: (seen[2], seen[3])).seen
        return adds, news, estimates(news)

    adds, news, ours = look(images())
    to_come = np.cumsum(adds[::-1], 0)[::-1] - adds
    np.testing.assert_allclose(ours["difference"], -to_come.mean((1, 2)) / news[-1].std(), rtol=1e-3, atol=1e-6)
    assert abs(ours["difference"][0]) > 1e-3


def test_every_second_3x3_layer_is_a_blocks_add():
    net = untrained(conv_resnet.Config(14, width=4, channels=1))
    measured = streams.measure(net, images())
    assert measured["layers"].shape == (13,)
    np.testing.assert_allclose(measured["response"], measured["layers"][2::2], rtol=1e-5)
    ends = [stage[-1] for stage in lines.stages(net.recipe)]
    assert (np.asarray(measured["distance"])[ends] == 0).all() and (measured["distance"] > 0).sum() == 3


def seen(plain=(1.2, 1.1), residual=(1.0, 0.8), difference=0.1, distance=(0.6, 0.3, 0.0), seeds=3, paper=True):
    """Two depths of nets of three stages of three blocks, every seed a little off."""
    off = np.array([-0.01, 0, 0.01])[:seeds, None]
    rows = []
    for kind, means in {"plain": plain, "residual": residual}.items():
        for size, mean in zip((20, 56), means, strict=True):
            row = {"axis": "depth", "kind": kind, "size": size, "stages": 3, "layers": mean + np.zeros(7) + off}
            row["difference"] = np.tile([difference, difference / 2, 0], 3) + off * ([1, 1, 0] * 3)
            row["distance"] = np.tile(distance, 3) + np.abs(off)
            rows.append(row)
    rows = [{name: np.array(value).tolist() for name, value in row.items()} for row in rows]
    return {"rows": rows, "at paper size": paper}


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        (seen(), ["reproduced", "reproduced"]),
        (seen(seeds=2), ["inconclusive", "inconclusive"]),
        (seen(residual=(1.0, 1.0)), ["inconclusive", "reproduced"]),
        (seen(residual=(1.195, 0.8)), ["inconclusive", "reproduced"]),
        (seen(residual=(0.8, 1.0)), ["contradicted", "reproduced"]),
        (seen(plain=(0.9, 1.1)), ["contradicted", "reproduced"]),
        (seen(plain=(0.9, 1.1), difference=-0.3, paper=False), ["inconclusive", "inconclusive"]),
        (seen(paper=False), ["reproduced", "reproduced"]),
        (seen(difference=-0.1), ["reproduced", "reproduced"]),
        (seen(difference=0.195), ["reproduced", "inconclusive"]),
        (seen(difference=-0.3), ["reproduced", "contradicted"]),
        (seen(distance=(0.3, 0.3, 0.0)), ["reproduced", "inconclusive"]),
        (seen(distance=(0.3, 0.6, 0.0)), ["reproduced", "contradicted"]),
        (seen(difference=float("nan")), ["reproduced", "inconclusive"]),
    ],
)
def test_streams_judges_by_means_and_spread(measured, verdicts):
    assert [finding.verdict for finding in streams.judge(measured)] == verdicts
    alone = measured | {"rows": [row for row in measured["rows"] if row["kind"] == "residual" and row["size"] == 20]}
    assert streams.judge(alone)[0].verdict == "inconclusive"
