"""Texts to documents, and documents to a part to learn from and a part to be tested on.

A list (names, one a line) is read as documents: shuffled once with the run's generator, as in
microgpt.py, and split behind that. Prose is read as one stream, and its end is held out.
"""
import collections
import re
from array import array
from dataclasses import dataclass
from typing import List

MODES = ("auto", "lines", "paragraphs", "stream")
BLANK_SHARE, LONG_LINE = 0.02, 60  # more blank lines, or a longer median line, and it is prose
JUDGED = 10_000_000  # characters that `auto` looks at

Choice = collections.namedtuple("Choice", "mode reason")


def choose_mode(texts, wanted="auto"):
    """Returns how to read the texts, one of MODES but auto, and the reason as a line to print.

    >>> choose_mode(["anna\\nbob\\n"])
    Choice(mode='lines', reason='0 % of the lines blank, median line of 3 characters: a document \
a line; --documents stream|paragraphs chooses otherwise')
    """
    if wanted not in MODES:
        raise ValueError(f"--documents {wanted}: it takes {', '.join(MODES)}")
    if wanted != "auto":
        return Choice(wanted, f"--documents {wanted}")
    lengths = collections.Counter()
    left = JUDGED
    for text in texts:
        text = text[:left].strip("\n")
        left -= len(text)
        if text:
            lengths.update(len(line.strip()) for line in text.split("\n"))
        if left <= 0:
            break
    count = max(1, sum(lengths.values()))
    blank = lengths.pop(0, 0) / count  # the median is that of the others
    median = median_of(lengths)
    mode = "stream" if blank > BLANK_SHARE or median > LONG_LINE else "lines"
    read = "one stream" if mode == "stream" else "a document a line"
    others = "lines|paragraphs" if mode == "stream" else "stream|paragraphs"
    return Choice(mode, f"{100 * blank:.2g} % of the lines blank, median line of {median} "
                  f"characters: {read}; --documents {others} chooses otherwise")


def median_of(counts):
    """Returns the median of whole numbers, given how often each occurs; the lower of two."""
    middle = (sum(counts.values()) + 1) // 2
    for value in sorted(counts):
        middle -= counts[value]
        if middle <= 0:
            return value
    return 0


def iterate_documents(pieces, mode):
    """Yields the documents of one text that comes in pieces; a document may lie across them.

    lines: the lines that are not blank, without the space around them. paragraphs: what stands
    between blank lines. stream: the pieces as they are.
    """
    if mode == "stream":
        yield from (piece for piece in pieces if piece)
        return
    separator = re.compile(r"\n" if mode == "lines" else r"\n[^\S\n]*\n\s*")
    waiting = ""
    for piece in pieces:
        waiting += piece
        # note: a blank line at the very end may go on in the next piece; what it ends does not
        *whole, waiting = separator.split(waiting)
        yield from filter(None, map(str.strip, whole))
    if waiting.strip():
        yield waiting.strip()


def split_documents(texts, mode):
    """Returns the documents of the texts, in order; of a stream, the texts themselves."""
    return [document for text in texts for document in iterate_documents([text], mode)]


def join_stream(texts):
    """Returns texts as one stream, with a blank line between two; a lone one is as it was.

    >>> join_stream(["a", "b\\n", "c"])
    'a\\n\\nb\\n\\nc'
    """
    whole = []
    for text in filter(None, texts):
        if whole:
            whole.append("\n" if whole[-1].endswith("\n") else "\n\n")
        whole.append(text)
    return "".join(whole)


def joined_pieces(texts):
    """Yields the pieces of all texts, each an iterable of pieces, as join_stream joins them."""
    last = ""
    for pieces in texts:
        first = True
        for piece in filter(None, pieces):
            if first and last:
                yield "\n" if last == "\n" else "\n\n"
            yield piece
            first, last = False, piece[-1]


def without_duplicates(documents):
    """Returns the documents without those that came before, exactly the same."""
    return list(dict.fromkeys(documents))


