"""python3 microgpt.py chat: type how a text begins, and read how the model goes on.

A model of documents, such as names, begins a new one with each line that is typed. One that learned
a running text has a history, as much as it can see: what was typed and written goes on and on.
Piped, each line is a prompt, and only answers go to standard output.
"""
import argparse
import dataclasses
import os
import sys

from microgpt.cli import arguments
from microgpt.cli.parser import Parser, suggestion
from microgpt.cli.terminal import ask, is_conversation
from microgpt.cli.writing import Writer, Writing, note
from microgpt.nn.sampling import sample_rng

# command -> (the setting that it changes, what its value is parsed by)
SETTINGS = {"/temperature": ("temperature", arguments.ranged(float, 0)),
            "/tokens": ("max_tokens", arguments.ranged(int, 1)),
            "/top-k": ("top_k", arguments.ranged(int, 1)),
            "/top-p": ("top_p", arguments.ranged(float, 1e-12)),
            "/seed": ("seed", arguments.ranged(int, 0))}
HELP = (("/temperature 0.8", "how freely; 0: the likeliest"),
        ("/tokens 100", "longest text"),
        ("/top-k 5", "of the 5 likeliest; off: of all"),
        ("/top-p 0.9", "of 90 % of the probability"),
        ("/seed 7", "the same seed, the same text"),
        ("/reset", "forget what was said"),
        ("/save FILE", "keep what was said"),
        ("/help", "this list"),
        ("/quit", "the end, as is Ctrl-D"),
        ("//text", "a text that begins with /"))
NAMES = [usage.split()[0] for usage, _ in HELP[:-1]]


def make_parser():
    parser = Parser("chat", "Goes on with what you type. Commands begin with /, and /help lists "
                    "them.")
    arguments.add_run_choice(parser)
    arguments.add_use_flags(parser)
    arguments.add_generation_flags(parser)
    return parser


def run(args):
    """Talks until the input ends; returns the exit code."""
    chosen = arguments.chosen_run(args)
    settings = arguments.sampling_settings(args, chosen.is_stream)
    writer = Writer(arguments.backend_of_run(args, chosen), chosen.tokenizer, chosen.is_stream)
    return Chat(writer, settings, args.seed).talk()


class Chat:
    """A conversation: what was said in it, and how the model is to write."""

    def __init__(self, writer, settings, seed):
        self.writer, self.settings, self.seed = writer, settings, seed
        self.live = is_conversation()
        self.saved = set()   # files that are this chat's own
        self.reset()

    def reset(self):
        self.turn = 0        # of the random numbers: the same seed says the same again
        self.tokens = []     # of a running text, as many as the model sees
        self.said = ""       # all of it, for /save

    def talk(self):
        """Answers lines until there are no more; returns the exit code."""
        if self.live:
            self.greet()
        stops = 0  # Ctrl-C at the prompt, one after the other
        while True:
            try:
                line = ask("> ")
                stops = 0
                if line.startswith("/") and not line.startswith("//"):
                    if self.command(*line.split(None, 1)) == "quit":
                        return 0
                else:
                    self.answer(line[1:] if line.startswith("//") else line)
            except EOFError:
                if self.live:
                    print()
                return 0
            except KeyboardInterrupt:
                print(flush=True)
                stops += 1
                if not self.live or stops > 1:
                    return 130
                note("/quit or Ctrl-D ends; so does Ctrl-C, once more")

    def greet(self):
        try:
            import readline  # noqa: F401  (input() edits lines and remembers them with it)
        except ImportError:
            pass
        what = ("each line goes on from all before, and Enter alone writes more"
                if self.writer.is_stream else
                "each line begins a new text, and Enter alone leaves that to the model")
        note(f"{what}; /help lists commands, Ctrl-D ends")

    # ---- answers

    def answer(self, line):
        """Streams what follows a line."""
        prompt = line
        if self.writer.is_stream and line and self.said and not self.said.endswith("\n"):
            prompt = "\n" + line
        tokens = self.writer.tokens(line) if prompt == line else [
            *self.writer.tokenizer.encode("\n"), *self.writer.tokens(line)]
        self.writer.note_length(tokens)
        writing = Writing(self.writer, prompt, self.settings, sample_rng(self.seed, self.turn),
                          self.tokens + tokens)
        self.turn += 1
        try:
            print("" if self.writer.is_stream else line, end="", flush=True)
            for piece, _ in writing:
                print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            print(flush=True)
            if not self.live:
                raise SystemExit(130) from None
        finally:
            self.remember(writing, tokens)

    def remember(self, writing, tokens):
        text = writing.result.prompt + writing.result.text
        if self.writer.is_stream:
            seen = self.writer.backend.config.block_size
            self.tokens = (self.tokens + tokens + writing.ids)[-seen:]
            self.said += text
        else:
            self.said += text + "\n"

    # ---- commands

    def command(self, name, value=None):
        """Does what a /command says; returns "quit" for that. What is wrong gets a line."""
        if name in ("/quit", "/exit"):
            return "quit"
        if name in SETTINGS:
            self.set(name, value)
        elif name == "/help":
            for usage, about in HELP:
                note_line(f"{usage:<16} {about}")
        elif name == "/reset":
            self.reset()
            note_line("forgotten")
        elif name == "/save":
            self.save(value)
        else:
            note(f"there is no {name}{suggestion(name, NAMES) or ';'} there are "
                 f"{', '.join(NAMES)}; //text is a text that begins with /")

    def set(self, name, value):
        """Changes a setting, or, without a value, shows it."""
        field, parse = SETTINGS[name]
        if value is not None:
            try:
                value = None if (field, value.strip()) == ("top_k", "off") else parse(value.strip())
                if field == "seed":
                    self.seed, self.turn = value, 0
                else:
                    self.settings = dataclasses.replace(self.settings, **{field: value})
            except (ValueError, argparse.ArgumentTypeError) as error:
                note(f"{name}: {error}")
                return
        now = self.seed if field == "seed" else getattr(self.settings, field)
        if field == "max_tokens":
            now = now or self.writer.backend.config.block_size
        note_line(f"{name[1:]} {'off' if now is None else now}")

    def save(self, path):
        """Writes all that was said to a file, but over none that was there before."""
        path = (path or "").strip()
        if not path:
            note("/save takes the name of a file")
            return
        try:
            path = os.path.expanduser(path)
            with open(path, "w" if path in self.saved else "x", encoding="utf-8",
                      errors="replace") as file:
                file.write(self.said)
        except FileExistsError:
            note(f"{path} is there already; name another file")
        except OSError as error:
            note(f"{path}: {error.strerror}")
        else:
            self.saved.add(path)
            note_line(f"{len(self.said):,} characters in {path}")


def note_line(text):
    """Prints an answer to a command, on standard error: it is none of the model's."""
    print(text, file=sys.stderr, flush=True)
