"""python3 microgpt.py backends: two tokens forward and back on every engine that is installed."""
from microgpt import backends
from microgpt.backends import proof
from microgpt.cli import arguments
from microgpt.cli.parser import Parser
from microgpt.nn import GPTConfig


def make_parser():
    parser = Parser("backends", "Runs two tokens forward and back on every backend, and compares "
                    "the gradients with the file's.")
    arguments.add_device_flags(parser)
    return parser


def run(args):
    """Prints PASS, FAIL or not installed for each backend; returns 1 if one fails."""
    config = GPTConfig(5, n_embd=8, n_head=2, block_size=4)
    weights, _ = proof.example(config)
    batch, failed = [[1, 2, 3]], False
    _, expected = backends.load("scalar")(config, weights).gradients(batch)
    for name in backends.BACKENDS:
        settings = {}
        if name == "torch":
            settings = {"device": args.device or "auto", "dtype": args.dtype or "auto"}
        try:
            backend = backends.load(name)(config, weights, **settings)
        except backends.NotInstalled:
            print(f"{name:<8} not installed: pip install {name}")
            continue
        error = max(proof.relative_errors(backend.gradients(batch)[1], expected).values())
        passed = error <= backend.tolerance
        failed |= not passed
        print(f"{name:<8} {'PASS' if passed else 'FAIL'}  largest gradient error {error:.1e} "
              f"(accepted {backend.tolerance:.0e}, {backend.describe()})")
    return int(failed)
