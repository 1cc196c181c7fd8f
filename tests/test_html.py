"""Readable text from HTML: what stays, what goes, and pages that are broken."""
import doctest
import sys
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt.corpus import html
from microgpt.corpus.html import extract, html_to_text, kind_of_file, kind_of_page, strip_gutenberg
from strategies import many


def test_examples_in_docstrings():
    assert doctest.testmod(html).failed == 0


CASES = {
    "paragraphs": ("<p>one\n  two</p><p>three</p>", "one two\n\nthree\n"),
    "headings": ("<h1>A</h1>text<h2>B</h2>", "A\n\ntext\n\nB\n"),
    "inline elements": ("<p>an <b>e</b>m<i>pha</i>sis <a href=x>link</a>.", "an emphasis link.\n"),
    "line breaks": ("one<br>two<br/>three", "one\ntwo\nthree\n"),
    "lists": ("<ul><li>a</li><li>b<li>c</ul>d", "a\nb\nc\n\nd\n"),
    "tables": ("<table><tr><th>x</th><th>y</th></tr><tr><td>1<td>2</table>", "x\ty\n1\t2\n"),
    "definitions": ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\nb\nc\nd\n"),
    "pre": ("<pre>\n  a\n\n    b  \n</pre>c", "  a\n\n    b\n\nc\n"),
    "pre in markup": ("<pre><code>if x:\n    y</code></pre>", "if x:\n    y\n"),
    "entities": ("<p>a &amp; b &lt;c&gt; &eacute;&#233;&#xe9;&nbsp;&hellip;", "a & b <c> ééé …\n"),
    "bad entities": ("<p>AT&T &unknown; &#0; &#xD800; &#99999999;",
                     "AT&T &unknown; \ufffd \ufffd \ufffd\n"),
    "scripts": ("a<script>if (a<b) x('</p>')</script>b<style>p {}</style>c", "abc\n"),
    "script that never ends": ("a<script>x", "a\n"),
    "navigation": ("<nav><a>Home</a></nav><p>text</p><aside>ad</aside><footer>(c)</footer>",
                   "text\n"),
    "head": ("<head><title>T</title><meta name=x></head><body>text", "text\n"),
    "header of a site": ("<header><div>Logo</div><h1>Title</h1> by us</header>text",
                         "Title\n\ntext\n"),
    "header of an article": ("<article><header>By A</header>text</article>", "By A\n\ntext\n"),
    "form": ("a<form>name <input> <label>x</label><button>go</button></form>b", "a\n\nb\n"),
    "a page in a form": ("<form><p>text</p><select><option>x</select></form>", "text\n"),
    "hidden": ("<div hidden>x<div>y</div>z</div><span aria-hidden=true>x</span>text", "text\n"),
    "roles": ("<div role=navigation>x<div>y</div></div><p>text", "text\n"),
    "classes": ("<p>text<span class='mw-editsection a'>[edit]</span>", "text\n"),
    "nav that never ends": ("<nav><a>menu</a><p>text</p>", "menu\n\ntext\n"),
    "end tags of nothing": ("</nav></p></div>text</span></body></html>more", "text\n\nmore\n"),
    "cut in a tag": ("<p>text<a href='x", "text\n"),
    "crossed": ("<p><b>a<i>b</b>c</i>d", "abcd\n"),
    "comments": ("a<!-- x --><![CDATA[ y ]]><!doctype html><?php z ?>b", "ab\n"),
    "unknown sections": ("a<![foo[ x ]]>b", "ab\n"),
    "svg": ("a<svg><title>x</title><text>y</text></svg>b<svg/>c", "abc\n"),
    "ruby": ("<ruby>漢<rt>kan</rt></ruby>字", "漢字\n"),
    "nothing": ("<html><body></body></html>", ""),
    "no tags": ("a\nb", "a b\n"),
}


@pytest.mark.parametrize("page, text", CASES.values(), ids=list(CASES))
def test_what_is_read(page, text):
    got = html_to_text(page)
    # note: Pythons differ in where a CDATA section outside SVG ends; its text may show
    assert got.replace(" y ]]>", "").replace(" x ]]>", "").replace("]]>", "") == text


TAGS = st.sampled_from(["p", "div", "nav", "pre", "script", "table", "td", "li", "h1", "form", "br",
                        "article", "header", "svg"])
SCRAPS = st.sampled_from(["&", "&#", "<!", "<!--", "<![x", "]]>", "<?", "\n", " "])
MARKUP = st.lists(st.one_of(TAGS.map("<{}>".format), TAGS.map("</{}>".format), SCRAPS,
                            TAGS.map("<{} ".format), st.text(max_size=4)),
                  max_size=30).map("".join)


@many
@given(MARKUP)
def test_anything_is_read_without_an_error(page):
    text = html_to_text(page)
    assert text == "" or text.endswith("\n") and text.strip("\n")
    assert "\n\n\n" not in text or "<pre" in page