def training_share(count, val_fraction, what):
    """Returns how many of `count` documents, or characters, stay for training; ValueError if none.

    One at least stays, and one at least is held out, unless val_fraction is 0.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"--val-fraction {val_fraction}: it takes 0 or more, below 1")
    if not val_fraction:
        return count
    if count < 2:
        raise ValueError(f"there are too few {what}, {count}, to hold out some with --val-fraction "
                         f"{val_fraction:g}; give more text, or --val-fraction 0")
    return min(max(1, int(count * (1 - val_fraction))), count - 1)


def between_words(text, cut, most=200):
    """Returns the first place from cut on that is in no word, so that no tokenizer loses one.

    Behind a word, that is: before a space or a sign. In a text without such, it is the cut itself.
    """
    for place in range(cut, min(len(text), cut + most)):
        if text[place - 1].isalnum() and (text[place].isspace() or text[place] in ".,;:!?"):
            return place
    return cut


@dataclass(frozen=True)
class Corpus:
    """What a run learns from and what it is tested on: documents, or of a stream one text each."""
    mode: str
    reason: str
    train: List[str]
    validation: List[str]  # empty with val_fraction 0
    removed: int = 0  # duplicates

    @property
    def is_stream(self):
        return self.mode == "stream"

    @property
    def documents(self):
        """All of it: what the vocabulary is made from."""
        return self.train + self.validation


def prepare(texts, rng, mode="auto", val_fraction=0.0, dedupe=False):
    """Returns the Corpus of some texts. rng: the run's generator, which shuffles documents once.

    A stream draws nothing from it. dedupe: of documents that are exactly the same, the first stays;
    in a stream, of whole texts. ValueError: no text, or too little to hold some out.
    """
    texts = list(texts)
    mode, reason = choose_mode(texts, mode)
    documents = split_documents(texts, mode)
    if not any(document.strip() for document in documents):
        raise ValueError("there is no text to learn from; give --data a text of at least one line")
    found = len(documents)
    if dedupe:
        documents = without_duplicates(documents)
    removed = found - len(documents)
    if mode == "stream":
        text = join_stream(documents)
        cut = training_share(len(text), val_fraction, "characters")
        cut = between_words(text, cut) if cut < len(text) else cut
        return Corpus(mode, reason, [text[:cut]], [text[cut:]] if text[cut:] else [], removed)
    rng.shuffle(documents)
    cut = training_share(len(documents), val_fraction, "documents")
    return Corpus(mode, reason, documents[:cut], documents[cut:], removed)


def encode(documents, tokenizer, is_stream):
    """Returns tokens: of documents a list each, BOS at both ends, of a stream one flat array."""
    if is_stream:
        tokens = array(token_type(tokenizer.vocab_size))
        for text in documents:
            tokens.extend(tokenizer.encode(text))
        return tokens
    bos = tokenizer.bos
    return [[bos, *tokenizer.encode(document), bos] for document in documents]


def token_type(vocab_size):
    """Returns the array type of tokens, "H" or "I": two bytes where all of them fit, else four."""
    return "H" if vocab_size <= 1 << 16 else "I"


@dataclass(frozen=True)
class Statistics:
    """What a corpus is like; str() is a line to print."""
    documents: int
    characters: int
    tokens: int  # BOS too
    longest: int  # tokens of a document between its BOS
    cut: float  # share of the documents that are longer than block_size, and so are seen in parts
    duplicates: int  # documents that came before
    is_stream: bool = False

    def __str__(self):
        if self.is_stream:
            return f"one stream of {self.characters:,} characters, {self.tokens:,} tokens"
        same = f", {self.duplicates:,} of them seen before" if self.duplicates else ""
        cut = (f"; {100 * self.cut:.3g} % are longer than block_size: a step sees a random part"
               if self.cut else "")
        return (f"{self.documents:,} documents{same}, {self.characters:,} characters, "
                f"{self.tokens:,} tokens, {self.longest:,} in the longest{cut}")


def statistics(documents, tokens, block_size, is_stream=False):
    """Returns the Statistics of documents and of what encode() made of them."""
    characters = sum(map(len, documents))
    if is_stream:
        return Statistics(len(documents), characters, len(tokens), len(tokens), 0.0, 0, True)
    lengths = [len(document) for document in tokens]
    longer = sum(length > block_size + 1 for length in lengths)
    return Statistics(len(documents), characters, sum(lengths), max(lengths) - 2,
                      longer / len(lengths), len(documents) - len(set(documents)))
