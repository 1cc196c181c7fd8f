"""Which tokens a step learns from: a pure function of the seed and the step.

So there is no position to save, and a resumed run, or one on another engine, sees the same batches.
"""
import random
from collections.abc import Sequence


def document_batch(documents, step, batch_size, block_size, seed):
    """Returns the batch of a step: the next batch_size documents in order, around and around.

    documents: lists of tokens, BOS at both ends. Of one that is longer than block_size + 1 tokens
    the batch has a random stretch of that length, drawn anew each time, as in microgpt.py.
    """
    first, batch = step * batch_size, []
    for number in range(first, first + batch_size):
        tokens = documents[number % len(documents)]
        if len(tokens) > block_size + 1:
            rng = random.Random(f"{seed} {number}")  # with one document a step, the file's draw
            start = rng.randrange(len(tokens) - block_size)
            tokens = tokens[start:start + block_size + 1]
        batch.append(tokens)
    return batch


def window_starts(length, step, batch_size, block_size, seed):
    """Returns where the windows of a step begin in a stream of `length` tokens.

    Each of the windows, of block_size + 1 tokens, lies within the stream; each place is as likely.
    """
    check_stream(length, block_size)
    rng = random.Random(f"{seed} {step}")
    return [rng.randrange(length - block_size) for _ in range(batch_size)]


def stream_batch(tokens, step, batch_size, block_size, seed):
    """Returns the StreamBatch of a step: windows of a stream, lists of block_size + 1 tokens.

    tokens: a list, an array or TokenFile. ValueError for a stream shorter than a window.
    """
    starts = window_starts(len(tokens), step, batch_size, block_size, seed)
    return StreamBatch(tokens, starts, block_size + 1)


class StreamBatch(Sequence):
    """Windows of a stream: to whoever looks inside, lists of tokens, cut only then.

    An engine that keeps the stream at hand needs `starts` and `length` alone.

    >>> batch = StreamBatch([0, 1, 2, 3, 4, 5], starts=[0, 3], length=3)
    >>> list(batch), batch[1:] == [[3, 4, 5]]
    ([[0, 1, 2], [3, 4, 5]], True)
    """

    def __init__(self, tokens, starts, length):
        self.tokens, self.starts, self.length = tokens, starts, length

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return StreamBatch(self.tokens, self.starts[index], self.length)
        start = self.starts[index]
        return list(self.tokens[start:start + self.length])

    def __eq__(self, other):
        return list(self) == list(other)

    def __repr__(self):
        return repr(list(self))


def check_stream(length, block_size):
    """Raises ValueError for a stream that is shorter than one window."""
    if length < block_size + 1:
        fits = (f"a --block-size of {length - 1} or less, or " if length > 1 else "")
        raise ValueError(f"the text to learn from has {length} tokens, and --block-size "
                         f"{block_size} needs {block_size + 1}; give {fits}more text")
