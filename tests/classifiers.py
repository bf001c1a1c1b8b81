"""Nets that nobody has trained, for what looks into trained ones."""

from typing import Any

import jax

from experiments import nets
from lstm_rot.models import classifier, conv_resnet


def untrained(model: Any, seed: int = 0) -> nets.Net:
    """A classifier of digits before its first step, as `experiments.nets.trained` gives one after its last."""
    recipe = nets.Recipe(model, "digits", 1, seed=seed)
    module: Any = conv_resnet if recipe.convolutional else classifier
    statistics = conv_resnet.statistics(model) if recipe.convolutional else ()
    curve = {"step": [1], "loss": [2.3], "train_error": [0.9], "test_error": [0.9]}
    return nets.Net(recipe, module.init(jax.random.key(seed), model), statistics, curve, 1.0)
