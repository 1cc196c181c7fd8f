"""What a terminal needs and a pipe does not: lines that fit it, colour, and questions.

Whatever goes to a terminal is folded between words at its right edge, also text that comes in
pieces, so that no line is broken inside a word at 40 columns either.
"""
import os
import re
import shutil
import sys
import time
import unicodedata

_UNITS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\n|\r| |[^\x1b\n\r ]+|\x1b")


def columns():
    """Returns how many characters fit in a line: the last place stays free, or it would wrap."""
    return max(2, shutil.get_terminal_size().columns - 1)


def width(text):
    """Returns how many places of a terminal a text takes.

    >>> width("ab"), width("日本"), width("e\\u0301")
    (2, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(_width_of(char) for char in text)


def _width_of(char):
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text, room):
    """Returns (what fits in so many places, the rest); the first is never empty.

    >>> cut("abcdef", 4)
    ('abcd', 'ef')
    """
    used = 0
    for i, char in enumerate(text):
        used += _width_of(char)
        if used > room and i:
            return text[:i], text[i:]
    return text, ""


class Fold:
    """Folds a text that comes in pieces: what push returns is to be written as it is.

    A word that turns out too long for its line is taken back, and begins the next one.

    >>> fold = Fold(lambda: 8)
    >>> fold.push("one two three")
    'one two \\nthree'
    """

    def __init__(self, room=columns):
        self.room = room      # a function: terminals change their size
        self.column = 0       # where the cursor stands
        self.word = ""        # the end of the line since its last space, to be moved if need be

    def push(self, text):
        room, out = self.room(), []
        for unit in _UNITS.findall(text):
            if unit in "\n\r":
                self.column, self.word = 0, ""
                out.append(unit)
            elif unit[0] == "\x1b":
                self.word += unit
                out.append(unit)
            elif unit == " ":
                if self.column < room:
                    out.append(unit)
                    self.column += 1
                else:
                    self.column = room + 1  # no room: it is what the fold is made of
                self.word = ""
            else:
                self._add(unit, room, out)
        return "".join(out)

    def _add(self, unit, room, out):
        before = width(_plain(self.word))
        if self.column + width(unit) > room and 0 < self.column - before:
            if before + width(unit) <= room:
                back = min(before, room)
                out.append("\b" * back + " " * back + "\n" + self.word)
                self.column = before
            elif not before:
                out.append("\n")
                self.column = 0
        while unit:
            if self.column >= room:
                out.append("\n")
                self.column, self.word = 0, ""
            part, unit = cut(unit, room - self.column)
            out.append(part)
            self.word += part
            self.column += width(part)


def _plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def fold_lines(text, room):
    """Returns the lines of a text, folded to so many places.

    >>> fold_lines("one two three\\nfour", 8)
    ['one two', 'three', 'four']
    """
    folded = "".join(Fold(lambda: room).push(line.expandtabs(4) + "\n")
                     for line in text.split("\n"))
    return [line.rstrip() for line in folded[:-1].split("\n")]


class Folded:
    """A terminal's stream that folds what is written to it; all else is the stream's own."""

    def __init__(self, stream):
        self._stream, self._fold = stream, Fold()

    def write(self, text):
        self._stream.write(self._fold.push(text))
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def at_line_start(self):
        """Tells that somebody else, the user's Enter, has ended the line."""
        self._fold.column, self._fold.word = 0, ""

    def __getattr__(self, name):
        return getattr(self._stream, name)


def fold_output():
    """Makes standard output and error fold their lines, each where it is a terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty() and not isinstance(stream, Folded):
            setattr(sys, name, Folded(stream))


class LiveLine:
    """Lines that stay, and below them, where that is a terminal, one that is rewritten."""

    def __init__(self, file):
        self.file, self.live, self.width, self.shown = file, file.isatty(), 0, 0.0

    def say(self, text):
        """Prints a line that stays."""
        self.rewrite("")
        print(text, file=self.file, flush=True)

    def rewrite(self, text):
        """Shows a text in place of the one before, on a terminal; no wider than that."""
        if self.live and (text or self.width):
            text = text[:columns()]
            self.file.write("\r" + text.ljust(self.width) + "\r")
            self.file.flush()
            self.width = len(text)

    def is_due(self, seconds):
        """Returns whether it is that long since this was last so, on a terminal."""
        now = time.monotonic()
        if not self.live or now - self.shown < seconds:
            return False
        self.shown = now
        return True


def in_colour():
    """Whether standard output is a terminal that is allowed colours: https://no-color.org."""
    return (sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb")


def bold(text):
    """Returns the text in bold, where standard output is in colour."""
    return f"\x1b[1m{text}\x1b[0m" if text and in_colour() else text


def is_conversation():
    """Whether somebody types and reads: both ends are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def ask(question):
    """Returns a line that was typed, or piped in, without its end; EOFError after the last.

    question: what stands before it on a terminal. A pipe shows none: only answers go out.
    """
    if sys.stdin is None:
        raise EOFError
    if is_conversation():
        try:
            return input(question)
        finally:
            if isinstance(sys.stdout, Folded):
                sys.stdout.at_line_start()
    if sys.stdin.isatty():
        sys.stderr.write(question)
        sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
