"""The GPT's forward pass, written once for every backend that computes with whole matrices.

Letters, here and everywhere:

    B  sequences in a batch            V  tokens in the vocabulary
    T  tokens in a sequence            H  attention heads in a layer
    C  numbers that stand for a token  D  numbers a head works with, C / H
    L  layers                          N  tokens in a batch, all sequences together

The architecture is GPT-2's (Radford et al., 2019) with RMSNorm (Zhang and Sennrich, 2019) without
a gain for LayerNorm, ReLU for GELU, no biases, an untied head and no norm before it, and one norm
more, right after the embeddings: the residual stream, which no later norm rescales, starts at 1.

`ops` is an engine's hands. x stands for whatever it holds activations in (N x C rows, or a padded
B x T x C tensor); the forward pass never looks inside.

    ops.embed(table, ids)           the rows of a table, one for each id
    ops.add(x, y)
    ops.linear(x, w)                x @ w.T, for rows of weights w
    ops.linears(x, [w, ...])        the same for several w of one shape: one product, or many
    ops.rmsnorm(x)                  x / sqrt(mean(x^2) + 1e-5)
    ops.relu(x)
    ops.attention(q, k, v, n_head, site)   causal, inside each sequence, scaled by 1 / sqrt(D)
    ops.dropout(x, site)            x itself unless training; site names the place, for the masks
"""


def gpt(ops, weights, config, tokens, positions):
    """Returns the logits of the token after each one; V of them for every token."""
    x = ops.add(ops.embed(weights["wte"], tokens), ops.embed(weights["wpe"], positions))
    x = ops.dropout(ops.rmsnorm(x), "embedding")
    for i in range(config.n_layer):
        def w(name):
            return weights[f"layer{i}.{name}"]

        normed = ops.rmsnorm(x)
        q, k, v = ops.linears(normed, [w("attn_wq"), w("attn_wk"), w("attn_wv")])
        heads = ops.attention(q, k, v, config.n_head, f"layer{i}.attention")
        x = ops.add(x, ops.dropout(ops.linear(heads, w("attn_wo")), f"layer{i}.attn_wo"))
        hidden = ops.relu(ops.linear(ops.rmsnorm(x), w("mlp_fc1")))
        x = ops.add(x, ops.dropout(ops.linear(hidden, w("mlp_fc2")), f"layer{i}.mlp_fc2"))
    return ops.linear(x, weights["lm_head"])
