"""The pipeline over `stage` is the grid it runs, and its experiment counts ticks instead of assuming them."""

import json
from dataclasses import asdict, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CELLS, assert_close, assert_exact, compiled, normal, random_like, value_and_grads, weighed, weights
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.progress import Progress

from experiments import pipeline as experiment
from experiments.harness import Refused
from experiments.pipeline import numbers
from lstm_rot import DEPTH, TIME, Axis, Checkpointed, residual, scan, turn
from lstm_rot.branches import attention, lstm, mlp
from lstm_rot.branches.wrappers import probed
from lstm_rot.kernels.hoisted import hoisted
from lstm_rot.models import gru, transformer
from lstm_rot.models import lstm as lstm_model
from lstm_rot.training import pipeline as pipeline_module
from lstm_rot.training.pipeline import Pipeline, pipeline

LAYERS, STEPS, B, H = 4, 7, 2, 4


def mesh(stage, data=1, model=1):
    devices = jax.devices()[: stage * data * model]
    return jax.make_mesh((data, model, stage), ("data", "model", "stage"), (AxisType.Auto,) * 3, devices=devices)


def lstm_arguments(steps=STEPS, batch=B):
    example = CELLS["lstm"]
    left = normal("float64", LAYERS, batch, H, seed=1), normal("float64", LAYERS, batch, H, seed=3)
    return weights(example, "float64", LAYERS), left, normal("float64", steps, batch, H)


def residual_arguments():
    return weights(CELLS["dense"], "float64", LAYERS, width=None), None, (normal("float64", STEPS, H), ())


def transformer_arguments():
    key = jax.random.key(0)
    layer = jax.eval_shape(lambda: (attention.init(key, H, 2, "float64"), mlp.init(key, H, 2 * H, "float64")))
    return random_like(layer, 0, prefix=(LAYERS,)), (None, None), (normal("float64", 3, STEPS, H), ())


def without_right(grid):
    """What a net's layers hand out along a batch, where nothing takes it, is left out."""
    return lambda p, left, below: (left, grid(p, left, below)[1])


LAYER = transformer.layer(transformer.Config(H))
STACKS = {  # a grid, its arguments, and the axis of below that is cut
    "LSTM, chunks of time": (scan(hoisted(CELLS["lstm"].cell, TIME), DEPTH), lstm_arguments(), 0),
    "residual, microbatches": (scan(turn(CELLS["dense"].cell), DEPTH), residual_arguments(), 0),
    "Transformer, microbatches": (scan(LAYER, DEPTH), transformer_arguments(), 1),
}


@lru_cache
def expected(stack):
    if stack.startswith("LSTM"):
        return value_and_grads(scan(scan(CELLS["lstm"].cell, TIME), DEPTH), *STACKS[stack][1])
    return value_and_grads(without_right(STACKS[stack][0]), *STACKS[stack][1])


@pytest.mark.parametrize(
    ("stack", "stage", "chunks"),
    [(stack, *cut) for stack in STACKS for cut in ((2, 4), (4, 7))] + [("LSTM, chunks of time", 1, 1)],
)
def test_the_pipeline_is_the_grid(stack, stage, chunks):
    """One to four layers a stage; seven steps or examples in chunks that divide them or not; values and gradients."""
    grid, args, axis = STACKS[stack]
    assert_close(
        value_and_grads(pipeline(grid, mesh(stage), chunks=chunks, axis=axis), *args), expected(stack), "float64"
    )


def test_leaves_tied_in_every_way_and_keys():
    """Weights a layer, probes a layer and step, a shift a step that all layers share, keys a layer and step."""

    def cell(p, left, below):
        inner, shift, key = p
        right, above = residual(probed(lstm.lstm))(inner, left, below)
        return right, above + shift + jax.random.normal(key, above.shape, above.dtype)

    time, depth = Axis("left", ((True, False), False, False)), Axis("below", ((False, False), True, False))
    keys = jax.random.split(jax.random.key(5), (LAYERS, STEPS))
    p, left, below = lstm_arguments()
    q = ((p, normal("float64", LAYERS, STEPS, B, H)), normal("float64", STEPS, H, seed=8))
    nested = scan(scan(cell, time), depth)
    specs = (P("stage"), P(), P("stage")), P("stage"), P()

    def of(grid):
        return value_and_grads(lambda q, left, below: grid((*q, keys), left, below), q, left, below)

    assert_close(of(pipeline(nested, mesh(2), chunks=7, time=time, specs=specs)), of(nested), "float64")


