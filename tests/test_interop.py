"""Weights to and from torch, flax and safetensors; and the modules in the place of flax's RNN, against flax's own."""

import subprocess
import sys
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as linen_
from flax import nnx as nnx_
from helpers import assert_close, assert_exact, normal, random_like, weighed

import lstm_rot
from lstm_rot.branches import lstm as branch
from lstm_rot.interop import flax, linen, nnx, safetensors, torch
from lstm_rot.models import lstm

T, B, D, H = 6, 4, 3, 5
KEY = jax.random.key(0)
VARIANTS = np.load(Path(__file__).parent / "torch_outputs" / "variants.npz")
PLAIN = lstm.Config(D, H, param_dtype="float64")
STACKS = {
    f"{layers} layers, {1 + two} directions, projection {size}": replace(
        PLAIN, num_layers=layers, bidirectional=two, projection_size=size
    )
    for layers in (1, 3)
    for two in (False, True)
    for size in (None, 2)
}
every_stack = pytest.mark.parametrize("name", STACKS)


@cache
def random(config, seed=0):
    """Random params of the config: biases and norms too."""
    return random_like(jax.eval_shape(lambda: lstm.init(KEY, config)), seed)


def same(found, config, params):
    """What a conversion found is this config and, bit for bit, these params."""
    assert found[0] == config
    assert_exact(found[1], params)


def raises(parts, call, error: Any = ValueError):
    with pytest.raises(error) as caught:
        call()
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


# torch


@pytest.mark.parametrize("two", [0, 1])
@pytest.mark.parametrize("size", [0, 2])
def test_a_stored_state_dict(two, size):
    """Outputs and carries of torch's LSTM on a packed batch, its weights converted without torch, and back."""
    stored = {
        key.removeprefix(f"{two},{size}/"): VARIANTS[key] for key in VARIANTS.files if key.startswith(f"{two},{size}")
    }
    state = {key.removeprefix("state/"): value for key, value in stored.items() if key.startswith("state/")}
    config, params = torch.from_torch(state)
    assert config == replace(PLAIN, num_layers=2, bidirectional=bool(two), projection_size=size or None)
    zeros = lstm.zeros(config, B)
    carry = lstm.Carry(*(stored[name].reshape(leaf.shape) for name, leaf in zip(("c0", "h0"), zeros, strict=True)))
    last, out = lstm.apply(params, stored["xs"], config=config, lengths=VARIANTS["lengths"], carry=carry)
    desired = stored["c"].reshape(last.c.shape), stored["h"].reshape(last.h.shape), stored["out"]
    assert_close((last.c, last.h, out), desired, "float64")

    back = torch.state_dict(params, config)
    assert list(back) == list(state)
    for name in state:
        kind, _, rest = name.partition("_")
        if kind == "weight":
            assert_exact(back[name], state[name])
        else:
            side = "bias_ih" + rest[2:], "bias_hh" + rest[2:]
            assert_exact(sum(back[key] for key in side), sum(state[key] for key in side))


@every_stack
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_a_state_dict_comes_back(name, dtype):
    config = replace(STACKS[name], param_dtype=dtype)
    params = jax.tree.map(jnp.asarray, random(config))
    for prefix, given in (("", ""), ("a.lstm.", "a.lstm."), ("b.", "b")):
        state = torch.state_dict(params, config, prefix=given)
        assert all(key.startswith(prefix) and leaf.dtype == dtype for key, leaf in state.items())
        same(torch.from_torch(state | {f"{prefix}fc.weight": np.ones(2)}, prefix=given), config, params)


