"""The tokenizers: worked examples, texts of all kinds there and back, and the package `tokenizers`,
which must learn the same merges and cut the same pieces."""
import collections
import doctest
import json
import random
import sys
import types
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import microgpt
from conftest import reference
from microgpt import tokenizers
from microgpt.cli import tokenize
from microgpt.tokenizers import base, bpe, learned, splitting
from strategies import many, some

LEARNT = [kind for kind in tokenizers.KINDS if kind != "pretrained"]

SPICE = [
    "the", " the", "The cat's", " don't", " we'll", "'s", "'", "\u2019t", " 1984", "3", "x\u00b2",
    " \u00bc\u2462\u216b", "\u0967\u0968", "  ", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028",
    "\x00", "\x1c", "\x1f", "\x7f", "\x85", "...", "--", "[]^\\-&&", "_", "<unk>", "\ufffd",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22\u0e48\u0e49", "e\u0301", " \u0301",
    "\u4e2d\u6587", "\u3053\u3093", "\ud55c\uad6d", "\u0645\u06cc\u200c\u062e", "\u05e9\u05b8",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3",
    "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\U0001d504\U0001d7d8", "\U00010000", "\U0010ffff",
    "\u200b", "\ufeff", "\ue000", "\ufdd0", "\u0378", "\U000e0100", "\u00df\u1e9e", "\u01c5",
]
texts = st.lists(st.one_of(st.sampled_from(SPICE), st.text(max_size=6)), max_size=12).map("".join)
few_letters = st.lists(st.text(alphabet="ab ", max_size=12), max_size=6)


def other_package():
    """The package `tokenizers`, written in Rust: the oracle."""
    return pytest.importorskip("tokenizers")


