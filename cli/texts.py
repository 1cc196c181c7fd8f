"""The texts that the flags name: gathered, with what people should know of them said on the way."""
import sys
import time

from microgpt.corpus.sources import gather

ENOUGH = 1000  # bytes: of a smaller text none is held out unless asked for
HELD_OUT = 0.1


def show_progress(text):
    """Rewrites the last line of a terminal, on standard error; elsewhere progress is not shown."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<78}" if text else "\r" + " " * 78 + "\r")
        sys.stderr.flush()


class Limited:
    """Calls show_progress a few times a second at most, with what `describe` makes of progress."""

    def __init__(self, describe):
        self.describe, self.shown = describe, time.monotonic()

    def __call__(self, *progress):
        if time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            show_progress(self.describe(*progress))


def gather_texts(args):
    """Returns corpus.sources.Gathered; what was left out is named on standard error."""
    def make_fetcher():
        from microgpt.corpus.fetch import Fetcher  # which most runs do not need
        progress = Limited(lambda url, done, total: f"{url}: {done:,} bytes"
                           + (f" of {total:,}" if total else ""))
        return Fetcher(use_cache=not args.no_cache, progress=progress)
    gathered = gather(args.data, args.urls, args.url_file, encoding=args.encoding,
                      extract=args.extract, fetcher=make_fetcher)
    show_progress("")
    for note in gathered.notes:
        print(f"microgpt: {note}", file=sys.stderr)
    return gathered


def held_out_fraction(args, gathered):
    """Returns what --val-fraction says, or a tenth of a text that is not tiny."""
    if args.val_fraction is not None:
        return args.val_fraction
    return HELD_OUT if gathered.size >= ENOUGH else 0.0


encoding_progress = Limited(
    lambda done, total, left: f"encoding: {done:,} of {total:,} bytes, {left:.0f} s left")