@pytest.mark.parametrize("name", [name for name, config in STACKS.items() if config.num_layers > 1] + list(STACKS)[:1])
def test_a_torch_module(name):
    """Both ways through a module: the same values and gradients."""
    torch_ = pytest.importorskip("torch")
    config = replace(STACKS[name], dropout=0.25)
    module = torch_.nn.LSTM(
        D, H, config.num_layers, bidirectional=config.bidirectional, proj_size=config.projection_size or 0,
        dtype=torch_.float64, dropout=0.25 if config.num_layers > 1 else 0.0,
    ).eval()  # fmt: skip
    config = replace(config, dropout=module.dropout)
    module.load_state_dict(torch.to_torch(random(config), config), strict=True)
    found, params = torch.from_torch(module)
    assert found == config
    assert_exact(params, jax.tree.map(jnp.asarray, random(config)))

    xs = torch_.tensor(normal("float64", T, B, D), requires_grad=True)
    out, _ = module(xs)
    factors = np.asarray(random_like(jax.ShapeDtypeStruct(out.shape, "float64"), 5))
    (out * torch_.tensor(factors)).sum().backward()

    def scalar(params, xs):
        out = lstm.apply(params, xs, config=config)[1]
        return weighed(out), out

    (grads, grad_xs), ours = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(params, xs.detach().numpy())
    theirs = {key: value.grad for key, value in module.named_parameters()}
    expected = {key: value.numpy() for key, value in theirs.items() if not key.startswith("bias_hh")}
    actual = {key: value for key, value in torch.state_dict(grads, config).items() if key in expected}
    assert_close((ours, grad_xs, actual), (out.detach().numpy(), xs.grad.numpy(), expected), "float64")


def test_a_wrong_prefix_of_a_module_is_told_as_that_of_its_state():
    class Module:
        """Has what torch.nn.Module has."""

        def state_dict(self):
            return {f"enc.{name}": leaf for name, leaf in STATE.items()}

        def get_submodule(self, target):
            return getattr(self, target)

    raises(["dec.weight_ih_l0", "prefix='enc.'"], lambda: torch.from_torch(Module(), prefix="dec"))


def test_other_modules_of_torch():
    torch_ = pytest.importorskip("torch")
    config, params = torch.from_torch(torch_.nn.LSTM(D, H, bias=False))
    assert config == lstm.Config(D, H) and not np.asarray(params[0].b).any()
    cell = torch_.nn.LSTMCell(D, H, dtype=torch_.float64)
    config, params = torch.from_torch(cell)
    assert config == PLAIN
    x, c, h = (normal("float64", B, size, seed=size) for size in (D, H, H))
    h1, c1 = cell(*map(torch_.tensor, (x,)), (torch_.tensor(h), torch_.tensor(c)))
    carry: Any = (c[None], h[None])
    last, _ = lstm.apply(params, x[None], config=config, carry=lstm.Carry(*carry))
    assert_close(tuple(last), (c1.detach().numpy()[None], h1.detach().numpy()[None]), "float64")

    half = torch_.nn.LSTM(D, H, dtype=torch_.bfloat16)
    config, params = torch.from_torch(torch_.nn.ModuleDict({"a": half}), prefix="a")
    assert config.param_dtype == "bfloat16"
    tensors = torch.to_torch(params, config)
    assert all(tensor.dtype == torch_.bfloat16 for tensor in tensors.values())
    assert (tensors["weight_ih_l0"] == half.weight_ih_l0).all()
    module = torch_.nn.LSTM(D, H)
    _, params = torch.from_torch(module)
    before = np.array(params[0].wh)
    with torch_.no_grad():
        module.weight_hh_l0.zero_()
    assert_exact(np.array(params[0].wh), before)  # no memory is shared
    raises(["weight_ih_l0", "(15, 3)", "GRU"], lambda: torch.from_torch(torch_.nn.GRU(D, H)))
    raises(["dropout=1.0"], lambda: torch.from_torch(torch_.nn.LSTM(D, H, 2, dropout=1.0)))


