"""From texts to documents, a fair split, and the batch of a step."""
import doctest
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from conftest import reference
from microgpt import tokenizers
from microgpt.corpus import documents as documents_module
from microgpt.corpus.batches import document_batch, stream_batch, window_starts
from microgpt.corpus.documents import (Corpus, choose_mode, encode, iterate_documents, join_stream,
                                       prepare, split_documents, statistics, token_type,
                                       training_share)
from strategies import many

TEXTS = st.lists(st.text("ab \n\té", max_size=40), min_size=1, max_size=4)
MODES = st.sampled_from(["lines", "paragraphs", "stream"])
FRACTIONS = st.sampled_from([0, 0.1, 0.5, 0.99])


def test_examples_in_docstrings():
    assert doctest.testmod(documents_module).failed == 0


# ---- how a text is read

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen, all of them.\n"
CHOICES = {
    "names": ("anna\nbob\ncarla\n", "lines"),
    "names and blank lines at the ends": ("\n\nanna\nbob\n\n\n", "lines"),
    "2 % blank": ("a\n" * 49 + "\n" + "a\n" * 50, "lines"),
    "more than 2 % blank": ("a\n" * 47 + "\n" + "a\n", "stream"),
    "long lines": (PROSE * 3, "stream"),
    "60 characters": ("x" * 60 + "\n" + "x" * 60, "lines"),
    "61 characters": ("x" * 61 + "\n" + "x" * 61, "stream"),
    "the lower median": ("x\n" + "x" * 99, "lines"),
    "paragraphs": ("one\ntwo\n\nthree\nfour\n", "stream"),
    "one line": ("anna", "lines"),
}


@pytest.mark.parametrize("text, mode", CHOICES.values(), ids=list(CHOICES))
def test_auto(text, mode):
    chosen = choose_mode([text])
    assert chosen.mode == mode and chosen.reason.endswith(" chooses otherwise")
    assert choose_mode(["", text, "\n"]).mode == mode
    assert ("--documents lines|paragraphs" in chosen.reason) == (mode == "stream")


def test_auto_on_known_texts():
    text = reference("tinyshakespeare.txt").read_text(encoding="utf-8")
    assert choose_mode([text]).mode == "stream"
    assert choose_mode([text]).reason.startswith(
        "18 % of the lines blank, median line of 39 characters: one stream")
    assert choose_mode(["\n".join(microgpt.load_docs()[0])]).mode == "lines"


def test_what_is_chosen_is_taken():
    for mode in ("lines", "paragraphs", "stream"):
        assert choose_mode(["anna\n"], mode) == (mode, f"--documents {mode}")
    with pytest.raises(ValueError, match="--documents words: it takes auto, lines, paragraphs"):
        choose_mode(["anna\n"], "words")


def test_documents_of_each_mode():
    texts = [" one\ntwo\n \t\n\n  three \n", "four"]
    assert split_documents(texts, "lines") == ["one", "two", "three", "four"]
    assert split_documents(texts, "paragraphs") == ["one\ntwo", "three", "four"]
    assert split_documents(texts, "stream") == texts


@many
@given(st.text("ab \n\t", max_size=60), MODES, st.lists(st.integers(0, 60), max_size=5))
def test_pieces_make_the_same_documents(text, mode, cuts):
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(bounds, bounds[1:])]
    got = list(iterate_documents(pieces, mode))
    if mode == "stream":
        assert "".join(got) == text
    else:
        assert got == split_documents([text], mode)


# ---- the split

@many
@given(TEXTS, MODES, FRACTIONS, st.booleans(), st.integers(0, 9))
def test_splits_are_disjoint_and_complete(texts, mode, fraction, dedupe, seed):
    expected = split_documents(texts, mode)
    if dedupe:
        expected = list(dict.fromkeys(expected))
    try:
        corpus = prepare(texts, random.Random(seed), mode, fraction, dedupe)
    except ValueError as error:
        size = len(join_stream(expected)) if mode == "stream" else len(expected)
        assert "no text" in str(error) and not "".join(expected).strip() or size < 2
        return
    assert corpus.train and (bool(corpus.validation) == (fraction > 0))
    assert corpus.removed == len(split_documents(texts, mode)) - len(expected)
    if mode == "stream":  # every character is in one of them, in order
        assert "".join(corpus.documents) == join_stream(expected)
        assert len(corpus.train) == 1 and len(corpus.validation) <= 1
    else:  # every document is, in the golden order
        random.Random(seed).shuffle(expected)
        assert corpus.documents == expected


@pytest.mark.parametrize("count, fraction, train", [
    (32033, 0.1, 28829), (1115394, 0.1, 1003854), (10, 0.1, 9), (2, 0.1, 1), (2, 0.99, 1),
    (3, 0.5, 1), (1, 0, 1), (5, 0.0, 5)])
def test_the_share_for_training(count, fraction, train):
    assert training_share(count, fraction, "documents") == train


def test_tiny_shakespeare_is_split_as_elsewhere():
    text = reference("tinyshakespeare.txt").read_text(encoding="utf-8")
    corpus = prepare([text], random.Random(42), "auto", 0.1)
    assert [len(part) for part in (*corpus.train, *corpus.validation)] == [1003854, 111540]


@many
@given(st.lists(st.sampled_from(["word", "it's", "über", " ", "  ", ", ", "3.14", "-", "?\n\n"]),
                min_size=9, max_size=30).map("".join), st.sampled_from([0.1, 0.3, 0.5]))
