"""What a run will take, before it starts: memory, and rough factors between the backends.

The numbers were measured once, with CPython 3.11 and PyTorch 2.13 on an x86 machine, and are rough.
"""
from microgpt.nn.weights import count_parameters
from microgpt.training.checkpoint import machine_memory
from microgpt.training.runs import MOST_LAYERS

# Bytes of the process before there is a model, by backend.
BASE = {"scalar": 29e6, "matrix": 28e6, "torch": 236e6}
# Bytes for each parameter: the number, its gradient, and what the optimizer remembers.
PER_PARAMETER = {"scalar": 200, "matrix": 200, "torch": 24}
# Bytes for each number that the forward pass keeps for the way back, ...
PER_ACTIVATION = {"scalar": 230, "matrix": 46, "torch": 4.5}
# ... and for each product: a node of the file's keeps both factors, as a parent and as a slope.
PER_PRODUCT = {"scalar": 35, "matrix": 0, "torch": 0}


def memory(config, settings, tokens):
    """Returns about how many bytes a run needs; tokens: those of the training text."""
    name, B, T = settings.backend, settings.batch_size, config.block_size
    at_a_time = min(B, settings.micro_batch or B) * T
    C, L, H, V = config.n_embd, config.n_layer, config.n_head, config.vocab_size
    activations, products = L * (16 * C + 3 * H * T) + 2 * C + 3 * V, L * C * (12 * C + T) + V * C
    if config.model == "bigram":
        activations, products = 3 * V, 0
    a_token = PER_ACTIVATION[name] * activations + PER_PRODUCT[name] * products
    return (BASE[name] + PER_PARAMETER[name] * count_parameters(config) + at_a_time * a_token
            + 8 * (tokens + B * T))


def check_memory(config, settings):
    """Raises ValueError if a run would need far more memory than the machine has.

    Of a GPU's memory nothing is known here: then only the parameters count.
    """
    if config.n_layer > MOST_LAYERS:  # of which even the names would fill it
        raise ValueError(f"n_layer is {config.n_layer}, and the most are {MOST_LAYERS}")
    needed, there = memory(config, settings, 0), machine_memory()
    if settings.backend == "torch" and settings.device != "cpu":
        needed = PER_PARAMETER["torch"] * count_parameters(config) + 8 * (
            settings.batch_size * config.block_size)
    if there and needed > 2 * there:
        raise ValueError(f"this takes about {needed / 1e9:,.0f} GB of memory, and this machine has "
                         f"{there / 1e9:,.0f}; take a smaller --n-embd, --block-size or "
                         "--batch-size, or --micro-batch 1")


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
