"""One training loop for all backends."""
import math


def train(backend, batch_of, num_steps, learning_rate, seed):
    """Yields the loss of each step, while the learning rate falls linearly to 0.

    batch_of: step -> batch, a pure function. seed: of the dropout masks. Raises ValueError when the loss is no longer finite.
    """
    for step in range(num_steps):
        rate = learning_rate * (1 - step / num_steps)
        loss = backend.step(batch_of(step), rate, f"{seed} {step} dropout")
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} at step {step + 1}; lower --learning-rate")
        yield loss