@many
@given(st.lists(st.text("abc .", min_size=1).filter(str.strip), min_size=1, max_size=9))
def test_no_paragraph_is_lost(paragraphs):
    page = "<html><body>" + "".join(f"<p>{text}</p>\n" for text in paragraphs)
    assert html_to_text(page).strip("\n").split("\n\n") == [" ".join(p.split()) for p in paragraphs]


@pytest.mark.parametrize("piece", ["<nav>", "<p>", "<div hidden>", "<h1>", "<!-- -->", "</nav>",
                                   "<table><tr><td>", "&amp;"])
def test_a_large_page_of_one_thing_takes_no_long_time(piece):
    start = time.perf_counter()
    html_to_text("<header>" + piece * 10_000 + "x")
    assert time.perf_counter() - start < 3


# ---- what kind of text it is

KINDS = [
    ("<!DOCTYPE html><p>x", "text/plain", "", "html"),
    ("\n<!-- a --> <!-- b -->\n<html lang=en>", "", "", "html"),
    ("<p>x</p>", "text/html", "", "html"),
    ("a < b and c > d", "text/html", "", "text"),  # a lying content type
    ("# Title\n\ntext", "text/markdown", "", "markdown"),
    ("# Title\n\ntext", "text/plain", "http://x/README.md", "markdown"),
    ("just text", "text/html", "http://x/page.html", "text"),
    ("<!--->" * 1500 + "x", "text/plain", "", "text"),
]


@pytest.mark.parametrize("text, content_type, path, kind", KINDS)
def test_kind_of_page(text, content_type, path, kind):
    assert kind_of_page(text, content_type, path) == kind


def test_kind_of_file():
    assert [kind_of_file(name) for name in ("a.HTML", "b.md", "c.txt", "d")] == [
        "html", "markdown", "text", "text"]


# ---- Project Gutenberg

BOOK = """\
The Project Gutenberg eBook of A Book

This eBook is for the use of anyone anywhere at no cost.
Title: A Book

*** START OF THE PROJECT GUTENBERG EBOOK A
BOOK ***

Produced by Somebody and the
Online Proofreading Team

A BOOK

by Somebody

It began. The *** was a star.

It ended.

End of Project Gutenberg's A Book, by Somebody

*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***

START: FULL LICENSE
"""
TEXT = "A BOOK\n\nby Somebody\n\nIt began. The *** was a star.\n\nIt ended.\n"


def test_the_licence_of_project_gutenberg_is_taken_off():
    assert strip_gutenberg(BOOK) == TEXT
    assert strip_gutenberg("My own line\n" + BOOK) == "My own line\n" + TEXT


def test_the_older_form_of_the_licence():
    text = BOOK.replace("EBOOK A\nBOOK ***", "EBOOK, A BOOK ***").replace(
        "*** START OF THE", "***START OF THIS").replace("*** END OF THE", "***END OF THIS")
    assert strip_gutenberg(text) == TEXT
    small = ("The Project Gutenberg Etext of A Book\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN "
             "ETEXTS*Ver.04.29.93*END*\n\nIt began.\n\nEnd of The Project Gutenberg Etext of A\n")
    assert strip_gutenberg(small) == "It began.\n"


def test_the_licence_is_taken_off_a_page_too():
    page = "<html><body>" + "".join(f"<p>{part}</p>" for part in BOOK.split("\n\n"))
    assert "It began" in strip_gutenberg(html_to_text(page))
    assert "LICENSE" not in strip_gutenberg(html_to_text(page))


@many
@given(st.text())
def test_other_texts_stay_as_they_are(text):
    assert strip_gutenberg(text) == text


def test_a_text_about_project_gutenberg_stays_as_it_is():
    text = "I like Project Gutenberg.\n\nEnd of Project Gutenberg's licence, they say.\n"
    assert strip_gutenberg(text) == text


# ---- the library

def test_the_library_is_used_when_asked_for(monkeypatch):
    stub = types.ModuleType("trafilatura")
    calls = []
    stub.extract = lambda page, **options: calls.append((page, options)) or " read by it "
    monkeypatch.setitem(sys.modules, "trafilatura", stub)
    assert extract("<p>x", "library") == "read by it\n"
    assert calls == [("<p>x", {"include_comments": False, "include_tables": True})]
    assert extract("<p>x") == "x\n"
    stub.extract = lambda page, **options: None  # it found nothing
    assert extract("<p>x", "library") == ""


def test_the_library_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(ValueError, match="pip install trafilatura; --extract builtin works now"):
        extract("<p>x", "library")


def test_the_library_lacks_something(monkeypatch, tmp_path):
    (tmp_path / "trafilatura.py").write_text("import none_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trafilatura", raising=False)
    with pytest.raises(ValueError, match=r"cannot be imported \(No module named 'none_such"):
        extract("<p>x", "library")


def test_an_unknown_extractor():
    with pytest.raises(ValueError, match="--extract best: it takes builtin or library"):
        extract("<p>x", "best")
