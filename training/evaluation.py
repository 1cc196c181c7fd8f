"""The loss on text that a model did not learn from: exact, and the same on every backend.

Every token is predicted once, in windows that lie end to end from the start of each document, or
of the stream; no dropout, no random draw.
"""
from dataclasses import dataclass

TOKENS_AT_MOST = {"scalar": 20_000, "matrix": 20_000, "torch": 2_000_000}
BATCHES = {"scalar": 1, "matrix": 16, "torch": 64}  # windows: a graph of numbers takes memory


@dataclass(frozen=True)
class Evaluation:
    """loss: nats a token. tokens: how many were predicted. whole: whether that is every one."""
    loss: float
    tokens: int
    whole: bool

    def __str__(self):
        part = "" if self.whole else ", of windows evenly spaced"
        return f"loss {self.loss:.4f} nats a token on {self.tokens:,} tokens{part}"


def window_starts(length, block_size):
    """Returns where the windows of a sequence begin: each at the last token of the one before.

    >>> list(window_starts(5, 2))
    [0, 2]
    """
    return range(0, length - 1, block_size)


def evenly_spaced(items, count):
    """Returns all items, or count of them from the first on, evenly spaced."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]


def evaluate(backend, held_out, is_stream, tokens_at_most=None):
    """Returns the Evaluation of a backend's model on what was held out.

    held_out: one sequence of tokens for a stream, else documents, lists of tokens. Where they are
    more than tokens_at_most, by default as many as the backend does in seconds, whole windows are
    left out, the same ones each time.
    """
    block_size = backend.config.block_size
    at_most = tokens_at_most or TOKENS_AT_MOST[backend.name]
    # each document predicts a token at least: of millions, on disk perhaps, no more are looked at
    sequences = [held_out] if is_stream else evenly_spaced(held_out, at_most)
    places = [(i, start) for i, tokens in enumerate(sequences)
              for start in window_starts(len(tokens), block_size)]
    total = sum(len(tokens) - 1 for tokens in sequences)
    chosen = places
    if total > at_most:
        chosen = evenly_spaced(places, max(1, len(places) * at_most // total))
    loss, count, size = 0.0, 0, BATCHES[backend.name]
    for first in range(0, len(chosen), size):
        batch = [list(sequences[i][start:start + block_size + 1])
                 for i, start in chosen[first:first + size]]
        targets = sum(len(window) - 1 for window in batch)
        loss += backend.loss(batch) * targets
        count += targets
    whole = len(chosen) == len(places) and (is_stream or len(sequences) == len(held_out))
    return Evaluation(loss / count, count, whole)