STATE = torch.state_dict(random(PLAIN), PLAIN)
WRONG_STATES = {
    "nothing": ({}, "no weight_ih_l0 among nothing", "state_dict()"),
    "elsewhere": ({f"enc.{k}": v for k, v in STATE.items()}, "prefix='enc.'"),
    "a missing bias": ({k: v for k, v in STATE.items() if k != "bias_hh_l0"}, "bias_hh_l0 missing"),
    "a missing layer": (STATE | {k.replace("l0", "l2"): v for k, v in STATE.items()}, "weight_hh_l1", "missing"),
    "a missing direction": (STATE | {"weight_ih_l0_reverse": STATE["weight_ih_l0"]}, "weight_hh_l0_reverse"),
    "another width": (STATE | {"weight_ih_l1": STATE["weight_ih_l0"], "weight_hh_l1": STATE["weight_hh_l0"],
                               "bias_ih_l1": STATE["bias_ih_l0"], "bias_hh_l1": STATE["bias_hh_l0"]},
                      "layer 1", "wx", "(3, 4, 5)", "(5, 4, 5)"),
    "another dtype": (STATE | {"weight_hh_l0": STATE["weight_hh_l0"].astype("float32")}, "wh is float32", "cast"),
    "integers": ({k: v.astype("int8") for k, v in STATE.items()}, "param_dtype='int8'"),
    "a list": ([1], "source is a list", "torch.nn.LSTM"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("case", WRONG_STATES)
def test_wrong_state_dicts(case):
    state, *parts = WRONG_STATES[case]
    raises(parts, lambda: torch.from_torch(state))


LACKING = {
    "peepholes=True": {"peepholes": True},
    "layer_norm=True": {"layer_norm": True},
    "reverse=True": {"reverse": True},
    "zoneout_cell=0.5": {"zoneout_cell": 0.5},
    "zoneout_hidden=0.5": {"zoneout_hidden": 0.5},
    "gates of order 'igo'": {"gates": branch.COUPLED},
    "gates of order 'igo' (1997)": {"gates": branch.GATES_1997},
    "projection_size=5": {"projection_size": H},
    "projection_size=2": {"projection_size": 2},
}


@pytest.mark.parametrize("case", LACKING)
def test_what_others_lack(case):
    config = replace(PLAIN, **LACKING[case])
    params, message = random(config), case.removesuffix(" (1997)")
    if case != "projection_size=2":
        raises([message, "torch.nn.LSTM", "convert"], lambda: torch.state_dict(params, config))
    raises([message, "linen.LSTMCell", "convert"], lambda: flax.to_linen(params, config))
    raises([message, "nnx.OptimizedLSTMCell", "convert"], lambda: flax.to_nnx(params, config))


def test_params_of_another_config():
    for convert in (torch.state_dict, flax.to_linen, flax.to_nnx):
        raises(["params", "another config"], lambda f=convert: f(random(PLAIN), replace(PLAIN, hidden_size=4)))


@pytest.mark.usefixtures("settings_of_a_user")
def test_float64_needs_x64():
    raises(["float64", "jax_enable_x64"], lambda: torch.from_torch(STATE))


# flax's cells

XS, CARRY = normal("float64", B, T, D), (normal("float64", B, H, seed=3), normal("float64", B, H, seed=4))
CELLS = {"LSTMCell": (linen_.LSTMCell, nnx_.LSTMCell), "Optimized": (linen_.OptimizedLSTMCell, nnx_.OptimizedLSTMCell)}
every_cell = pytest.mark.parametrize("kind", CELLS)


def values_and_grads(f, *args):
    """f's results and the gradients of their weighed sum."""

    def scalar(*args):
        results = f(*args)
        return weighed(results), results

    grads, results = jax.jit(jax.grad(scalar, tuple(range(len(args))), has_aux=True))(*args)
    return results, grads


def ours(config):
    return lambda params, xs: lstm.apply(params, xs.swapaxes(0, 1), config=config)[1].swapaxes(0, 1)


@every_cell
def test_cells_of_linen(kind):
    """Both ways; outputs and gradients agree. The params of a cell, its variables and those of an RNN are read."""
    cell = CELLS[kind][0](H, param_dtype="float64")
    variables = {"params": {"cell": flax.to_linen(random(PLAIN), PLAIN)[0]}}
    net = linen_.RNN(cell)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, net.init(KEY, XS))
    for source in (variables, variables["params"]["cell"], {"params": variables["params"]["cell"]}, [variables]):
        config, params = flax.from_flax(source)
        assert config == PLAIN
        assert_exact(params, jax.tree.map(jnp.asarray, random(PLAIN)))
    theirs, (grad_v, grad_xs) = values_and_grads(net.apply, variables, XS)
    out, (grad_p, grad) = values_and_grads(ours(PLAIN), params, XS)
    assert_close((out, flax.to_linen(grad_p, PLAIN)[0], grad), (theirs, grad_v["params"]["cell"], grad_xs), "float64")


@every_cell
def test_cells_of_nnx(kind):
    cell = flax.to_nnx(random(PLAIN), PLAIN, cell=CELLS[kind][1])[0]
    assert type(cell) is CELLS[kind][1]
    fresh = CELLS[kind][1](D, H, param_dtype="float64", rngs=nnx_.Rngs(0))
    assert nnx_.graphdef(cell) == nnx_.graphdef(fresh)
    net = nnx_.RNN(cell)  # pyright: ignore
    for source in (net, cell, nnx_.state(net), nnx_.to_pure_dict(nnx_.state(cell)), nnx_.List([cell])):
        config, params = flax.from_flax(source)
        assert config == PLAIN
        assert_exact(params, jax.tree.map(jnp.asarray, random(PLAIN)))

    def run(state, xs):
        net = nnx_.RNN(CELLS[kind][1](D, H, param_dtype="float64", rngs=nnx_.Rngs(0)))
        nnx_.update(net, state)
        return net(xs)

    theirs, (grad_s, grad_xs) = values_and_grads(run, nnx_.to_pure_dict(nnx_.state(net, nnx_.Param)), XS)
    out, (grad_p, grad) = values_and_grads(ours(PLAIN), params, XS)
    assert_close((out, flax.from_flax(grad_s)[1], grad), (theirs, grad_p, grad_xs), "float64")


@pytest.mark.parametrize("two", [False, True])
def test_stacks_of_flax(two):
    """Two layers, of one and of two directions, one after the other in flax."""
    config = replace(PLAIN, num_layers=2, bidirectional=two)
    params = jax.tree.map(jnp.asarray, random(config))
    layers = flax.to_linen(params, config)
    rnn = lambda: linen_.RNN(linen_.LSTMCell(H, param_dtype="float64"))  # noqa: E731
    y = XS
    for layer in layers:
        net, tree = (linen_.Bidirectional(rnn(), rnn()), layer) if two else (rnn(), {"cell": layer})
        y = net.apply({"params": tree}, y)
    assert_close(y, ours(config)(params, XS), "float64")
    modules, y = flax.to_nnx(params, config), XS
    for module in modules:
        y = (module if two else nnx_.RNN(module))(y)  # pyright: ignore
    assert_close(y, ours(config)(params, XS), "float64")
    for source in (layers, modules, tuple(modules)):
        same(flax.from_flax(source), config, params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_of_flax(dtype):
    config = replace(PLAIN, param_dtype=dtype)
    params = jax.tree.map(jnp.asarray, random(config))
    for cell in (nnx_.LSTMCell, nnx_.OptimizedLSTMCell):
        same(flax.from_flax(flax.to_nnx(params, config, cell=cell)), config, params)
    same(flax.from_flax(flax.to_linen(params, config)), config, params)


def cell_of(**options):
    return nnx_.LSTMCell(D, H, rngs=nnx_.Rngs(0), **options)


TREE = flax.to_linen(random(PLAIN), PLAIN)[0]
WIDE = replace(PLAIN, input_size=D + 1)
BOTH = {"forward_rnn": {"cell": TREE}, "backward_rnn": {"cell": TREE}}
WRONG_FLAX = {
    "empty": (list, "source is empty"),
    "a module of linen": (lambda: linen_.LSTMCell(H), "LSTMCell", "holds no weights"),
    "no cell": (lambda: {"params": {"kernel": np.ones(2)}}, "no LSTM cell among ['params']['kernel']"),
    "two cells": (lambda: {"a": TREE, "b": {"cell": TREE}}, "2 LSTM cells", "a, b/cell", "give a list"),
    "directions": (lambda: [TREE, BOTH], "[1, 2] directions"),
    "order": (lambda: [TREE, flax.to_linen(random(WIDE), WIDE)[0]], "layer 1: wx", "(4, 4, 5)", "bottom up"),
    "gate": (lambda: cell_of(gate_fn=nnx_.relu), "gate_fn", "sigmoid"),
    "activation": (lambda: nnx_.RNN(cell_of(activation_fn=nnx_.relu)), "activation_fn", "tanh"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FLAX)
def test_wrong_sources_of_flax(case):
    make, *parts = WRONG_FLAX[case]
    raises(parts, lambda: flax.from_flax(make()))


# modules in the place of flax's RNN

CALLS = {
    "plain": {},
    "carry": {"return_carry": True},
    "initial carry": {"initial_carry": CARRY, "return_carry": True},
    "lengths": {"seq_lengths": np.array([1, T, 2, 4]), "return_carry": True, "initial_carry": CARRY},
    "reverse": {"reverse": True, "return_carry": True},
    "keep order": {"reverse": True, "keep_order": True},
    "reverse, lengths": {"reverse": True, "seq_lengths": np.array([T, 1, 3, 5]), "return_carry": True},
    "keep order, lengths": {"reverse": True, "keep_order": True, "seq_lengths": np.array([T, 1, 3, 5])},
    "time major": {"time_major": True, "return_carry": True},
    "time major, lengths": {"time_major": True, "reverse": True, "seq_lengths": np.array([2, 1, 3, 4])},
}


def padded_with_zeros(results, options):
    """flax's results, their outputs past the lengths zero as ours are."""
    if "seq_lengths" not in options:
        return results
    *carry, out = results if options.get("return_carry") else (results,)
    lengths = options["seq_lengths"][:, None]
    valid = np.arange(T) < lengths
    valid = valid.T if options.get("time_major") else valid
    out = jnp.where(valid[..., None], out, 0)
    return (*carry, out) if carry else out


def pairs():
    """(flax's, ours) as functions of params and inputs, and both modules as linen and nnx make them."""

    def of_linen(options):
        theirs, mine = linen_.RNN(linen_.OptimizedLSTMCell(H, param_dtype="float64")), linen.LSTM(H)
        cell = lambda p: {"params": {"cell": as_linen(p)}}  # noqa: E731
        return (
            lambda p, xs: theirs.apply(cell(p), xs, **options),
            lambda p, xs: mine.clone(param_dtype="float64").apply(linen.to_variables(p), xs, **options),
        )

    def of_nnx(options):
        def flaxs(p, xs):
            wx, wh, b = (leaf[0].reshape(*leaf.shape[1:-2], -1) for leaf in (p[0].wx, p[0].wh, p[0].b))
            tree = {"cell": {"dense_i": {"kernel": wx}, "dense_h": {"kernel": wh, "bias": b}}}
            module = nnx_.RNN(nnx_.OptimizedLSTMCell(D, H, param_dtype="float64", rngs=nnx_.Rngs(0)))
            nnx_.update(module, tree)
            return module(xs, **options)

        def our(p, xs):
            module = nnx.LSTM(D, H, param_dtype=np.float64, rngs=nnx_.Rngs(0))
            nnx_.update(module, {"runs": {"0": {"wx": p[0].wx, "wh": p[0].wh, "b": p[0].b}}})
            return module(xs, **options)

        return flaxs, our

    return {"linen": of_linen, "nnx": of_nnx}


def as_linen(params):
    p = jax.tree.map(lambda leaf: leaf[0], params[0])
    inputs = {f"i{gate}": {"kernel": p.wx[:, k]} for k, gate in enumerate("ifgo")}
    return inputs | {f"h{gate}": {"kernel": p.wh[:, k], "bias": p.b[k]} for k, gate in enumerate("ifgo")}


@pytest.mark.parametrize("module", ["linen", "nnx"])
@pytest.mark.parametrize("call", CALLS)
def test_in_the_place_of_flaxs_rnn(module, call):
    """The same results and gradients for every argument, but for zeros past the lengths."""
    options = CALLS[call]
    xs = XS.swapaxes(0, 1) if options.get("time_major") else XS
    theirs, mine = pairs()[module](options)
    params = random(PLAIN)
    assert_close(mine(params, xs), padded_with_zeros(theirs(params, xs), options), "float64")
    if "seq_lengths" in options or call == "plain":
        expected = values_and_grads(lambda p, xs: padded_with_zeros(theirs(p, xs), options), params, xs)
        assert_close(values_and_grads(mine, params, xs), expected, "float64")


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)])
def test_batch_axes(batch):
    xs = normal("float64", *batch, T, D)
    carry = tuple(normal("float64", *batch, H, seed=seed) for seed in (3, 4))
    for major in (False, True):
        options = {"initial_carry": carry, "return_carry": True, "time_major": major}
        given = np.moveaxis(xs, -2, 0) if major else xs
        for make in pairs().values():
            theirs, mine = (f(random(PLAIN), given) for f in make(options))
            assert_close(mine, theirs, "float64")
    lengths = np.full(batch, 4)
    out = linen.LSTM(H, param_dtype="float64").apply(linen.to_variables(random(PLAIN)), xs, seq_lengths=lengths)
    traced = jax.jit(lambda lengths: pairs()["nnx"]({"seq_lengths": lengths})[1](random(PLAIN), xs))(lengths)
    assert_close(out, traced, "float64")
    assert isinstance(out, jax.Array) and out.shape == (*batch, T, H) and not out[..., 4:, :].any()


