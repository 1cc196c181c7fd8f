"""The loss on text, above all on text that a model did not learn from: exact, and the same on every
backend.

Every token is predicted once, in windows that lie end to end from the start of each document, or
of the stream; no dropout, no random draw.
"""
import math
from dataclasses import dataclass
from typing import Optional

TOKENS_AT_MOST = {"scalar": 20_000, "matrix": 20_000, "torch": 2_000_000}
BATCHES = {"scalar": 1, "matrix": 16, "torch": 64}  # windows: a graph of numbers takes memory
LOGITS_AT_MOST = 1 << 27  # at a time: with a vocabulary of 50,000, fewer windows


@dataclass(frozen=True)
class Evaluation:
    """loss: nats a token. tokens: how many were predicted. whole: whether that is every one.

    characters: how many these tokens are, the end of a document counting as one; None where the
    tokenizer loses some, so that the loss says less than it seems to.
    """
    loss: float
    tokens: int
    whole: bool
    characters: Optional[int] = None

    @property
    def bits_per_character(self):
        """Comparable between tokenizers, where nats a token are not; None of a lossy one."""
        if not self.characters:
            return None
        return self.loss * self.tokens / self.characters / math.log(2)

    def __str__(self):
        part = "" if self.whole else ", of windows evenly spaced (--eval-tokens)"
        return (f"{self.loss:.4f} nats a token, {bits_shown(self.bits_per_character)}, on "
                f"{self.tokens:,} tokens{part}")


def bits_shown(bits):
    """Returns bits a character in words; None is a lossy tokenizer's."""
    return "lossy" if bits is None else f"{bits:.3f} bits a character"


def characters_of_tokens(tokenizer):
    """Returns how many characters each token begins, by id; None for a lossy tokenizer.

    A character counts where its first byte is, since a token may hold a part of one.
    """
    if tokenizer.lossy:
        return None
    counts = [sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(token))
              for token in range(tokenizer.vocab_size)]
    counts[tokenizer.bos] = 1  # the document's end
    return counts


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


def evaluate(backend, held_out, is_stream, tokens_at_most=None, characters=None, progress=None):
    """Returns the Evaluation of a backend's model on what was held out.

    held_out: one sequence of tokens for a stream, else documents, lists of tokens. Where they are
    more than tokens_at_most, by default as many as the backend does in seconds, whole windows are
    left out, the same ones each time. characters: what characters_of_tokens gave. progress: called
    as progress(windows done, windows in all); what it raises ends the evaluation.
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
    loss, count, letters = 0.0, 0, 0
    size = max(1, min(BATCHES[backend.name],
                      LOGITS_AT_MOST // (block_size * backend.config.vocab_size)))
    # where several processes train one model, each takes the next batch in turn
    for first in range(backend.rank * size, len(chosen), backend.size * size):
        if progress:
            progress(first, len(chosen))
        batch = [list(sequences[i][start:start + block_size + 1])
                 for i, start in chosen[first:first + size]]
        targets = sum(len(window) - 1 for window in batch)
        loss += backend.loss(batch) * targets
        count += targets
        if characters:
            letters += sum(characters[token] for window in batch for token in window[1:])
    loss, count, letters = backend.summed([loss, count, letters])
    whole = len(chosen) == len(places) and (is_stream or len(sequences) == len(held_out))
    return Evaluation(loss / count, int(count), whole, int(letters) if characters else None)
