"""Text from a model: each token chosen by the logits, fed back, until the document ends."""
import microgpt


def sample(decode, tokenizer, block_size, temperature, rng):
    """Returns a new document: what follows BOS until BOS comes again, block_size tokens at most.

    decode: a backend's decoder(), fresh. The tokens are chosen by microgpt.choose.
    """
    token, tokens = tokenizer.bos, []
    for _ in range(block_size):
        token = microgpt.choose(decode(token), temperature, rng)
        if token == tokenizer.bos:
            break
        tokens.append(token)
    return tokenizer.decode(tokens)
