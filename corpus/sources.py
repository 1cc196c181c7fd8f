"""From what people type behind --data to texts, each with a record of where it came from.

Files, folders, globs, URLs and known names, many at once. A file that is named and cannot be read
is a mistake; of a folder, what is no text is left out and named; a page that cannot be had is named
and the others go on. Only when nothing is left is that an error too.
"""
import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional

from microgpt.corpus import decode, html

BUNDLED = Path(__file__).resolve().parent / "data" / "names.txt"
WHOLE = 8_000_000  # bytes: a file up to this size is read at once, and a larger one in pieces

# name -> (URL, sha256): certain files, and no others under their name.
DOWNLOADS = {
    "shakespeare": (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
    "makemore-names": (
        "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"),
}
KNOWN = ("names", "python-manual", *DOWNLOADS)
OF_RUNS = {"last.safetensors", "sweep.json"}  # a folder with one of these is a run's, or a sweep's
IS_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One text: its name for people, and its provenance, which json can write.

    Its text is here, or, of a file that may be large, in the file until it is asked for.
    """
    name: str
    provenance: dict
    text: Optional[str] = field(default=None, repr=False)
    path: Optional[Path] = None
    encoding: Optional[str] = None

    def pieces(self):
        """Yields the text in pieces of about a million characters, so that memory stays flat."""
        if self.text is None and self.provenance["bytes"] > WHOLE:
            with open(self.path, "rb") as file:
                yield from decode.decode_pieces(file, self.encoding, self.name)
            return
        text = self.text
        if text is None:
            text = decode.decode(self.path.read_bytes(), self.encoding, self.name)
            text = html.strip_gutenberg(text)
        for start in range(0, len(text), decode.PIECE):
            yield text[start:start + decode.PIECE]

    def read(self):
        """Returns the text, whole."""
        return "".join(self.pieces())


@dataclass
class Gathered:
    """All sources, in the order given, and notes: lines that tell people what was left out."""
    sources: List[Source] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)

    def texts(self):
        """Returns the texts, whole, in order."""
        return [source.read() for source in self.sources]

    @property
    def size(self):
        """Bytes of all sources before they were decoded: what says whether they fit in memory."""
        return sum(source.provenance["bytes"] for source in self.sources)

    @property
    def name(self):
        """What it is, for people: the name of a lone source, else how many there are."""
        names = [source.name for source in self.sources]
        return names[0] if len(names) == 1 else f"{len(names)} texts, {names[0]} first"

    @property
    def sha256(self):
        """A digest of all texts in their order, by which a resumed run knows its data again."""
        digest = hashlib.sha256()
        for source in self.sources:
            about = source.provenance
            digest.update(json.dumps([about["sha256"], about.get("encoding"), about.get("kind"),
                                      about.get("extract")]).encode("utf-8"))
        return digest.hexdigest()

    @property
    def provenance(self):
        """Returns where each text came from, to be kept with a run."""
        return [{"name": source.name, **source.provenance} for source in self.sources]


def gather(data=(), urls=(), url_file=None, *, encoding=None, extract="builtin", fetcher=None):
    """Returns Gathered: the texts of everything that was asked for; without any, the default text.

    data: paths, globs, URLs, names of KNOWN. urls: URLs. url_file: a path, a URL a line, `#` begins
    a comment. encoding: of all of them; by default it is found out. extract: how HTML becomes text,
    one of html.EXTRACTORS. fetcher: a Fetcher, or a function that makes one, which is called when
    the first page is needed. ValueError: a path that is not there or no text, or no text at all.
    """
    if encoding:
        encoding = decode.check_encoding(encoding)
    if extract not in html.EXTRACTORS:
        raise ValueError(f"--extract {extract}: it takes {' or '.join(html.EXTRACTORS)}")
    gathering = Gathering(encoding, extract, fetcher)
    items = [*([data] if isinstance(data, (str, os.PathLike)) else data or ())]
    if not (items or urls or url_file):
        items = default_items()
    for item in items:
        gathering.add(os.fspath(item))
    for url in [*(urls or ()), *(read_url_file(url_file) if url_file else ())]:
        gathering.add_url(url, "--urls")
    return gathering.finish()


def default_items():
    """Returns what is learned from when nothing is named, as load_docs in microgpt.py has it."""
    return ["input.txt" if os.path.exists("input.txt") else
            "names" if BUNDLED.exists() else "python-manual"]


def absolute(data=(), urls=(), url_file=None):
    """Returns what gather takes, so that it means the same in another working folder."""
    items = [*([data] if isinstance(data, (str, os.PathLike)) else data or ())]
    if not (items or urls or url_file):
        items = default_items()
    items = [os.fspath(item) for item in items]
    return {"data": [item if item in KNOWN or IS_URL.match(item) else os.path.abspath(item)
                     for item in items],
            "urls": [*(urls or ())], "url_file": url_file and os.path.abspath(url_file)}


def read_url_file(path):
    """Returns the URLs of a file: one a line, without blank lines and comments."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"--url-file {path}: {describe(error)}; give a text file with a URL a line"
                         ) from None
    # note: a `#` within a URL begins its fragment, not a comment
    urls = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    if not any(urls):
        raise ValueError(f"--url-file {path}: there is no URL in it; give one a line")
    return [url for url in urls if url]


