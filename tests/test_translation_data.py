"""Parallel texts, vocabularies, examples and scores: what they promise, and what they say of bad input."""

import gzip
import io
import itertools
import tarfile
import urllib.error
import zipfile
from collections import Counter

import grain
import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import files
from experiments.files import DataError
from experiments.translation import examples, generated, scores, texts, vocabulary, wmt14
from experiments.translation.examples import encoded, reversed_source, stored, whole
from experiments.translation.pairs import Joined, Listed, sentences
from experiments.translation.texts import parallel
from experiments.translation.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    Bpe,
    Vocabularies,
    Words,
    joined,
    load,
    save,
    train_bpe,
    train_words,
    words,
)
from lstm_rot.training import data

ENGLISH = ["A dog runs.", "Two dogs run, quickly!", 'He said: "no".', "It's twenty-four.", "The dog isn't here (yet)."]
GERMAN = ["Ein Hund rennt.", "Zwei Hunde rennen schnell!", "Er sagte: „nein“.", "Es ist vierundzwanzig.", "Hier nicht."]
FRENCH = ["Un chien court.", "Deux chiens courent !", "Il a dit : « non ».", "C’est vingt-quatre.", "Pas ici."]


def lines(side):
    return "".join(f"{line}\n" for line in side).encode()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The user's folder and cache, empty, and no network but files; `put` writes into the folder."""
    monkeypatch.setenv("LSTM_ROT_DATA", str(tmp_path / "mine"))
    monkeypatch.setattr(files, "user_cache_path", lambda app: tmp_path / "cache")

    def put(name, content):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        monkeypatch.setitem(files.DIGESTS, name, texts.hashlib.sha256(content).hexdigest())

    return put


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(files.urllib.request, "urlopen", refuse)


