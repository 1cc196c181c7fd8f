"""The whole way from texts to tokens, the same for a text in memory and for one that is too large.

    gathered = gather(["book.txt"])
    data = load(gathered, CharTokenizer.learn, random.Random(42), val_fraction=0.1)
    data.batch(step=0, batch_size=4, block_size=64, seed=42)

A text up to LARGE is encoded in memory. A larger one is encoded once, into a file in the cache, and
read from there; the documents, their order and the batches are the same.
"""
import hashlib
from dataclasses import dataclass
from typing import Any, Optional

from microgpt.corpus import batches, binary, documents
from microgpt.corpus.cache import cache_folder
from microgpt.corpus.decode import stream_pieces

LARGE = 50_000_000  # bytes; lists of tokens take some ten times as many


@dataclass(frozen=True)
class Data:
    """What a run learns from and is tested on, in tokens, and how it was made from the texts."""
    mode: str
    reason: str
    tokenizer: Any
    train: Any  # documents: lists of tokens; a stream: one sequence of tokens
    validation: Any  # the same; of length 0 where nothing is held out
    texts: Any  # all documents, to be read as often as needed
    corpus: Optional[documents.Corpus]  # None of a text that is too large for memory
    removed: int = 0  # duplicates

    @property
    def is_stream(self):
        return self.mode == "stream"

    @property
    def tokens_in_memory(self):
        """How many of the tokens to learn from are there; 0 where they are on disk."""
        if not self.corpus:
            return 0
        return len(self.train) if self.is_stream else sum(map(len, self.train))

    def batch(self, step, batch_size, block_size, seed):
        """Returns the batch of a step, a pure function of the seed and the step."""
        make = batches.stream_batch if self.is_stream else batches.document_batch
        return make(self.train, step, batch_size, block_size, seed)

    def check(self, block_size):
        """Raises ValueError where a stream, or the part held out, is too short to be used."""
        if self.is_stream:
            batches.check_stream(len(self.train), block_size)
            if len(self.validation) == 1:
                raise ValueError("--val-fraction holds out a single token, which tests nothing; "
                                 "give more text, a larger --val-fraction, or --val-fraction 0")

    def statistics(self, block_size):
        """Returns what to print of the corpus: documents.Statistics, or less of a large one."""
        if self.corpus:
            tokens = self.train + self.validation
            return documents.statistics(self.corpus.documents, tokens, block_size, self.is_stream)
        if self.is_stream:
            return f"one stream of {len(self.train) + len(self.validation):,} tokens, on disk"
        return f"{len(self.train) + len(self.validation):,} documents, on disk"


class Texts:
    """The documents of sources, read anew each time they are asked for."""

    def __init__(self, sources, mode):
        self.sources, self.mode = sources, mode

    def __iter__(self):
        texts = (source.pieces() for source in self.sources)
        if self.mode == "stream":  # the same pieces as are encoded later: no word is in two
            yield from stream_pieces(documents.joined_pieces(texts))
            return
        for pieces in texts:
            yield from documents.iterate_documents(pieces, self.mode)


def load(gathered, learn, rng, *, mode="auto", val_fraction=0.0, dedupe=False, progress=None,
         large=LARGE):
    """Returns the Data of gathered sources.

    learn: makes a tokenizer of an iterable of documents. rng: the run's generator, which shuffles
    documents once. progress(bytes done, bytes in all, seconds left): while a large text is encoded.
    ValueError: no text, too little to hold some out, or --dedupe of a large text.
    """
    if gathered.size > large:
        return load_large(gathered, learn, rng, mode, val_fraction, dedupe, progress)
    corpus = documents.prepare(gathered.texts(), rng, mode, val_fraction, dedupe)
    tokenizer = learn(corpus.documents)
    train, validation = (documents.encode(part, tokenizer, corpus.is_stream)
                         for part in (corpus.train, corpus.validation))
    return Data(corpus.mode, corpus.reason, tokenizer, train, validation, corpus.documents, corpus,
                corpus.removed)


def load_large(gathered, learn, rng, mode, val_fraction, dedupe, progress):
    """Returns the Data of sources that do not fit in memory: its tokens are in a file."""
    if dedupe:
        raise ValueError(f"--dedupe needs all text in memory, and {gathered.size:,} bytes are too "
                         "many; remove duplicates from the files themselves")
    documents.training_share(2, val_fraction, "documents")  # a mistake, before the long work
    pieces = Texts(gathered.sources, "stream")
    mode, reason = documents.choose_mode(pieces, mode)
    texts = Texts(gathered.sources, mode)
    tokenizer = learn(texts)
    name = hashlib.sha256(f"{mode} {tokenizer.hash} {gathered.sha256}".encode("ascii")).hexdigest()
    tokens = binary.open_tokens(
        cache_folder() / "tokens" / f"{name}.tokens",
        [source.pieces() for source in gathered.sources], tokenizer, mode,
        tokenizer_hash=tokenizer.hash, source_hash=gathered.sha256, total=gathered.size,
        progress=progress)
    train, validation = binary.split_tokens(tokens, mode, rng, val_fraction)
    return Data(mode, reason, tokenizer, train, validation, texts, None)