def test_a_length_of_zero_and_padding():
    xs = np.where(np.arange(T)[:, None] < 2, XS, np.nan)
    options = {"seq_lengths": np.array([0, 2, 1, 0]), "initial_carry": CARRY, "return_carry": True}
    for make in pairs().values():
        carry, out = make(options)[1](random(PLAIN), xs)
        for leaf, first in zip(carry, CARRY, strict=True):
            assert_exact(np.asarray(leaf)[[0, 3]], first[[0, 3]])
        assert not out[0].any() and np.isfinite(out).all() and np.isfinite(carry[0]).all()


OPTIONS = {
    "stack": {"num_layers": 2},
    "all": {"num_layers": 2, "bidirectional": True, "projection_size": 2, "peepholes": True, "layer_norm": True},
    "coupled": {"gates": branch.COUPLED},
    "noise": {"num_layers": 2, "dropout": 0.5, "variational_dropout": 0.2, "recurrent_dropout": 0.1,
              "zoneout_cell": 0.1, "zoneout_hidden": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_our_options(case):
    """The modules run `lstm.apply` with every option; carries have the layers' axes in front."""
    config = replace(PLAIN, **OPTIONS[case])
    params = jax.tree.map(jnp.asarray, random(config))
    carry, out = lstm.apply(params, XS.swapaxes(0, 1), config=config)
    lead = config.layer_axes if config.layer_axes != (1,) else ()
    expected = tuple(leaf.reshape(*lead, B, leaf.shape[-1]) for leaf in carry), out.swapaxes(0, 1)
    net = linen.LSTM(H, **OPTIONS[case], param_dtype=jnp.float64, return_carry=True)
    assert_exact(net.apply(linen.to_variables(params), XS), expected)
    again = net.apply(linen.to_variables(params), XS, initial_carry=jax.tree.map(jnp.zeros_like, expected[0]))
    assert_exact(again, expected)
    assert_exact(linen.from_variables(linen.to_variables(params)), params)
    module = nnx.LSTM.from_params(params, config, return_carry=True)
    module.eval()
    assert_exact(module(XS), expected)
    assert_exact(module.params, params)
    assert module.config == config


def test_fresh_params():
    """Ours, as plain leaves: jit, grad and optimizers see them; the two modules share their names."""
    net = linen.LSTM(H, num_layers=2)
    variables = net.init(KEY, jnp.asarray(XS, "float32"))
    expected = jax.eval_shape(lambda: lstm.init(KEY, lstm.Config(D, H, 2)))
    params = linen.from_variables(variables)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )
    assert np.array_equal(params[0].b[0, 1], np.ones(H))
    module = nnx.LSTM(D, H, num_layers=2, rngs=nnx_.Rngs(0))
    state = nnx_.to_pure_dict(nnx_.state(module, nnx_.Param))
    assert jax.tree.structure(state) == jax.tree.structure(variables["params"])
    assert not jax.tree.leaves(nnx_.state(module, nnx_.Not(nnx_.Param)))
    defaults = {field.name: field.default for field in fields(linen.LSTM)}
    for field in fields(lstm.Config):
        if field.name not in ("input_size", "hidden_size", "reverse"):
            assert defaults[field.name] == field.default, field.name


def test_inside_other_modules():
    """As a layer of a linen and of an nnx model, jitted and differentiated, with and without dropout."""
    xs = jnp.asarray(XS, "float32")

    class Model(linen_.Module):
        @linen_.compact
        def __call__(self, xs):
            return linen_.Dense(2)(linen.LSTM(H, num_layers=2, dropout=0.5, name="lstm")(xs))

    variables = Model().init(KEY, xs)
    run = jax.jit(lambda v, key: Model().apply(v, xs, rngs={"dropout": key}))
    a, b, still = run(variables, KEY), run(variables, jax.random.key(1)), jnp.asarray(Model().apply(variables, xs))
    assert not np.allclose(a, b) and not np.allclose(a, still)
    assert_exact(a, run(variables, KEY))
    grads = jax.jit(jax.grad(lambda v: jnp.asarray(Model().apply(v, xs)).sum()))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))

    class Wrapped(nnx_.Module):
        def __init__(self, rngs):
            self.lstm = nnx.LSTM(D, H, num_layers=2, dropout=0.5, rngs=rngs)

        def __call__(self, xs):
            return self.lstm(xs)

    model = Wrapped(nnx_.Rngs(0))
    call = nnx_.jit(lambda model: model(xs))
    assert not np.allclose(call(model), call(model))  # the stream of keys goes on
    grads = nnx_.grad(lambda model: jnp.sum(model(xs)))(model)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(nnx_.to_pure_dict(grads)))
    assert_exact(model.lstm(xs, rngs=nnx_.Rngs(dropout=1)), model.lstm(xs, rngs=nnx_.Rngs(dropout=1)))
    model.eval()
    assert_exact(call(model), call(model))


