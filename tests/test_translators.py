"""The sequence-to-sequence experiment: what is trained, its rules, translating, and what it says of bad input."""

import hashlib
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import user_settings
from rich.progress import Progress

from experiments import seq2seq, translate
from experiments.harness import Refused, _command, _options
from experiments.seq2seq import judging, measuring, speed, training, translating
from experiments.seq2seq.training import Recipe, restored, trained
from experiments.seq2seq.translating import translate as translations
from experiments.translation import generated

pytestmark = pytest.mark.usefixtures("settings_of_a_user")
TINY = Recipe(
    data="numbers",
    source="de",
    target="en",
    vocabulary=280,
    words=False,
    limit=150,
    cell="gru",
    layers=1,
    hidden=8,
    reversed=True,
    dropout=0.1,
    batch=16,
    epochs=1.0,
    learning_rate=1e-2,
    buckets=1,
)


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch, user_settings():
        patch.setattr(generated, "SIZES", (200, 20, 20))
        generated.parts.cache_clear()
        training.task.cache_clear()
        yield
    generated.parts.cache_clear()
    training.task.cache_clear()


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def net(runs):
    return trained(TINY, runs, points=2)


def test_every_preset_is_accepted():
    for name, preset in seq2seq.PRESETS.items():
        options, config = _options(seq2seq.EXPERIMENT, ["--preset", name])
        assert options.preset == name and config == preset
    with pytest.raises(Refused, match="--beside: give at least one"):
        _options(seq2seq.EXPERIMENT, ["--preset", "quick", "--beside"])


def content(folder):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_what_is_trained_is_kept_and_translating_writes_nothing(net, runs):
    folder = runs / TINY.name
    half = folder / "checkpoints" / "999.orbax-checkpoint-tmp"  # another process may be saving
    half.mkdir()
    before = content(folder)
    there = restored(folder)
    assert half.exists() and content(folder) == before
    half.rmdir()
    there, again = restored(folder), trained(TINY, runs, points=2)
    for other in (there, again):
        assert [one[0] for one in translations([other], ["vier", "neun und drei"], width=2)] == [
            one[0] for one in translations([net], ["vier", "neun und drei"], width=2)
        ]
    after = content(folder)
    assert {name for name in before if "checkpoints" in name and before[name] != after.get(name)} == set()
    assert len(net.curve["valid"]) == 2 and net.curve["valid"] == again.curve["valid"]
    assert net.words_per_second > 0


def test_a_batch_is_its_sentences_and_an_empty_line_is_one(net):
    lines = ["vierundzwanzig", "", "drei", "   ", "Mittwoch, 9. Oktober 1985 und elf"]
    together = translations([net], lines, width=3)
    assert [together[at][0].text for at in (1, 3)] == ["", ""]
    for line, hypotheses in zip(lines, together, strict=True):
        alone = translations([net], [line], width=3)[0]
        assert [one.text for one in alone] == [one.text for one in hypotheses]
        np.testing.assert_allclose([one.score for one in alone], [one.score for one in hypotheses], rtol=1e-4)
    twice = translations([net, net], lines, width=3)
    assert [[one.text for one in hypotheses] for hypotheses in twice] == [
        [one.text for one in hypotheses] for hypotheses in together
    ]


def test_the_nets_of_an_ensemble_read_in_their_own_orders(net, monkeypatch):
    other, read = net._replace(recipe=replace(TINY, reversed=False)), []
    encode = translating.seq2seq.encode
    monkeypatch.setattr(
        translating.seq2seq,
        "encode",
        lambda params, source, **how: read.append(source) or encode(params, source, **how),
    )
    translations([net, other], ["vierundzwanzig", "drei"], width=1)
    for at, size in enumerate(sorted(len(net.vocabularies.source.encode(line)) for line in ("vierundzwanzig", "drei"))):
        np.testing.assert_array_equal(read[0][:size, at], read[1][:size, at][::-1])
    assert not np.array_equal(*read)


