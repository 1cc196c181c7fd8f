"""The texts that the flags name: gathered, with what people should know of them said on the way."""
import os
import stat
import sys
import time

from microgpt.cli import arguments
from microgpt.cli.terminal import columns
from microgpt.corpus.sources import gather
from microgpt.training.presets import PRESETS

DATA_FLAGS = ("data", "urls", "url_file")
ENOUGH = 1000  # bytes: of a smaller text none is held out unless asked for
HELD_OUT = 0.1


def show_progress(text):
    """Rewrites the last line of a terminal, on standard error; elsewhere progress is not shown."""
    if sys.stderr.isatty():
        room = min(78, columns())
        sys.stderr.write(f"\r{text[:room]:<{room}}" + "\r" * (not text))
        sys.stderr.flush()


class Limited:
    """Calls show_progress a few times a second at most, with what `describe` makes of progress."""

    def __init__(self, describe):
        self.describe, self.shown = describe, time.monotonic()

    def __call__(self, *progress):
        if time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            show_progress(self.describe(*progress))


def asked_texts(args):
    """Returns flag -> value of the texts that flags, or else the preset, name; args have them then.
    """
    asked = arguments.given(args, DATA_FLAGS) or {
        name: value for name, value in PRESETS[args.preset or "names"].items()
        if name in DATA_FLAGS}
    for name in DATA_FLAGS:
        setattr(args, name, asked.get(name))
    return asked


def gather_texts(args, settings=None):
    """Returns corpus.sources.Gathered; what was left out is named on standard error.

    settings: where encoding and extract are found, if not among the flags themselves.
    """
    settings = settings or args
    def make_fetcher():
        from microgpt.corpus.fetch import Fetcher  # which most runs do not need
        progress = Limited(lambda url, done, total: f"{url}: {done:,} bytes"
                           + (f" of {total:,}" if total else ""))
        return Fetcher(use_cache=not args.no_cache, progress=progress)
    gathered = gather(args.data, args.urls, args.url_file, encoding=settings.encoding,
                      extract=settings.extract, fetcher=make_fetcher)
    show_progress("")
    for note in gathered.notes:
        print(f"microgpt: {note}", file=sys.stderr)
    return gathered


def held_out_fraction(settings, gathered):
    """Returns what --val-fraction says, or a tenth of a text that is not tiny."""
    if settings.val_fraction is not None:
        return settings.val_fraction
    return HELD_OUT if gathered.size >= ENOUGH else 0.0


encoding_progress = Limited(
    lambda done, total, left: f"encoding: {done:,} of {total:,} bytes, {left:.0f} s left")


def stored_texts(args, run, settings):
    """Returns what the run learned from, gathered anew; ValueError if that has changed."""
    stored, asked = run.about["data"], arguments.given(args, DATA_FLAGS)
    for name in DATA_FLAGS:
        value = asked.get(name) if asked else stored.get(name)
        if not asked:
            check_stored(name, value)
        setattr(args, name, value)
    try:
        gathered = gather_texts(args, settings)
    except ValueError as error:
        if asked:
            raise
        reason, _, advice = str(error).rpartition("; ")
        reason = (reason or advice).replace("--data ", "").replace("--url-file ", "")
        raise ValueError(f"the text that the run {run.name} learned from cannot be had: {reason}; "
                         "put it back, or name it with --data") from None
    if gathered.sha256 != stored["sha256"]:
        raise ValueError(f"the text has changed: {gathered.name} is not what the run {run.name} "
                         f"learned from (sha256 {gathered.sha256[:12]}, then "
                         f"{str(stored['sha256'])[:12]}); put it back, name it with --data, or "
                         "begin a new run")
    return gathered


def check_stored(name, value):
    """Raises ValueError unless a run's folder, perhaps a stranger's, names files and pages."""
    items = value if isinstance(value, list) else [value] * (value is not None)
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"config.json is damaged: its data's {name} is {item!r:.40}")
        if os.path.exists(item) and not os.path.isdir(item) and not stat.S_ISREG(
                os.stat(item).st_mode):
            raise ValueError(f"the run learned from {item}, which is not a file; name the text "
                             "with --data")
