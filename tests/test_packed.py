"""The compiled loop against the reference: values, gradients and derivatives of these; and where it cannot run."""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AGREEMENT, assert_close, assert_exact, disagreement, stack_arguments, stack_gradients, weighed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import lstm_rot
from lstm_rot import Checkpointed, Sequential, native
from lstm_rot.branches import lstm as branch
from lstm_rot.kernels import packed
from lstm_rot.models import gru, lstm, recurrent, rnn
from lstm_rot.training import cost
from lstm_rot.training.mesh import make_mesh

T = packed.LEAST + 3
compiled = pytest.mark.skipif(native.refusal() is not None, reason=f"packed: {native.refusal()}")


def make(inputs: int, hidden: int, layers: int = 1, **options: Any) -> lstm.Config:
    return lstm.Config(inputs, hidden, layers, **options)


def both(config, *args, **options) -> tuple[Any, Any]:
    """Values and gradients, by the compiled loop and by the reference."""
    names = "packed", "reference"
    actual, expected = (stack_gradients(lstm, config, **options, implementation=name)(*args) for name in names)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), actual, expected)
    return actual, expected


def calls(f, *args) -> str:
    """The compiled loops in a program."""
    return " ".join(re.findall(r"lstm_rot_\w+", jax.jit(f).lower(*args).as_text()))


# --- what it computes


@st.composite
def cases(draw):
    """Sizes around those of registers, panels and blocks of rows, and the options of a call."""
    way = draw(st.sampled_from([{}, {}, {"reverse": True}, {"bidirectional": True}]))
    widths = st.sampled_from([1, 3, 15, 16, 17, 33, 64, 70])
    config = make(draw(widths), draw(widths), draw(st.integers(1, 3)), dropout=draw(st.sampled_from([0.0, 0.4])), **way)
    steps, batch = draw(st.integers(packed.LEAST, 2 * packed.LEAST)), draw(st.integers(1, 15))
    lengths = draw(st.none() | st.lists(st.integers(0, steps), min_size=batch, max_size=batch).map(np.array))
    key = jax.random.key(1) if draw(st.booleans()) else None
    return config, steps, batch, {"lengths": lengths, "key": key}, draw(st.integers(0, 99))


@compiled
def test_values_and_gradients_are_the_references():
    @settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=6,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases())
    def agree(case):
        config, steps, batch, options, seed = case
        actual, expected = both(config, *stack_arguments(lstm, config, steps, batch, seed), **options)
        assert disagreement(actual, expected) < AGREEMENT["float32"], disagreement(actual, expected)

    agree()


@compiled
@pytest.mark.parametrize(("steps", "batch"), [(101, 1), (130, 2), (9, 97)])
def test_long_sequences_and_large_batches(steps, batch):
    """The inputs' products of several steps at once, the last of fewer; more rows than one block has."""
    config = make(5, 20)
    lengths = np.random.default_rng(0).integers(0, steps + 1, batch)
    actual, expected = both(config, *stack_arguments(lstm, config, steps, batch), lengths=lengths)
    assert disagreement(actual, expected) < AGREEMENT["float32"]


@compiled
def test_derivatives_of_gradients():
    config = make(3, 4)
    params, xs, carry = stack_arguments(lstm, config, T, 2)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype="float32")).reshape(leaf.shape), params)

    def second(implementation: Any) -> Any:
        def gradient(params: Any, xs: Any) -> Any:
            run = partial(lstm.apply, config=config, carry=carry, implementation=implementation)
            return jax.grad(lambda params, xs: weighed(run(params, xs)), (0, 1))(params, xs)

        def norm(params: Any, xs: Any) -> Any:
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient(params, xs)))

        forward = jax.jvp(lambda params: gradient(params, xs), (params,), (direction,))
        return forward, jax.grad(norm, (0, 1))(params, xs)

    assert disagreement(second("packed"), second("reference")) < AGREEMENT["float32"]


