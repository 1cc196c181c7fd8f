"""Tokens on disk: the same as in memory, in little memory, and damaged files are known as such."""
import os
import random
import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from conftest import ROOT
from microgpt.corpus import binary, decode, documents
from microgpt.corpus.batches import document_batch, stream_batch
from microgpt.corpus.binary import TokenFile, open_tokens, split_tokens, write_tokens
from microgpt.corpus.decode import stream_pieces
from strategies import many, some

HASHES = {"tokenizer_hash": "ab" * 32, "source_hash": "cd" * 32}


class Letters:
    """A token a code point; as large a vocabulary as asked for."""

    def __init__(self, vocab_size=1000):
        self.vocab_size, self.bos = vocab_size, vocab_size - 1

    def encode(self, text):
        return [ord(char) for char in text]


def in_pieces(text, size):
    return (text[i:i + size] for i in range(0, len(text), size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@some
@given(st.lists(st.text("ab \n", max_size=50), min_size=1, max_size=3), st.integers(1, 20),
       st.sampled_from(["lines", "paragraphs", "stream"]), st.sampled_from([1000, 65_536, 65_537]))
def test_on_disk_is_what_is_in_memory(folder, texts, size, mode, vocab_size):
    tokenizer = Letters(vocab_size)
    write_tokens(folder / "a", [in_pieces(text, size) for text in texts], tokenizer, mode, **HASHES)
    if mode == "stream":
        expected = documents.encode([documents.join_stream(texts)], tokenizer, True)
        with_file = TokenFile(folder / "a") if len(expected) else None
        assert with_file is None or with_file[:] == expected
        return
    expected = documents.split_documents(texts, mode)
    if expected:
        on_disk, nothing = split_tokens(TokenFile(folder / "a"), mode, random.Random(7))
        random.Random(7).shuffle(expected)
        assert list(on_disk) == documents.encode(expected, tokenizer, False)
        assert len(on_disk) == len(expected) and len(nothing) == 0


@pytest.mark.parametrize("vocab_size, width", [(65_536, 2), (65_537, 4), (200_000, 4)])
def test_the_width_follows_from_the_vocabulary(tmp_path, vocab_size, width):
    last = vocab_size - 1
    tokenizer = Letters(vocab_size)
    tokenizer.encode = lambda text: [0, last, last - 1]
    write_tokens(tmp_path / "a", [["x"]], tokenizer, "stream", **HASHES)
    tokens = TokenFile(tmp_path / "a")
    assert tokens.header == (width, vocab_size, 3, 0, "ab" * 32, "cd" * 32)
    assert list(tokens) == [0, last, last - 1]  # never wrapped
    assert (tmp_path / "a").stat().st_size == binary.HEADER_SIZE + 3 * width


@pytest.mark.parametrize("token", [1000, -1, 70_000])
def test_a_token_outside_the_vocabulary(tmp_path, token):
    tokenizer = Letters()
    tokenizer.encode = lambda text: [1, token]
    with pytest.raises(ValueError, match="and its vocab_size is 1000; it is damaged"):
        write_tokens(tmp_path / "a", [["x"]], tokenizer, "stream", **HASHES)
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_sequence(tmp_path):
    write_tokens(tmp_path / "a", [["abcdefghij"]], Letters(), "stream", **HASHES)
    tokens, expected = TokenFile(tmp_path / "a"), list(b"abcdefghij")
    assert len(tokens) == 10 and list(tokens) == expected
    for index in (slice(2, 5), slice(-3, None), slice(5, 2), slice(None, None, 3),
                  slice(None, None, -2), slice(8, 99)):
        assert list(tokens[index]) == expected[index]
    assert (tokens[0], tokens[-1]) == (expected[0], expected[-1])
    for index in (10, -11):
        with pytest.raises(IndexError):
            tokens[index]
    assert tokens.view().tolist() == expected and tokens.view().format == "H"
    part = tokens.part(3, 8).part(1, 99)
    assert list(part) == expected[4:8] and part.view().tolist() == expected[4:8]


def test_the_split_of_a_stream_and_its_batches(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    write_tokens(tmp_path / "a", [[text]], Letters(), "stream", **HASHES)
    train, held_out = split_tokens(TokenFile(tmp_path / "a"), "stream", random.Random(0), 0.1)
    assert (len(train), len(held_out)) == (900, 100)
    assert bytes(list(train) + list(held_out)).decode() == text
    assert stream_batch(train, 3, 5, 8, 42) == stream_batch(list(train), 3, 5, 8, 42)
    assert all(type(window) is list for window in stream_batch(train, 3, 5, 8, 42))


def test_the_split_of_documents_and_their_batches(tmp_path):
    text = "".join(f"{'x' * (i % 30)}{i}\n" for i in range(200))
    write_tokens(tmp_path / "a", [[text]], Letters(), "lines", **HASHES)
    parts = split_tokens(TokenFile(tmp_path / "a"), "lines", random.Random(42), 0.1)
    corpus = documents.prepare([text], random.Random(42), "lines", 0.1)
    for part, expected in zip(parts, (corpus.train, corpus.validation)):
        expected = documents.encode(expected, Letters(), False)
        assert list(part) == expected
        assert document_batch(part, 5, 7, 8, 42) == document_batch(expected, 5, 7, 8, 42)


def resident():
    """Returns how many bytes of files this process has in memory, where the system says so."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if "RssFile" in line)
    except (OSError, StopIteration):
        pytest.skip("this system does not tell")


@pytest.mark.parametrize("has_madvise", [True, False])
def test_reading_all_of_a_file_keeps_little_of_it(tmp_path, monkeypatch, has_madvise):
    if not has_madvise:
        monkeypatch.delattr(binary.mmap, "MADV_DONTNEED", raising=False)
    tokenizer = Letters()
    tokenizer.encode = lambda text: range(1000)
    monkeypatch.setattr(binary, "pack", lambda tokens, _: array("H", tokens) * 1000)
    write_tokens(tmp_path / "a", [["x" * 2 ** 20 + "\n"] * 40], tokenizer, "stream", **HASHES)
    tokens = TokenFile(tmp_path / "a")
    assert len(tokens) >= 40_000_000  # 80 MB
    before = resident()
    for start in range(0, len(tokens), 20_000):
        assert tokens[start] == start % 1000
    assert resident() - before < 40_000_000


@pytest.mark.parametrize("has_madvise", [True, False])
def test_memory_of_the_map_is_given_back(tmp_path, monkeypatch, has_madvise):
    if not has_madvise:
        monkeypatch.delattr(binary.mmap, "MADV_DONTNEED", raising=False)
    write_tokens(tmp_path / "a", [["abc" * 1000]], Letters(), "stream", **HASHES)
    tokens = TokenFile(tmp_path / "a")
    view, released = tokens.view(), []
    release = tokens.release
    monkeypatch.setattr(tokens, "release", lambda: released.append(release()))
    for step in range(3 * binary.RELEASE_EVERY):
        assert list(tokens[step:step + 3]) == list((b"abc" * 2)[step % 3:step % 3 + 3])
    assert len(released) == 3 and view[:3].tolist() == list(b"abc")


# ---- pieces of a stream

@many
@given(st.lists(st.sampled_from(["a", "word", " ", "\n", "\n\n", ".", "\n  ", "é"]), max_size=80)
       .map("".join), st.integers(1, 12), st.integers(1, 12))
def test_pieces_of_a_stream(text, size, read):
    pieces = list(stream_pieces(in_pieces(text, read), size))
    assert "".join(pieces) == text and all(pieces)
    assert all(len(piece) <= 4 * size for piece in pieces)


@many
@given(st.lists(st.sampled_from(["anna", "it's", " b", "12", ".", "!\n", "é"]), min_size=1,
                max_size=6).map("".join).filter(lambda line: line.strip() == line),
       st.integers(2, 40))
def test_cut_where_no_tokenizer_joins(line, count):
    """Encoded in pieces, prose in lines and in paragraphs gives the tokens of the whole."""
    tokenizers = pytest.importorskip("microgpt.tokenizers")
    for end in ("\n", ".\n", "\n\n"):
        text = (line + end) * count
        for kind in ("char", "word", "bpe"):
            tokenizer = tokenizers.learn(kind, [text], **({"merges": 20} if kind == "bpe" else {}))
            pieces = list(stream_pieces([text], 2 * len(line)))
            if end == "\n\n" and not line[-1].isalnum():
                continue  # such a text has no safe place; see stream_pieces
            tokens = [token for piece in pieces for token in tokenizer.encode(piece)]
            assert tokens == tokenizer.encode(text)


def test_the_last_safe_place_is_taken():
    assert list(stream_pieces(["ab\ncd.\n\nef.\n\ngh"], 12)) == ["ab\n", "cd.\n\nef.\n\ngh"]
    assert list(stream_pieces(["ab\ncd\n\nef.\n\ngh"], 12)) == ["ab\n", "cd\n\nef.\n\ngh"]
    assert list(stream_pieces(["ab.\n cd\n\nef.\n\ngh"], 12)) == ["ab.\n cd", "\n\nef.\n\ngh"]


def test_a_line_without_end_is_cut():
    assert list(map(len, stream_pieces(["x" * 95], 10))) == [40, 40, 15]
    assert list(stream_pieces(["word " * 12], 10)) == ["word " * 8, "word " * 4]


# ---- interrupted, full, damaged

def test_an_interruption_leaves_nothing(tmp_path):
    def pieces():
        yield "abc\n"
        assert len(list(tmp_path.iterdir())) == 2  # being written
        raise KeyboardInterrupt
    for mode in ("stream", "lines"):
        with pytest.raises(KeyboardInterrupt):
            write_tokens(tmp_path / "a", [pieces()], Letters(), mode, **HASHES)
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    old, new = tmp_path / ".a.1.tokens", tmp_path / ".a.2.tokens"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    write_tokens(tmp_path / "a", [["abc"]], Letters(), "stream", **HASHES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.2.tokens", "a"]


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(binary.os, "fsync", full)
    with pytest.raises(ValueError, match="a: No space left on device; free some space, or let"):
        write_tokens(tmp_path / "a", [["abc"]], Letters(), "stream", **HASHES)
    assert list(tmp_path.iterdir()) == []


def test_written_once(tmp_path):
    calls = []
    tokenizer = Letters()
    tokenizer.encode = lambda text: calls.append(text) or list(text.encode())

    def get(source_hash="cd" * 32):
        return list(open_tokens(tmp_path / "a", [["abc"]], tokenizer, "stream",
                                tokenizer_hash="ab" * 32, source_hash=source_hash))
    assert get() == get() == list(b"abc") and len(calls) == 1
    get("ef" * 32)  # other data
    assert len(calls) == 2
    (tmp_path / "a").write_bytes(b"damaged")
    assert get() == list(b"abc") and len(calls) == 3


def damage(at, data):
    return lambda whole: whole[:at] + data + whole[at + len(data):]


DAMAGES = {
    "empty": (lambda whole: b"", "is no file of tokens, or a damaged one; remove it"),
    "cut in the header": (lambda whole: whole[:100], "is no file of tokens"),
    "something else": (lambda whole: b"x" * 500, "is no file of tokens"),
    "another machine": (lambda whole: whole[:8] + whole[8:12][::-1] + whole[12:],
                        "another kind of machine"),
    "another version": (damage(12, b"\x63\0\0\0"), "has version 99, and this is version 1"),
    "another width": (damage(16, b"\4\0\0\0"),
                      "has 4 bytes a token, which a vocabulary of 1000 has not"),
    "cut": (lambda whole: whole[:-1], "bytes, and its header says [0-9]+: it is damaged; remove"),
    "longer": (lambda whole: whole + b"x", "bytes, and its header says"),
    "another count": (damage(32, b"\xff" * 8), "bytes, and its header says"),
}


@pytest.mark.parametrize("change, message", DAMAGES.values(), ids=list(DAMAGES))
@pytest.mark.parametrize("mode", ["stream", "lines"])
def test_damaged_files(tmp_path, change, message, mode):
    if sys.byteorder != "little":
        pytest.skip("the damages are those of a little-endian file")
    path = tmp_path / "a"
    write_tokens(path, [["abc\nde\n"]], Letters(), mode, **HASHES)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        TokenFile(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


# ---- large files

def test_progress_and_the_time_left(tmp_path):
    times, seen = iter(range(0, 100, 10)), []
    write_tokens(tmp_path / "a", [["ab\n"] * 4], Letters(), "lines", total=12,
                 clock=lambda: next(times), progress=lambda *values: seen.append(values), **HASHES)
    assert seen == [(3, 12, 30.0), (6, 12, 20.0), (9, 12, 10.0), (12, 12, 0.0)]


ENCODE = """
import random, sys
sys.path.insert(0, {root!r})
import microgpt
from microgpt.corpus import batches, binary, sources
mode = {mode!r}
source, = sources.gather([{text!r}]).sources
tokenizer = microgpt.CharTokenizer(["".join(map(chr, range(32, 127))) + "\\n"])
tokens = binary.open_tokens({path!r}, [source.pieces()], tokenizer, mode, tokenizer_hash="00" * 32,
                            source_hash=source.provenance["sha256"])
train, held_out = binary.split_tokens(tokens, mode, random.Random(42), 0.1)
batch = batches.stream_batch if mode == "stream" else batches.document_batch
total = 0
for step in range(2000):
    total += sum(map(len, batch(train, step, 16, 64, 42)))
try:
    with open("/proc/self/status") as status:
        peak = [int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")][0]
except OSError:
    peak = 0
print(len(tokens), total, peak)
"""


def encode_in_a_process(tmp_path, megabytes, mode):
    """Returns how many tokens there are, in batches, and the peak of memory in MB."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))
             for _ in range(1000)]
    block = "".join(" ".join(rng.choices(words, k=9)) + ".\n" for _ in range(20_000))
    text = tmp_path / "large.txt"
    with open(text, "w", encoding="utf-8", newline="\n") as file:
        for _ in range(megabytes * 1_000_000 // len(block) + 1):
            file.write(block)
    code = ENCODE.format(root=str(ROOT), text=str(text), path=str(tmp_path / "tokens"), mode=mode)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    count, seen, peak = done.stdout.split()
    lines = text.stat().st_size // len(block) * 20_000
    assert int(count) == text.stat().st_size + (lines if mode == "lines" else 0)
    return int(seen), float(peak)


@pytest.mark.parametrize("mode", ["lines", "stream"])
def test_10_mb_are_encoded_in_little_memory(tmp_path, mode):
    seen, peak = encode_in_a_process(tmp_path, 10, mode)
    assert peak < 200
    assert seen == 2000 * 16 * 65 or mode == "lines" and seen > 2000 * 16 * 30


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lines", "stream"])
def test_300_mb_are_encoded_in_little_memory(tmp_path, mode):
    _, peak = encode_in_a_process(tmp_path, 300, mode)
    assert peak < 200


def test_a_file_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    """From the file to tokens, through all the pieces, with sizes that make many of them."""
    from microgpt.corpus import sources
    monkeypatch.setattr(sources, "WHOLE", 1000)
    text = "".join(f"line {i} of é\n" * (1 + i % 3) + "\n" * (i % 2) for i in range(3000))
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    pieces = list(decode.decode_pieces(open(tmp_path / "t.txt", "rb"), size=777))
    assert len(pieces) > 50
    for mode in ("stream", "paragraphs"):
        source, = sources.gather([tmp_path / "t.txt"]).sources
        write_tokens(tmp_path / "a", [source.pieces()], Letters(), mode, **HASHES)
        whole = documents.encode(documents.split_documents([text], mode), Letters(),
                                 mode == "stream")
        flat = whole if mode == "stream" else array("H", [t for tokens in whole for t in tokens])
        assert TokenFile(tmp_path / "a")[:] == flat


def test_the_tokenizer_of_the_file_will_do(tmp_path):
    tokenizer = microgpt.CharTokenizer(["abc\n"])
    write_tokens(tmp_path / "a", [["ab\nc"]], tokenizer, "lines", **HASHES)
    got, _ = split_tokens(TokenFile(tmp_path / "a"), "lines", random.Random(1))
    assert sorted(tokenizer.decode(tokens[1:-1]) for tokens in got) == ["ab", "c"]
