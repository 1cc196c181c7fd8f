"""Which tokens a step learns from: a pure function of the seed and the step.

So there is no position to save, and a resumed run, or one on another engine, sees the same batches.
"""
import random


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