@compiled
def test_padding_changes_nothing_and_a_sequence_sees_no_other():
    config = make(6, 9, bidirectional=True)
    lengths = np.array([T, 0, 4, T - 1])
    params, xs, carry = stack_arguments(lstm, config, T, 4)
    padding = (np.arange(T)[:, None] >= lengths)[..., None]
    clean, dirty = np.where(padding, 0, xs), np.where(padding, np.nan, xs)
    run = stack_gradients(lstm, config, lengths=lengths, implementation="packed")
    assert_exact(run(params, dirty, carry), run(params, clean, carry))
    clean[0, 2] = np.nan
    _, ys = lstm.apply(params, clean, config=config, carry=carry, implementation="packed")
    assert np.isnan(ys[:, 2]).any() and np.isfinite(ys[:, [0, 1, 3]]).all()


@compiled
def test_chunks_are_one_run():
    config = make(6, 9, 2)
    params, xs, carry = stack_arguments(lstm, config, 3 * T, 5)
    run = partial(lstm.apply, params, config=config, implementation="packed")
    last, ys = run(xs, carry=carry)
    halfway, first = run(xs[:T], carry=carry)
    actual, second = run(xs[T:], carry=halfway)
    assert_exact((actual, jnp.concatenate([first, second])), (last, ys))


@compiled
@pytest.mark.parametrize("layers", [1, 2])
def test_over_a_mesh_it_is_gathered_not_wrong(layers):
    config = make(4, 8, layers)
    params, xs, carry = stack_arguments(lstm, config, T, 8)
    run = stack_gradients(lstm, config, implementation="packed")
    spread = jax.device_put(xs, NamedSharding(make_mesh("data=8"), PartitionSpec(None, "data")))
    assert_close(run(params, spread, carry), run(params, xs, carry), "float32")


