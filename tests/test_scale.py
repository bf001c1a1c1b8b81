"""Costs are counted with their loops; the split softmax stays split; the real compiler for TPUs takes the steps."""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, compiled, normal, random_like
from jax.sharding import Mesh, PartitionSpec
from rich.progress import Progress

from experiments import scale
from experiments.data import DataError
from experiments.scale import chips
from lstm_rot import Checkpointed
from lstm_rot.models import language_model, lstm, transformer
from lstm_rot.training import cost, hlo, mesh, sharding, step
from lstm_rot.training.cost import Traffic

T, B, D, H = 6, 32, 24, 40
OVER = PartitionSpec("devices")


def of_xla(f, *args):
    """XLA's count, before it rewrites anything."""
    counted = jax.jit(f).lower(*args).cost_analysis()
    return counted["flops"] if counted else np.nan


def recurrent(loop):
    """The gradient of a plain recurrent net, by a loop with `lax.scan`'s contract."""

    def loss(w, u, xs):
        return loop(lambda h, x: (jnp.tanh(h @ w + x @ u), None), jnp.zeros((B, H), xs.dtype), xs)[0].sum()

    return jax.grad(loss, (0, 1, 2))


def unrolled(step, carry, xs):
    for x in xs:
        carry, _ = step(carry, x)
    return carry, None


def test_flops_of_a_loop_are_those_of_the_program_without_it():
    args = normal("float32", H, H), normal("float32", D, H), normal("float32", T, B, D)
    ours = cost.flops(recurrent(unrolled), *args)
    # The last dh (of a constant) is not needed; XLA counts the pointwise operations too.
    assert ours == 2 * B * H * (3 * T * D + 3 * T * H - H)
    assert ours <= of_xla(recurrent(unrolled), *args) <= 1.05 * ours
    scanned = cost.flops(recurrent(jax.lax.scan), *args)
    assert scanned == ours + 2 * B * H * H
    assert of_xla(recurrent(jax.lax.scan), *args) < 0.5 * ours  # the reason for counting ourselves


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({}, 3),
        ({"implementation": "reference"}, 3),
        ({"schedule": Checkpointed(every=3)}, 4),  # forward twice
        ({"implementation": "reference", "schedule": Checkpointed(every=3)}, 4),
    ],
)
def test_flops_of_an_lstm_are_its_formula(options, times):
    config = lstm.Config(D, H)
    params = jax.eval_shape(lambda: lstm.init(jax.random.key(0), config))
    xs = jax.ShapeDtypeStruct((T, B, D), "float32")

    def loss(params, xs):
        return lstm.apply(params, xs, config=config, **options)[1].sum()

    forward = 2 * T * B * 4 * H * (D + H)
    assert cost.flops(loss, params, xs) == forward
    assert cost.flops(jax.grad(loss, (0, 1)), params, xs) == times * forward


def devices(count=8):
    return Mesh(np.array(jax.devices()[:count]), ("devices",))


def test_flops_of_branches_devices_and_convolutions():
    x, w = normal("float32", 8, H), normal("float32", H, H)
    product = 2 * 8 * H * H
    assert cost.flops(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w), x, w) == 2 * product
    on_each = jax.shard_map(lambda x, w: x @ w, mesh=devices(), in_specs=(OVER, PartitionSpec()), out_specs=OVER)
    assert cost.flops(on_each, x, w) == product
    images, kernel = normal("float32", 2, 6, 9, 9), normal("float32", 8, 3, 3, 3)
    conv = partial(jax.lax.conv_general_dilated, window_strides=(2, 2), padding="VALID", feature_group_count=2)
    assert cost.flops(conv, images, kernel) == of_xla(conv, images, kernel) > 0


def test_flops_that_cannot_be_known_are_refused():
    with pytest.raises(ValueError, match="use scan"):
        cost.flops(lambda w: jax.lax.while_loop(lambda w: w.sum() < 1, lambda w: w @ w, w), normal("float32", H, H))