def packed(path, members):
    """An archive of {name: content} where the path says; its kind is told by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


# Parallel texts.


@pytest.fixture
def few_numbers(monkeypatch):
    monkeypatch.setattr(generated, "SIZES", (300, 40, 60))
    generated.parts.cache_clear()
    yield
    generated.parts.cache_clear()


@pytest.mark.usefixtures("few_numbers")
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(("en", "de", "fr"), 2)))
def test_numbers_are_the_same_each_time_and_no_sentence_is_in_two_parts(source, target):
    given = parallel("numbers", source, target)
    parts = (given.train, given.valid, given.tests["test"])
    assert [len(part) for part in parts] == [300, 40, 60]
    for side in (0, 1):
        said = [part[at][side] for part in parts for at in range(len(part))]
        assert len(set(said)) == len(said) and all(line.strip() == line for line in said)
    generated.parts.cache_clear()
    again, turned = parallel("numbers", source, target), parallel("numbers", target, source)
    assert (again.sha256, again.train.source) == (given.sha256, given.train.source)
    assert (turned.train.source, turned.train.target) == (given.train.target, given.train.source)
    assert "num2words" in given.provenance["note"] and given.provenance["name"] == f"numbers {source}-{target}"


def test_word_order_turns_in_numbers():
    written = {language: generated.written([(24, generated.FIRST)], language) for language in ("en", "de", "fr")}
    assert written == {
        "en": ["twenty-four and Monday, January 1, 1900"],
        "de": ["vierundzwanzig und Montag, 1. Januar 1900"],
        "fr": ["vingt-quatre et lundi 1 janvier 1900"],
    }


def put_multi30k(put):
    for part, language in itertools.product(("train", "val", *texts.MULTI30K_TESTS), ("en", "de", "fr", "cs")):
        if language in texts.MULTI30K_TESTS.get(part, "en de fr cs"):
            side = {"en": ENGLISH, "de": GERMAN, "fr": FRENCH, "cs": GERMAN}[language]
            put(f"multi30k/{part}.{language}.gz", lines(side))


@pytest.mark.usefixtures("no_network")
def test_multi30k_in_both_directions_with_the_tests_that_have_the_pair(places):
    put_multi30k(places)
    there, back = parallel("multi30k", "de", "en"), parallel("multi30k", "en", "de")
    assert (list(there.train.source), list(there.train.target)) == (GERMAN, ENGLISH)
    assert back.train[1] == (ENGLISH[1], GERMAN[1])
    assert list(there.tests) == list(texts.MULTI30K_TESTS)
    assert list(parallel("multi30k", "cs", "fr").tests) == ["test_2016_flickr", "test_2018_flickr"]
    assert len(there.sha256) == 64 and there.sha256 != back.sha256
    assert there.train.where(2) == "multi30k, train.de and train.en, line 3"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.de", lines(GERMAN[:-1]), "train.de and train.en: 4 lines in the source and 5 in the target"),
        ("train.de", lines([*GERMAN[:2], " ", *GERMAN[3:]]), "train.de.gz, line 3 is empty"),
        ("val.en", b"A dog.\nCaf\xe9.\n", "val.en.gz, line 2: the byte 0xe9 is not UTF-8"),
        ("val.en", b"", "val.en.gz, line 1 is empty"),
    ],
)
def test_bad_files_are_told_with_their_line(name, content, said, places):
    put_multi30k(places)
    places(f"multi30k/{name}.gz", content)
    with pytest.raises(DataError) as error:
        parallel("multi30k", "de", "en")
    assert said in str(error.value)


@pytest.mark.usefixtures("places", "no_network")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("opus", "de", "en"), ["unknown parallel text 'opus'", "numbers, multi30k, tatoeba, newstest, wmt14"]),
        (("tatoeba", "de", "en"), ["tatoeba", "'de' to 'en'", "en-fr"]),
        (("multi30k", "de", "de"), ["'de' to 'de'", "en-de, en-fr, en-cs, de-fr, de-cs, fr-cs"]),
        (("numbers", "en", "es"), ["'en' to 'es'", "en-de, en-fr, de-fr, each in both directions"]),
        (("multi30k", "de", "en"), ["train.de.gz", texts.MULTI30K, "mine/multi30k", "cache/multi30k", "2c2b73fd2b"]),
        (("tatoeba", "fr", "en"), ["Tatoeba is missing", texts.TATOEBA, "fra.txt", "mine/tatoeba-eng-fra"]),
        (("newstest", "fr", "en"), ["newstest 2008 to 2013", "dev.tgz", "eng-fra/newstest2013.fra", "wmt-newstest"]),
        (("wmt14", "fr", "en"), ["training-parallel-europarl-v7.tgz", "europarl-v7.fr-en.en", "mine/wmt14"]),
    ],
)
def test_what_is_unknown_or_missing_is_told_with_what_there_is_and_where_to_put_it(asked, said):
    with pytest.raises(DataError) as error:
        parallel(*asked)
    assert all(part in str(error.value) for part in said), error.value


TATOEBA = [(f"I see {n}.", f"Je vois {n}.") for n in range(200)] + [
    ("Go.", "Va !"),
    ("Go now.", "Va !"),
    ("Go now.", "Vas-y."),
]


def test_tatoebas_parts_share_no_sentence_in_either_language(tmp_path, monkeypatch, places):
    content = lines("\t".join((*row, "CC-BY 2.0")) for row in TATOEBA)  # later releases name their authors
    packed(tmp_path / "official.zip", {"fra.txt": content, "_about.txt": b"about"})
    monkeypatch.setattr(texts, "TATOEBA", (tmp_path / "official.zip").as_uri())
    with pytest.warns(UserWarning, match="another release than 0bb85dba"):
        there = parallel("tatoeba", "en", "fr")
    assert "not verified" in there.note
    monkeypatch.setitem(files.DIGESTS, "tatoeba-eng-fra/fra.txt", there.sha256)
    back = parallel("tatoeba", "fr", "en")  # now from the cache
    assert "2019-04-07" in back.note
    parts = (there.train, there.valid, there.tests["test"])
    assert [len(part) for part in parts[1:]] == [10, 10]
    for side in (0, 1):
        for one, other in itertools.combinations(parts, 2):
            assert not {pair[side] for pair in map(one.__getitem__, range(len(one)))} & {
                pair[side] for pair in map(other.__getitem__, range(len(other)))
            }
    for one, other in zip(parts, (back.train, back.valid, back.tests["test"]), strict=True):
        assert (one.source, one.target) == (other.target, other.source)
        for at in range(len(one)):
            assert TATOEBA[int(one.where(at).rsplit(" ", 1)[1]) - 1] == one[at]


def test_a_row_without_a_translation_is_told(places):
    places("tatoeba-eng-fra/fra.txt", b"Go.\tVa !\nGo now.\n")
    with pytest.raises(DataError, match=r"fra\.txt, line 2 is no English and French sentence with a tab between"):
        parallel("tatoeba", "en", "fr")


def put_newstest(put, folder="eng-deu", other=("deu", GERMAN)):
    for test in texts.NEWSTESTS:
        for code, side in (("eng", ENGLISH), other):
            put(f"wmt-newstest/{folder}/{test}.{code}", lines(side))


def test_newstest_from_the_folder_or_from_the_official_archives(places, tmp_path, monkeypatch):
    put_newstest(places)
    here = parallel("newstest", "de", "en")
    assert list(here.tests) == list(texts.NEWSTESTS) and len(here.train) == len(here.valid) == 0
    assert here.tests["newstest2014"][0] == (GERMAN[0], ENGLISH[0]) and "not the official SGML" in here.note

    monkeypatch.setenv("LSTM_ROT_DATA", "")
    sides = {"en": ENGLISH, "de": GERMAN}
    old = {f"dev/{t}.{language}": lines(sides[language]) for t in texts.NEWSTESTS[:-1] for language in sides}
    packed(tmp_path / "official" / "dev.tgz", old | {"dev/newstest2013.fr": b"other"})
    sgm = {
        f"test-full/newstest2014-deen-{kind}.{language}.sgm": "<refset>\n"
        + "".join(f'<seg id="{n}">{line.replace("«", "&laquo;")}</seg>\n' for n, line in enumerate(sides[language]))
        for kind, language in itertools.product(("src", "ref"), sides)
    }
    packed(tmp_path / "official" / "test-full.tgz", {name: text.encode() for name, text in sgm.items()})
    monkeypatch.setattr(texts, "WMT", (tmp_path / "official").as_uri() + "/")
    there = parallel("newstest", "de", "en")
    assert there.sha256 == here.sha256  # the very same lines

    (tmp_path / "cache" / "wmt-newstest" / "eng-deu" / "newstest2010.eng").write_bytes(lines(GERMAN))
    with pytest.warns(UserWarning, match=r"newstest2010\.eng has the sha256"):
        assert "not verified" in parallel("newstest", "de", "en").note


# WMT'14: what memory does not hold.


def official_wmt14(path):
    sides = {"en": [*ENGLISH, "", "An end."], "fr": [*FRENCH, "", "Une fin."]}
    for corpus in wmt14.CORPORA:
        members = {}
        for language, side in sides.items():
            name = corpus.member.format(pair="fr-en", language=language)
            members[f"any/folder/{name}"] = gzip.compress(lines(side)) if name.endswith(".gz") else lines(side)
        packed(path / corpus.archive, members)
    return path.as_uri() + "/", [*zip(sides["en"], sides["fr"], strict=True)] * len(wmt14.CORPORA)


def test_wmt14_is_downloaded_once_and_read_where_it_lies(places, tmp_path, monkeypatch):
    put_newstest(places, "eng-fra", ("fra", FRENCH))
    address, expected = official_wmt14(tmp_path / "official")
    monkeypatch.setattr(wmt14, "STATMT", address)
    monkeypatch.setattr(wmt14, "CHUNK", 7)  # so that lines lie across chunks
    there = parallel("wmt14", "en", "fr")
    assert [there.train[at] for at in range(len(there.train))] == expected
    assert list(there.train.source) == [source for source, _ in expected] and there.train.target[-1] == "Une fin."
    assert list(there.tests) == ["newstest2014"] and there.valid[0] == (ENGLISH[0], FRENCH[0])
    assert there.train.where(9).endswith("commoncrawl.fr-en.fr, line 3")
    monkeypatch.setattr(wmt14, "_read_through", None)  # nothing is read through a second time
    monkeypatch.setattr(wmt14, "STATMT", "nowhere")
    back = parallel("wmt14", "fr", "en")
    stream = grain.MapDataset.source(back.train).shuffle(seed=0)
    assert Counter(stream[at] for at in range(len(stream))) == Counter((fr, en) for en, fr in expected)
    assert not list((tmp_path / "cache").glob(".part*"))


@pytest.mark.parametrize("case", ["other lines", "not UTF-8", "empty", "unequal", "no archive", "another archive"])
def test_bad_files_of_wmt14_are_told(case, places, tmp_path, monkeypatch):
    address, _ = official_wmt14(tmp_path / "official")
    monkeypatch.setattr(wmt14, "STATMT", address)
    monkeypatch.setattr(wmt14, "CORPORA", wmt14.CORPORA[:1])
    archive = tmp_path / "official" / wmt14.CORPORA[0].archive
    if case == "no archive":
        archive.write_bytes(b"not one")
    elif case == "another archive":
        packed(archive, {"training/europarl-v7.fr-en.en": lines(ENGLISH)})
    else:
        wmt14.training("en", "fr")
    path = tmp_path / "cache" / "wmt14" / "europarl-v7.fr-en.fr"
    if case == "other lines":
        path.write_bytes(lines(GERMAN))
    elif case == "not UTF-8":
        path.with_name("europarl-v7.fr-en.fr.sha256.json").unlink()
        path.write_bytes(lines([*FRENCH, "x"]) + b"\xff\n")
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "unequal":
        path.with_name("europarl-v7.fr-en.fr.sha256.json").unlink()
        path.write_bytes(lines(FRENCH))
    said = {
        "other lines": ["europarl-v7.fr-en.fr has the sha256", "at its first use it had", "delete", ".sha256.json"],
        "not UTF-8": ["europarl-v7.fr-en.fr, line 7: the byte 0xff is not UTF-8"],
        "empty": ["europarl-v7.fr-en.fr is empty"],
        "unequal": ["7 lines in the source and 5 in the target"],
        "no archive": [str(wmt14.CORPORA[0].archive), "is not the archive expected", "try again"],
        "another archive": ["is not the archive expected", "europarl-v7.fr-en.fr"],
    }[case]
    with pytest.raises(DataError) as error:
        list(wmt14.training("en", "fr")[0].target)
    assert all(part in str(error.value) for part in said), error.value


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.sampled_from("aé\u2028\x85\x0c \r😀")), min_size=1), st.booleans())
def test_lines_are_those_that_a_line_feed_ends(tmp_path_factory, side, ended):
    content = "\n".join(side) + "\n" * ended
    path = tmp_path_factory.mktemp("lines") / "text"
    path.write_bytes(content.encode())
    expected = [line.rstrip("\r") for line in content.removesuffix("\n").split("\n")]
    if not content:
        with pytest.raises(DataError, match="is empty"):
            wmt14.Lines(path)
        return
    assert list(wmt14.Lines(path)) == expected
    if all(line.strip() for line in expected):
        assert sentences(content.encode(), "text") == expected


def test_a_folder_that_is_not_ours_to_write_is_read_all_the_same(tmp_path, monkeypatch, places):
    (tmp_path / "text").write_bytes(lines(ENGLISH))
    monkeypatch.setattr(wmt14.os, "access", lambda *_: False)
    assert list(wmt14.Lines(tmp_path / "text")) == ENGLISH
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("text")] == ["text"]
    assert sorted(path.name for path in (tmp_path / "cache" / "lines").glob("*/*")) == [
        "text.lines",
        "text.sha256.json",
    ]


# Vocabularies.

BPE = train_bpe(ENGLISH + GERMAN, 300)
WORDS = train_words(ENGLISH, 12)
ANY = st.text() | st.text(st.sampled_from("ab <unk>pads/'￭\"\n\t\u0301é-.,  "))


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_byte_pairs_lose_nothing_of_any_text(text):
    numbers = BPE.encode(text)
    assert BPE.decode(numbers) == text
    assert numbers.dtype == np.int32 and (numbers > UNK).all() and (numbers < BPE.size).all()
    assert BPE.decode([BOS, *numbers, EOS, PAD, *numbers]) == text


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_words_keep_a_text_but_for_its_spaces(text):
    made = words(text)
    expected = " ".join(text.replace("￭", "■").split())
    assert joined(made) == expected
    if made:
        vocabulary = train_words([text], 1000)
        assert vocabulary.decode(vocabulary.encode(text)) == expected
        assert UNK not in vocabulary.encode(text)
    assert not set(WORDS.encode(text)) & {PAD, BOS, EOS}


def test_words_are_the_most_frequent_and_others_unknown():
    assert WORDS.size == 12 and WORDS.words[:3] == ("￭.", "dog", "￭'￭")
    assert words("l'eau, non") == ["l", "￭'￭", "eau", "￭,", "non"]
    assert WORDS.decode(WORDS.encode("A dog yawns.")) == "A dog <unk>."
    np.testing.assert_array_equal(WORDS.encode("yawns ."), [UNK, UNK])


@pytest.mark.parametrize("train", [train_bpe, train_words])
def test_the_same_texts_give_the_same_vocabulary_and_it_lies_in_a_folder(train, tmp_path):
    one, again, joint = train(ENGLISH * 3, 290), train(iter(ENGLISH * 3), 290), train(ENGLISH + GERMAN, 290)
    assert one == again and vocabulary.digest_of(one) == vocabulary.digest_of(again)
    vocabularies = Vocabularies(one, joint)
    assert vocabularies.digest != Vocabularies(joint, one).digest
    save(tmp_path / "run", vocabularies)
    assert load(tmp_path / "run", digest=vocabularies.digest) == vocabularies
    save(tmp_path / "joint", Vocabularies(joint, joint))
    loaded = load(tmp_path / "joint")
    assert loaded.source is loaded.target
    for text in ENGLISH + GERMAN:
        np.testing.assert_array_equal(loaded.target.encode(text), joint.encode(text))


def test_a_vocabulary_does_not_hang_on_a_later_libraries_numbers():
    """The merges alone are kept; pinned, so that a checkpoint made today is refused if they come out otherwise."""
    assert BPE.content["merges"][:3] == [["u", "n"], ["e", "n"], ["Ġ", "r"]]
    assert BPE.size == 300 and Bpe(()).size == 260 and Words(()).size == 4


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda path: train_bpe(ENGLISH, 259), ValueError, "size=259.*at least 260"),
        (lambda path: train_words(ENGLISH, 4), ValueError, "size=4.*at least 5"),
        (lambda path: train_bpe([], 300), ValueError, "there is no text"),
        (lambda path: train_words(iter([]), 300), ValueError, "there is no text"),
        (lambda path: WORDS.decode([4, 12]), ValueError, "number 12 is not of this vocabulary, which has 12"),
        (lambda path: BPE.decode(np.array([-1, 5])), ValueError, "number -1 is not of this vocabulary"),
        (lambda path: load(path / "nowhere"), DataError, r"nowhere/source\.json is missing"),
        (lambda path: load(path, digest="0" * 64), DataError, f"have the digest .*trained with {'0' * 64}"),
        (lambda path: load(path / "cut"), DataError, r"cut/source\.json is no vocabulary"),
        (lambda path: load(path / "other"), DataError, r"other/source\.json is no vocabulary: its kind"),
        (lambda path: load(path / "odd"), DataError, r"odd/source\.json is no vocabulary"),
    ],
)
def test_vocabularies_that_cannot_be_are_refused(call, error, said, tmp_path):
    save(tmp_path, Vocabularies(BPE, WORDS))
    for folder, content in (
        ("cut", '{"kind": "bpe", "mer'),
        ("other", '{"kind": "letters"}'),
        ("odd", '{"kind": "bpe", "merges": [["a"]]}'),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "source.json").write_text(content)
    with pytest.raises(error, match=said):
        call(tmp_path)


# Examples.

BOTH = Vocabularies(BPE, WORDS)
PAIRS = Listed(ENGLISH, GERMAN, "text.en and text.de")


def test_examples_are_numbers_between_marks_and_the_source_may_be_turned():
    rows, left_out = encoded(PAIRS, BOTH, limit=100)
    assert str(left_out) == "all 5 pairs are kept"
    for at, (source, target) in enumerate(zip(ENGLISH, GERMAN, strict=True)):
        np.testing.assert_array_equal(rows.source[at], BPE.encode(source))
        np.testing.assert_array_equal(rows.target[at], [BOS, *WORDS.encode(target), EOS])
        assert rows.source[at].dtype == rows.target[at].dtype == np.int32
    turned = reversed_source(rows)
    assert all((row[::-1] == back).all() for row, back in zip(rows.source, turned.source, strict=True))
    assert turned.target is rows.target and len(turned.source[1:3]) == 2

    sequences = data.Sequences(turned._asdict())
    plan = data.Buckets(sequences.lengths, [20, 100], batch=1)
    batch = next(data.batches(sequences, plan))
    (at,) = plan[0].numbers
    np.testing.assert_array_equal(batch["source"][0, : len(rows.source[at])], rows.source[at][::-1])
    assert batch["target"].dtype == np.int32 and batch["target_lengths"] == len(rows.target[at])
    assert set(batch["source"][0, len(rows.source[at]) :]) <= {PAD}


def test_pairs_over_the_limit_or_empty_are_left_out_and_counted():
    pairs = Listed(["a", "", "a b c d", "b", "c"], ["x", "y", "z", "x y z x", "z"], "text")
    small = Vocabularies(train_words(["a b c d"], 99), train_words(["x y z"], 99))
    rows, left_out = encoded(pairs, small, limit=3)
    assert [len(row) for row in rows.source] == [1, 1] and [len(row) for row in rows.target] == [3, 3]
    assert (left_out.pairs, left_out.over, left_out.empty) == (5, 2, 1)
    assert str(left_out) == "2 too long and 1 empty of 5 pairs are left out; first text, line 2 is empty"
    with pytest.raises(ValueError, match="text, line 2 is empty; give a limit that holds all, or leave it out"):
        whole(pairs, small, limit=3)
    with pytest.raises(ValueError, match="text, line 3 has 4 numbers, the limit is 3"):
        whole(Listed(pairs.source[2:], pairs.target[2:], "text", [3, 4, 5]), small, limit=3)
    with pytest.raises(ValueError, match="none of 5 pairs is left: text, line 1 has 1 numbers, the limit is 0"):
        encoded(pairs, small, limit=0)
    with pytest.raises(ValueError, match="none of 0 pairs is left: there are none"):
        encoded(Listed([], [], "nothing"), small, limit=3)
    with pytest.raises(ValueError, match="input, line 7 has 4 numbers, the limit is 3"):
        examples.sentence("a b c d", small.source, limit=3, where="input, line 7")
    np.testing.assert_array_equal(examples.sentence("a", small.source, limit=3, where="input"), [4])


def test_stored_examples_are_the_same_and_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "WRITTEN", 2)
    pairs = Joined((PAIRS, Listed(["x", "y" * 50], ["x", "y"], "more"), PAIRS))
    expected, left_out = encoded(pairs, BOTH, limit=30)
    rows, told = stored(tmp_path / "kept", pairs, BOTH, limit=30, sha256="0")
    assert told == left_out and (told.over, told.first[:12]) == (1, "more, line 2")
    turned = data.Sequences(reversed_source(rows)._asdict())
    here = data.Sequences(reversed_source(expected)._asdict())
    numbers = np.array([0, 9, 3])
    for name, value in here(numbers, 40).items():
        np.testing.assert_array_equal(turned(numbers, 40)[name], value)
    with pytest.raises(IndexError):
        rows.source[len(rows.source)]
    with monkeypatch.context() as patch:
        patch.setattr(examples, "_kept", None)  # nothing is encoded again
        again, told = stored(tmp_path / "kept", pairs, BOTH, limit=30, sha256="0")
        assert told == left_out and len(again.source) == len(expected.source)
    other, _ = stored(tmp_path / "kept", PAIRS, BOTH, limit=30, sha256="1")
    assert len(other.target) == 5


# Scores.

REFERENCES = [
    "the cat sat on the mat today",
    "a dog ran over the green hill",
    "we eat bread and drink some water",
    "he is here with all of his friends",
]
TRANSLATED = [
    "the cat sat on a mat today",
    "a dog ran over the hill",
    "we eat some bread and drink water",
    "he is here with all of his friends",
]


def test_scores_are_sacrebleus_with_its_signature_and_an_interval():
    for score, official in ((scores.bleu, sacrebleu.corpus_bleu), (scores.chrf, sacrebleu.corpus_chrf)):
        ours = score(TRANSLATED, REFERENCES)
        assert ours.value == pytest.approx(official(TRANSLATED, [REFERENCES]).score)
        assert 0 < ours.low < ours.value < ours.high <= 110 and ours == score(TRANSLATED, REFERENCES)
        assert f"version:{sacrebleu.__version__}" in ours.signature and "bs:1000|seed:12345" in ours.signature
        assert score(REFERENCES, REFERENCES).value == pytest.approx(100)
    assert scores.bleu(["x"], ["y z"])[:3] == (0, 0, 0)


def test_scores_by_length_and_by_rank():
    sources = ["a", "a b", "a b c", "c c c c"]
    short, long = scores.by_length(sources, TRANSLATED, REFERENCES, [1, 3, 4])
    assert (short.sentences, short.mean, long.sentences, long.mean) == (2, 1.5, 2, 3.5)
    official = sacrebleu.corpus_bleu(TRANSLATED[2:], [REFERENCES[2:]]).score
    assert long.bleu is not None and long.bleu.value == pytest.approx(official)
    ranks = scores.ranks(["a a a b b"])
    assert ranks == {"a": 1, "b": 2}
    rare = scores.by_rank(sources, TRANSLATED, REFERENCES, [1, 1.4, 2.5, 3], ranks=ranks)
    assert [(each.sentences, each.mean) for each in rare] == [(1, 1), (2, 1.75), (1, 3)]
    empty, full = scores.by_length(sources, TRANSLATED, REFERENCES, [0, 1, 9])
    assert (empty.bleu, empty.mean, full.sentences) == (None, None, 4)
    assert scores.even_bounds([1, 2, 3, 4, 5], 2) == [1, 3, 5] and scores.even_bounds([1, 1, 1, 2], 2) == [1, 2]
    assert scores.even_bounds([3, 3, 3], 2) == [3, 4]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: scores.bleu(TRANSLATED[:3], REFERENCES), "3 translations, 4 references"),
        (lambda: scores.chrf([], []), "0 translations, 0 references"),
        (lambda: scores.by_length(["a"], TRANSLATED, REFERENCES, [1, 2]), "4 references, 1 sources"),
        (lambda: scores.by_length(REFERENCES, TRANSLATED, REFERENCES, [2, 1]), r"bounds=\[2, 1\]"),
    ],
)
def test_scores_of_what_does_not_fit_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# Real data, where there are any.


@pytest.mark.parametrize(
    ("name", "source", "target", "sizes"),
    [
        ("multi30k", "de", "en", (29_000, 1_014, 1_000, 1_000, 461, 1_071)),
        ("multi30k", "en", "cs", (29_000, 1_014, 1_000, 1_071)),
        ("tatoeba", "en", "fr", (162_130, 2_500, 2_500)),
        ("newstest", "en", "fr", (0, 0, 2_051, 502, 2_525, 2_489, 3_003, 3_003, 3_000, 3_003)),
        ("newstest", "de", "en", (0, 0, 2_051, 502, 2_525, 2_489, 3_003, 3_003, 3_000, 3_003)),
    ],
)
def test_real_texts(name, source, target, sizes, no_network):
    try:
        there = parallel(name, source, target)
    except DataError as error:
        if "no network" in str(error):
            pytest.skip(f"{name} is not at hand")
        raise
    assert tuple(map(len, (there.train, there.valid, *there.tests.values()))) == sizes
    some = there.train if len(there.train) else there.tests["newstest2014"]
    for at in range(0, len(some), 997):
        for text in some[at]:
            assert joined(words(text)) == " ".join(text.split())
            assert BPE.decode(BPE.encode(text)) == text


def test_wmt14_of_real_news_laid_out_like_its_parts(tmp_path, monkeypatch, no_network):
    try:
        news = parallel("newstest", "en", "fr")
    except DataError:
        pytest.skip("newstest is not at hand")
    parts = dict(zip(wmt14.CORPORA, list(news.tests.values())[-len(wmt14.CORPORA) :], strict=True))
    members = {}
    for corpus, part in parts.items():
        for language, side in (("en", part.source), ("fr", part.target)):
            members[corpus.member.format(pair="fr-en", language=language).removesuffix(".gz")] = lines(side)
    for name, content in members.items():
        (tmp_path / "wmt14").mkdir(exist_ok=True)
        (tmp_path / "wmt14" / name).write_bytes(content)
    monkeypatch.setenv("LSTM_ROT_DATA", str(tmp_path))
    train, digests = wmt14.training("en", "fr")
    assert digests == [texts.hashlib.sha256(content).hexdigest() for content in members.values()]
    expected = [part[at] for part in parts.values() for at in range(len(part))]
    assert [train[at] for at in range(len(train))] == expected
    rows, left_out = stored(tmp_path / "kept", train, BOTH, limit=400, sha256="0")
    assert left_out.pairs == len(expected) and len(rows.source) == len(expected) - left_out.over - left_out.empty
    assert BPE.decode(rows.source[0]) == expected[0][0]
    sequences = data.Sequences(rows._asdict())
    batch = next(data.batches(sequences, data.Buckets(sequences.lengths, [200, 402], batch=4)))
    assert batch["source"].shape[0] == 4 and (batch["target"][:, 0] == BOS).all()
