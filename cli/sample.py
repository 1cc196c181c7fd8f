"""python3 microgpt.py sample: text from a run's model."""
import argparse
import random

import microgpt
from microgpt.cli import arguments
from microgpt.nn.config import DEFAULTS
from microgpt.nn.sampling import SamplingSettings, sample


def make_parser():
    parser = argparse.ArgumentParser("python3 microgpt.py sample", allow_abbrev=False,
                                     description="Lets a run's model write.")
    arguments.add_run_choice(parser)
    arguments.add_use_flags(parser)
    for name, _, text in microgpt.FLAGS:
        if name in ("temperature", "num_samples", "seed"):
            parser.add_argument("--" + name.replace("_", "-"), type=type(DEFAULTS[name]),
                                default=DEFAULTS[name], metavar="N",
                                help=f"{text} (default: {DEFAULTS[name]})")
    return arguments.finish(parser)


def run(args):
    """Prints samples, one after the other."""
    chosen = arguments.chosen_run(args)
    backend, tokenizer = arguments.backend_of_run(args, chosen), chosen.tokenizer
    rng = random.Random(args.seed)
    for i in range(args.num_samples):
        text = sample(backend, tokenizer, SamplingSettings(args.temperature), rng,
                      chosen.is_stream)
        print(f"sample {i + 1:2d}: {text}", flush=True)
