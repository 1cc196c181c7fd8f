"""Dropout (Srivastava et al., 2014): while training, a share of the activations is zeroed and the
rest scaled up to make up for it, so that no unit can rely on any one other.

Which ones is a pure function of the seed and the place, so every engine can drop the same.
"""
import random


class DropoutMasks:
    """The multipliers of one step: each 0, with probability `rate`, or 1 / (1 - rate)."""

    def __init__(self, rate, seed):
        self.rate, self.seed = rate, seed

    def rows(self, site, place, rows, columns):
        """Returns rows x columns multipliers.

        site: the name of the place in the model. place: which part of the batch, a tuple: (index
        of the sequence,) for T x C activations, (index, head) for T x T attention weights.
        """
        rng = random.Random(f"{self.seed} {site} {place}")
        draw, rate, keep = rng.random, self.rate, 1 / (1 - self.rate)
        return [[0.0 if draw() < rate else keep for _ in range(columns)] for _ in range(rows)]
