"""Tokens on disk, for a text larger than memory: written once, in pieces, then memory-mapped.

The file: a header of 128 bytes, the tokens, each of 2 bytes where the whole vocabulary fits and of
4 where it does not, then, of documents, where each begins (8 bytes each). It is written under
another name and renamed, so a run that is interrupted leaves none, and the next starts clean.
It is a cache: numbers are in the machine's own byte order, and another's is refused.
"""
import collections
import mmap
import os
import struct
import sys
import time
from array import array
from pathlib import Path

from microgpt.corpus.decode import stream_pieces
from microgpt.corpus.documents import (iterate_documents, joined_pieces, token_type,
                                       training_share)

MAGIC, VERSION, ORDER = b"MGPTOKEN", 1, 0x01020304
# magic, byte order, version, bytes a token, vocabulary, tokens, documents, two digests
HEADER = struct.Struct("=8sIII4xQQQ32s32s")
HEADER_SIZE = 128
RELEASE_EVERY = 256  # accesses; each may bring some 64 KB of the file into memory

Header = collections.namedtuple("Header", "width vocab_size count documents tokenizer source")


def write_tokens(path, texts, tokenizer, mode, *, tokenizer_hash, source_hash, total=None,
                 progress=None, clock=time.monotonic):
    """Writes the tokens of texts to a file, in memory for some pieces of them only.

    texts: an iterable of texts, each an iterable of pieces (Source.pieces()). mode: as in
    documents.py; of lines and paragraphs, each document has BOS at both ends. The hashes, of 64
    hexadecimal digits, tell later whether the file still fits. progress(bytes done, total, seconds
    left) is called after each piece. ValueError: a token outside the vocabulary, a full disk; then,
    as after Ctrl-C, nothing is left behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    parts = [path.parent / f".{path.name}.{os.getpid()}.{end}" for end in ("tokens", "starts")]
    meter = Meter(total, progress, clock)
    try:
        with open(parts[0], "w+b") as out, open(parts[1], "w+b") as starts:
            out.write(bytes(HEADER_SIZE))
            if mode == "stream":
                count, documents = write_stream(out, texts, tokenizer, meter), 0
            else:
                count, documents = write_documents(out, starts, texts, tokenizer, mode, meter)
                out.write(bytes(-out.tell() % 8))  # so that the starts are aligned
                starts.seek(0)
                for piece in iter(lambda: starts.read(1 << 20), b""):
                    out.write(piece)
            out.seek(0)
            width = array(token_type(tokenizer.vocab_size)).itemsize
            out.write(HEADER.pack(MAGIC, ORDER, VERSION, width, tokenizer.vocab_size, count,
                                  documents, bytes.fromhex(tokenizer_hash),
                                  bytes.fromhex(source_hash)))
            out.flush()
            os.fsync(out.fileno())
        os.replace(parts[0], path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; free some space, or let "
                         "MICROGPT_CACHE name a folder on another disk") from None
    finally:
        for part in parts:
            if part.exists():
                part.unlink()


def remove_stale(path):
    """Removes what a run that was killed has left, but nothing of one that is at work now."""
    for part in path.parent.glob(f".{path.name}.*.*"):
        try:
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink()
        except OSError:
            pass


class Meter:
    """Counts bytes of text, and tells how long the rest will take."""

    def __init__(self, total, progress, clock):
        self.total, self.progress, self.clock = total, progress, clock
        self.done, self.start = 0, clock()

    def count(self, pieces):
        """Yields the pieces; each counts when the next is asked for, that is, when it is done."""
        for piece in pieces:
            yield piece
            self.done += len(piece.encode("utf-8", "surrogatepass"))
            if self.progress:
                left = max(0, (self.total or self.done) - self.done)
                self.progress(self.done, self.total,
                              (self.clock() - self.start) / max(1, self.done) * left)


def pack(tokens, tokenizer):
    """Returns tokens as an array of their width; ValueError for one outside the vocabulary."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < tokenizer.vocab_size:
        raise ValueError(f"the tokenizer gave token {max(tokens)}, and its vocab_size is "
                         f"{tokenizer.vocab_size}; it is damaged, or not the one of this text")
    return array(token_type(tokenizer.vocab_size), tokens)


def write_stream(out, texts, tokenizer, meter):
    """Writes all texts as one stream, a blank line between two; returns how many tokens."""
    count = 0
    for piece in stream_pieces(meter.count(joined_pieces(texts))):
        tokens = pack(tokenizer.encode(piece), tokenizer)
        tokens.tofile(out)
        count += len(tokens)
    return count


def write_documents(out, starts, texts, tokenizer, mode, meter):
    """Writes each document with BOS around it; returns how many tokens and documents."""
    count, documents, bos = 0, 0, tokenizer.bos
    tokens, begins = [], array("Q")
    for pieces in texts:
        for document in iterate_documents(meter.count(pieces), mode):
            begins.append(count + len(tokens))
            tokens += [bos, *tokenizer.encode(document), bos]
            if len(tokens) > 1 << 16:
                pack(tokens, tokenizer).tofile(out)
                begins.tofile(starts)
                count, documents = count + len(tokens), documents + len(begins)
                tokens, begins = [], array("Q")
    pack(tokens, tokenizer).tofile(out)
    begins.tofile(starts)
    starts.flush()
    return count + len(tokens), documents + len(begins)


