"""The learning rate of each step: a warm-up, then a decay to a floor.

    linear    a straight line down, as in microgpt.py (the default)
    cosine    half a cosine (Loshchilov and Hutter, 2017): slow at both ends, steep between
    constant  no decay
"""
import math

SCHEDULES = ("linear", "cosine", "constant")


def learning_rate(step, num_steps, peak, schedule="linear", warmup_steps=0, floor=0.0):
    """Returns the learning rate of a step, counted from 0.

    It rises evenly over warmup_steps, so that the first step is not at 0, to the peak, and falls
    from there to the floor, which the step after the last would reach.

    >>> [learning_rate(step, 6, 1.0, warmup_steps=2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    if schedule == "constant":
        return peak
    share = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return floor + (peak - floor) * share


def check_schedule(schedule, num_steps, peak, warmup_steps, floor):
    """Raises ValueError unless these make a schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r:.60}: it takes {', '.join(SCHEDULES)}")
    if warmup_steps > num_steps:
        raise ValueError(f"warmup_steps, {warmup_steps}, is more than num_steps, {num_steps}: the "
                         "warm-up would never end")
    if floor > peak:
        raise ValueError(f"min_learning_rate, {floor}, is above learning_rate, {peak}: the rate "
                         "falls from the second to the first")
