"""Readable text from a page: HTML to lines, and Project Gutenberg's licence taken off a book.

Built on html.parser alone, by what elements are, never by guessing at layout: navigation, scripts,
forms and the like are left out, everything else is kept. Left out: any ranking of blocks by how
much they look like an article. A package does that (`--extract library`), for whoever asks for it.

What is wrong in a page costs little: an element that is to be left out but never ends is kept, for
some words of a menu in a text are a smaller loss than half of the text.
"""
import collections
import importlib
import re
from html.parser import HTMLParser

EXTRACTORS = ("builtin", "library")

# Elements whose text nobody reads, whatever else is wrong with the page.
HIDDEN = frozenset("script style template svg math canvas object iframe audio video".split())
# Elements that are around the text, not of it.
AROUND = frozenset("nav aside footer header form menu dialog title noscript button select option "
                   "datalist textarea label legend rt rp".split())
ROLES = frozenset("navigation banner contentinfo search complementary dialog alert menu".split())
CLASSES = frozenset("navbar navbox breadcrumb breadcrumbs cookie-banner mw-editsection noprint "
                    "skip-link visually-hidden sr-only".split())
HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())
# What stands on a line of its own, and what a blank line stands around.
LINES = frozenset("br div li tr dt dd caption figcaption summary address".split())
PARAGRAPHS = HEADINGS | frozenset(
    "p blockquote ul ol dl table pre hr section article main figure details body nav aside footer "
    "header form fieldset".split())
VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())

# What a frame is made of: text, folded or as it stands, what separates it, and other frames.
FOLDED, VERBATIM, CELL, BREAK, BLANK, NEWLINE, NESTED = range(7)


class Frame:
    """An open element that matters, and what was read in it so far: parts, as (kind, text)."""

    def __init__(self, name, leave_out):
        self.name, self.leave_out, self.parts = name, leave_out, []
        self.headings, self.has_prose = [], False

    def kept(self, ended):
        """Returns the parts that go on to the element around; ended: by an end tag of its own."""
        if not self.leave_out:
            return self.parts
        if self.name in HIDDEN:
            return []
        if not ended or (self.name == "form" and self.has_prose):  # some sites put all in a form
            return self.parts
        return self.headings if self.name == "header" else []


