"""Guessing and counting: against sums done by hand, a slow way to count, and known figures."""
import doctest
import math
import random
import time
import tracemalloc
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, reference
from microgpt.training import baselines as module
from microgpt.training.baselines import baselines, count_grams, interpolate, witten_bell
from strategies import many, some

texts = st.text("ab\0é\U0001f600", max_size=12)
documents = st.lists(texts, min_size=1, max_size=6)


def test_doctests():
    assert doctest.testmod(module).failed == 0


def test_by_hand():
    """Of "ab" twice and "a", all of it counted: V = a, b and the end."""
    found = baselines(["ab", "ab"], ["a"], is_stream=False)
    assert found.uniform == pytest.approx(math.log(3))
    third = Fraction(1, 3)
    # without context: a, b and the end came twice each of 6, three kinds
    assert found.by_context[0] == pytest.approx(-math.log((2 + 3 * third) / (6 + 3)))
    # behind the start came a, twice of 2; behind a, b twice of 2 and the end never: one kind each
    a, end = (2 + 1 * third) / (2 + 1), (0 + 1 * third) / (2 + 1)
    assert found.bigram == pytest.approx(-(math.log(a) + math.log(end)) / 2)
    # one more context of the same counts, and so on: what the shorter one says weighs 1 of 3
    a, end = (2 + a) / 3, (0 + end) / 3
    assert found.by_context[2] == pytest.approx(-(math.log(a) + math.log(end)) / 2)
    assert (found.characters, found.counted, found.available) == (2, 6, 6)
    assert not found.on_training_text and not found.note


# ---- Against a slow way to count -----------------------------------------------------------------


def targets_of(items, is_stream, context):
    """Returns (context, target) of each character; None is a start, and "end" an end."""
    found = []
    for item in ["".join(items)] if is_stream else items:
        row = [None] * context + list(item) + ([] if is_stream else ["end"])
        found += [(tuple(row[i - context:i]), row[i]) for i in range(context, len(row))]
    return found


def slow_probability(train, h, target, vocabulary):
    """Returns p(target | h) as an exact fraction, by going through all of train, a list of pairs
    of context and target, for each context."""
    came = Counter(c for other, c in train if not h or other[-len(h):] == h)
    shorter = (slow_probability(train, h[1:], target, vocabulary) if h
               else Fraction(1, vocabulary))
    N, T = sum(came.values()), len(came)
    return (came[target] + T * shorter) / (N + T) if T else shorter


@given(train=documents, held_out=documents, is_stream=st.booleans(), context=st.integers(1, 4))
@some
def test_equals_a_slow_way_to_count(train, held_out, is_stream, context):
    train = [*train, "ab"]
    found = baselines(train, held_out, is_stream, context=context)
    vocabulary = len(set("".join(train + held_out))) + (not is_stream)
    counted = targets_of(train, is_stream, context)
    asked = targets_of(held_out, is_stream, context) or counted
    assert found.uniform == math.log(vocabulary) and found.counted == len(counted)
    assert found.characters == len(asked) and len(found.by_context) == context + 1
    for length, loss in enumerate(found.by_context):
        slow = -sum(math.log(slow_probability(counted, h[len(h) - length:], target, vocabulary))
                    for h, target in asked) / len(asked)
        assert loss == pytest.approx(slow, rel=1e-12, abs=1e-12)


@given(counts=st.dictionaries(st.text("abc", min_size=2, max_size=2), st.integers(1, 9)),
       lower=st.lists(st.integers(1, 100), min_size=4, max_size=4))
@many
def test_probabilities_of_a_context_add_up_to_1(counts, lower):
    """Also of a context that was never met, x, and with a character that was not, x."""
    p_lower = {c: weight / sum(lower) for c, weight in zip("abcx", lower)}
    for h in "abcx":
        p = interpolate(counts, [h + c for c in "abcx"], p_lower)
        assert len(p) == 4 and min(p.values()) > 0
        assert math.fsum(p.values()) == pytest.approx(1, abs=1e-12)


@given(train=documents, h=st.text("ab\0é?", max_size=2))
@some
def test_probabilities_add_up_to_1_over_all_contexts_interpolated(train, h):
    """exp(-loss) of a single run is its probability: over all targets they add up to 1."""
    counts, _ = count_grams(train, False, "<>", 2, 10 ** 6)
    h, vocabulary = ("<<" + h)[-2:], "ab\0é\U0001f600?>"
    for context in range(3):
        p = [math.exp(-witten_bell(counts, {h + c: 1}, 2, 1 / len(vocabulary))[context])
             for c in vocabulary]
        assert math.fsum(p) == pytest.approx(1, abs=1e-12)


# ---- Figures of the field ------------------------------------------------------------------------


def test_figures_of_tiny_shakespeare():
    text = reference("tinyshakespeare.txt").read_bytes().decode("utf-8")
    cut = 1_003_854
    started = time.perf_counter()
    found = baselines([text[:cut]], [text[cut:]], is_stream=True, context=5)
    assert time.perf_counter() - started < 30  # it takes 0.8 s
    assert round(found.uniform, 3) == 4.174
    assert [round(loss, 3) for loss in found.by_context] == [3.347, 2.486, 2.049, 1.774, 1.669,
                                                             1.698]
    assert found.characters == 111_540 and found.counted == cut


def test_figures_of_names():
    """Counting pairs of all of them, measured on themselves; and with 80/10/10 contexts of 4."""
    names = reference("names.txt").read_text(encoding="utf-8").split()
    found = baselines(names, [], is_stream=False)
    assert round(found.bigram, 3) == 2.454 and found.on_training_text
    assert found.uniform == math.log(27) and found.counted == 228_146
    random.Random(42).shuffle(names)
    cut, end = int(0.8 * len(names)), int(0.9 * len(names))
    assert baselines(names[:cut], names[end:], False).ngram == pytest.approx(2.042, abs=0.002)