def test_in_an_nnx_bidirectional_the_dropout_is_the_modules_own():
    """It hands on a stream for carries, always of seed 0."""
    config = lstm.Config(D, H, recurrent_dropout=0.5)
    params = lstm.init(KEY, config)

    def run(seed):
        ways = [nnx.LSTM.from_params(params, config, rngs=nnx_.Rngs(seed + way)) for way in (0, 1)]
        return nnx_.Bidirectional(*ways)(jnp.asarray(XS, "float32"))  # pyright: ignore

    assert_exact(run(0), run(0))
    assert not np.allclose(run(0), run(2))


def test_a_module_is_made_of_params_that_are_traced():
    params, xs = jax.tree.map(jnp.asarray, random(PLAIN)), jnp.asarray(XS)
    made = jax.jit(jax.grad(lambda params: jnp.sum(nnx.LSTM.from_params(params, PLAIN)(xs))))(params)
    assert_close(made, jax.grad(lambda params: ours(PLAIN)(params, xs).sum())(params), "float64")


def test_two_directions_of_one_cell_are_two_and_must_be_concatenated():
    one = nnx_.RNN(nnx_.OptimizedLSTMCell(D, H, rngs=nnx_.Rngs(0)))
    config, params = flax.from_flax(nnx_.Bidirectional(one, one))
    assert config.bidirectional
    assert_exact(jax.tree.map(lambda leaf: leaf[:, 0], params), jax.tree.map(lambda leaf: leaf[:, 1], params))
    raises(["merge_fn=", "concatenated"], lambda: flax.from_flax(nnx_.Bidirectional(one, one, merge_fn=jnp.add)))


