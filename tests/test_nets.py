"""The image data sets as maps, and the training of what classifies them."""

import tarfile
import urllib.error
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_exact

from experiments import cifar, data, files, nets
from experiments.harness import Refused
from lstm_rot.models import classifier, conv_resnet, lstm
from lstm_rot.training.run import Stopped, _Signals

pytestmark = pytest.mark.usefixtures("settings_of_a_user")
SMALL = nets.Recipe(conv_resnet.Config(8, width=2, channels=1), "digits", steps=4, batch=8)


# Data.


@pytest.fixture
def records(tmp_path, monkeypatch):
    """CIFAR-10 of three images a file, not yet in either place: [6, 3, 3073]."""
    monkeypatch.setattr(data, "CIFAR_RECORDS", 3)
    monkeypatch.setenv("LSTM_ROT_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(files, "user_cache_path", lambda app: tmp_path / "cache")
    return np.random.default_rng(0).integers(0, 10, (6, 3, data.CIFAR_RECORD), np.uint8)


def put(folder, records):
    folder.mkdir(parents=True)
    for name, part in zip(data.CIFAR_FILES, records, strict=True):
        (folder / name).write_bytes(part.tobytes())


def archive(path, records):
    put(path / "cifar-10-batches-bin", records)
    with tarfile.open(path / "packed.tar.gz", "w:gz") as file:
        file.add(path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    return (path / "packed.tar.gz").as_uri()


def test_cifar_is_read_from_the_folder_or_unpacked_from_the_address_and_unverified_it_warns(
    records, tmp_path, monkeypatch
):
    put(tmp_path / "mine" / "cifar-10-batches-bin", records)
    with pytest.warns(UserWarning, match="which nobody has verified"):
        found = data.maps("cifar10")
    pixels = records[..., 1:].reshape(18, 3, 32, 32).transpose(0, 2, 3, 1)  # colours first in the file
    np.testing.assert_array_equal(np.concatenate([found.train_x, found.test_x]), pixels)
    np.testing.assert_array_equal(np.concatenate([found.train_y, found.test_y]), records[..., 0].ravel())
    assert len(found.test_x) == 3 and found.train_x.dtype == np.uint8

    monkeypatch.setenv("LSTM_ROT_DATA", "")
    monkeypatch.setattr(data, "CIFAR", archive(tmp_path / "official", records))
    monkeypatch.setattr(data, "CIFAR_COPIES", {found.sha256: "known"})
    downloaded = data.maps("cifar10")
    assert downloaded.note == "known" and downloaded.sha256 == found.sha256
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar-10-batches-bin"]


@pytest.mark.parametrize("case", ["missing", "short", "no archive"])
def test_cifar_that_cannot_be_read_is_named(case, records, tmp_path, monkeypatch):
    if case == "short":
        put(tmp_path / "mine" / "cifar-10-batches-bin", records[:, :2])
    if case == "no archive":
        (tmp_path / "packed.tar.gz").write_bytes(b"not one")
        monkeypatch.setattr(data, "CIFAR", (tmp_path / "packed.tar.gz").as_uri())
    if case == "missing":

        def no_network(*args, **kwargs):
            raise urllib.error.URLError("no network")

        monkeypatch.setattr(files.urllib.request, "urlopen", no_network)
    said = {
        "missing": ["CIFAR-10 is missing", "no network", data.CIFAR, "data_batch_1.bin", str(tmp_path / "cache")],
        "short": ["data_batch_1.bin", "6146 bytes, expected 3 of 3073", data.CIFAR],
        "no archive": ["is not the archive expected", "try again"],
    }[case]
    with pytest.raises(data.DataError) as error:
        data.maps("cifar10")
    assert all(part in str(error.value) for part in said), error.value
    assert not list((tmp_path / "cache").glob("*"))


def test_maps_are_averaged_down_to_what_divides():
    whole, half = nets.pictures("digits"), nets.pictures("digits", 4)
    assert whole.train_x.shape == (1437, 8, 8, 1) and half.train_x.shape == (1437, 4, 4, 1)
    expected = whole.test_x[5].astype(float).reshape(4, 2, 4, 2, 1).mean((1, 3))
    np.testing.assert_array_equal(half.test_x[5], np.round(expected))
    x = np.asarray(nets.normal(jnp.asarray(whole.train_x), whole))
    assert np.abs(x.mean(0)).max() < 1e-4 and 0.5 < x.std() < 1
    with pytest.raises(data.DataError, match=r"pixels=3: digits has 8 per side; give a divisor"):
        nets.pictures("digits", 3)
    with pytest.raises(data.DataError, match="known are cifar10, digits, mnist"):
        data.maps("cifar11")


def test_an_augmented_map_is_a_piece_of_the_padded_one_mirrored_or_not():
    x = np.arange(1, 1 + 64 * 16 * 16 * 2, dtype=np.float32).reshape(64, 16, 16, 2)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for flips in (False, True):
        for one, big in zip(
            np.asarray(nets.augmented(jax.random.key(0), jnp.asarray(x), flips=flips)), padded, strict=True
        ):
            found = [
                (row, column, mirrored)
                for row in range(5)
                for column in range(5)
                for mirrored in (False, True)
                if np.array_equal(one[:, :: -1 if mirrored else 1], big[row : row + 16, column : column + 16])
            ]
            assert len(found) == 1 and (flips or not found[0][2])
            seen |= {("row", found[0][0]), ("column", found[0][1]), ("mirrored", found[0][2])}
    assert len(seen) == 5 + 5 + 2


# Training.


def test_a_run_that_has_ended_is_restored_and_one_of_another_recipe_is_another(tmp_path):
    first = nets.trained(SMALL, tmp_path, points=2)
    log = next(tmp_path.iterdir()) / nets.JSON_LINES
    before = log.read_text()
    again = nets.trained(SMALL, tmp_path, points=2)
    assert_exact((first.params, first.statistics), (again.params, again.statistics))
    assert log.read_text() == before and first.curve == again.curve and first.curve["step"] == [2, 4]
    assert {nets.name_of(replace(SMALL, seed=seed), 2) for seed in (0, 1)} == {
        nets.name_of(replace(SMALL, seed=seed), 2) for seed in (0, 1, 1)
    }
    moved = np.abs(first.statistics[0].mean).max()
    assert moved > 1e-3
    there = nets.pictures("digits")
    share = nets.error(SMALL.model, there, first.params, first.statistics, there.test_x, there.test_y)
    assert share == first.curve["test_error"][-1]


def test_a_run_stopped_amid_goes_on_bit_for_bit_running_statistics_included(tmp_path, monkeypatch):
    recipe: Any = replace(SMALL, steps=6)
    whole = nets.trained(recipe, tmp_path / "whole", points=2)
    with monkeypatch.context() as patch:
        patch.setattr(_Signals, "stop_after", lambda self, step: step == 3)
        with pytest.raises(Stopped):
            nets.trained(recipe, tmp_path / "stopped", points=2)
    going_on = nets.trained(recipe, tmp_path / "stopped", points=2)
    assert_exact((going_on.params, going_on.statistics), (whole.params, whole.statistics))
    assert going_on.curve == whole.curve and whole.curve["step"] == [3, 6]
    moved = jax.tree.map(lambda a, b: (a != b).any(), whole.statistics, conv_resnet.statistics(recipe.model))
    assert all(jax.tree.leaves(moved))


def test_along_time_the_image_is_read_in_the_order_of_its_rows(tmp_path):
    recipe = nets.Recipe(
        classifier.Config(lstm.Config(4, 4), 10),
        "digits",
        2,
        batch=8,
        optimizer=nets.adam,
        augment=False,
        learning_rate=1e-2,
    )
    assert recipe.length == 16
    x = jnp.arange(2 * 64.0).reshape(2, 8, 8, 1)
    np.testing.assert_array_equal(nets.pieces(x, 4)[1, 2], np.arange(64 + 8, 64 + 12))
    net = nets.trained(recipe, tmp_path)
    assert net.statistics == () and 0 <= net.curve["test_error"][-1] <= 1


def test_the_papers_preset_is_the_papers_recipe():
    recipes = {size: recipe for axis, kind, size, recipe in cifar_recipes() if (axis, kind) == ("depth", "residual")}
    assert set(recipes) == {20, 32, 44, 56, 110}
    recipe: Any = recipes[20]
    assert (recipe.batch, recipe.weight_decay, recipe.momentum, recipe.pixels, recipe.model.width) == (
        128,
        1e-4,
        0.9,
        32,
        16,
    )
    rates = [rate_at(recipe, step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)
    np.testing.assert_allclose(
        [rate_at(recipes[110], step) for step in (0, 399, 400, 32_000)], [0.01, 0.01, 0.1, 0.01], rtol=1e-5
    )


def cifar_recipes():
    x = np.zeros((1, 32, 32, 3), np.uint8)
    there = nets.Pictures(x, x, x, x, x, 1.0, {"name": "cifar10"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nets, "pictures", lambda name, pixels=None: there)
        return cifar.recipes(cifar.PRESETS["paper"])


def rate_at(recipe, step):
    """By how much an update at that step moves a weight whose gradient is 1, and whose momentum and size are 0."""
    optimizer = recipe.optimizer(recipe)
    weight = jnp.zeros(())
    state = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, step) if leaf.dtype == "int32" else leaf, optimizer.init(weight)
    )
    update: Any = optimizer.update(jnp.ones(()), state, weight)[0]
    return -float(update)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(Refused, match="batch=7 does not divide over the mesh"):
        nets.trained(replace(SMALL, batch=7), tmp_path, mesh="data=8")
    with pytest.raises(Refused, match="batch=2000 of 1437 examples"):
        nets.trained(replace(SMALL, batch=2000), tmp_path)