def learn_there(texts, merges, min_count):
    """Returns a byte-level BPE as the other package learns it, of the same pieces."""
    there = other_package()
    cut = there.pre_tokenizers.Split(there.Regex(splitting.SUBWORDS), "isolated")
    level = there.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = there.Tokenizer(there.models.BPE())
    tokenizer.pre_tokenizer = there.pre_tokenizers.Sequence([cut, level])
    tokenizer.train_from_iterator(texts, there.trainers.BpeTrainer(
        vocab_size=256 + merges, min_frequency=min_count, show_progress=False,
        initial_alphabet=there.pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def model_of(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def textbook_merges(pieces, num_merges, min_count):
    """Byte-pair encoding as a textbook has it: count all pairs anew for each merge."""
    words = [(list(piece.encode().translate(bpe.ID_OF_BYTE)), n) for piece, n in pieces.items()]
    merges = []
    while len(merges) < num_merges:
        counts = collections.Counter()
        for word, n in words:
            for pair in zip(word, word[1:]):
                counts[pair] += n
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < min_count:
            break
        for word, _ in words:
            replace(word, best, 256 + len(merges))
        merges.append(best)
    return merges


def replace(word, pair, merged):
    i = 0
    while i < len(word) - 1:
        if (word[i], word[i + 1]) == pair:
            word[i:i + 2] = [merged]
        i += 1


def textbook_encode(piece, merges):
    word = list(piece.encode().translate(bpe.ID_OF_BYTE))
    for i, pair in enumerate(merges):
        replace(word, pair, 256 + i)
    return word


# ---- worked examples

@pytest.mark.parametrize("module", [
    base, bpe, splitting, tokenizers.char, tokenizers.word, tokenize], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    assert doctest.testmod(module, raise_on_error=True).failed == 0


def test_the_example_of_wikipedia():
    """aaabdaaabac -> ZabdZabac -> ZYdZYac -> XdXac, and no pair is left that occurs twice."""
    tokenizer = tokenizers.learn("bpe", ["aaabdaaabac"], merges=100)
    names = [tokenizer.token_bytes(token) for token in range(256, tokenizer.bos)]
    assert names == [b"aa", b"ab", b"aaab"]
    tokens = tokenizer.encode("aaabdaaabac")
    assert list(map(tokenizer.token_bytes, tokens)) == [b"aaab", b"d", b"aaab", b"a", b"c"]
    assert tokens == [258, 67, 258, 64, 66]  # bytes in GPT-2's order: "!" is 0, so "a" is 64


def test_pieces():
    def pieces(text, pattern=splitting.SUBWORDS):
        return [piece for stretch in splitting.cut(pattern, text) for piece in stretch]
    assert pieces("I don't  know: 42%\n\n ok") == [
        "I", " don", "'t", " ", " know", ":", " 42", "%", "\n\n", " ok"]
    assert pieces("I don't  know: 42%...\n", splitting.WORDS) == [
        "I", " don't", " ", " know", ":", " 42", "%", ".", ".", ".", "\n"]
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"  # its vowel signs are marks, no letters
    assert pieces(hindi + " e\u0301te\u0301") == [hindi, " e\u0301te\u0301"]
    assert pieces("x\u00b2 \U0001d7d8!") == ["x", "\u00b2", " \U0001d7d8", "!"]
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
    assert pieces(f"a {family}!") == ["a", f" {family}!"]


def test_words_that_are_rare_become_one_unknown_token():
    text = ["the cat and the dog and the bird"]
    tokenizer = tokenizers.learn("word", text, min_count=2)
    assert tokenizer.words == [" and", " the", " <unk>"] and tokenizer.lossy
    assert tokenizer.decode(tokenizer.encode(" the cat and")) == " the <unk> and"
    assert tokenizer.unknown(" the cat and a cat") == [" cat", " a"]
    assert not tokenizers.learn("word", text).lossy


# ---- properties

@many
@given(st.lists(texts, max_size=3), st.integers(0, 40), texts)
@example(["", "a"], 3, "")
def test_bpe_gives_any_text_back(documents, merges, text):
    tokenizer = tokenizers.learn("bpe", documents, merges=merges)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.bos for token in tokens)
    assert tokenizer.bos == tokenizer.vocab_size - 1 and tokenizer.unknown(text) == []


@pytest.mark.parametrize("kind", ["char", "word"])
@some
@given(documents=st.lists(texts, max_size=3))
def test_a_text_learned_from_comes_back(kind, documents):
    tokenizer = tokenizers.learn(kind, documents)
    for text in documents:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text and tokenizer.unknown(text) == []
        assert all(0 <= token < tokenizer.bos for token in tokens)


@some
@given(st.lists(texts, min_size=1), texts)
def test_char_is_the_tokenizer_of_the_file(documents, text):
    ours, files = tokenizers.learn("char", documents), microgpt.CharTokenizer(documents)
    assert (ours.vocab_size, ours.bos) == (files.vocab_size, files.bos)
    known = "".join(char for char in text if char in files.ids)
    assert ours.encode(text) == ours.encode(known) == files.encode(known)
    assert ours.decode(ours.encode(text)) == files.decode(files.encode(known)) == known
    assert ours.unknown(text) == list(dict.fromkeys(c for c in text if c not in files.ids))


@pytest.mark.parametrize("kind", LEARNT)
@some
@given(documents=st.lists(texts, max_size=3), text=texts)
def test_what_is_saved_is_what_is_loaded(kind, tmp_path_factory, documents, text):
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    tokenizer = tokenizers.learn(kind, documents)
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    assert type(loaded) is type(tokenizer) and loaded.hash == tokenizer.hash
    assert loaded.encode(text) == tokenizer.encode(text)
    assert path.read_text(encoding="utf-8") == loaded.to_json()
    assert type(tokenizer).load(path).hash == tokenizer.hash


@pytest.mark.parametrize("kind", LEARNT)
@some
@given(documents=st.lists(texts, max_size=4), seed=st.integers(0, 99))
def test_learning_is_deterministic_and_knows_no_order(kind, documents, seed):
    shuffled = random.Random(seed).sample(documents, len(documents))
    tokenizer = tokenizers.learn(kind, documents)
    assert tokenizer.hash == tokenizers.learn(kind, iter(shuffled)).hash
    if tokenizer.encode("".join(documents)):
        assert tokenizer.hash != tokenizers.learn(kind, ["quite another text, of other words"]).hash


@pytest.mark.parametrize("kind", LEARNT)
def test_every_token_has_its_text(kind):
    tokenizer = tokenizers.learn(kind, ["to be, or not to be"])
    for token in range(tokenizer.bos):
        assert tokenizer.token_bytes(token)
    assert tokenizer.decode([tokenizer.bos]) == ""
    for token in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token is {token}: the vocabulary has 0 to "):
            tokenizer.decode([0, token])


@pytest.mark.parametrize("kind", LEARNT)
def test_a_lone_surrogate_is_replaced(kind):
    tokenizer = tokenizers.learn(kind, ["a \ud800 b"])
    assert tokenizer.decode(tokenizer.encode("a \udfff b")) == "a \ufffd b"
    tokenizer.to_json().encode("utf-8")


# ---- cutting

@many
@given(texts, st.sampled_from([splitting.SUBWORDS, splitting.WORDS]))
def test_pieces_joined_are_the_text_however_it_is_stretched(text, pattern):
    whole, = splitting.cut(pattern, text)
    assert "".join(whole) == text
    for size in (1, 3):
        assert [piece for part in splitting.cut(pattern, text, size) for piece in part] == whole


def test_the_classes_are_unicodes():
    """Below 10000 every character that this Python knows is in the class of its category."""
    symbol_marks = {*range(0x20D0, 0x2100), *range(0xFE00, 0xFE10)}
    find = {name: splitting._compiled(f"[{inside}]").match for name, inside in
            (("letter", splitting.L), ("number", splitting.N), ("space", splitting.S))}
    wrong = []
    for code in range(0x10000):
        char = chr(code)
        category = unicodedata.category(char)
        expected = {"L": "letter", "M": "letter", "N": "number", "Z": "space"}.get(category[0])
        if code in symbol_marks:
            expected = None
        elif char in "\t\n\v\f\r\x85":
            expected = "space"
        elif char == "\u200c":
            expected = "letter"
        if category != "Cn" and [expected] * bool(expected) != [
                name for name, match in find.items() if match(char)]:
            wrong.append(f"{code:x}")
    newer = tuple(map(int, unicodedata.unidata_version.split("."))) > (15, 1, 0)
    assert len(wrong) <= 100 if newer else wrong == []


@many
@given(texts, st.sampled_from([splitting.SUBWORDS, splitting.WORDS]))
def test_the_other_package_cuts_alike(text, pattern):
    there = other_package()
    cut = there.pre_tokenizers.Split(there.Regex(pattern), "isolated")
    whole, = splitting.cut(pattern, text)
    assert [piece for piece, _ in cut.pre_tokenize_str(text)] == whole


def test_the_other_package_cuts_every_character_alike():
    there = other_package()
    text = "".join(f"{chr(code)}a {chr(code)}1{chr(code)}, "
                   for code in range(0x110000) if not 0xD800 <= code < 0xE000 and (
                       code < 0x3100 or code % 7 == 0 or 0xA000 <= code < 0x10000))
    cut = there.pre_tokenizers.Split(there.Regex(splitting.SUBWORDS), "isolated")
    for start in range(0, len(text), 100_000):
        part = text[start:start + 100_000]
        whole, = splitting.cut(splitting.SUBWORDS, part)
        assert [piece for piece, _ in cut.pre_tokenize_str(part)] == whole


# ---- learning merges

@many
@given(few_letters, st.integers(0, 30), st.integers(1, 3))
@example(["aaaaaaaaaaa", "aaaaaaa", "aaaa"], 30, 1)
@example(["abababab", "babab"], 30, 1)
def test_merges_are_the_textbooks(documents, merges, min_count):
    """Texts of two letters: ties everywhere, and pairs that overlap themselves."""
    pieces = splitting.count_pieces(splitting.SUBWORDS, documents)
    tokenizer = tokenizers.learn("bpe", documents, merges=merges, min_count=min_count)
    assert tokenizer.merges == textbook_merges(pieces, merges, min_count)
    assert tokenizers.BPETokenizer.from_document(tokenizer.document()).merges == tokenizer.merges


@many
@given(st.lists(st.one_of(few_letters, st.lists(texts, max_size=2)), max_size=3),
       st.integers(0, 60), st.integers(1, 3), texts)
def test_merges_and_ids_are_the_other_packages(documents, merges, min_count, text):
    documents = [text for some in documents for text in some]
    tokenizer = tokenizers.learn("bpe", documents, merges=merges, min_count=min_count)
    there = learn_there(documents, merges, min_count)
    model = tokenizer.document()["model"]
    assert (model["vocab"], model["merges"]) == model_of(there)
    assert tokenizer.encode(text) == there.encode(text).ids


def test_tiny_shakespeare_is_learned_and_encoded_as_the_other_package_does():
    text = reference("tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = tokenizers.learn("bpe", [text], merges=5000)
    there = learn_there([text], 5000, 2)
    model = tokenizer.document()["model"]
    assert len(tokenizer.merges) == 5000
    assert (model["vocab"], model["merges"]) == model_of(there)
    tokens = tokenizer.encode(text)
    assert tokens == there.encode(text).ids and tokenizer.decode(tokens) == text


@many
@given(few_letters, st.text(alphabet="ab", max_size=60))
def test_a_piece_is_encoded_as_the_textbook_does(documents, piece):
    tokenizer = tokenizers.learn("bpe", documents, merges=30)
    assert list(tokenizer._encode_piece(piece)) == textbook_encode(piece, tokenizer.merges)


# ---- the other package reads what is saved

@pytest.mark.parametrize("kind", LEARNT)
@some
@given(documents=st.lists(texts, min_size=1, max_size=3), text=texts)
def test_the_other_package_loads_what_is_saved(kind, documents, text):
    there = other_package()
    tokenizer = tokenizers.learn(kind, documents)
    loaded = there.Tokenizer.from_str(tokenizer.to_json())
    assert loaded.get_vocab_size() == tokenizer.vocab_size
    assert loaded.token_to_id(base.BOS) == tokenizer.bos
    for sample in [*documents, *[text] * (kind != "word")]:  # without an unknown token it refuses
        tokens = tokenizer.encode(sample)
        assert loaded.encode(sample).ids == tokens
        assert loaded.decode(tokens) == tokenizer.decode(tokens)


def test_the_other_package_knows_the_unknown_token():
    there = other_package()
    tokenizer = tokenizers.learn("word", [" a b a b c"], min_count=2)
    loaded = there.Tokenizer.from_str(tokenizer.to_json())
    assert tokenizer.words == [" a", " b", " <unk>"]
    assert loaded.encode(" a z, b").ids == tokenizer.encode(" a z, b") == [0, 2, 2, 1]


# ---- small and large

@pytest.mark.parametrize("kind", LEARNT)
@pytest.mark.parametrize("documents", [[], [""], ["x"], ["\n"]], ids=repr)
def test_next_to_nothing_is_enough(kind, documents):
    tokenizer = tokenizers.learn(kind, documents)
    text = "".join(documents)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == (256 if kind == "bpe" else len(text)) + 1
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    tokenizer.encode("something else")


def test_more_merges_than_the_text_has():
    tokenizer = tokenizers.learn("bpe", ["abab abab"], merges=10_000)
    names = [tokenizer.token_bytes(token) for token in range(256, tokenizer.bos)]
    assert names == [b"ab", b"abab"]  # and " abab" occurs once


def test_a_vocabulary_beyond_16_bits():
    text = "".join(chr(code) for code in range(0x3000, 0x14000) if not 0xD800 <= code < 0xE000)
    chars = tokenizers.learn("char", [text])
    assert chars.vocab_size == len(text) + 1 > 65_536
    assert chars.encode(text) == list(range(len(text))) and chars.decode([65_537]) == text[65_537]
    words = tokenizers.learn("word", [" ".join(f"w{a}x" for a in map(letters, range(70_000)))])
    assert words.vocab_size > 65_536 and max(words.encode(" w" + letters(69_999) + "x")) > 65_535


def letters(number):
    return "".join(chr(97 + int(digit)) for digit in str(number))


def test_twelve_thousand_words_of_a_text_of_four_megabytes():
    rng = random.Random(0)
    words = [f"{letters(n)}" for n in range(12_000)]
    text = " ".join(words + rng.choices(words, k=900_000))
    tokenizer = tokenizers.learn("word", [" " + text])
    assert len(text) > 4e6 and tokenizer.vocab_size == 12_001
    assert tokenizer.decode(tokenizer.encode(" " + text)) == " " + text


def test_one_long_piece_takes_no_longer_than_many_short():
    """Chinese has no spaces. With a time of n * n, this test would take minutes."""
    text = "ab" * 30_000 + "\u4e2d\u6587" * 30_000
    tokenizer = tokenizers.learn("bpe", [text], merges=50)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < 50


def test_the_cache_of_pieces_stays_small():
    tokenizer = tokenizers.learn("bpe", ["abc"], merges=1)
    limit = base.PieceCache.LIMIT
    for start in range(0, 3 * limit, limit):
        tokenizer.encode(" ".join(letters(n) for n in range(start, start + limit)))
        assert 0 < len(tokenizer._tokens) <= limit
    tokenizer.encode("a" * 1000)
    assert max(map(len, tokenizer._tokens)) <= base.PieceCache.LONGEST


def test_progress_is_told_from_start_to_end():
    told = []
    text = " ".join(letters(n) for n in range(400, 1400)) * 2
    tokenizers.learn("bpe", [text], merges=250, progress=lambda *call: told.append(call))
    assert told == [(0, 250), (100, 250), (200, 250), (250, 250)]


@pytest.mark.slow
def test_five_megabytes():
    text = reference("tinyshakespeare.txt").read_text(encoding="utf-8")
    text = " ".join(f"{text}{n}" for n in range(5))
    tokenizer = tokenizers.learn("bpe", [text], merges=1000)
    assert len(text) > 5e6 and tokenizer.decode(tokenizer.encode(text)) == text


# ---- mistakes

def test_mistakes_are_named():
    with pytest.raises(ValueError, match="tokenizer is 'bytes': it takes char, word, bpe, pretrai"):
        tokenizers.learn("bytes", [])
    with pytest.raises(TypeError, match=r"texts is one string: .*, such as \[text\]"):
        tokenizers.learn("bpe", "a text")
    with pytest.raises(ValueError, match="min_count is 0: it takes 1 or more"):
        tokenizers.learn("word", ["a"], min_count=0)
    with pytest.raises(ValueError, match="merges -1, min_count 2: they take"):
        tokenizers.learn("bpe", ["a"], merges=-1)
    with pytest.raises(ValueError, match="merge 1 is of 257 and 0: 0 to 256 are there by "):
        tokenizers.BPETokenizer([(0, 0), (257, 0)])
    for twice in ([(0, 0), (0, 0)], [(0, 1), (1, 2), (0, 257), (256, 2)]):
        with pytest.raises(ValueError, match="two merges make the same token"):
            tokenizers.BPETokenizer(twice)


def set_in(path, value):
    """Returns a function that changes one place of a document."""
    def change(document):
        *way, last = path
        for step in way:
            document = document[step]
        document[last] = value
    return change


DAMAGES = {
    "an id twice": set_in(["model", "vocab", "!"], 5),
    "a negative id": set_in(["model", "vocab", "!"], -1),
    "an id that is text": set_in(["model", "vocab", "!"], "x"),
    "a vocabulary that is a list": set_in(["model", "vocab"], [1]),
    "no model": set_in(["model"], None),
    "a model of another kind": set_in(["model", "type"], "Unigram"),
    "a number for a type": set_in(["model", "type"], []),
    "a pattern of its own": set_in(["pre_tokenizer"],
                                   {"type": "Split", "pattern": {"Regex": "(a+)+"}}),
    "another BOS": set_in(["added_tokens", 0, "id"], 0),
    "more than is ours": set_in(["extra"], 1),
}
BPE_DAMAGES = {
    "a merge of unknown tokens": set_in(["model", "merges"], [["\u00e4\u00f6", "b"]]),
    "a merge of three": set_in(["model", "merges"], [["a", "b", "c"]]),
    "merges that are numbers": set_in(["model", "merges"], [3]),
    "no merges": set_in(["model", "merges"], []),
    "a merge twice": lambda document: document["model"]["merges"].append(
        document["model"]["merges"][0]),
    "a token that grows and grows": set_in(
        ["model", "merges"], [["a" * 2 ** n, "a" * 2 ** n] for n in range(12)]),
}


@pytest.mark.parametrize("kind, damage", [(kind, name) for kind in LEARNT for name in DAMAGES] + [
    ("bpe", name) for name in BPE_DAMAGES])
def test_a_damaged_file_gets_one_line(kind, damage, tmp_path):
    document = tokenizers.learn(kind, ["ab!ab!"]).document()
    {**DAMAGES, **BPE_DAMAGES}[damage](document)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 200_000, b'{"model": ' * 200_000, b"null",
    b'{"type": "tiktoken", "encoding": "../../x"}', b'{"type": "tiktoken"}'], ids=repr)
def test_a_file_that_is_something_else_gets_one_line(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        tokenizers.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_file_that_is_not_there_or_too_large_gets_one_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="gone.json: .*No such file"):
        tokenizers.load(tmp_path / "gone.json")
    path = tmp_path / "tokenizer.json"
    tokenizers.learn("char", ["ab"]).save(path)
    monkeypatch.setattr(base, "LARGEST_FILE", 100)
    with pytest.raises(ValueError, match="it is larger than 100 bytes"):
        tokenizers.load(path)


def test_a_file_of_another_kind_is_not_loaded_as_this_one(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizers.learn("word", ["ab"]).save(path)
    with pytest.raises(ValueError, match="not that of a bpe|is damaged"):
        tokenizers.BPETokenizer.load(path)


# ---- merges kept for the next run

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_merges_are_learned_once(cache, monkeypatch):
    documents = ["abab abab", "cdcd"]
    first = tokenizers.learn("bpe", iter(documents), cache=True, merges=2)
    assert first.hash == tokenizers.learn("bpe", documents, merges=2).hash
    kept, = cache.rglob("*.json")
    monkeypatch.setattr(bpe, "learn_merges", lambda *_: pytest.fail("learned anew"))
    for again in (documents, documents[::-1], iter(documents)):
        assert tokenizers.learn("bpe", again, cache=True, merges=2).hash == first.hash
    for other, settings in [
            (documents, {"merges": 3}), (documents, {"merges": 2, "min_count": 1}),
            (["abab abab", "cdce"], {"merges": 2}), (["abab abab cdcd"], {"merges": 2}),
            (["abab ababcdcd", ""], {"merges": 2})]:
        with pytest.raises(pytest.fail.Exception, match="learned anew"):
            tokenizers.learn("bpe", other, cache=True, **settings)
    monkeypatch.setattr(splitting, "SUBWORDS", "[ab]")
    assert learned.cache_path(documents, merges=2, min_count=2) != kept


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_cache_is_learned_anew(cache, content):
    first = tokenizers.learn("bpe", ["abab abab"], cache=True, merges=2)
    kept, = cache.rglob("*.json")
    kept.write_bytes(content)
    assert tokenizers.learn("bpe", ["abab abab"], cache=True, merges=2).hash == first.hash
    assert kept.read_text(encoding="utf-8") == first.to_json()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "file"))
    assert len(tokenizers.learn("bpe", ["abab abab"], cache=True, merges=2).merges) == 2


def test_without_cache_nothing_is_kept(cache):
    tokenizers.learn("bpe", ["abab abab"], merges=2)
    assert not cache.exists()


# ---- pretrained

def stand_in(monkeypatch, get_encoding):
    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding=get_encoding))