def call_with(shape=(B, T, D), **options):
    linen.LSTM(H, param_dtype="float64").apply(linen.to_variables(random(PLAIN)), np.zeros(shape), **options)


WRONG_CALLS = {
    "one axis": (lambda: call_with((D,)), "inputs has shape (3,)", "(*batch, time, features)"),
    "lengths": (lambda: call_with(seq_lengths=np.ones(2, int)), "seq_lengths", "(2,)", "shape (4,)"),
    "long lengths": (lambda: call_with(seq_lengths=[1, 2, 3, 7]), "lengths[3] = 7", "0..6"),
    "carry": (lambda: call_with(initial_carry=(XS[:, 0, 0], XS[0])), "initial_carry", "[(4,), (6, 3)]", "(4, 5)"),
    "integers": (lambda: linen.LSTM(H).init(KEY, np.zeros((B, T, D), int)), "floating-point"),
    "both ways": (lambda: linen.LSTM(H, bidirectional=True, reverse=True).init(KEY, XS), "reverse=True", "choose one"),
    "rates": (lambda: nnx.LSTM(D, H, dropout=1.5, rngs=nnx_.Rngs(0)), "dropout=1.5"),
    "other params": (lambda: nnx.LSTM.from_params(random(PLAIN), replace(PLAIN, num_layers=2)), "another config"),
    "variables": (lambda: linen.from_variables({"params": {"Dense_0": {}}}), "'runs'", "Dense_0"),
}  # fmt: skip


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_calls_of_modules(case):
    call, *parts = WRONG_CALLS[case]
    raises(parts, call)


