"""The architecture, apart from the engines that compute it.

    config.py    GPTConfig: the sizes and options of a model, checked when it is built
    weights.py   names, shapes and initialisation of the weights
    gpt.py       the forward pass, written once over the ops of a backend
    bigram.py    the model to beat: a table of which token follows which
    sampling.py  text from a model: how a token is chosen, and what it sees of a long text
    dropout.py   which activations are dropped, as a pure function of the seed
"""
from microgpt.nn.config import GPTConfig
from microgpt.nn.weights import count_parameters, init_weights, weight_shapes

__all__ = ["GPTConfig", "count_parameters", "init_weights", "weight_shapes"]