def test_a_net_that_diverges_is_told_and_the_others_are_measured(net, monkeypatch):
    def some(recipe, *args, **how):
        if recipe.cell in wrong:
            raise training.Diverged("the loss of step 7 is nan")
        return net._replace(recipe=recipe)

    monkeypatch.setattr(measuring, "trained", some)
    sizes = {name: getattr(TINY, name) for name in ("vocabulary", "limit", "hidden")}
    config = replace(
        seq2seq.PRESETS["quick"], **sizes, cells=("lstm", "rnn"), beside=("luong",), beams=(1,), sentences=8
    )
    wrong, recipes, progress = ["rnn", "luong"], seq2seq.recipes(config), Progress(disable=True)
    made = measuring.measured(recipes, config, progress)
    assert [(one["cell"], one["reversed"]) for one in made["diverged"]] == [
        ("luong", False),
        ("rnn", False),
        ("rnn", True),
    ]
    assert {one["cell"] for one in made["nets"]} == {"lstm"} and {*made["by_length"]} == {"forward", "reversed"}
    assert [row[3] for row in seq2seq.EXPERIMENT.table(made)["rows"]].count("diverged") == 3
    assert len(judging.judge(made)) == len(seq2seq.EXPERIMENT.claims)
    wrong = ["lstm"]
    with pytest.raises(Refused, match=r"every LSTM of .*diverged: lower --learning-rate"):
        measuring.measured(recipes, config, progress)


def test_the_command_of_a_result_gives_its_config():
    config = replace(seq2seq.PRESETS["cpu"], words=True, dropout=None, beams=(1, 3), depths=(2,), source="fr")
    said = _command(seq2seq.EXPERIMENT, "cpu", config).split()[3:]
    assert _options(seq2seq.EXPERIMENT, said)[1] == config


def test_bad_calls(net, runs):
    quick, progress = seq2seq.PRESETS["quick"], Progress(disable=True)
    other = net._replace(model=training.model_of(replace(TINY, hidden=4), net.vocabularies))
    for call, said in {
        lambda: translations([net], ["eins"], width=0): "a beam of 0 keeps no hypothesis",
        lambda: translations([net, other], ["eins"], width=1): "one vocabulary and one shape",
        lambda: translations([net], ["eins", "zwei " * 200], width=1): "the sentences, line 2 has .* the limit is 150",
        lambda: restored(runs / "nowhere"): "no translator in .*nowhere: train one",
        lambda: trained(replace(TINY, vocabulary=100), runs): "size=100",
        lambda: trained(replace(TINY, limit=1), runs): "none of 200 pairs is left",
        lambda: trained(replace(TINY, batch=500), runs): "batch=500",
        lambda: trained(replace(TINY, data="newstest"), runs): "newstest",
        lambda: measuring.measured([TINY, replace(TINY, cell="rnn", dropout=1.0)], quick, progress): "dropout=1.0",
        lambda: seq2seq.run(replace(quick, words=True), progress): "--words",
        lambda: seq2seq.run(replace(quick, cells=("gru",)), progress): "--cells gru",
        lambda: seq2seq.run(replace(quick, beside=("rnn", "luong")), progress): "--beside rnn",
        lambda: seq2seq.run(replace(quick, sentences=2), progress): "--sentences 2",
    }.items():
        with pytest.raises((Refused, training.texts.DataError), match=said):
            call()


def test_another_vocabulary_is_refused_and_nothing_overwritten(net, runs):
    folder = runs / TINY.name
    path, before = folder / "source.json", content(folder / "checkpoints")
    kept = path.read_text()
    merges = json.loads(kept)["merges"]
    path.write_text(json.dumps({"kind": "bpe", "merges": merges[:-1]}))
    try:
        with pytest.raises(Refused, match="vocabularies"):
            restored(folder)
        path.write_text(json.dumps({"kind": "bpe", "merges": merges[1:]}))  # of which a later one is made
        with pytest.raises(training.texts.DataError, match=r"source.json is no vocabulary"):
            restored(folder)
    finally:
        path.write_text(kept)
    assert content(folder / "checkpoints") == before