def test_unknown_options():
    raises(["layers"], lambda: nnx.LSTM(D, H, layers=2, rngs=nnx_.Rngs(0)), TypeError)


# safetensors

FILES = OPTIONS | {
    "plain": {},
    "1997": {"gates": branch.GATES_1997, "reverse": True, "forget_bias": 0.5},
    "bfloat16": {"param_dtype": "bfloat16", "stream_dtype": "float32", "layer_norm": True},
    "float16": {"param_dtype": "float16", "compute_dtype": "float32"},
}


@pytest.mark.parametrize("case", FILES)
def test_files_come_back(case, tmp_path):
    pytest.importorskip("safetensors")
    config = replace(PLAIN, **FILES[case])
    params = jax.tree.map(jnp.asarray, random(config))
    path = tmp_path / "model.safetensors"
    for _ in range(2):  # the second takes the place of the first
        safetensors.save(path, params, config)
    same(safetensors.load(str(path)), config, params)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_of_torch(tmp_path):
    numpy_ = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "torch.safetensors"
    numpy_.save_file({f"encoder.{k}": v for k, v in STATE.items()}, path)
    same(safetensors.load(path, prefix="encoder."), *torch.from_torch(STATE))
    raises(["no config of ours", "encoder.weight_ih_l0", "prefix='encoder.'"], lambda: safetensors.load(path))