N = 4
COLLECTIVES = {  # body, and the bytes that a device sends for an operand of [N, N] float32
    "all-reduce": (lambda x: jax.lax.psum(x, "devices") / 4, 2 * 64 * 3 // 4),
    "all-gather": (lambda x: jax.lax.all_gather(x, "devices").sum(0), 64 * 3),
    "reduce-scatter": (lambda x: jnp.tile(jax.lax.psum_scatter(x, "devices", tiled=True), (N, 1)), 64 * 3 // 4),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "devices", 0, 0, tiled=True), 64 * 3 // 4),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "devices", [(k, (k + 1) % 4) for k in range(4)]), 64),
}


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_collectives_in_loops_are_counted_in_full(kind):
    body, sent = COLLECTIVES[kind]

    def loop(x, trips):
        return jax.lax.scan(lambda x, _: (jnp.sin(body(x)), None), x, length=trips)[0]

    def f(x):
        x, _ = jax.lax.scan(lambda x, _: (jnp.cos(loop(x, 5)), None), x, length=3)
        return body(x)

    on_each = jax.shard_map(f, mesh=devices(4), in_specs=OVER, out_specs=OVER, check_vma=False)
    text = compiled(on_each, normal("float32", 4 * N, N)).as_text()
    assert cost.collectives(text) == {kind: Traffic(16, 16 * sent)}


def test_collectives_in_a_loop_of_unknown_length_are_refused():
    def f(x):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: jax.lax.psum(x, "devices"), x)

    on_each = jax.shard_map(f, mesh=devices(4), in_specs=OVER, out_specs=OVER, check_vma=False)
    with pytest.raises(ValueError, match="trips of a loop"):
        cost.collectives(compiled(on_each, normal("float32", 4 * N, N)).as_text())


FOR_A_TPU = """HloModule jit_f, is_scheduled=true, num_partitions=16

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %both.1 = bf16[]{:T(256)} add(%a, %b)
}

%condition (p: (s32[], bf16[8,16])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %bound), direction=LT, metadata={op_name="jit(f)/while/cond/lt"}
}

%started (q: bf16[8,16]) -> (bf16[8,16], bf16[8,64]) {
  %q = bf16[8,16]{1,0} parameter(0)
  %all-gather.1 = bf16[8,64]{1,0} all-gather(%q), channel_id=1, \
replica_groups=mesh['a'=2,'b'=2,'c'=4], device_ids=([4,4]T(1,0)) {'a','b'}, \
dimensions={1}, backend_config={"async_collective_fusion_config":{}}
  ROOT %start = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (r: bf16[8,16]) -> bf16[8,64] {
  %r = bf16[8,16]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,64]{1,0} all-gather(%r), channel_id=1, replica_groups=mesh['a'=2,'b'=2,'c'=4] {'a','b'}, \
dimensions={1}, backend_config={"async_collective_fusion_config":{}}
}

%body (p.1: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %at.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %step = s32[]{:T(128)} constant(3)
  %next = s32[]{:T(128)} add(%at.1, %step)
  %h = bf16[8,16]{1,0} get-tuple-element(%p.1), index=1
  %begun = (bf16[8,16]{1,0}, bf16[8,64]{1,0}) fusion(%h), kind=kCustom, calls=%started
  %both = bf16[8,64]{1,0} fusion(%h), kind=kCustom, calls=%meanwhile
  %sum = bf16[8,16]{1,0} all-reduce(%h), replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %out = (s32[]{:T(128)}, /*index=1*/bf16[8,16]{1,0}) tuple(%next, %sum)
}

ENTRY %main (x: bf16[8,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0} parameter(0)
  %zero = s32[]{:T(128)} constant(5)
  %copied = s32[]{:T(128)} copy(%zero)
  %in = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%copied, %x)
  %loop = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%in), condition=%condition, body=%body
  ROOT %y = bf16[8,16]{1,0} get-tuple-element(%loop), index=1
}
""".replace("\\\n", "")


def test_a_program_for_a_tpu_is_read():
    """Its loop has no note of its trips, at 5, 8, 11; the all-gather stands in what runs meanwhile too."""
    each = 8 * 16 * 2
    expected = {"all-gather": Traffic(3, 3 * 3 * each), "all-reduce": Traffic(3, 3 * 2 * each * 3 // 4)}
    assert cost.collectives(FOR_A_TPU) == expected
    unknown = FOR_A_TPU.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="trips of a loop"):
        cost.collectives(unknown)


def test_arrays_are_read_from_a_program():
    text = "%x = (bf16[8,128]{1,0:T(8,128)(2,1)}, pred[]) fusion(f8e4m3fn[3]{0} %y, c64[2,5]{1,0} %z)"
    read = [(array.shape, array.bytes) for array in hlo.arrays(text)]
    assert read == [((8, 128), 2048), ((), 1), ((3,), 3), ((2, 5), 80)]


# The split softmax of Sutskever et al. 2014: 80,000 words.

WORDS, EXAMPLES, STEPS = 80_000, 4, 6
BODIES = {
    "lstm": lstm.Config(8, 8, param_dtype="float64"),
    "transformer": transformer.Config(8, num_heads=4, param_dtype="float64"),
}


def split_step(body, over):
    """One step of gradient descent over a mesh, and what it is called with."""
    config = language_model.Config(WORDS, body)

    def loss(params, tokens, key):
        return language_model.loss(params, tokens, config=config)

    optimizer = optax.sgd(1.0)
    params = random_like(jax.eval_shape(partial(language_model.init, config=config), jax.random.key(0)), 0)
    state = step.init_state(lambda key: params, optimizer, jax.random.key(0))
    shardings = sharding.of_state(over, language_model.specs(config), state, optimizer)
    train = step.make_train_step(loss, optimizer, shardings=shardings, batch_sharding=sharding.batch(over))
    tokens = np.random.default_rng(1).integers(0, WORDS, (EXAMPLES, STEPS + 1), np.int32)
    return train, jax.device_put(state, shardings), jax.device_put(tokens, sharding.batch(over))


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("body", BODIES)
def test_no_device_holds_a_row_of_the_split_softmax(body):
    train, *args = split_step(BODIES[body], mesh.make_mesh("data=2,model=4"))
    program = train.lower(*args).compile()
    held = hlo.arrays(program.as_text())
    assert not any(WORDS in array.shape for array in held)
    share = EXAMPLES * STEPS * WORDS // 8  # of one device's examples and words
    assert max(np.prod(array.shape, dtype=int) for array in held) <= share
    assert program.memory_analysis().temp_size_in_bytes < EXAMPLES * STEPS * WORDS * 8

    whole, *its = split_step(BODIES[body], mesh.make_mesh("data=1", jax.devices()[:1]))
    text = whole.lower(*its).compile().as_text()
    assert any(WORDS in array.shape for array in hlo.arrays(text))  # the check can fail
    (state, metrics), (expected, wanted) = program(*args), whole(*its)
    assert_close((state.params, metrics["loss"]), (expected.params, wanted["loss"]), "float64")


# libtpu, the real compiler.


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_tpu_compiler_takes_a_step_of_each():
    measured = scale.run(scale.Config(size="small"), Progress(disable=True))
    for case, row in zip(scale.SMALL, measured["rows"], strict=True):
        assert (row["body"], row["devices"]) == (case.body, 16)
        # Params over model=4, two moments over all 16 but what does not divide, and the tokens.
        ours = row["parameters"] * 4 * (1 / 4 + 2 / 16)
        assert ours < row["memory"]["state"] < 1.2 * ours
        assert row["memory"]["temporary"] < chips.CHIPS["v5e"].memory
        words = case.examples * case.length
        assert row["largest"] <= 4 * words * case.vocabulary // 16  # no device has all logits
        assert 6 * row["parameters"] * words / 2 < row["flops"] < 8 * row["parameters"] * words
        least = {"LSTM": 2 * case.layers * case.length, "Transformer": 4 * case.layers * case.accumulate}
        assert sum(kind["count"] for kind in row["collectives"].values()) >= least[case.body]
        assert row["times"]["products"] < row["times"]["estimate"] < 1
    table = scale.table(measured)
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    scale.draw({"measurements": measured})


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(scale, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install"):
        scale.run(scale.PRESETS["quick"], Progress(disable=True))