class TokenFile:
    """The tokens of a file as a sequence: len(), and slices as arrays; never all in memory at once.

    ValueError for a file that is damaged or of another machine. A part of it, as part(a, b), is
    such a sequence too.
    """

    def __init__(self, path):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            self.header = read_header(self.path, file)
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.type = token_type(self.header.vocab_size)
        self.start, self.stop, self.reads = 0, self.header.count, 0

    def part(self, start, stop):
        """Returns tokens start to stop of this one as a sequence of its own."""
        part = TokenFile(self.path)
        part.start = min(self.start + start, self.stop)
        part.stop = min(self.start + stop, self.stop)
        return part

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step < 0:
                return self[:][index]
            return self.read(start, max(start, stop))[::step]
        index = range(len(self))[index]  # counts from the end where it is negative, or IndexError
        return self.read(index, index + 1)[0]

    def read(self, start, stop):
        """Returns tokens start to stop as an array."""
        width, tokens = self.header.width, array(self.type)
        begin = HEADER_SIZE + (self.start + start) * width
        tokens.frombytes(self.map[begin:begin + (stop - start) * width])
        self.reads += 1
        if self.reads >= RELEASE_EVERY:
            self.release()
        return tokens

    def view(self):
        """Returns all tokens as a memoryview of the map, for whoever copies them elsewhere."""
        width = self.header.width
        begin = HEADER_SIZE + self.start * width
        return memoryview(self.map)[begin:begin + len(self) * width].cast(self.type)

    def document_start(self, number):
        """Returns where a document begins; of the one behind the last, where all end."""
        if number == self.header.documents:
            return self.header.count
        begin = starts_at(self.header) + 8 * number
        self.reads += 1
        return int.from_bytes(self.map[begin:begin + 8], sys.byteorder)

    def release(self):
        """Gives the memory of what was read back: pages of a map stay until somebody does so."""
        self.reads = 0
        if hasattr(self.map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)
        else:  # not on Windows; a new map begins empty
            with open(self.path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class DocumentFile:
    """The documents of a TokenFile in a given order, as lists of tokens, BOS around each."""

    def __init__(self, tokens, order):
        self.tokens, self.order = tokens, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        number = self.order[index]
        start, stop = (self.tokens.document_start(number + i) for i in (0, 1))
        return self.tokens.read(start, stop).tolist()


def starts_at(header):
    """Returns where in the file the beginnings of the documents are: behind the tokens, aligned."""
    return HEADER_SIZE + -(-header.count * header.width // 8) * 8


def read_header(path, file):
    """Returns the Header of an open file; ValueError if it is none, or the file is cut short."""
    data = file.read(HEADER_SIZE)
    advice = "remove it, and it is written anew"
    if len(data) < HEADER_SIZE or not data.startswith(MAGIC):
        raise ValueError(f"{path} is no file of tokens, or a damaged one; {advice}")
    _, order, version, *rest = HEADER.unpack(data[:HEADER.size])
    if order != ORDER:
        raise ValueError(f"{path} was written on another kind of machine; {advice}")
    if version != VERSION:
        raise ValueError(f"{path} has version {version}, and this is version {VERSION}; {advice}")
    header = Header(*rest[:4], rest[4].hex(), rest[5].hex())
    if header.width != array(token_type(header.vocab_size)).itemsize:
        raise ValueError(f"{path} has {header.width} bytes a token, which a vocabulary of "
                         f"{header.vocab_size} has not: it is damaged; {advice}")
    expected = HEADER_SIZE + header.count * header.width
    if header.documents:
        expected = starts_at(header) + 8 * header.documents
    size = os.fstat(file.fileno()).st_size
    if size != expected:
        raise ValueError(f"{path} has {size} bytes, and its header says {expected}: it is damaged; "
                         f"{advice}")
    return header


def open_tokens(path, texts, tokenizer, mode, *, tokenizer_hash, source_hash, **settings):
    """Returns the TokenFile at path, written first where none is there that fits; see write_tokens.
    """
    try:
        tokens = TokenFile(path)
        if (tokens.header.tokenizer, tokens.header.source) == (tokenizer_hash, source_hash):
            return tokens
    except (OSError, ValueError):
        pass  # none yet, or a damaged one: it can be written again
    write_tokens(path, texts, tokenizer, mode, tokenizer_hash=tokenizer_hash,
                 source_hash=source_hash, **settings)
    return TokenFile(path)


def split_tokens(tokens, mode, rng, val_fraction=0.0):
    """Returns what to train on and what to hold out of a TokenFile, as documents.prepare() has it.

    Of documents the order is that of the same documents in memory, for 4 bytes of memory each.
    """
    if mode == "stream":
        cut = training_share(len(tokens), val_fraction, "tokens")
        return tokens.part(0, cut), tokens.part(cut, len(tokens))
    order = array("I", range(tokens.header.documents))
    rng.shuffle(order)
    cut = training_share(len(order), val_fraction, "documents")
    return DocumentFile(tokens, order[:cut]), DocumentFile(tokens, order[cut:])
