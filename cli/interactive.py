"""--interactive: asks for the settings that matter most, each with its default in brackets."""
import argparse
import glob
import os
import shlex
import sys

from microgpt.cli.parser import COMMAND
from microgpt.cli.terminal import ask
from microgpt.corpus.sources import IS_URL, KNOWN
from microgpt.training.settings import BATCH_SIZES

QUESTIONS = (("--data", "text to learn from"), ("--tokenizer", "char, word, bpe"),
             ("--bpe-merges", "tokens to learn"), ("--n-embd", "numbers a token"),
             ("--n-head", "heads"), ("--n-layer", "layers"), ("--block-size", "tokens in view"),
             ("--backend", "scalar, matrix, torch"), ("--num-steps", "steps"),
             ("--batch-size", "documents a step"))


def ask_all(parser, args, resolve, defaults):
    """Returns args with what was answered; prints the command line that says the same.

    resolve: args -> Settings, ValueError where they do not go together. defaults: of flags for
    which Settings have none, by name. ValueError where the answers end before the questions.
    """
    print("Enter takes what stands in brackets; Ctrl-C ends.", file=sys.stderr)
    for flag, about in QUESTIONS:
        if flag != "--bpe-merges" or resolve(args).tokenizer == "bpe":
            args = ask_one(parser, args, resolve, defaults, flag, about)
    print(f"the same again: {command_line(parser, args)}", file=sys.stderr, flush=True)
    return args


def ask_one(parser, args, resolve, defaults, flag, about):
    """Returns args with the answer to one question, asked until it is a right one."""
    question = f"{flag[2:]}, {about} [{default_of(flag, args, resolve, defaults)}]: "
    while True:
        try:
            answer = ask(question).strip()
        except EOFError:
            raise ValueError("the answers ended before the questions: nothing was trained"
                             ) from None
        if not answer:
            return args
        try:
            changed = with_answer(parser, args, flag, answer, resolve(args).n_head)
            resolve(changed)
            return changed
        except ValueError as error:
            print(f"  {error}", file=sys.stderr, flush=True)


def default_of(flag, args, resolve, defaults):
    """Returns what a flag is when nothing is answered, as text."""
    name = flag[2:].replace("-", "_")
    settings = resolve(args)
    value = getattr(args, name, None)
    if value is None:
        value = getattr(settings, name, None)
    if value is None:
        value = BATCH_SIZES[settings.backend] if name == "batch_size" else defaults[name]
    return " ".join(map(str, value)) if isinstance(value, list) else value


def with_answer(parser, args, flag, answer, heads):
    """Returns args with an answer in them; ValueError, in a line, where it is a wrong one.

    heads: as many as there are so far.
    """
    words = shlex.split(answer) if flag == "--data" else [answer]
    if flag == "--data":
        for word in words:
            if not (IS_URL.match(word) or word in KNOWN or os.path.exists(word)
                    or glob.glob(word, recursive=True)):
                raise ValueError(f"there is no {word}; known texts are {', '.join(KNOWN)}")
    name = parser.action(flag).dest
    changed = argparse.Namespace(**{**vars(args), name: getattr(parser.check([flag, *words]),
                                                                name)})
    if name == "n_embd" and changed.n_embd % heads:  # the next question offers what fits
        changed.n_head = max(n for n in range(1, heads + 1) if changed.n_embd % n == 0)
    return changed


def command_line(parser, args):
    """Returns the command that says what args say, as a shell takes it."""
    words, done = COMMAND.split(), {"help", "version", "interactive"}
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in done or value is None or value is False:
            continue
        done.add(action.dest)
        words.append(action.option_strings[0])
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return " ".join(map(shlex.quote, words))