def in_models(model, config, steps, batch, carry=True, **options):
    """Results and gradients of the model's own implementation, and over two stages by two devices for the batch."""
    config = replace(config, param_dtype="float64")
    room = (steps + 2,) if model is transformer else ()
    shapes = jax.eval_shape(lambda: (model.init(jax.random.key(0), config), model.zeros(config, batch, *room)))
    params, start = (random_like(tree, seed) for seed, tree in enumerate(shapes))
    if model is transformer:
        start = attention.Cache(0 * start.k, 0 * start.v, jnp.zeros(config.num_layers, "int32"))
    xs = normal("float64", steps, batch, config.input_size)

    def of(implementation):
        def run(params, xs):
            more = {"carry": start if carry else None, **options}
            results = model.apply(params, xs, config=config, implementation=implementation, **more)
            return weighed(results), results

        return jax.jit(jax.grad(run, (0, 1), has_aux=True))(params, xs)

    return of(Pipeline(mesh(2, 2), chunks=3)), of(None)


MODELS = {  # a model, its config, and what is given beside xs; the first layer may be of another width
    "LSTM, all its noise": (
        lstm_model,
        lstm_model.Config(
            2, H, 3, dropout=0.3, variational_dropout=0.2, recurrent_dropout=0.2, zoneout_cell=0.1, zoneout_hidden=0.1
        ),
        {"lengths": [3, STEPS, 0, 1], "key": jax.random.key(3), "start": 4},
    ),
    "GRU, checkpointed": (gru, gru.Config(H, H, 4), {"schedule": Checkpointed(2)}),
    "Transformer, microbatches": (transformer, transformer.Config(H, 4, 2), {"carry": False}),
    "Transformer, a prompt": (transformer, transformer.Config(H, 2, 2), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_over_devices_are_the_models(name):
    """Layers over two stages, the batch over two devices more: results, carries and gradients, dropout included."""
    model, config, options = MODELS[name]
    assert_close(*in_models(model, config, STEPS, 4, **options), "float64")


def test_models_refuse_what_a_pipeline_cannot_run():
    with pytest.raises(ValueError, match=r"Pipeline\(.* cannot serve: bidirectional=True needs all of the layer below"):
        in_models(lstm_model, lstm_model.Config(H, H, 2, bidirectional=True), 2, 2)
    with pytest.raises(ValueError, match="3 layers do not divide over stage=2"):
        in_models(lstm_model, lstm_model.Config(H, H, 3), 2, 2)


LAYOUT = (  # of the LSTM's arguments: layers over stages, the hidden axis over `model`, the batch over `data`
    jax.tree.map(lambda leaf: P("stage", *[None] * (leaf.ndim - 2), "model"), lstm_arguments()[0]),
    P("stage", "data", "model"),
    P(None, "data"),
)


@pytest.mark.parametrize(
    ("specs", "chunks"), [((P("stage"), P("stage"), P()), 1), (LAYOUT, 7)], ids=["left to the compiler", "said"]
)
@pytest.mark.usefixtures("optimized")
def test_three_axes_of_devices(specs, chunks):
    """Two stages, their hidden axis over two devices, the batch over two more: by the compiler, or as said.

    No weights are gathered, and their gradients are summed over `data` after the ticks where that is said.
    """
    grid, args, _ = STACKS["LSTM, chunks of time"]
    devices = mesh(2, 2, 2)
    layout = jax.tree.map(lambda spec: NamedSharding(devices, spec), jax.tree.broadcast(LAYOUT, args))
    piped = pipeline(grid, devices, chunks=chunks, specs=specs)
    program = compiled(jax.grad(lambda *args: weighed(piped(*args)), (0, 1, 2)), *args, in_shardings=layout)
    assert_close(program(*jax.device_put(args, layout)), expected("LSTM, chunks of time")[1], "float64")
    lines = program.as_text().splitlines()
    assert not [line for line in lines if " all-gather(" in line and f"{H},4,{H}]" in line]
    sums = [line for line in lines if " all-reduce(" in line and f"{H},4,{H // 2}]" in line]
    assert sums and any("while/body" in line for line in sums) == (specs is not LAYOUT)


def summed(results):
    return sum(leaf.sum() for leaf in jax.tree.leaves(results))


def program(stage, chunks, gradient):
    grid, args, _ = STACKS["LSTM, chunks of time"]
    piped = pipeline(grid, mesh(stage), chunks=chunks)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh(stage), spec), (P("stage"), P("stage"), P()))
    return compiled(jax.grad(lambda *args: summed(piped(*args))) if gradient else piped, *args, in_shardings=shardings)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_what_is_compiled(gradient):
    """One loop of M + S - 1 ticks each way, a permute at each, and no weights on the way."""
    text = program(4, 7, gradient).as_text()
    body = [line for line in text.splitlines() if "collective-permute(" in line or "collective-permute-start(" in line]
    assert text.count('known_trip_count":{"n":"10"') == 1 + gradient
    assert len(body) == 1 + gradient and all("while/body" in line for line in body)
    assert "all-gather" not in text and "all-to-all" not in text


