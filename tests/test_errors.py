"""Every wrong call raises ValueError in words of ours, with the value and the remedy, before anything is compiled.

And the rules of imports: what may import what, and that importing starts no backend.
"""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CELLS, DEPTH_TIED, assert_exact, flow, normal, weights

import lstm_rot
from lstm_rot import DEPTH, TIME, Axis, Checkpointed, Sequential, chain, scan, turn, wavefront
from lstm_rot.models import (
    attending,
    classifier,
    conv_resnet,
    gru,
    highway,
    language_model,
    lstm,
    residual_rnn,
    resnet,
    rnn,
    seq2seq,
    transformer,
)

LIBRARY = Path(lstm_rot.__file__).parent
T, B, D, H = 5, 3, 4, 6
KEY = jax.random.key(0)
MODELS = {"lstm": lstm, "gru": gru, "rnn": rnn}


def recurrent(name, xs=(T, B, D), dtype="float32", params=None, carry=None, **options):
    """A call of a recurrent stack that is right but for what is given."""
    model = MODELS[name]
    config = model.Config(input_size=D, hidden_size=H, num_layers=2)
    params = model.init(KEY, config) if params is None else model.init(KEY, replace(config, **params))
    carry = None if carry is None else model.zeros(replace(config, **carry[0]), carry[1])
    model.apply(params, jnp.zeros(xs, dtype), config=config, carry=carry, **options)


RECURRENT = {
    "one sequence": ({"xs": (T, D)}, "xs has 2 axes", "(5, 4)", "[T, B, D]", "batch axis of 1"),
    "width": ({"xs": (T, B, D + 1)}, "xs has 5 features", "config.input_size=4", "(5, 3, 5)"),
    "integers": ({"dtype": "int32"}, "xs is int32", "floating-point", "astype"),
    "complex": ({"dtype": "complex64"}, "xs is complex64", "floating-point"),
    "lengths of another batch": ({"lengths": np.array([1, 2])}, "(2,)", "int64", "shape (3,)"),
    "lengths of rank 2": ({"lengths": np.ones((B, 1), int)}, "(3, 1)", "shape (3,)"),
    "float lengths": ({"lengths": np.ones(B)}, "float64", "whole number"),
    "negative length": ({"lengths": np.array([2, -1, 3])}, "lengths[1] = -1", "0..5"),
    "long length": ({"lengths": np.array([5, 5, 6])}, "lengths[2] = 6", "0..5"),
    "params of another width": ({"params": {"hidden_size": H + 1}}, "params", "(6, 4, 7)" , "another config"),
    "params of fewer layers": ({"params": {"num_layers": 1}}, "params", "another config"),
    "carry of another batch": ({"carry": ({}, B + 1)}, "carry", "(2, 4, 6)", "(2, 3, 6)", "another config"),
    "carry of more layers": ({"carry": ({"num_layers": 3}, B)}, "carry", "(3, 3, 6)", "(2, 3, 6)"),
}  # fmt: skip


def compilations():
    """How many programs the models' jitted functions hold."""
    return {
        module.__name__: module._apply._cache_size()  # pyright: ignore
        for module in (lstm_rot.models.lstm.recurrent, resnet, transformer, classifier, language_model)
    }


def raises(parts, call):
    """The call raises ValueError with all parts in its message, and compiles no model."""
    before = compilations()
    with pytest.raises(ValueError) as error:
        call()
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
    assert type(error.value) is ValueError
    assert compilations() == before


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", RECURRENT)
def test_wrong_calls_of_recurrent_stacks(name, case):
    options, *parts = RECURRENT[case]
    if case == "params of another width":
        parts = [
            "params",
            "(1, 4, 7)" if name == "rnn" else f"(1, 4, {4 if name == 'lstm' else 3}, 7)",
            "another config",
        ]
    raises(parts, lambda: recurrent(name, **options))


TRANSFORMER = transformer.Config(hidden_size=4, num_layers=2, num_heads=2)
WORDS = language_model.Config(7, TRANSFORMER)
RESNET, LSTM = resnet.Config(9, 4, 2), lstm.Config(3, 4)
ROWS, PIXELS = classifier.Config(LSTM, 2), classifier.Config(RESNET, 2)


