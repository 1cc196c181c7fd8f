"""How closely numbers must agree, all in one place: the largest error by gradcheck's measure.

A tolerance looser than its neighbours has its reason beside it.
"""
from microgpt.backends.proof import SLOPE_TOLERANCE, TOLERANCE
from microgpt.engine.gradcheck import GRAPH_TOLERANCE, OP_TOLERANCE

FLOAT64 = {
    "formula": 1e-11,  # an op and the textbook formula, which cancels a little
    "oracle": 1e-9,    # values, gradients and steps, here and in torch
    "op differences": OP_TOLERANCE,
    "graph differences": GRAPH_TOLERANCE,
    "between backends": TOLERANCE,          # logits, loss, gradients, weights after steps
    "model differences": SLOPE_TOLERANCE,   # the gradients of a backend and finite differences
}

BFLOAT16 = {
    "gradients": 0.1,  # length of the error; a relu whose input rounds across 0 opens or shuts
    "loss": 0.01,
    "oracle": 0.05,  # 8 bits of precision, and Muon's five rounds of products multiply the errors
}
