"""What guessing and plain counting reach on a text: the losses that a model's is read beside.

Uniform guessing over the characters; counting pairs (a bigram: what follows one character); and
counting what follows the last four, the contexts that text lacks made up for by shorter ones.

With count(h c) the times that c came behind the context h, N(h) the sum of them over c, T(h) the
number of different c among them, h' the context without its first character, and V the characters:

    p(c | h) = (count(h c) + T(h) p(c | h')) / (N(h) + T(h))        p(c | nothing) ends in 1 / V

This is Witten-Bell smoothing, interpolated. The more different characters came behind a context,
the less is what came behind it before believed to be all. Sources: Witten and Bell 1991, "The
zero-frequency problem", method C; Chen and Goodman 1999, "An empirical study of smoothing
techniques for language modeling", section 2.6.

A document's start is a context like any other, four starts in fact, so that its first characters
have one of full length too; its end is one more character. A stream has a start, and no end.
"""
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Tuple

CONTEXT = 4            # characters
LIMIT = 10_000_000     # characters of the training text that are counted, at most
DISTINCT = 1_000_000   # different runs of context and character, about 130 MB: no more are counted
PIECE = 20_000         # characters cut up at a time


@dataclass(frozen=True)
class Baselines:
    """Losses in nats a character, the ends of documents counted as such; str() is a line to print.

    by_context: those of counting with contexts of 0, 1, 2 and so on characters.
    """
    uniform: float
    by_context: Tuple[float, ...]
    characters: int         # predicted
    counted: int            # of the training text
    available: int          # in the training text: more than counted where that was bounded
    on_training_text: bool  # nothing was held out

    @property
    def bigram(self):
        """That of contexts of one character."""
        return self.by_context[1]

    @property
    def ngram(self):
        """That of the longest contexts."""
        return self.by_context[-1]

    def __str__(self):
        where = "on training text" if self.on_training_text else "to beat"
        bits = "" if self.on_training_text else f" ({self.ngram / math.log(2):.2f} bits)"
        return (f"{where}: uniform {self.uniform:.3f}, bigram {self.bigram:.3f}, "
                f"{len(self.by_context)}-gram {self.ngram:.3f} nats{bits} a character")

    @property
    def note(self):
        """What must be known about them, as a line to print below, or ""."""
        notes = []
        if self.on_training_text:
            notes.append("no text is held out, so counting is measured on what it counted")
        if self.counted < self.available:
            notes.append(f"the first {self.counted:,} of {self.available:,} characters are counted")
        return "; ".join(notes)