def decode(tokens, config=WORDS, carry=None):
    language_model.apply(language_model.init(KEY, config), tokens, config=WORDS, carry=carry)


def classify(config, shape, dtype="float32", params=None):
    params = classifier.init(KEY, config) if params is None else params
    classifier.apply(params, jnp.zeros(shape, dtype), config=config)


def net(shape, dtype="float32", config=RESNET):
    resnet.apply(resnet.init(KEY, config), jnp.zeros(shape, dtype), config=RESNET)


def line(cell, axis, p, left, below, **options):
    scan(cell, axis, **options)(p, left, below)


ZEROS = np.zeros((T, B), int)
CELL, UNTIED = CELLS["lstm"].cell, Axis("left", False)
P, PS, LEFT, XS = (
    weights(CELLS["lstm"], "float64"),
    weights(CELLS["lstm"], "float64", 3),
    flow(CELLS["lstm"], "float64"),
    normal("float64", 4, 2, 4),
)
CALLS = {
    "tokens of rank 1": (lambda: decode(ZEROS[0]), "(3,)", "[T, B]"),
    "float tokens": (lambda: decode(ZEROS / 2), "float64", "whole numbers"),
    "tokens too large": (lambda: decode(ZEROS + 7), "from 7 to 7", "0..6"),
    "tokens below zero": (lambda: decode(ZEROS - 1), "from -1 to -1", "0..6"),
    "transformer params": (
        lambda: decode(ZEROS, replace(WORDS, body=replace(TRANSFORMER, num_layers=3))),
        "(3, 4)", "(2, 4)", "another config",
    ),
    "cache overflow": (
        lambda: decode(ZEROS, carry=transformer.zeros(TRANSFORMER, B, 4)),
        "0 of 4", "room for 5", "zeros(",
    ),
    "full cache": (
        lambda: decode(ZEROS, carry=transformer.zeros(TRANSFORMER, B, 6)._replace(length=np.array([2, 2]))),
        "2 of 6", "room for 5",
    ),
    "cache of another batch": (
        lambda: decode(ZEROS, carry=transformer.zeros(TRANSFORMER, 1, 9)),
        "carry.k", "(2, 9, 3, 2, 2)",
    ),
    "cache of another kind": (lambda: decode(ZEROS, carry=lstm.zeros(LSTM, B)), "carry is", "another config"),
    "net rank": (lambda: net((9,)), "xs has 1 axes", "[B, D]"),
    "net width": (lambda: net((2, 8)), "8 features", "config.input_size=9"),
    "net dtype": (lambda: net((2, 9), "int8"), "int8", "floating-point"),
    "net params": (lambda: net((2, 9), config=replace(RESNET, step=resnet.HIGHWAY)), "params", "another config"),
    "one image": (lambda: classify(ROWS, (3, 3)), "images has 2 axes", "[B, R, P]"),
    "image width, rows": (lambda: classify(ROWS, (2, 4, 4)), "4 pixels a row", "input_size=3"),
    "image width, depth": (lambda: classify(PIXELS, (2, 4, 4)), "16 pixels in all", "input_size=9"),
    "integer images": (lambda: classify(ROWS, (2, 3, 3), "uint8"), "uint8", "floating-point"),
    "another body": (
        lambda: classify(ROWS, (2, 3, 3), params=classifier.init(KEY, PIXELS)),
        "params", "another config",
    ),
    "another head": (
        lambda: classify(ROWS, (2, 3, 3), params=classifier.init(KEY, replace(ROWS, num_classes=5))),
        "params.w", "(4, 5)", "(4, 2)", "another config",
    ),
    "another body's config": (
        lambda: classifier.Config(TRANSFORMER, 2),  # pyright: ignore
        "body=", "lstm.Config", "resnet.Config",
    ),
    "no classes": (lambda: classifier.Config(LSTM, 0), "num_classes=0", "at least 1"),
    "no length, time": (lambda: line(CELL, TIME, P, LEFT, None), "without a length", "length="),
    "no length, depth": (lambda: line(turn(CELL), DEPTH_TIED, P, None, LEFT), "without a length", "length="),
    "no length, wavefront": (lambda: wavefront(CELL)(PS, flow(CELLS["lstm"], "float64", 3), None), "length="),
    "lengths of weights and inputs": (lambda: line(CELL, UNTIED, PS, LEFT, XS), "[3, 4]", "must agree"),
    "lengths of inputs": (lambda: line(CELL, TIME, P, LEFT, (XS, XS[:2])), "[2, 4]", "(2, 2, 4)"),
    "another length": (lambda: line(CELL, TIME, P, LEFT, XS, length=5), "[4, 5]", "length=5"),
    "lengths along depth": (lambda: line(CELL, DEPTH, PS, LEFT, XS[0]), "[2, 3]", "must agree"),
    "layers of a wavefront": (lambda: wavefront(CELL)(PS, LEFT, XS), "[2, 3]", "must agree"),
    "a scalar enters": (lambda: line(CELL, UNTIED, 1.0, LEFT, XS), "scalar", "leading axis", "tie it"),
    "wavefront axes": (lambda: wavefront(CELL, time=DEPTH, depth=TIME), "'left'", "'below'"),
    "chain, params": (lambda: chain(CELL, CELL)((P,), (LEFT, LEFT), XS[0]), "chain of 2", "1 params", "2 lefts"),
    "chain, lefts": (lambda: chain(CELL)((P,), (LEFT, LEFT, LEFT), XS[0]), "chain of 1", "3 lefts"),
    "unroll": (lambda: Sequential(0), "unroll=0", "at least one"),
    "every": (lambda: Checkpointed(0), "every=0", "sqrt(n)"),
    "every below zero": (lambda: Checkpointed(every=-3), "every=-3"),
    "heads": (lambda: replace(TRANSFORMER, num_heads=3), "hidden_size=4", "num_heads=3", "multiple"),
    "mlp size": (lambda: replace(TRANSFORMER, mlp_size=0), "mlp_size=0", "at least 1"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls(case):
    call, *parts = CALLS[case]
    raises(parts, call)


CONFIGS = {
    "recurrent": (LSTM, ["input_size", "hidden_size", "num_layers"]),
    "gru": (gru.Config(3, 4), ["input_size", "hidden_size", "num_layers"]),
    "rnn": (rnn.Config(3, 4), ["input_size", "hidden_size", "num_layers"]),
    "resnet": (RESNET, ["input_size", "hidden_size", "num_layers"]),
    "transformer": (TRANSFORMER, ["hidden_size", "num_layers", "num_heads"]),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_configs(name):
    config, sizes = CONFIGS[name]
    for field in sizes:
        for value in (0, -2, 1.5, True, "3"):
            raises([f"{field}={value!r}", "at least 1"], lambda f=field, v=value: replace(config, **{f: v}))
    for field in ("param_dtype", "compute_dtype", "stream_dtype"):
        for value in ("int32", "float33", "complex64"):
            raises([f"{field}={value!r}", "'bfloat16'"], lambda f=field, v=value: replace(config, **{f: v}))
        assert replace(config, **{field: jnp.bfloat16}) == replace(config, **{field: "bfloat16"})
        with jax.enable_x64(False):
            raises([f"{field}='float64'", "jax_enable_x64"], lambda f=field: replace(config, **{f: "float64"}))


STACK = lstm.Config(4, 4)
FRESH: dict[str, Any] = {
    "lstm": (lstm, LSTM),
    "gru": (gru, gru.Config(3, 4)),
    "rnn": (rnn, rnn.Config(3, 4)),
    "residual_rnn": (residual_rnn, residual_rnn.Config(3, 4)),
    "highway": (highway, highway.Config(3, 4)),
    "resnet": (resnet, RESNET),
    "conv_resnet": (conv_resnet, conv_resnet.Config(depth=8)),
    "transformer": (transformer, TRANSFORMER),
    "classifier": (classifier, ROWS),
    "language_model": (language_model, WORDS),
    "attending": (attending, attending.Config(STACK, "luong")),
    "seq2seq": (seq2seq, seq2seq.Config(7, language_model.Config(7, STACK))),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", FRESH)
def test_params_are_made_of_one_key_and_a_config_of_their_model(name):
    model, config = FRESH[name]
    for key in (0, None, "0", np.zeros(2), jax.random.split(KEY)):
        raises([f"key={key!r}", "jax.random.key(seed)"], lambda key=key: model.init(key, config))
    for other in (None, *(theirs for _, theirs in FRESH.values() if theirs is not config)):
        raises([f"config={other!r}", f"models.{name}.Config"], lambda other=other: model.init(KEY, other))
    old, new = model.init(jax.random.PRNGKey(0), config), model.init(KEY, config)
    jax.tree.map(assert_exact, old, new)
    with jax.default_prng_impl("rbg"):
        old, new = model.init(jax.random.PRNGKey(0), config), model.init(jax.random.key(0), config)
    jax.tree.map(assert_exact, old, new)


def test_traced_values_are_not_looked_at():
    """Inside of jit the values of lengths and tokens cannot be seen; the call still runs."""
    config = lstm.Config(D, H)
    params, xs = lstm.init(KEY, config), normal("float32", T, B, D)
    outputs = jax.jit(lambda lengths: lstm.apply(params, xs, config=config, lengths=lengths)[1])(np.array([0, 2, 5]))
    assert (np.abs(outputs).max(axis=2) > 0).sum(axis=0).tolist() == [0, 2, 5]
    p = language_model.init(KEY, WORDS)
    decode_traced = jax.jit(lambda tokens, carry: language_model.apply(p, tokens, config=WORDS, carry=carry)[1])
    assert np.isfinite(decode_traced(ZEROS, transformer.zeros(TRANSFORMER, B, T))).all()


def test_importing_starts_no_backend():
    code = "import lstm_rot, jax; from jax._src import xla_bridge; assert not xla_bridge._backends"
    more = "; assert not jax.config.jax_enable_x64; jax.devices(); assert xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code + more], check=True, cwd=LIBRARY.parent)


# What the modules of each place may import from the library; the first prefix that fits a module counts.
LAYERS = {
    "lstm_rot.lines": [],
    "lstm_rot.schedules": [],
    "lstm_rot.core": ["lstm_rot.lines", "lstm_rot.schedules"],
    "lstm_rot.wavefront": ["lstm_rot.core", "lstm_rot.lines", "lstm_rot.schedules"],
    "lstm_rot.native": ["lstm_rot.native"],
    "lstm_rot.branches": ["lstm_rot.branches", "lstm_rot.native"],
    "lstm_rot.kernels": [
        f"lstm_rot.{name}" for name in ("core", "lines", "schedules", "branches.common", "kernels", "native")
    ],
    "lstm_rot.models": [
        f"lstm_rot.{name}" for name in ("core", "branches", "kernels", "models", "native", "schedules", "wavefront")
    ],
    "lstm_rot.interop": [f"lstm_rot.{name}" for name in ("branches", "interop", "models")],
}


def imports(path):
    """The names of all modules that a file imports, wherever in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def test_imports_run_one_way():
    checked = set()
    for path in LIBRARY.rglob("*.py"):
        module = ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
        names = list(imports(path))
        assert not [name for name in names if name.startswith((".", "experiments", "tests"))], module
        place = next((place for place in LAYERS if module.startswith(place)), None)
        if place is None:
            continue
        of_library = [f"{name}." for name in names if name.startswith("lstm_rot")]
        allowed = tuple(f"{prefix}." for prefix in LAYERS[place])
        wrong = [name for name in of_library if not name.startswith(allowed)] if allowed else of_library
        # `from lstm_rot.models import checks` names a module, `from lstm_rot import x` would name the whole library.
        assert not wrong, f"{module} imports {wrong}"
        checked.add(place)
    assert checked == set(LAYERS)