def test_a_folder_without_its_log_translates_and_one_with_a_wrong_recipe_is_refused(net, runs, tmp_path):
    folder = tmp_path / TINY.name
    shutil.copytree(runs / TINY.name, folder)
    (folder / training.JSON_LINES).unlink()
    assert translations([restored(folder)], ["vier"], width=1) == translations([net], ["vier"], width=1)
    told = folder / training.RECIPE
    told.write_text(told.read_text().replace('"gru"', '"gruu"'))
    with pytest.raises(Refused, match="cell 'gruu' is none of lstm, gru"):
        restored(folder)


def test_the_command_translates_line_by_line(net, runs, monkeypatch, capsys):
    def given(text, *options):
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": io.BytesIO(text), "isatty": lambda: typed}))
        translate.main(["--runs", str(runs), *options])
        return capsys.readouterr().out.split("\n")[:-1]

    typed = False
    said = given(b"vier\n\ndrei\r\n", "--beam", "2")
    expected = [one[0].text for one in translations([net], ["vier", "", "drei"], width=2)]
    assert said == expected and said[1] == ""
    assert given(b"", "--beam", "2") == []
    best = given(b"vier\n", "--beam", "3", "--best", "2")
    assert len(best) == 2 and float(best[0].split()[0]) >= float(best[1].split()[0])
    assert given(b"\nvier\n", "--beam", "3", "--best", "2") == ["", *best]
    with pytest.raises(SystemExit, match=r"standard input, line 2 has .* split it"):
        given(b"vier\n" + b"zwei " * 200 + b"\n", "--beam", "2")
    assert capsys.readouterr().out == said[0] + "\n"
    with pytest.raises(SystemExit, match="line 2: the byte 0xff"):
        given(b"vier\n\xff\n", "--beam", "2")
    assert capsys.readouterr().out == said[0] + "\n"  # what came before is not lost
    broken = translate.Translation("vier\r\nund\u2028zwanzig", -1.5)
    with monkeypatch.context() as patched:
        patched.setattr(translate, "translate", lambda nets, lines, **how: [[broken] for _ in lines])
        assert given(b"vier\n") == ["vier und zwanzig"]
        assert given(b"vier\n", "--best", "1") == ["  -1.500  vier und zwanzig"]
    for options, text, words in (
        (["--beam", "0"], b"", "--beam 0 keeps no hypothesis"),
        (["--best", "5", "--beam", "2"], b"", "--best 5 of a beam of 2"),
        (["--alpha", "-1"], b"", "--alpha -1"),
        ([], b"vier\n\xff\n", "standard input, line 2: the byte 0xff is not UTF-8"),
        (["--model", str(runs / "nowhere")], b"", "no translator in"),
        (["vier", "z\udcff"], b"", "sentence 2 is not UTF-8"),
    ):
        with pytest.raises(SystemExit, match=words):
            given(text, *options)
    before = capsys.readouterr().out.split("\n")
    assert before[-2:] == [*given(b"vier\n"), ""]  # of the sentence before the one that is no UTF-8
    typed, translated = True, translate.translated
    monkeypatch.setattr(translate, "translated", lambda nets, some, options: [str(len(some))])
    assert given(b"vier\ndrei\n") == ["1", "1"]  # a line is answered when it is typed
    monkeypatch.setattr(translate, "translated", translated)
    monkeypatch.setattr("sys.argv", ["translate"])
    with pytest.raises(SystemExit, match="train one with python"):
        translate.main(["vier", "--runs", str(runs / "nothing")])