def test_a_failed_write_leaves_the_file(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    safetensors.save(path, random(PLAIN), PLAIN)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.os, "replace", fail)
    raises(["disk full"], lambda: safetensors.save(path, random(PLAIN, seed=1), PLAIN), OSError)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_wrong_files(tmp_path):
    numpy_ = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "x.safetensors"
    record = '{"version": %s, "model": "lstm", "config": {%s}}'
    sizes = '"gates": "FORGET", "input_size": 3, "hidden_size": 5'
    files = {
        "neither": ({"kernel": np.ones(2)}, {}, "no config of ours", "among kernel"),
        "version": ({}, {"lstm_rot": record % (2, "")}, "version 2", "upgrade"),
        "option": ({}, {"lstm_rot": record % (1, f'{sizes}, "depth": 2')}, "depth", "upgrade"),
        "gates": ({}, {"lstm_rot": record % (1, '"gates": "NEW"')}, "gates='NEW'", "upgrade"),
        "weights": ({"runs.0.wx": np.ones(2)}, {"lstm_rot": record % (1, sizes)}, "has runs.0.wx,", "runs.0.wh"),
        "shapes": (
            {f"runs.0.{k}": np.ones(2) for k in ("wx", "wh", "b")},
            {"lstm_rot": record % (1, sizes)},
            "params[0].wx", "(2,)", "(1, 3, 4, 5)",
        ),
    }  # fmt: skip
    for tensors, metadata, *parts in files.values():
        numpy_.save_file(tensors, path, metadata)
        raises(parts, lambda: safetensors.load(path))
    path.write_bytes(b"hello world, this is not one")
    raises(["x.safetensors", "not a safetensors file"], lambda: safetensors.load(path))
    raises(["none"], lambda: safetensors.load(tmp_path / "none"), FileNotFoundError)
    raises(["another config"], lambda: safetensors.save(path, random(PLAIN), replace(PLAIN, num_layers=2)))
    config = replace(PLAIN, gates=branch.Gates("igo", branch.coupled_gates)._replace(of=branch.gates_1997, order="gio"))
    raises(["'gio'", "FORGET, COUPLED"], lambda: safetensors.save(path, random(config), config))


# extras and imports


def test_missing_extras(monkeypatch, tmp_path):
    for name in ("torch", "safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    raises(["pip install torch", "state_dict"], lambda: torch.to_torch(random(PLAIN), PLAIN), ImportError)
    for call in (lambda: safetensors.save(tmp_path / "x", random(PLAIN), PLAIN), lambda: safetensors.load("x")):
        raises(["pip install safetensors"], call, ImportError)
    assert torch.from_torch(STATE)[0] == PLAIN


def test_imports_are_cheap():
    code = "import sys, lstm_rot; assert not {'flax', 'lstm_rot.interop'} & set(sys.modules)"
    every = "from lstm_rot.interop import flax, linen, nnx, safetensors, torch"
    code += f"; {every}; assert not {{'torch', 'safetensors'}} & set(sys.modules)"
    code += "; from jax._src import xla_bridge; assert not xla_bridge._backends"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(lstm_rot.__file__).parents[1])