class Reader(HTMLParser):
    """Reads a page, piece by piece; text() then returns what a reader would read of it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.frames, self.open = [Frame("", False)], collections.Counter()

    def add(self, kind, text=""):
        self.frames[-1].parts.append((kind, text))

    def separate(self, name):
        """Ends the line where an element of this name begins or ends."""
        if name in PARAGRAPHS:
            self.add(BLANK)
        elif name in LINES:
            self.add(BREAK)
        elif name in ("td", "th"):
            self.add(CELL)

    def handle_starttag(self, name, attributes):
        self.separate(name)
        if name == "p" or name in HEADINGS:
            for frame in reversed(self.frames):
                if frame.has_prose:  # then so have those around it
                    break
                frame.has_prose = True
        if name in VOID:
            return
        leave_out = name in HIDDEN or name in AROUND or is_around(name, dict(attributes))
        if name == "header" and (self.open["article"] or self.open["main"]):
            leave_out = False  # the head of an article belongs to it
        # Other elements matter only inside one of their name that does: </div> ends which div?
        if leave_out or name in HEADINGS or name in ("pre", "article", "main") or self.open[name]:
            self.frames.append(Frame(name, leave_out))
            self.open[name] += 1

    def handle_endtag(self, name):
        if self.open[name]:
            while self.frames[-1].name != name:
                self.pop(ended=False)
            self.pop(ended=True)
        if name not in VOID:
            self.separate(name)

    def pop(self, ended):
        """Closes the innermost frame and hands what is kept of it to the next."""
        frame = self.frames.pop()
        self.open[frame.name] -= 1
        if frame.name in HEADINGS and not any(self.open[name] for name in HEADINGS):
            for around in self.frames if self.open["header"] else ():
                around.headings += [(BLANK, ""), (NESTED, frame.parts)]
        # note: copied instead of nested, a deep page would take quadratic time
        self.frames[-1].parts.append((NESTED, frame.kept(ended)))

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name in ("svg", "math"):  # <svg/> is empty; elsewhere HTML ignores the slash
            self.handle_endtag(name)

    def handle_data(self, data):
        if not self.open["pre"]:
            self.add(FOLDED, re.sub(r"\s+", " ", data))
            return
        for number, line in enumerate(data.split("\n")):
            if number:
                self.add(NEWLINE)
            self.add(VERBATIM, line)

    def parse_marked_section(self, i, report=1):
        try:
            return super().parse_marked_section(i, report)
        except (AssertionError, NotImplementedError):  # <![unknown[ would end the parser
            return self.parse_bogus_comment(i)

    def error(self, message):  # Python 3.9 calls this method, and has none
        raise AssertionError(message)

    def text(self):
        """Returns the text of all that was fed."""
        self.rawdata = re.sub(r"</?[a-zA-Z][^<>]{0,1000}\Z", "", self.rawdata)  # cut within a tag
        self.close()
        while len(self.frames) > 1:
            self.pop(ended=False)
        return render(self.frames[0].parts)


def is_around(name, attributes):
    """Tells whether an element says of itself that it is no part of the text."""
    if name in ("html", "body", "main", "article"):
        return False
    return ("hidden" in attributes or attributes.get("aria-hidden") == "true"
            or (attributes.get("role") or "").lower() in ROLES
            or not CLASSES.isdisjoint((attributes.get("class") or "").lower().split()))


def flatten(parts):
    """Yields the parts, and those of the frames among them, in order."""
    stack = [iter(parts)]
    while stack:
        for kind, content in stack[-1]:
            if kind == NESTED:
                stack.append(iter(content))
                break
            yield kind, content
        else:
            stack.pop()


def render(parts):
    """Returns the lines of the parts; one blank line between paragraphs, a tab between cells."""
    lines, line, blank, verbatim = [], [], False, False
    for kind, text in flatten([(NESTED, parts), (BREAK, "")]):
        if kind in (FOLDED, VERBATIM):
            line.append(text)
            verbatim |= kind == VERBATIM
        elif kind == CELL:
            line.append("\t")
        else:
            whole = "".join(line)
            whole = whole.rstrip() if verbatim else fold(whole)
            if whole or kind == NEWLINE:
                if blank and lines and lines[-1]:
                    lines.append("")
                if whole or not blank:  # <pre> may begin with an empty line that is not meant
                    lines.append(whole)
                blank &= not whole
            blank |= kind == BLANK
            line, verbatim = [], False
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n" if lines else ""


def fold(line):
    return re.sub(r" *\t[ \t]*", "\t", re.sub("  +", " ", line)).strip()


def html_to_text(html):
    """Returns the readable text of a page, whatever its state.

    >>> html_to_text("<title>A</title><h1>A&amp;B</h1><nav>menu</nav><p>one<br>two <b>bold")
    'A&B\\n\\none\\ntwo bold\\n'
    """
    reader = Reader()
    reader.feed(html)
    return reader.text()


def extract(html, extractor="builtin"):
    """Returns the readable text of a page by one of EXTRACTORS.

    ValueError: an extractor that there is not, or whose package is not installed.
    """
    if extractor == "builtin":
        return html_to_text(html)
    if extractor != "library":
        raise ValueError(f"--extract {extractor}: it takes {' or '.join(EXTRACTORS)}")
    try:
        trafilatura = importlib.import_module("trafilatura")
    except ImportError as error:
        why = "which is not installed" if error.name == "trafilatura" else (
            f"which cannot be imported ({' '.join(str(error).split())})")
        raise ValueError(f"--extract library needs trafilatura, {why}: pip install trafilatura; "
                         "--extract builtin works now") from None
    text = trafilatura.extract(html, include_comments=False, include_tables=True) or ""
    return text.strip() + "\n" if text.strip() else ""


# ---- What kind of text it is

BEGINS_AS_HTML = re.compile(r"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*"
                            r"<(!doctype\s+html|html|head|body)[\s>]", re.IGNORECASE | re.DOTALL)
A_TAG = re.compile(r"<(p|div|br|h[1-6]|table|a|span|ul|ol|li|title|meta|pre|script|style|section|"
                   r"main|article|nav|img|b|i|em|strong|center|font)\b[^<>]*>", re.IGNORECASE)
HTML_NAMES, MARKDOWN_NAMES = (".html", ".htm", ".xhtml", ".xht"), (".md", ".markdown", ".mdown")


def kind_of_file(name):
    """Returns "html", "markdown" or "text" by the name of a file: what is in it is its owner's."""
    name = name.lower()
    return ("html" if name.endswith(HTML_NAMES)
            else "markdown" if name.endswith(MARKDOWN_NAMES) else "text")


def kind_of_page(text, content_type, path=""):
    """Returns "html", "markdown" or "text": what a page is, not what its server says it is."""
    # note: servers send Markdown and books as text/html, and HTML as text/plain
    if BEGINS_AS_HTML.match(text[:10_000]):
        return "html"
    if "html" in content_type and A_TAG.search(text[:100_000]):
        return "html"
    if "markdown" in content_type:
        return "markdown"
    kind = kind_of_file(path)
    return "text" if kind == "html" else kind


# ---- Project Gutenberg

GUTENBERG_START = re.compile(r"^[ \t]*\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG.{0,300}?\*{3}"
                             r"[^\n]*\n|^\*END[ *]+THE SMALL PRINT![^\n]*\n",
                             re.MULTILINE | re.IGNORECASE | re.DOTALL)
GUTENBERG_END = re.compile(r"^[ \t]*(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG"
                           r"|End of (?:[Tt]he )?Project Gutenberg(?:'s|’s)? )", re.MULTILINE)
CREDITS = re.compile(r"\s*(?:Produced by|E-text prepared by|Transcribed from)\b.*?\n\s*\n",
                     re.DOTALL)


def strip_gutenberg(text):
    """Returns the text without the licence that Project Gutenberg puts before and behind a book.

    Only from the line that first names Project Gutenberg to the line that says START OF, and from
    END OF on; any other text comes back as it is.
    """
    start = GUTENBERG_START.search(text)
    if start:
        name = re.search(r"project gutenberg", text, re.IGNORECASE).start()
        before = text[:text.rfind("\n", 0, name) + 1]
        after = text[start.end():]
        credit = CREDITS.match(after)
        text = before + after[credit.end() if credit else 0:].lstrip("\n")
    end = GUTENBERG_END.search(text) if start or "*** END OF" in text else None
    if end:
        text = text[:end.start()].rstrip() + "\n"
    return text