def test_all_that_a_preset_trains(net):
    for name, config in seq2seq.PRESETS.items():
        recipes = seq2seq.recipes(config)
        assert len({recipe.name for recipe in recipes}) == len(recipes), name
        ways = {(r.cell, r.reversed, r.seed) for r in recipes if r.layers == config.depths[0]}
        assert {(c, t, s) for c in config.cells for t in (False, True) for s in range(config.seeds)} <= ways
        deep = {(r.layers, r.seed) for r in recipes if r.cell == "lstm" and r.reversed}
        assert {(layers, seed) for layers in config.depths for seed in range(config.seeds)} <= deep, name
        assert {seed for layers, seed in deep if layers == config.depths[0]} >= {*range(max(config.ensembles or (1,)))}
        assert {r.cell for r in recipes} == {*config.cells, *config.beside, "lstm"}
        assert {(r.optimizer, r.layers >= 2) for r in recipes if r.cell == "transformer"} == {("adam", True)}, name
        assert all(training.model_of(recipe, net.vocabularies) for recipe in recipes)
    both = replace(seq2seq.PRESETS["quick"], cells=("lstm", "transformer"))
    assert {r.layers for r in seq2seq.recipes(both) if r.cell == "transformer"} == {2}


def test_sgd_halves_its_rate_five_times_from_the_fifth_epoch():
    recipe = replace(TINY, optimizer="sgd", learning_rate=0.7)
    optimizer = training.optimizer_of(recipe, 750)
    state, rates = optimizer.init({"w": np.float32(0)}), []
    for _ in range(750):
        update, state = optimizer.update({"w": np.float32(-1)}, state)
        rates.append(float(update["w"]))  # pyright: ignore
    for epochs, rate in ((0.1, 0.7), (4.9, 0.7), (5.1, 0.35), (5.6, 0.175), (7.4, 0.7 / 32)):
        assert rates[round(epochs * 100)] == pytest.approx(rate)


# The rules.


def nets(cell, reversed, perplexities, bleus=None, layers=1):
    bleus = perplexities if bleus is None else bleus
    return [
        {"cell": cell, "reversed": reversed, "layers": layers, "seed": k, "perplexity": p, "greedy": b}
        for k, (p, b) in enumerate(zip(perplexities, bleus, strict=True))
    ]


GOOD, BAD = (10, 10.1, 9.9), (12, 12.1, 11.9)


@pytest.mark.parametrize(
    ("forward", "turned", "verdict"),
    [
        ((BAD, GOOD), (GOOD, BAD), "reproduced"),
        ((GOOD, BAD), (BAD, GOOD), "contradicted"),
        ((GOOD, GOOD), (BAD, GOOD), "contradicted"),
        ((BAD, BAD), (GOOD, GOOD), "inconclusive"),  # perplexity better, BLEU worse
        ((GOOD, GOOD), (GOOD, GOOD), "inconclusive"),
        ((BAD[:2], GOOD[:2]), (GOOD[:2], BAD[:2]), "inconclusive"),  # two seeds
        (((12, 15, 9), GOOD), ((11, 14, 8), BAD), "inconclusive"),  # a wide spread
    ],
)
def test_reversing_is_judged_by_perplexity_and_bleu(forward, turned, verdict):
    measured = {"test": "x", "nets": nets("lstm", False, *forward) + nets("lstm", True, *turned)}
    assert judging.reverse(measured).verdict == verdict


@pytest.mark.parametrize(
    ("forward", "turned", "lstm", "verdict"),
    [
        (BAD, GOOD, (9.5, 9.5, 9.5), "reproduced"),
        (BAD, GOOD, (8, 8, 8), "inconclusive"),
        (BAD, GOOD, (6, 6, 6), "contradicted"),
        (GOOD, BAD, (12, 12, 12), "contradicted"),
        (GOOD, GOOD, (10, 10, 10), "inconclusive"),
        (BAD, GOOD, (), "inconclusive"),
        (BAD[:2], GOOD[:2], (9.5, 9.5), "inconclusive"),
    ],
)
def test_the_conjecture_is_judged_by_perplexity(forward, turned, lstm, verdict):
    measured = {"nets": nets("rnn", False, forward) + nets("rnn", True, turned) + nets("lstm", True, lstm)}
    assert judging.conjecture(measured).verdict == verdict


