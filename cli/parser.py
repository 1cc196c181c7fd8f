"""argparse for the whole command: help as wide as the terminal, and mistakes with a suggestion."""
import argparse
import difflib
import platform
import textwrap
from pathlib import Path

COMMAND = "python3 microgpt.py"


def version():
    """Returns the version, which stands in the file VERSION; setup.cfg takes it from there too."""
    return (Path(__file__).parent / "VERSION").read_text(encoding="utf-8").strip()


def version_line():
    """Returns what --version prints."""
    return f"microgpt {version()} ({platform.python_implementation()} {platform.python_version()})"


def suggestion(word, known):
    """Returns "; did you mean ...?" with the known word that is most like this, or nothing.

    >>> suggestion("--learnig-rate", ["--n-layer", "--learning-rate"])
    '; did you mean --learning-rate?'
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class Formatter(argparse.HelpFormatter):
    """Flags to the left and what they do to the right, or below where the terminal is narrow."""

    def __init__(self, prog):
        super().__init__(prog)
        self._max_help_position = 26 if self._width > 60 else 8

    def _fill_text(self, text, width, indent):
        """Returns a text whose lines stay lines; one that is a name and words keeps its columns."""
        return "\n".join(
            textwrap.fill(line, width, subsequent_indent=" " * 13 * line.startswith(" "))
            for line in text.split("\n"))

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_usage(self, usage, actions, groups, prefix):
        positional = [action for action in actions if not action.option_strings]
        if usage is None and len(actions) - len(positional) > 6:  # the groups below list them
            parts = self._format_actions_usage(positional, groups) if positional else ""
            usage = f"{self._prog} [flags] {parts}".rstrip()
        return super()._format_usage(usage, actions, groups, prefix)


class Parser(argparse.ArgumentParser):
    """The parser of a command: argparse's, but for its help and for what it says of mistakes.

    command: a word behind `python3 microgpt.py`, or none for that alone.
    """

    def __init__(self, command="", description=None, **settings):
        settings.setdefault("formatter_class", Formatter)
        super().__init__(f"{COMMAND} {command}".strip(), description=description,
                         allow_abbrev=False, **settings)
        self._optionals.title = "options"  # as Python 3.10 and later call them

    def flags(self):
        """Returns all flags, such as --seed."""
        return [flag for action in self._actions for flag in action.option_strings]

    def action(self, flag):
        """Returns argparse's record of a flag."""
        return next(action for action in self._actions if flag in action.option_strings)

    def parse_args(self, args=None, namespace=None):
        found, rest = self.parse_known_args(args, namespace)
        flags = [word for word in rest if word.startswith("-")]
        if flags:
            flag = flags[0].partition("=")[0]
            self.error(f"there is no {flag}{suggestion(flag, self.flags())}")
        if rest:
            self.error(f"{rest[0]!r} belongs to no flag")
        return found

    def check(self, words):
        """Returns what parse_args does; ValueError, with the reason, where that would exit."""
        def refuse(message):
            raise ValueError(message.partition(": ")[2] or message)
        self.error = refuse
        try:
            return self.parse_args(words)
        finally:
            del self.error

    def error(self, message):
        end = "" if message.endswith("?") else ";"
        self.exit(2, f"microgpt: {message}{end} `{self.prog} --help` lists the flags\n")
