"""Text from a model: each token chosen by the logits, fed back, until the document ends."""
import math

import microgpt


def sample(decode, tokenizer, block_size, temperature, rng, is_stream=False):
    """Returns a new document: what follows BOS until BOS comes again, block_size tokens at most.

    decode: a backend's decoder(), fresh. The tokens are chosen by microgpt.choose. is_stream: the
    model learned from one stream, and has never seen BOS. Then text begins after a newline, and
    BOS is never chosen.
    """
    token, tokens = tokenizer.bos, []
    if is_stream:
        token = (tokenizer.encode("\n") or [0])[-1]
    for _ in range(block_size):
        logits = decode(token)
        if is_stream:
            logits[tokenizer.bos] = -math.inf
        token = microgpt.choose(logits, temperature, rng)
        if token == tokenizer.bos:
            break
        tokens.append(token)
    return tokenizer.decode(tokens)