@pytest.mark.parametrize(
    ("perplexities", "seeds", "verdict"),
    [
        ((10, 9, 8.1), 3, "reproduced"),
        ((10, 9, 8.1), 2, "inconclusive"),
        ((10, 9.8), 3, "inconclusive"),
        ((10, 10.5, 11), 3, "contradicted"),
        ((10, 10.5, 11), 1, "inconclusive"),
        ((10,), 3, "inconclusive"),
        ((10, 9, 9.5), 3, "inconclusive"),
    ],
)
def test_depth_is_judged_layer_by_layer_with_enough_seeds(perplexities, seeds, verdict):
    means = {layers: [mean + 0.1 * seed for seed in range(seeds)] for layers, mean in enumerate(perplexities, 1)}
    measured = {"nets": [net for layers, each in means.items() for net in nets("lstm", True, each, layers=layers)]}
    assert judging.depth(measured).verdict == verdict


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((1, 0.75, 0.75), "reproduced"),
        ((0.5,) * 3, "inconclusive"),
        ((0.25,) * 3, "contradicted"),
        ((1,), "inconclusive"),
    ],
)
def test_meaning_is_judged_by_the_nearest_sentence(shares, verdict):
    assert judging.voices({"voices": {"reversed": list(shares), "forward": list(shares)}}).verdict == verdict


@pytest.mark.parametrize(
    ("long", "words", "many", "verdict"),
    [
        ((20, 18, 22), 25, 200, "reproduced"),
        ((10, 8, 12), 25, 200, "contradicted"),
        ((16, 12, 20), 25, 200, "inconclusive"),
        ((10, 8, 12), 15, 200, "inconclusive"),
        ((20, 18, 22), 25, 50, "inconclusive"),
    ],
)
def test_length_is_judged_by_the_intervals(long, words, many, verdict):
    bins = [{"mean": 5, "sentences": 200, "bleu": (20, 17, 23)}, {"mean": words, "sentences": many, "bleu": long}]
    assert judging.lengths({"by_length": {"reversed": bins}}).verdict == verdict


@pytest.mark.parametrize(
    ("test", "ours", "verdict"),
    [
        ("wmt14 en-fr, newstest2014", 30.0, "reproduced"),
        ("wmt14 en-fr, newstest2014", 20.0, "contradicted"),
        ("wmt14 en-fr, newstest2014", None, "out of reach here"),
        ("multi30k de-en, test_2016_flickr", 30.0, "out of reach here"),
    ],
)
def test_the_table_is_judged_on_its_own_data(test, ours, verdict):
    row = measuring.Row("reversed", "lstm", True, 1, 12, 0.0, 30.59)._asdict()
    rows = [row | {"bleu": [] if ours is None else [[ours, ours - 1, ours + 1]]}] * 6
    assert judging.table_1({"test": test, "rows": rows, "sentences": 3003}).verdict == verdict
    assert judging.table_1({"test": test, "rows": rows[:5], "sentences": 3003}).verdict == "out of reach here"
    assert judging.table_1({"test": test, "rows": rows, "sentences": 100}).verdict == "out of reach here"


def test_speed_at_the_sizes_of_the_paper(monkeypatch, capsys):
    """The paper's words in its batches of one length, and what it tells of its own speed beside ours."""
    case = speed._paper(speed.Options(steps=2))
    assert training.count(case.model) // 10**6 == 384  # section 3.4
    assert case.words == 2 * 128 * (25 + 29) and {batch["target"].shape for batch in case.batches} == {(128, 31)}
    monkeypatch.setattr(speed, "OF_THE_PAPER", speed.Sizes(20, 15, 4, 2, 3, 5, 6))
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    speed.main(["--preset", "paper", "--rounds", "1", "--steps", "1"])
    told = capsys.readouterr().out
    assert "2 layers of 4, batch 3" in told and "1,700" in told and "torch is left out" in told
    with pytest.raises(SystemExit, match="--rounds 0"):
        speed.main(["--rounds", "0"])
    monkeypatch.setattr(speed, "recipes", lambda config: [replace(TINY, data="nowhere")])
    with pytest.raises(SystemExit, match="speed: unknown parallel text 'nowhere'"):
        speed.main([])
