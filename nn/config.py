"""What a model is: its sizes and options, in one frozen object that is checked when it is built."""
import dataclasses
import math
from typing import Any, Dict, Optional

import microgpt

DEFAULTS: Dict[str, Any] = {name: default for name, default, _ in microgpt.FLAGS}
MODELS = ("gpt", "bigram")


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The sizes and options of a model; ValueError says what is wrong with them.

    It serves wherever microgpt.py takes a Config.

    >>> GPTConfig(27).head_size
    4
    >>> GPTConfig(27, n_embd=10)
    Traceback (most recent call last):
    ...
    ValueError: n_embd, 10, is not a multiple of n_head, 4: the heads share it equally
    """

    vocab_size: int                            # V
    n_embd: int = DEFAULTS["n_embd"]           # C
    n_head: int = DEFAULTS["n_head"]           # H
    n_layer: int = DEFAULTS["n_layer"]         # L
    block_size: int = DEFAULTS["block_size"]   # T
    model: str = "gpt"                         # or "bigram", one V x V table
    dropout: float = 0.0                       # share of activations zeroed while training
    init_std: Optional[float] = None           # of the weights; None: 0.32 / sqrt(n_embd)

    def __post_init__(self):
        for name in ("vocab_size", "n_embd", "n_head", "n_layer", "block_size"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} is {size!r}: it takes a whole number, 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd, {self.n_embd}, is not a multiple of n_head, {self.n_head}: "
                             "the heads share it equally")
        if self.model not in MODELS:
            raise ValueError(f"model is {self.model!r}: it takes {' or '.join(MODELS)}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: it takes a share, 0 or more, below 1")
        if self.init_std is not None and not 0 < self.init_std < math.inf:
            raise ValueError(f"init_std is {self.init_std!r}: it takes a number above 0")

    @property
    def head_size(self):
        """D, the numbers that a head works with."""
        return self.n_embd // self.n_head

    def without_dropout(self):
        """Returns the config of the model when it is used, not trained: any backend runs it."""
        return dataclasses.replace(self, dropout=0.0)

    @property
    def std(self):
        """The standard deviation of the weights at the start."""
        return 0.32 / self.n_embd ** 0.5 if self.init_std is None else self.init_std