def test_bundled_names_take_little():
    names = (ROOT / "corpus" / "data" / "names.txt").read_text(encoding="utf-8").split()
    random.Random(42).shuffle(names)
    tracemalloc.start()
    try:
        found = baselines(names[604:], names[:604], is_stream=False)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 50_000 and peak < 5_000_000  # bytes
    assert 2 < found.ngram < found.bigram < found.uniform == math.log(27)


# ---- Odd texts -----------------------------------------------------------------------------------


def test_nothing_held_out():
    found = baselines(["ab", "b"], [], is_stream=False)
    same = baselines(["ab", "b"], ["ab", "b"], is_stream=False)
    assert found.on_training_text and found.by_context == same.by_context
    assert not same.on_training_text
    assert found.note == "no text is held out, so counting is measured on what it counted"
    assert str(found).startswith("on training text: uniform 1.099, bigram ")
    assert baselines(["ab"], [""], is_stream=True).on_training_text


@pytest.mark.parametrize("is_stream", [False, True])
def test_characters_that_the_training_text_lacks(is_stream):
    found = baselines(["aaaa"], ["xyz"], is_stream)
    assert found.uniform == math.log(4 if is_stream else 5)
    assert all(math.isfinite(loss) for loss in found.by_context)
    assert found.ngram > found.uniform  # counting was wrong about it


@pytest.mark.parametrize("is_stream", [False, True])
def test_one_character(is_stream):
    found = baselines(["a"], ["a"], is_stream)
    assert found.characters == (1 if is_stream else 2)
    assert found.uniform == (0.0 if is_stream else math.log(2))
    assert found.ngram < found.bigram or is_stream and found.ngram == 0


def test_constant_text():
    """Of a stream of one character, everything is known; a single other one costs a lot."""
    found = baselines(["a" * 1000], ["a" * 100], is_stream=True)
    assert found.uniform == 0 and found.by_context == (0.0,) * 5  # perplexity 1
    assert "bigram 0.000, 5-gram 0.000 nats" in str(found)
    found = baselines(["a" * 1000], ["a" * 100 + "b"], is_stream=True)
    b = 1 / 2 / 1001 / 1000 / 999 / 998 / 997  # for each context, one kind and N times a
    assert found.ngram == pytest.approx(-math.log(b) / 101, rel=0.02)


def test_empty_documents_have_an_end():
    found = baselines(["", ""], ["", "", ""], is_stream=False)
    assert found.uniform == 0 and found.ngram == 0 and found.characters == 3


@pytest.mark.parametrize("train, is_stream", [([], False), ([], True), ([""], True)])
def test_nothing_to_count(train, is_stream):
    with pytest.raises(ValueError, match="nothing to count: the training text has no characters"):
        baselines(train, ["abc"], is_stream)


@pytest.mark.parametrize("limit, context", [(0, 4), (10, 0)])
def test_bounds_are_checked(limit, context):
    with pytest.raises(ValueError, match=f"limit {limit}, context {context}: both take 1 or more"):
        baselines(["ab"], [], False, limit, context)


# ---- The limit -----------------------------------------------------------------------------------


def test_limit():
    """The first 4 of 8 characters, ends counted, and the first half of what is held out."""
    found = baselines(["abc", "xyz"], ["ab", "xyz"], is_stream=False, limit=4)
    first = baselines(["abc"], ["ab"], is_stream=False)
    assert (found.counted, found.available, found.characters) == (4, 8, 4)
    assert found.note == "the first 4 of 8 characters are counted"
    assert found.uniform == math.log(7) > first.uniform  # the characters are those of all of it
    assert not baselines(["abc", "xyz"], ["ab"], is_stream=False, limit=8).note


@given(train=documents, is_stream=st.booleans(), limit=st.integers(1, 40))
@some
def test_limit_takes_the_first(train, is_stream, limit):
    train = [*train, "ab"]
    counts, total = count_grams(train, is_stream, "<>", 2, limit)
    whole = targets_of(train, is_stream, 2)
    assert total == sum(counts.values()) == min(limit, len(whole))
    names = {None: "<", "end": ">"}
    assert counts == Counter("".join(names.get(c, c) for c in (*h, target))
                             for h, target in whole[:limit])


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_pieces_do_not_matter(monkeypatch, piece):
    whole = count_grams(["abcabcab", "", "b"], False, "<>", 3, 100)
    monkeypatch.setattr(module, "PIECE", piece)
    assert count_grams(["abcabcab", "", "b"], False, "<>", 3, 100) == whole


def test_many_different_runs_end_the_counting(monkeypatch):
    """What bounds the memory, where a script has thousands of characters."""
    monkeypatch.setattr(module, "DISTINCT", 50)
    monkeypatch.setattr(module, "PIECE", 10)
    text = "".join(map(chr, range(0x4e00, 0x4e00 + 1000)))
    found = baselines([text], [text[:100]], is_stream=True)
    assert (found.counted, found.characters) == (60, 6)
    assert found.note == "the first 60 of 1,000 characters are counted"


# ---- The line to print ---------------------------------------------------------------------------


def test_line():
    found = module.Baselines(math.log(65), (3.3, 2.486, 2.0, 1.8, 1.669), 9, 9, 9, False)
    assert str(found) == ("to beat: uniform 4.174, bigram 2.486, 5-gram 1.669 nats (2.41 bits) "
                          "a character")
    assert len(str(found)) < 80
