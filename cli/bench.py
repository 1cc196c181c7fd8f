"""python3 microgpt.py bench: the benchmarks of the repository, and what they should reach."""
import importlib.util
import os
import sys

import microgpt
from microgpt.cli.parser import Parser

SCRIPT = os.path.join(microgpt.__path__[0], "benchmarks", "run.py")


def benchmarks():
    """Returns the module benchmarks/run.py, or None: what is installed has no benchmarks."""
    if not os.path.isfile(SCRIPT):
        return None
    spec = importlib.util.spec_from_file_location("run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, os.path.dirname(SCRIPT))  # of which it is a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(os.path.dirname(SCRIPT))
    return module


def make_parser():
    parser = Parser("bench", "Runs the benchmarks, each beside its plain baseline, and prints one "
                    "table: what to reach, and what was measured.")
    script = benchmarks()
    if script:
        script.add_flags(parser)
    return parser


def run(args):
    """Returns the exit code of the benchmarks: 1 if one failed."""
    script = benchmarks()
    if script is None:
        raise ValueError("the benchmarks are in the repository of microgpt, and not in what is "
                         "installed; there, `python3 microgpt.py bench` runs them")
    return script.run(args)
