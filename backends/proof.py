"""Do two engines compute the same function? Their gradients, weight by weight.

That a loss falls proves little: with gradients that are half wrong it still falls. So engines are
compared on every gradient of every weight, with random weights, none of them zero (behind a zero
weight gradients vanish, and what is not there cannot be wrong), on a ragged batch.
"""
import random

from microgpt.engine.gradcheck import GRAPH_TOLERANCE, derivative, relative_errors
from microgpt.nn.weights import weight_shapes

TOLERANCE = 1e-9  # between engines, in float64
SLOPE_TOLERANCE = GRAPH_TOLERANCE  # against finite differences of a whole model


def random_weights(config, rng):
    """Returns weights that are random and never near 0: name -> rows of floats."""
    std = max(config.std, 0.1)
    return {name: [[rng.choice((-1, 1)) * (0.2 * std + abs(rng.gauss(0, std)))
                    for _ in range(columns)] for _ in range(rows)]
            for name, (rows, columns) in weight_shapes(config).items()}


def random_batch(config, rng):
    """Returns three sequences of different lengths, one of them as long as the model can take."""
    lengths = {config.block_size + 1, max(2, config.block_size // 2), min(5, config.block_size + 1)}
    return [[rng.randrange(config.vocab_size) for _ in range(length)]
            for length in sorted(lengths, reverse=True)]


def slopes(backend, batch, places, dropout=None):
    """Returns name -> the finite differences of the loss at some places: d loss / d weight.

    places: name -> list of (row, column). The loss is computed anew for each of them, several
    times; the backend's weights are as before when it returns.
    """
    weights = backend.weights()

    def loss_at(row, column, x):
        home, row[column] = row[column], x
        try:
            backend.load(weights)
            return backend.gradients(batch, dropout)[0] if dropout else backend.loss(batch)
        finally:
            row[column] = home

    def slope(name, i, column):
        row = weights[name][i]
        # a small first step: a model with many relus has a kink everywhere
        return derivative(lambda x: loss_at(row, column, x), row[column], 1e-4, 1e-9)[0]
    found = {name: [slope(name, *place) for place in some] for name, some in places.items()}
    backend.load(weights)
    return found


def sampled_places(config, rng, count=4):
    """Returns name -> `count` places (row, column) in each weight."""
    return {name: [(rng.randrange(rows), rng.randrange(columns)) for _ in range(count)]
            for name, (rows, columns) in weight_shapes(config).items()}


def slope_errors(gradients, places, found):
    """Returns name -> the error of the gradients at some places against slopes()."""
    scale = max(abs(x) for rows in gradients.values() for row in rows for x in row)
    got = {name: [gradients[name][i][column] for i, column in some]
           for name, some in places.items()}
    return relative_errors(got, found, floor=1e-3 * scale)


def example(config, seed=0):
    """Returns (weights, batch): a random case for a config."""
    rng = random.Random(seed)
    return random_weights(config, rng), random_batch(config, rng)