def baselines(train, held_out, is_stream, limit=LIMIT, context=CONTEXT):
    """Returns the Baselines of counting the documents of train, measured on those of held_out.

    Of a stream, each is a text. Where held_out is empty, they are measured on train. At most
    `limit` characters of train are counted, and of held_out the same share is predicted, both from
    the first on. The characters are those of both, as of a tokenizer, so none has probability 0.

    >>> str(baselines(["anna", "hanna"], ["hannah"], is_stream=False))
    'to beat: uniform 1.386, bigram 1.343, 5-gram 1.378 nats (1.99 bits) a character'
    """
    if limit < 1 or context < 1:
        raise ValueError(f"limit {limit}, context {context}: both take 1 or more")
    available, to_predict = count_targets(train, is_stream), count_targets(held_out, is_stream)
    if not available:
        raise ValueError("there is nothing to count: the training text has no characters")
    characters = distinct_characters(train, held_out)
    marks = unused_characters(characters, 2)
    counts, counted = count_grams(train, is_stream, marks, context, limit, DISTINCT)
    asked, predicted = counts, counted
    if to_predict:
        share = -(-to_predict * counted // available)  # the same as of train, rounded up
        asked, predicted = count_grams(held_out, is_stream, marks, context, share)
    vocabulary = len(characters) + (not is_stream)
    losses = witten_bell(counts, asked, context, 1 / vocabulary)
    return Baselines(math.log(vocabulary), losses, predicted, counted, available, asked is counts)


def distinct_characters(*parts):
    """Returns the set of the characters of all documents of all parts."""
    found = set()
    for documents in parts:
        for document in documents:
            found.update(document)
    return found


def unused_characters(characters, count):
    """Returns the first characters there are that are not among those given."""
    unused = (chr(i) for i in range(len(characters) + count) if chr(i) not in characters)
    return [next(unused) for _ in range(count)]


def count_targets(documents, is_stream):
    """Returns how many characters there are to predict, the ends of documents among them."""
    return sum(map(len, documents)) + (0 if is_stream else len(documents))


# ---- Counting ------------------------------------------------------------------------------------


def count_grams(documents, is_stream, marks, context, limit, distinct=math.inf):
    """Returns how often each run of a context and its character occurs, and the sum of that.

    It ends behind `limit` characters, or when more than `distinct` different runs were met.
    """
    counts, total = Counter(), 0
    for piece in pieces(documents, is_stream, marks, context, limit):
        piece = piece[:context + limit - total]
        counts.update([piece[i:i + context + 1] for i in range(len(piece) - context)])
        total += len(piece) - context
        if total == limit or len(counts) > distinct:
            break
    return counts, total


def pieces(documents, is_stream, marks, context, limit):
    """Yields the documents with their marks, in pieces, each with the context of its first one."""
    start, end = marks
    for document in ["".join(documents)] if is_stream else documents:
        text = start * context + document[:limit] + ("" if is_stream else end)
        for first in range(0, len(text) - context, PIECE):
            yield text[first:first + PIECE + context]


def shorten(counts, length, context):
    """Returns how often the last `length` characters of the runs, each a context and one, occur.

    >>> dict(shorten({"aab": 1, "bab": 2, "bba": 3}, 2, context=2))
    {'ab': 3, 'ba': 3}
    """
    if length == context + 1:
        return counts
    shorter = defaultdict(int)
    for gram, count in counts.items():
        shorter[gram[-length:]] += count
    return shorter


# ---- Smoothing -----------------------------------------------------------------------------------


def witten_bell(counts, asked, context, uniform):
    """Returns the losses, in nats, of contexts of 0, 1, 2, ... characters on the runs asked for.

    Each is found from the one before. counts, asked: how often each run of a context and its
    character occurs in the training text and in what is predicted; uniform: 1 / V.
    """
    total = sum(asked.values())
    lower, losses = defaultdict(lambda: uniform), []
    for length in range(1, context + 2):
        wanted = shorten(asked, length, context)
        lower = interpolate(shorten(counts, length, context), wanted, lower)
        loss = math.fsum(n * math.log(1 / lower[gram]) for gram, n in wanted.items())
        losses.append(loss / total)
    return tuple(losses)


def interpolate(counts, wanted, lower):
    """Returns the probability of each wanted run's last character behind the others.

    counts: run -> how often; lower: a run's last characters, all but one -> their probability.

    >>> interpolate({"ab": 2, "aa": 1}, ["ab", "aa", "ba"], {"a": 0.25, "b": 0.75})
    {'ab': 0.7, 'aa': 0.3, 'ba': 0.25}
    """
    times = dict.fromkeys((gram[:-1] for gram in wanted), 0)  # N(h), of the contexts that matter
    kinds = dict.fromkeys(times, 0)                           # T(h)
    for gram, count in counts.items():
        h = gram[:-1]
        if h in times:
            times[h] += count
            kinds[h] += 1
    p = {}
    for gram in wanted:
        N, T, p_lower = times[gram[:-1]], kinds[gram[:-1]], lower[gram[1:]]
        # p(c | h) = (count(h c) + T(h) p(c | h')) / (N(h) + T(h)); a context never met says nothing
        p[gram] = (counts.get(gram, 0) + T * p_lower) / (N + T) if T else p_lower
    return p
