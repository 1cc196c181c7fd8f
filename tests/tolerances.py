"""How closely numbers must agree, all in one place: the largest error by engine.gradcheck's measure.

A tolerance looser than its neighbours has its reason beside it.
"""
from microgpt.engine.gradcheck import GRAPH_TOLERANCE, OP_TOLERANCE

FLOAT64 = {
    "formula": 1e-11,  # an op and the textbook formula, which cancels a little
    "oracle": 1e-9,    # values, gradients and steps, here and in torch
    "op differences": OP_TOLERANCE,
    "graph differences": GRAPH_TOLERANCE,
}

BFLOAT16 = {
    "oracle": 0.05,  # 8 bits of precision, and Muon's five rounds of products multiply the errors
}