def test_without_tiktoken_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(tokenizers.NotInstalled, match="not installed: pip install tiktoken; bpe "):
        tokenizers.learn("pretrained", [])


def test_a_vocabulary_that_cannot_be_downloaded_gets_one_line(monkeypatch):
    def offline(name):
        raise ConnectionError("no route\nto host")
    stand_in(monkeypatch, offline)
    with pytest.raises(ValueError, match=r"gpt2 cannot be downloaded \(ConnectionError: no ro"):
        tokenizers.learn("pretrained", [])
    with pytest.raises(ValueError, match="vocabulary is 'gpt5': it takes gpt2, r50k_base, "):
        tokenizers.learn("pretrained", [], vocabulary="gpt5")


def local_encoding(name="gpt2", merges=()):
    """Returns a tiktoken encoding of the bytes, some merges, and <|end|> after a gap in the ids."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks.update({token: 256 + i for i, token in enumerate(merges)})
    return tiktoken.Encoding(name, pat_str=r"\s?\w+|\s|[^\s\w]+", mergeable_ranks=ranks,
                             special_tokens={"<|end|>": 300})


def test_pretrained_is_an_encoding_and_one_token_more(tmp_path, monkeypatch):
    changed, first = (local_encoding(merges=[b"th", b"the", last]) for last in (b" thy", b" the"))
    encodings = [first]
    stand_in(monkeypatch, lambda name: encodings[-1])
    tokenizer = tokenizers.learn("pretrained", ["not learned from"])
    assert (tokenizer.vocab_size, tokenizer.bos) == (302, 301)
    assert tokenizer.encode(" the") == [258]
    for text in [*SPICE, "".join(SPICE), "<|end|>", "a \ud800"]:
        assert tokenizer.decode(tokenizer.encode(text)) == base.well_formed(text)
    assert tokenizer.decode([300, 299, 301, 258]) == "<|end|> the"  # 299 is a gap
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = tokenizers.load(path)
    assert loaded.hash == tokenizer.hash and loaded.encode(" the") == [258]
    encodings.append(changed)
    with pytest.raises(ValueError, match="'sha256' is not that of a pretrained tokenizer"):
        tokenizers.load(path)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(tokenizers.NotInstalled, match="tokenizer.json: .*pip install tiktoken"):
        tokenizers.load(path)
