"""The command: python3 microgpt.py [COMMAND] [flags].

Each command is a module with `make_parser()` and `run(args)`; microgpt.main() runs them, so that
mistakes, Ctrl-C and closed pipes end the same everywhere.
"""
import importlib
import os
import sys

import microgpt
from microgpt.cli import terminal
from microgpt.cli.parser import suggestion

COMMANDS = {
    "train": "train, then sample; flags without a command mean this",
    "sample": "let a run's model write",
    "chat": "type how a text begins, and read how the model goes on",
    "compare": "what several runs write after the same prompts, side by side",
    "eval": "the loss of a run on its held-out text, or on any other",
    "runs": "a table of all runs",
    "sweep": "many runs that differ in a few settings, several at once, and a table of them",
    "tokenize": "how a text is cut into tokens",
    "backends": "a short proof on every backend that is installed",
    "gradcheck": "the proof, weight by weight, for a model of your own",
    "bench": "how fast all of it is here, each figure beside its plain baseline",
}


def main(argv=None):
    """Runs a command and returns its exit code."""
    # note: in a checkout, else `import tokenizers` would find the folder there, not the package
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != microgpt.__path__[0]]
    argv = list(sys.argv[1:] if argv is None else argv)
    terminal.fold_output()
    name = argv.pop(0) if argv and not argv[0].startswith("-") else "train"
    if name not in COMMANDS:
        guess = suggestion(name, COMMANDS) or ";"
        sys.stderr.write(f"microgpt: there is no command {name!r}{guess} there are "
                         f"{', '.join(COMMANDS)}, and flags alone train\n")
        return 2
    command = importlib.import_module(f"microgpt.cli.{name}")
    return microgpt.main(argv, command.make_parser(), command.run)