def test_a_stream_is_cut_where_no_token_is(text, fraction):
    """What tokenizers make of the parts, one after the other, is what they make of the whole."""
    corpus = prepare([text + " end. End, end."], random.Random(0), "stream", fraction)
    for kind in ("char", "word", "bpe"):
        settings = {"merges": 9} if kind == "bpe" else {}
        tokenizer = tokenizers.learn(kind, corpus.documents, **settings)
        parts = [token for part in corpus.documents for token in tokenizer.encode(part)]
        assert tokenizer.decode(parts) == "".join(corpus.documents)
        assert parts == tokenizer.encode("".join(corpus.documents))


def test_documents_come_in_the_golden_order(reference_names, golden_short):
    """prepare() and then the weights draw from the generator as microgpt.py does."""
    docs, _ = microgpt.load_docs(reference_names)
    text = reference_names.read_text(encoding="utf-8")
    rng, expected = random.Random(42), random.Random(42)
    expected.shuffle(docs)
    corpus = prepare([text], rng)
    assert (corpus.train, corpus.validation, corpus.mode) == (docs, [], "lines")
    assert rng.getstate() == expected.getstate()
    held_out = prepare([text], random.Random(42), val_fraction=0.1)
    assert held_out.documents == docs and held_out.train == docs[:28829]


BAD = [(["", " \n"], {}, "there is no text to learn from; give --data a text of at least one line"),
       ([], {"mode": "stream"}, "there is no text to learn from"),
       (["anna"], {"val_fraction": 0.1}, "there are too few documents, 1, to hold out some with "
                                         "--val-fraction 0.1; give more text, or --val-fraction 0"),
       (["a"], {"val_fraction": 0.1, "mode": "stream"}, "there are too few characters, 1"),
       (["a\nb"], {"val_fraction": 1}, "--val-fraction 1: it takes 0 or more, below 1"),
       (["a\nb"], {"val_fraction": -0.1}, "--val-fraction -0.1: it takes 0 or more, below 1"),
       (["a\na"], {"val_fraction": 0.1, "dedupe": True}, "too few documents, 1")]


@pytest.mark.parametrize("texts, settings, message", BAD)
def test_bad_corpora(texts, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(texts, random.Random(0), **settings)
    assert "\n" not in str(error.value)


def test_duplicates():
    assert prepare(["a\nb\na\n"], random.Random(0), "lines").removed == 0
    once = prepare(["a\nb\na\n"], random.Random(0), "lines", dedupe=True)
    assert (sorted(once.train), once.removed) == (["a", "b"], 1)
    stream = prepare(["a b\n", "a b\n", "c"], random.Random(0), "stream", dedupe=True)
    assert (stream.train, stream.removed) == (["a b\n\nc"], 1)


# ---- tokens and statistics

class Letters:
    """A token a code point."""
    vocab_size, bos = 1000, 999

    def encode(self, text):
        return [ord(char) for char in text]


def test_tokens_of_documents_and_streams():
    assert encode(["ab", "c"], Letters(), False) == [[999, 97, 98, 999], [999, 99, 999]]
    assert encode(["ab", "c"], Letters(), True) == array("H", [97, 98, 99])
    assert [token_type(size) for size in (2, 65_536, 65_537)] == ["H", "H", "I"]


def test_statistics():
    documents = ["ab", "abc", "ab", "abcdef"]
    got = statistics(documents, encode(documents, Letters(), False), block_size=4)
    assert got == documents_module.Statistics(4, 13, 21, 6, 0.25, 1)
    assert str(got) == ("4 documents, 1 of them seen before, 13 characters, 21 tokens, 6 in the "
                        "longest; 25 % are longer than block_size: a step sees a random part")
    got = statistics(["abc"], encode(["abc"], Letters(), True), 4, is_stream=True)
    assert str(got) == "one stream of 3 characters, 3 tokens"
    corpus = Corpus("lines", "", ["a"], ["b"])
    assert corpus.documents == ["a", "b"] and not corpus.is_stream


# ---- batches

@many
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 5), st.integers(0, 99),
       st.integers(0, 9))
def test_windows_lie_within_the_stream(length, block_size, batch_size, step, seed):
    tokens = list(range(length))
    if length < block_size + 1:
        with pytest.raises(ValueError, match=f"has {length} tokens, and --block-size"):
            stream_batch(tokens, step, batch_size, block_size, seed)
        return
    batch = stream_batch(tokens, step, batch_size, block_size, seed)
    assert len(batch) == batch_size
    for window in batch:  # none crosses the end
        assert window == list(range(window[0], window[0] + block_size + 1))


@many
@given(st.integers(0, 99), st.integers(0, 9), st.booleans())
def test_batches_depend_on_seed_and_step_alone(step, seed, is_stream):
    tokens = list(range(100)) if is_stream else [list(range(i, i + 20)) for i in range(7)]
    batch = stream_batch if is_stream else document_batch
    random.seed(step)
    first = batch(tokens, step, 4, 6, seed)
    state = random.getstate()
    for other in range(3):
        batch(tokens, other, 4, 6, seed + 1)
    assert batch(tokens, step, 4, 6, seed) == first
    assert batch(array("H", tokens) if is_stream else tokens, step, 4, 6, seed) == first
    assert random.getstate() == state
    assert batch(tokens, step + 1, 4, 6, seed) != first != batch(tokens, step, 4, 6, seed + 1)


def test_every_place_of_a_stream_is_reached():
    starts = {start for step in range(200) for start in window_starts(20, step, 4, 6, 42)}
    assert starts == set(range(14))


def test_a_stream_that_is_too_short():
    with pytest.raises(ValueError, match="has 9 tokens, and --block-size 16 needs 17; give a "
                                         "--block-size of 8 or less, or more text"):
        window_starts(9, 0, 1, 16, 42)
    with pytest.raises(ValueError, match="has 1 tokens, and --block-size 16 needs 17; give more"):
        window_starts(1, 0, 1, 16, 42)
