"""The bigram model: the logits of the next token are a row of a table, chosen by this token.

It sees one token back, so the best it can do is what counting pairs of tokens gives. A GPT that
does not beat it has learned nothing from its context.
"""


def bigram(ops, weights, config, tokens, positions):
    """Returns the logits of the token after each one; V of them for every token."""
    return ops.embed(weights["bigram"], tokens)