def test_no_tick_keeps_the_weights():
    """What the forward loop hands to the reverse one is not, tick by tick, what all ticks share."""
    grid, args, _ = STACKS["LSTM, chunks of time"]
    piped = pipeline(grid, mesh(4), chunks=7)
    text = str(jax.make_jaxpr(jax.grad(lambda *args: summed(piped(*args))))(*args))
    assert f"[10,1,{B},{H}]" in text  # what flows is kept
    assert f"[10,1,{H},4,{H}]" not in text and f"[10,1,4,{H},{H}]" not in text


def poisonous(p, left, below):
    """NaN at zero, in its value and in its derivatives."""
    norm = jnp.sqrt((left**2).sum(-1, keepdims=True)) * jnp.sqrt((below**2).sum(-1, keepdims=True))
    right = p * left / norm + below
    return right, jnp.log(below**2) + right


def test_idle_ticks_poison_nothing(monkeypatch):
    """Of zeros this cell makes NaN, and here what idle stages hold is NaN itself."""
    monkeypatch.setattr(pipeline_module, "_blank", lambda leaf: jnp.full_like(leaf, np.nan))
    zeros = jnp.zeros((B, H))
    assert all(jnp.isnan(leaf).any() for leaf in poisonous(1.0, zeros, zeros))
    args = normal("float64", LAYERS, H), normal("float64", LAYERS, B, H), normal("float64", 6, B, H)
    nested = scan(scan(poisonous, TIME), DEPTH)
    assert_close(value_and_grads(pipeline(nested, mesh(4), chunks=3), *args), value_and_grads(nested, *args), "float64")