@compiled
@pytest.mark.parametrize(("axes", "batch"), [((None, 0), 9), ((0, None), 3), ((0, 0), 3)])
def test_under_vmap(axes, batch):
    """Of more sequences it is one call; of more weights, one after another."""
    config = make(4, 8, 2)
    params, xs, carry = stack_arguments(lstm, config, T, 3)
    each = [(params, xs), (jax.tree.map(lambda leaf: leaf[..., ::-1], params), -xs), (params, 2 * xs)]
    each = [tuple(x if axis == 0 else first for x, first, axis in zip(a, each[0], axes, strict=True)) for a in each]

    def run(params: Any, xs: Any) -> Any:
        return stack_gradients(lstm, config, implementation="packed")(params, xs, carry)

    def stacked(*trees: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    arguments = [stacked(*x) if axis == 0 else x[0] for x, axis in zip(zip(*each, strict=True), axes, strict=True)]
    program = jax.jit(jax.vmap(run, axes))
    assert_close(program(*arguments), stacked(*(run(*one) for one in each)), "float32")
    text = program.lower(*arguments).as_text()
    made = {*re.findall(r"@lstm_rot_(\w+)\(.*-> \(tensor<(\d+)x(\d+)x", text)}
    assert made == {(name, str(T), str(batch)) for name in ("kept", "backward")}


@compiled
def test_no_sequence_at_all():
    config = make(4, 8)
    run = stack_gradients(lstm, config, implementation="packed")
    params, xs, carry = stack_arguments(lstm, config, T, 0)
    (_, ys), (dparams, *_) = run(params, xs, carry)
    assert ys.shape == (T, 0, 8) and not any(leaf.any() for leaf in jax.tree.leaves(dparams))


@compiled
def test_in_shard_map_it_is_hoisted():
    config = make(4, 8)
    params, xs, carry = stack_arguments(lstm, config, T, 8)
    run = stack_gradients(lstm, config, implementation="packed")

    def part(params: Any, xs: Any, carry: Any) -> Any:
        _, ys = lstm.apply(params, xs, config=config, carry=carry, implementation="packed")
        return ys

    spec = PartitionSpec(None, "data")
    spread = jax.shard_map(part, mesh=make_mesh("data=8"), in_specs=(PartitionSpec(), spec, spec), out_specs=spec)
    assert calls(spread, params, xs, carry) == ""
    assert_close(jax.jit(spread)(params, xs, carry), run(params, xs, carry)[0][1], "float32")


@compiled
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag is one for x86-64")
def test_with_narrower_registers():
    """As on a processor without AVX-512, in a process of its own."""
    program = f"""
import os, jax, numpy as np
from lstm_rot.branches import conv
from lstm_rot import native
from lstm_rot.models import lstm
os.cpu_count = lambda: 1
native.FLAGS += ("-mno-avx512f", "-O1")
config = lstm.Config(5, 19)
params, xs = lstm.init(jax.random.key(0), config), jax.random.normal(jax.random.key(1), ({T}, 7, 5))
def run(implementation):
    def scalar(params):
        return (lstm.apply(params, xs, config=config, implementation=implementation)[1] ** 2).sum()
    return jax.value_and_grad(scalar)(params)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run("packed"), run("reference"))
x, w = jax.random.normal(jax.random.key(2), (2, 5, 7, 3)), jax.random.normal(jax.random.key(3), (3, 3, 3, 37))
def scalar(x, w):
    return (conv.conv3x3(x, w, 2) ** 2).sum()
assert "lstm_rot_weigh" in jax.jit(jax.grad(scalar, 1)).lower(x, w).as_text()
fast = jax.grad(scalar, (0, 1))(x, w)
native.refusal = lambda: "no"
jax.clear_caches()
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), fast, jax.grad(scalar, (0, 1))(x, w))
"""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# --- when it runs


@compiled
def test_where_packing_does_not_pay_the_line_is_hoisted(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def run(params: Any, xs: Any, config: Any) -> Any:
        return lstm.apply(params, xs, config=config, implementation="packed")[1].sum()

    def programs(config: Any, steps: int, batch: int) -> tuple[str, str]:
        arguments = jax.eval_shape(lambda: stack_arguments(lstm, config, steps, batch)[:2])
        return calls(partial(run, config=config), *arguments), calls(jax.grad(partial(run, config=config)), *arguments)

    gradient = "lstm_rot_kept lstm_rot_backward"
    assert programs(make(4, 8), packed.LEAST, 1) == ("lstm_rot_values", gradient)
    assert programs(make(4, 8), packed.LEAST - 1, 1) == ("", "")
    assert programs(make(4, 520), packed.LEAST, 1) == ("", gradient)  # one core's cache does not hold W
    assert programs(make(4, 520), packed.LEAST, 2) == ("lstm_rot_values", gradient)


@compiled
def test_a_program_for_another_platform_holds_no_compiled_loop():
    config = make(4, 8)
    gradient = jax.jit(jax.grad(lambda p, xs: lstm.apply(p, xs, config=config, implementation="packed")[1].sum()))
    arguments = jax.eval_shape(lambda: stack_arguments(lstm, config, T, 2)[:2])
    assert "lstm_rot_" in gradient.trace(*arguments).lower().as_text()
    assert "lstm_rot_" not in gradient.trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()


@compiled
def test_elsewhere_it_is_the_hoisted_line(monkeypatch):
    """What other platforms run, run here: the same branch, chosen by hand."""
    config = make(4, 8)
    args = stack_arguments(lstm, config, T, 3)
    expected = stack_gradients(lstm, config, implementation="reference")(*args)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    jax.clear_caches()
    run = stack_gradients(lstm, config, implementation="packed")
    assert "lstm_rot_" not in run.lower(*args).as_text()
    actual = run(*args)
    jax.clear_caches()
    assert disagreement(actual, expected) < AGREEMENT["float32"]


@compiled
@pytest.mark.parametrize("wanted", [(0,), (0, 1)])
def test_its_flops_are_counted_as_the_hoisted_lines(wanted):
    config = make(4, 8, 2)
    arguments = jax.eval_shape(lambda: stack_arguments(lstm, config, T, 3)[:2])

    def counted(implementation: Any) -> tuple[int, int]:
        def scalar(params: Any, xs: Any) -> Any:
            return (lstm.apply(params, xs, config=config, implementation=implementation)[1] ** 2).sum()

        return cost.flops(scalar, *arguments), cost.flops(jax.grad(scalar, wanted), *arguments)

    assert counted("packed") == counted("hoisted")


@compiled
def test_none_picks_it_in_a_program_of_one_device(monkeypatch):
    config = make(4, 8)
    assert lstm_rot.explain(config).startswith("None picks 'hoisted'")  # here are eight
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert lstm_rot.explain(config).startswith("None picks 'packed'")
    assert lstm_rot.explain(config, schedule=Checkpointed()).startswith("None picks 'hoisted'")
    with monkeypatch.context() as patch:
        patch.setattr(native, "refusal", lambda: "no C++ compiler: c++ is not found")
        text = lstm_rot.explain(config)
    assert text.startswith("None picks 'hoisted'") and "'packed' cannot serve: no C++ compiler" in text


PLAIN = make(4, 8)
REFUSED = {
    "gates": (replace(PLAIN, gates=branch.COUPLED), {}, "gates="),
    "peepholes": (replace(PLAIN, peepholes=True), {}, "peepholes=True"),
    "layer norm": (replace(PLAIN, layer_norm=True), {}, "layer_norm=True"),
    "projection": (replace(PLAIN, projection_size=3), {}, "projection_size=3"),
    "variational": (replace(PLAIN, variational_dropout=0.5), {}, "variational_dropout=0.5"),
    "recurrent": (replace(PLAIN, recurrent_dropout=0.5), {}, "recurrent_dropout=0.5"),
    "zoneout": (replace(PLAIN, zoneout_hidden=0.5), {}, "zoneout_hidden=0.5"),
    "float64": (replace(PLAIN, param_dtype="float64"), {}, "float64"),
    "bfloat16": (replace(PLAIN, compute_dtype="bfloat16"), {}, "bfloat16"),
    "a float64 stream": (replace(PLAIN, stream_dtype="float64"), {}, "float64"),
    "a schedule": (PLAIN, {"schedule": Checkpointed(2)}, "schedule=Checkpointed(every=2)"),
    "a GRU": (gru.Config(4, 8), {}, "not the LSTM's"),
    "an RNN": (rnn.Config(4, 8), {}, "not the LSTM's"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_run_is_refused_by_name(case):
    config, how, part = REFUSED[case]
    model = next(m for m in (lstm, gru, rnn) if type(config) is m.Config)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), config))
    xs = np.zeros((T, 2, 4), config.compute if config.compute != jnp.bfloat16 else "float32")
    before = recurrent._apply._cache_size()  # pyright: ignore
    with pytest.raises(ValueError, match="'packed' cannot serve: ") as error:
        model.apply(params, xs, config=config, implementation="packed", **{"schedule": Sequential(), **how})
    assert part in str(error.value) and recurrent._apply._cache_size() == before  # pyright: ignore


# --- its compilation


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """As in a process that has not compiled it yet, and a user whose cache is empty."""
    monkeypatch.setattr(native.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-O0"))  # it is not run
    native._attempted.cache_clear()
    yield monkeypatch
    native._attempted.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler -v", "no C++ compiler: no-such-compiler is not found; install one, or name it in CXX"),
        ("'", 'CXX="\'" cannot be read: '),
        ("false", "false does not compile it: "),
        ("python", "python does not compile it: "),
    ],
)
def test_without_a_compiler_it_says_so_and_asks_once(anew, compiler, said):
    anew.setenv("CXX", compiler)
    assert str(native.refusal()).startswith(said)
    anew.setattr(native, "_library", None)
    assert str(native.refusal()).startswith(said)


@compiled
def test_a_compiler_that_does_not_answer(anew):
    anew.setattr(native, "PATIENCE", 0.001)
    named = os.environ.get("CXX") or "c++"
    assert native.refusal() == f"{named} did not compile it within 0.001 s"


@compiled
def test_each_source_is_compiled_once_and_kept(anew, tmp_path):
    ask: Any = lambda: native._library(["c++"])  # noqa: E731
    path = ask()
    assert path.parent == tmp_path / "lstm_rot" / "native" and [path] == list(path.parent.iterdir())
    path.write_bytes(b"kept")
    assert ask() == path and path.read_bytes() == b"kept"
    anew.setenv("CXX", "  ")  # as if it were not set
    said = native.refusal()  # which is no library
    assert said is not None and said.startswith("it cannot be kept or loaded: ") and str(path) in said
    sources = tmp_path / "sources"
    shutil.copytree(native.SOURCES, sources)
    header = sources / "vectors.h"
    header.write_text(header.read_text() + "\n// other\n")
    anew.setattr(native, "SOURCES", sources)
    anew.setattr(native, "FLAGS", (*native.FLAGS, "-fsyntax-only"))  # it makes nothing
    with pytest.raises(FileNotFoundError):
        ask()
