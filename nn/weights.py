"""The weights of a model: names, shapes, initialisation.

They are exchanged, stored and compared in one form everywhere: a dict, name -> rows of floats; a
row holds the weights of one output (of `linear`), or stands for one token or position.
"""


def weight_shapes(config):
    """Returns name -> (rows, columns), in the order in which the weights are drawn.

    >>> from microgpt.nn import GPTConfig
    >>> weight_shapes(GPTConfig(27, n_embd=8, n_head=2, block_size=5))["layer0.mlp_fc1"]
    (32, 8)
    """
    V, C, T = config.vocab_size, config.n_embd, config.block_size
    if config.model == "bigram":
        return {"bigram": (V, V)}
    shapes = {"wte": (V, C), "wpe": (T, C), "lm_head": (V, C)}
    for i in range(config.n_layer):
        for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo"):
            shapes[f"layer{i}.{name}"] = (C, C)
        shapes[f"layer{i}.mlp_fc1"] = (4 * C, C)
        shapes[f"layer{i}.mlp_fc2"] = (C, 4 * C)
    return shapes


def count_parameters(config):
    """Returns how many numbers the weights are.

    >>> from microgpt.nn import GPTConfig
    >>> count_parameters(GPTConfig(27))
    4192
    """
    return sum(rows * columns for rows, columns in weight_shapes(config).values())


def init_weights(config, rng):
    """Returns new weights, drawn from a normal distribution: the draws of microgpt.py."""
    gauss, std = rng.gauss, config.std
    return {name: [[gauss(0, std) for _ in range(columns)] for _ in range(rows)]
            for name, (rows, columns) in weight_shapes(config).items()}


def check_weights(config, weights):
    """Raises ValueError, which names the first difference, unless the weights fit the config."""
    shapes = weight_shapes(config)
    if weights.keys() != shapes.keys():
        missing, extra = sorted(shapes.keys() - weights), sorted(weights.keys() - shapes)
        raise ValueError(f"these weights are of another model: missing {missing}, extra {extra}")
    for name, (rows, columns) in shapes.items():
        found = {len(row) for row in weights[name]}
        if len(weights[name]) != rows or found != {columns}:
            raise ValueError(f"{name} must be {rows} x {columns}, got {len(weights[name])} rows "
                             f"of {sorted(found)}")
