"""python3 microgpt.py [train]: learn from a text, keep the model, write more of its kind."""
import contextlib
import os
import sys

import microgpt
from microgpt.backends import processes
from microgpt.cli import COMMANDS, arguments, interactive, texts
from microgpt.cli.parser import COMMAND, Parser, version_line
from microgpt.cli.session import Session, check_alone
from microgpt.cli.writing import read_prompts
from microgpt.corpus import sources
from microgpt.training import runs
from microgpt.training import settings as run_settings
from microgpt.training.presets import PRESETS


def make_parser():
    """Returns the file's parser, with the flags that need the repository, in groups."""
    parser = Parser("", "Train a small GPT on text, keep it, and let it write.\n\ncommands, each "
                    "with a --help of its own:\n" + "\n".join(
                        f"  {name:<10} {about}" for name, about in COMMANDS.items()),
                    parents=[microgpt.make_parser()], add_help=False, conflict_handler="resolve",
                    usage=f"{COMMAND} [COMMAND] [flags]")
    parser.add_argument("--version", action="version", version=version_line(),
                        help="show the version and exit")
    parser.add_argument("--interactive", action="store_true",
                        help="ask for the most important settings, then train")
    group = arguments.add_data_flags(parser)
    group.add_argument("--val-fraction", type=arguments.ranged(float, 0, 1), metavar="SHARE",
                       help="of the text, held out to test the model on (default: "
                       f"{texts.HELD_OUT}, or 0 for a text below {texts.ENOUGH} bytes)")
    arguments.add_tokenizer_flags(parser)
    arguments.add_model_flags(parser)
    arguments.add_optimizer_flags(parser)
    arguments.add_backend_flags(parser)
    arguments.add_run_flags(parser)
    arguments.add_ending_flags(parser)
    # What was not asked for is None here: then a preset, or the run that is resumed, decides.
    parser.set_defaults(**{action.dest: None for action in parser._actions
                           if action.dest != "help"})
    parser.set_defaults(interactive=False, chat=False)
    return parser


def run(args):
    """Trains and samples; returns the exit code. ValueError says which flag is wrong."""
    prompts = read_prompts(args)
    if args.interactive:
        if args.resume is not None:
            raise ValueError(f"--interactive is for a new run, and --resume {args.resume} goes on "
                             "with one")
        args = interactive.ask_all(make_parser(), args, asked_settings, {
            "data": sources.default_items()[0], "bpe_merges": arguments.BPE_MERGES})
    if processes.is_one_of_several():
        several(args)
    if args.resume is not None:
        return resume(args, prompts)
    session = Session.new(args, asked_settings(args))
    try:
        code = session.go() or session.write_prompted(prompts or ())
    finally:
        if session.run:
            session.run.lock.__exit__()
    return code or (session.chat() if args.chat else 0)


def resume(args, prompts):
    """Goes on with a run; returns the exit code."""
    run = runs.find(args.resume)
    if run.is_bundled:
        raise ValueError(f"--resume {args.resume}: the model that comes with microgpt has no "
                         "checkpoint to go on from; `python3 microgpt.py` trains one that has")
    try:
        with run.lock if processes.speaks() else contextlib.nullcontext():
            session = Session.resumed(args, run)
            code = session.go() or session.write_prompted(prompts or ())
    except KeyboardInterrupt:  # while its text was read: later, Interrupts sees it first
        print(f"\ninterrupted; {run.path} is as it was", file=sys.stderr)
        return 130
    return code or (session.chat() if args.chat else 0)


def several(args):
    """Makes this process, one of those that torchrun started, fit to be one of several."""
    if args.resume is None:
        check_alone(arguments.chosen_backend(args))
    if not processes.speaks():  # one speaks for all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def asked_settings(args):
    """Returns the Settings that the flags and the preset ask for."""
    asked = arguments.given(args, run_settings.KINDS)
    asked["backend"] = arguments.chosen_backend(args)
    preset = dict(PRESETS[args.preset or "names"])
    # what a preset says of its own tokenizer or optimizer does not hold for another
    for name, dependent in (("tokenizer", ("bpe_merges", "vocabulary")),
                            ("optimizer", ("learning_rate",))):
        if asked.get(name, preset.get(name)) != preset.get(name):
            preset = {key: value for key, value in preset.items() if key not in dependent}
    settings = run_settings.settings_of({**{key: value for key, value in preset.items()
                                            if key in run_settings.KINDS}, **asked})
    arguments.tokenizer_settings(settings, settings.tokenizer)
    return settings