def test_numpy_arguments_outside_of_jit_and_nothing_to_do():
    grid, args, _ = STACKS["LSTM, chunks of time"]
    piped = pipeline(grid, mesh(2), chunks=3)
    assert_close(piped(*args), expected("LSTM, chunks of time")[0], "float64")
    p, left, below = args
    assert_exact(piped(p, left, below[:0]), (left, below[:0]))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda grid, args: pipeline(grid, mesh(2), chunks=0), "chunks=0: cut into at least one"),
        (lambda grid, args: pipeline(grid, jax.make_mesh((8,), ("data",)), chunks=2), "the axes ('data',)"),
        (
            lambda grid, args: pipeline(grid, mesh(8), chunks=2)(*args),
            "4 layers do not divide over stage=8: each stage has as many; choose stage from [1, 2, 4]",
        ),
        (
            lambda grid, args: pipeline(grid, mesh(2), chunks=2)(
                args[0], jax.tree.map(lambda x: x[:2], args[1]), args[2]
            ),
            "one number of layers",
        ),
        (lambda grid, args: pipeline(grid, mesh(2), chunks=2)(args[0], args[1], None), "nothing enters below"),
        (lambda grid, args: pipeline(grid, mesh(2), chunks=2, axis=3)(*args), "axis 3 of every leaf is cut"),
        (
            lambda grid, args: pipeline(lambda p, left, x: (left, x[..., :2]), mesh(2), chunks=4)(*args),
            "above must be like below, but of a chunk it is ((2, 2, 2), 'float64'), not ((2, 2, 4), 'float64'); "
            "chain a first layer of another width before it",
        ),
        (
            lambda grid, args: pipeline(lambda p, left, x: (left[0], x), mesh(2), chunks=4)(*args),
            "right must be like left",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_value_and_the_remedy(call, said):
    grid, args, _ = STACKS["LSTM, chunks of time"]
    with pytest.raises(ValueError) as error:
        call(grid, args)
    assert said in str(error.value)


# The experiment.


def test_a_run_tells_its_ticks_and_is_drawn(monkeypatch):
    """Two layers on two devices, three chunks: four ticks each way."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    config = experiment.Config(layers=2, hidden_size=4, batch=2, steps=6, examples=6, stages=(2,), chunks=(3,), calls=1)
    measured = experiment.run(config, Progress(disable=True))
    assert [(row["stack"], row["plain"], row["seconds"] > 0) for row in measured["rows"]] == [
        (stack, plain, True) for stack in ("LSTM", "residual net") for plain in (True, False)
    ]
    for row in measured["rows"][1::2]:
        assert row["ticks"] == {"forward": [4, 4], "reverse": [4, 4]}
        assert sorted(row["cells"]["forward"]) == [[0, 0, 0], [0, 1, 1], [0, 2, 2], [1, 1, 0], [1, 2, 1], [1, 3, 2]]
        assert sorted(row["cells"]["reverse"]) == [[0, 1, 2], [0, 2, 1], [0, 3, 0], [1, 0, 2], [1, 1, 1], [1, 2, 0]]
        assert numbers.as_told(row) and numbers.busy(row) == 12 / 16
    table = experiment.table(measured)
    assert [len(row) for row in table["rows"]] == [len(table["columns"])] * 4
    result = {"measurements": measured, "config": asdict(config), "hardware": "a processor"}
    figure = experiment.draw(json.loads(json.dumps(result)))
    assert "4 + 4 ticks" in figure.axes[0].get_title()


def ran(seconds, processors=8, late=0):
    """Eight stages and 24 chunks; `late`: ticks that one device told of beyond its own."""
    cells = [[k, k + chunk, chunk] for k in range(8) for chunk in range(24)]
    row = {"stack": "LSTM", "items": 1, "stages": 8, "chunks": 24, "seconds": seconds, "plain": False}
    row["ticks"] = {"forward": [31] * 7 + [31 + late], "reverse": [31] * 8}
    row["cells"] = {"forward": cells, "reverse": [[k, 30 - tick, chunk] for k, tick, chunk in cells]}
    plain = {"stack": "LSTM", "items": 1, "stages": 1, "chunks": 1, "seconds": 1.0, "plain": True}
    return {"rows": [plain, row], "processors": processors}


@pytest.mark.parametrize(
    ("measured", "verdicts"),
    [
        (ran(0.25), ["reproduced", "reproduced"]),
        (ran(1 / 3.6), ["reproduced", "inconclusive"]),
        (ran(0.5), ["inconclusive", "inconclusive"]),
        (ran(1.25), ["contradicted", "contradicted"]),
        (ran(0.25, late=1), ["inconclusive", "inconclusive"]),
        (ran(0.25, processors=7), ["out of reach here", "out of reach here"]),
    ],
)
def test_the_experiment_judges_by_speed_ticks_and_cores(measured, verdicts):
    findings = experiment.judge(measured)
    assert [finding.verdict for finding in findings] == verdicts
    assert [finding.id for finding in findings] == list(experiment.EXPERIMENT.claims)


def test_a_device_that_works_out_of_turn_is_seen():
    row = ran(0.25)["rows"][1]
    assert numbers.as_told(row)
    row["cells"]["forward"][0] = [0, 1, 0]
    assert not numbers.as_told(row)


def test_layers_that_do_not_divide_are_refused_before_the_run():
    with pytest.raises(Refused, match=r"--stages \(3,\): each must divide the 4 layers"):
        experiment.run(experiment.Config(stages=(3,)), Progress(disable=True))
