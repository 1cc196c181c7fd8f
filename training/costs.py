"""What a run will take, before it starts: memory, and rough factors between the backends.

The numbers were measured once, with CPython 3.11 and PyTorch 2.13 on an x86 machine, and are rough.
"""
from microgpt.nn.weights import count_parameters

# Bytes of the process before there is a model, by backend.
BASE = {"scalar": 21e6, "matrix": 19e6, "torch": 230e6}
# Bytes for each parameter: the number, its gradient, and what the optimizer remembers.
PER_PARAMETER = {"scalar": 200, "matrix": 110, "torch": 20}
# Bytes for each number that the forward pass keeps for the way back.
PER_ACTIVATION = {"scalar": 120, "matrix": 42, "torch": 8}


def memory(config, settings, tokens):
    """Returns about how many bytes a run needs; tokens: those of the training text."""
    name, B, T = settings.backend, settings.batch_size, config.block_size
    if settings.micro_batch:
        B = min(B, settings.micro_batch)
    C, L, H, V = config.n_embd, config.n_layer, config.n_head, config.vocab_size
    a_token = V * 3 if config.model == "bigram" else L * (16 * C + 3 * H * T) + 2 * C + 3 * V
    return (BASE[name] + PER_PARAMETER[name] * count_parameters(config)
            + PER_ACTIVATION[name] * B * T * a_token + 8 * tokens)


def rough_factors(backend, batch_size):
    """Returns what to say of other backends' time, from tokens a second of the default model."""
    if backend == "torch":
        return ""
    scalar = 870
    matrix = 2950 if batch_size < 4 else 4400
    torch = 11_000 if batch_size < 4 else min(250_000, 11_000 * batch_size)
    own = {"scalar": scalar, "matrix": matrix}[backend]
    parts = [f"{matrix / own:.0f} times faster with --backend matrix"] * (backend == "scalar")
    parts.append(f"{torch / own:.0f} times or more with --backend torch")
    return "; very roughly " + ", ".join(parts)
