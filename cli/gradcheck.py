"""python3 microgpt.py gradcheck: the proof that all engines are one function, for your own model.

Every gradient of every weight, in float64, on random weights and a ragged batch: the engines
against each other to 1e-9, and some of each weight against finite differences to 1e-6.
"""
import random

from microgpt import backends
from microgpt.backends import proof
from microgpt.cli import arguments
from microgpt.cli.parser import Parser
from microgpt.nn import GPTConfig, weight_shapes
from microgpt.nn.dropout import DropoutMasks


def make_parser():
    parser = Parser("gradcheck", __doc__.split("\n\n")[1].replace("\n", " "))
    arguments.add_model_flags(parser)
    parser.add_argument("--vocab-size", type=arguments.ranged(int, 1), default=27, metavar="N",
                        help="tokens in the vocabulary (default: 27)")
    parser.add_argument("--seed", type=int, default=42, metavar="N",
                        help="of the weights and the batch (default: 42)")
    parser.add_argument("--device", metavar="NAME", help="torch: cpu, cuda, cuda:1 (default: cpu)")
    return parser


def engines(args, config, weights):
    """Returns name -> backend, in float64, of those that can compute this model here."""
    found = {}
    for name in backends.BACKENDS:
        if name == "scalar" and config.dropout:
            print("scalar   left out: it has no dropout")
            continue
        settings = {"device": args.device or "cpu", "dtype": "float64"} if name == "torch" else {}
        try:
            found[name] = backends.load(name)(config, weights, **settings)
        except backends.NotInstalled as error:
            print(f"{name:<8} left out: {error}")
    return found


def run(args):
    """Prints a line a weight; returns 1 if an error is too large."""
    config = GPTConfig(args.vocab_size, **arguments.model_settings(args))
    weights, batch = proof.example(config, args.seed)
    masks = DropoutMasks(config.dropout, args.seed) if config.dropout else None
    found = engines(args, config, weights)
    gradients = {name: backend.gradients(batch, masks)[1] for name, backend in found.items()}
    (first, expected), *others = gradients.items()

    places = proof.sampled_places(config, random.Random(args.seed))
    slopes = proof.slopes(found["matrix"], batch, places, masks)
    table = {f"{name} against {first}": (proof.relative_errors(got, expected), proof.TOLERANCE)
             for name, got in others}
    table["finite differences"] = (proof.slope_errors(expected, places, slopes),
                                   proof.SLOPE_TOLERANCE)

    print(f"{'weight':<18} {'shape':>10}  " + "  ".join(f"{title:>22}" for title in table))
    worst = {title: 0.0 for title in table}
    for name, (rows, columns) in weight_shapes(config).items():
        cells = []
        for title, (errors, tolerance) in table.items():
            mark = " " if errors[name] <= tolerance else "*"
            cells.append(f"{errors[name]:>21.1e}{mark}")
            worst[title] = max(worst[title], errors[name])
        print(f"{name:<18} {f'{rows} x {columns}':>10}  " + "  ".join(cells))
    failed = [title for title, (_, tolerance) in table.items() if worst[title] > tolerance]
    if failed:
        print(f"FAIL: the gradients marked * are wrong ({', '.join(failed)})")
        return 1
    print(f"PASS: every gradient of {len(expected)} weights within {proof.TOLERANCE:.0e}, "
          f"finite differences within {proof.SLOPE_TOLERANCE:.0e}")
    return 0