def make_fetcher(given):
    """Returns the Fetcher given, or the one that a function makes, or a new one."""
    if given is None:
        # imported when used: what speaks http takes time and memory that most runs do not need
        from microgpt.corpus.fetch import Fetcher
        return Fetcher()
    return given() if callable(given) else given


class Gathering:
    """Collects sources, item by item."""

    def __init__(self, encoding, extract, fetcher):
        self.encoding, self.extract, self.given, self.fetcher = encoding, extract, fetcher, None
        self.found, self.failed = Gathered(), []

    def finish(self):
        """Returns all that was gathered; ValueError if that is nothing."""
        if self.fetcher:
            self.found.notes += self.fetcher.notes
        books = sum("licence_left_out" in source.provenance for source in self.found.sources)
        if books:
            self.found.notes.append(f"the licence of Project Gutenberg is left out of {books} "
                                    f"text{'s' * (books > 1)}")
        if not self.found.sources:
            raise ValueError("there is no text to learn from: " + "; ".join(self.failed))
        return self.found

    def add(self, item):
        """Adds all sources of one item of --data."""
        if not item.strip():  # an unset variable of a shell; Path("") would be the folder here
            raise ValueError(f"--data {item!r}: it is empty; give a file, a folder, a URL or one "
                             f"of {', '.join(KNOWN)}")
        path = Path(item)
        if item in KNOWN:
            if os.path.exists(path):
                self.found.notes.append(f"--data {item}: the known text of this name is taken, not "
                                        f"the file here; --data ./{item} takes that")
            self.add_known(item)
        elif IS_URL.match(item):
            self.add_url(item, "--data")
        elif os.path.isdir(path):
            self.add_folder(path)
        elif not os.path.exists(path) and glob.has_magic(item):
            files = sorted(glob.glob(item, recursive=True))
            if not files:
                raise ValueError(f"--data {item}: no file is named so; quote it, so that the shell "
                                 "leaves it as it is, or give a file, a folder or a URL")
            self.add_files([Path(file) for file in files if not os.path.isdir(file)], item)
        else:
            self.found.sources.append(self.read_file(path))

    # -- files

    def read_file(self, path):
        """Returns the source of a file; ValueError if it is not there, or is no text."""
        name = f"--data {path}"
        try:
            is_file = path.is_file()
            if is_file and path.stat().st_size > WHOLE and html.kind_of_file(path.name) != "html":
                return self.read_large_file(path, name)
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{name}: {describe(error)}; give a file of text, a folder, a URL or "
                             f"one of {', '.join(KNOWN)}") from None
        about = about_file(path, len(data), hashlib.sha256(data).hexdigest())
        if about["kind"] == "html":
            text, about["encoding"] = decode.decode_page(data, "", self.encoding, name)
            text, about["extract"] = html.extract(text, self.extract), self.extract
        else:
            text = decode.decode(data, self.encoding, name)
            about["encoding"] = decode.encoding_of(data, self.encoding)[0]
        text = self.readable(text, name, about)
        if is_file and about["kind"] != "html":  # it can be read again: of many not all may fit
            return Source(str(path), about, path=path, encoding=self.encoding)
        return Source(str(path), about, text)

    def read_large_file(self, path, name):
        """Returns the source of a file that is never whole in memory; all of it is checked here."""
        with open(path, "rb") as file:
            hashed = Hashed(file)
            is_empty = all([not piece.strip() for piece in
                            decode.decode_pieces(hashed, self.encoding, name)])
        self.check_text("" if is_empty else "text", name)
        about = about_file(path, hashed.size, hashed.digest.hexdigest())
        about["encoding"] = decode.encoding_of(hashed.first, self.encoding)[0]
        return Source(str(path), about, path=path, encoding=self.encoding)

    def readable(self, text, name, about):
        """Returns the text without what is not its author's; ValueError if nothing is left."""
        text, whole = html.strip_gutenberg(text), text
        if len(text) < len(whole):
            about["licence_left_out"] = len(whole) - len(text)  # characters
        self.check_text(text, name)
        return text

    @staticmethod
    def check_text(text, name):
        if not text.strip():
            raise ValueError(f"{name}: it holds no text; give a text with at least one line")

    def add_folder(self, folder):
        """Adds all text files of a folder and the folders in it, in order of their paths.

        What runs have left there is not their text: the run to come would change it.
        """
        files = []
        for here, folders, names in os.walk(folder):
            if OF_RUNS.intersection(names):
                folders[:], names = [], []
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [Path(here, name) for name in names if not name.startswith(".")]
        self.add_files(sorted(files, key=lambda path: path.parts), folder)

    def add_files(self, files, item):
        """Adds those of many files that are text, and notes the others."""
        before, left_out = len(self.found.sources), []
        for path in files:
            # a pipe that happens to lie there; these two, unlike a Path's, never raise
            if os.path.exists(path) and not os.path.isfile(path):
                left_out.append(f"{path} (it is not a file)")
                continue
            try:
                self.found.sources.append(self.read_file(path))
            except ValueError as error:
                reason = str(error).replace(f"--data {path}: ", "").split(";")[0]
                left_out.append(f"{path} ({reason})")
        if len(self.found.sources) == before:
            what = f"; left out: {shorten(left_out)}" if left_out else ""
            raise ValueError(f"--data {item}: there is no text file in it{what}; give files of "
                             "UTF-8 text")
        if left_out:
            self.found.notes.append(f"--data {item}: left out {shorten(left_out)}")

    # -- known names and URLs

    def add_known(self, name):
        if name in DOWNLOADS:
            url, sha256 = DOWNLOADS[name]
            self.add_url(url, "--data", name, sha256)
            return
        if name == "names":
            source = self.read_file(BUNDLED)
            about = {**source.provenance, "origin": "bundled"}
            self.found.sources.append(Source(name, about, path=BUNDLED))
            return
        text = manual_words()
        about = {"origin": "python-manual", "bytes": len(text), "kind": "text",
                 "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest()}
        self.found.sources.append(Source("the words of Python's manual", about, text))

    def add_url(self, url, flag, name=None, sha256=None):
        """Adds a page; where it cannot be had, notes why."""
        self.fetcher = self.fetcher or make_fetcher(self.given)
        shown = f"{flag} {name or url}"
        try:
            page = self.fetcher.fetch(url, sha256)
            text, about = self.read_page(page, shown)
        except ValueError as error:
            reason = str(error).replace(f"{shown}: ", "")
            if name:
                reason = f"{url}: {reason}"
            self.failed.append(f"{shown}: {reason}")
            self.found.notes.append(f"left out {shown}: {reason}")
            return
        self.found.sources.append(Source(name or url, about, text))

    def read_page(self, page, shown):
        """Returns the readable text of a page, and its provenance."""
        about = {"origin": "url", **page.provenance}
        text, about["encoding"] = decode.decode_page(page.data, about.get("charset", ""),
                                                     self.encoding, shown)
        about["kind"] = html.kind_of_page(text, about.get("content_type", ""),
                                          about.get("final_url", "").split("?")[0])
        if about["kind"] == "html":
            text, about["extract"] = html.extract(text, self.extract), self.extract
        return self.readable(text, shown, about), about


class Hashed:
    """A file whose digest, size and first bytes are known when it has been read."""

    def __init__(self, file):
        self.file, self.digest, self.size, self.first = file, hashlib.sha256(), 0, b""

    def read(self, size):
        data = self.file.read(size)
        self.digest.update(data)
        self.first = self.first or data[:4]
        self.size += len(data)
        return data


def about_file(path, size, sha256):
    return {"origin": "file", "path": str(path.resolve()), "bytes": size, "sha256": sha256,
            "kind": html.kind_of_file(path.name)}


def manual_words():
    """Returns the words of Python's manual, one a line, in order of the alphabet."""
    from pydoc_data.topics import topics
    words = re.findall("[a-z]{3,}", " ".join(topics.values()).lower())
    return "\n".join(sorted(set(words))) + "\n"


def shorten(items, most=3):
    """Returns the first of a list in words, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{len(items)} file{'s' * (len(items) > 1)}: " + ", ".join(items[:most]) + more


def describe(error):
    return getattr(error, "strerror", None) or str(error)
