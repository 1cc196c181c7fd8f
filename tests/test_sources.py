"""Where texts come from: files, folders, globs, known names, and pages from a server on loopback
that behaves as badly as servers do."""
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import threading
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import microgpt
from conftest import reference
from microgpt.corpus import decode, sources
from microgpt.corpus.fetch import Body, Cache, Fetcher, FetchError, TryAgain, check_url
from microgpt.corpus.sources import gather
from strategies import many, some

PAGE = ("<!doctype html><html><head><title>T</title><script>var x = '<p>no</p>'</script></head>"
        "<body><nav><a href=/>Home</a></nav><h1>Café</h1><p>One &amp; two<br>three"
        "<div>four<p>five</body>")
TEXT = "Café\n\nOne & two\nthree\nfour\n\nfive\n"
HUGE = 50_000_000  # what the page says that it has


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path: routes[path] is (status, headers, body), or a function of the handler."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers))
        answer = server.routes.get(self.path, (404, {}, b"not here"))
        answer = answer(self) if callable(answer) else answer
        if answer is None:
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # who asked has hung up, as a client may
        pass

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def paths(self):
        """Returns what was asked for since the last call, robots.txt left out."""
        paths = [path for path, _ in self.requests if path != "/robots.txt"]
        self.requests.clear()
        return paths


@pytest.fixture(scope="module")
def running():
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    running.requests, running.routes = [], {}
    return running


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Time:
    """A clock that only sleep() moves."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def fetcher():
    """Makes Fetchers that wait for no real time; .time is the clock of the last."""
    def make(**settings):
        make.time = Time()
        settings = {"timeout": 5, "sleep": make.time.sleep, "clock": make.time.clock, **settings}
        return Fetcher(**settings)
    return make


def html_page(body=PAGE.encode(), content_type="text/html; charset=utf-8", **headers):
    return 200, {"Content-Type": content_type, **headers}, body


# ---- pages that are fine

def test_a_page_becomes_text_with_provenance(server, fetcher, own_cache):
    server.routes["/book.html"] = html_page()
    url = server.address + "/book.html"
    found = gather([url + "#part-2"], fetcher=fetcher())
    assert found.texts() == [TEXT] and found.name == url + "#part-2" and found.notes == []
    sha256 = hashlib.sha256(PAGE.encode()).hexdigest()
    about = found.provenance[0]
    assert about.pop("time")[:2] == "20"
    assert about == {
        "name": url + "#part-2", "origin": "url", "url": url, "final_url": url, "kind": "html",
        "content_type": "text/html", "charset": "utf-8", "encoding": "utf-8", "sha256": sha256,
        "extract": "builtin", "bytes": len(PAGE.encode())}
    stored = {path.suffix: path for path in (own_cache / "pages").iterdir()}
    assert stored[".page"].stem == stored[".json"].stem == hashlib.sha256(url.encode()).hexdigest()
    assert stored[".page"].read_bytes() == PAGE.encode()
    assert json.loads(stored[".json"].read_text(encoding="utf-8"))["sha256"] == sha256


def test_it_says_who_it_is(server, fetcher):
    server.routes["/a"] = html_page()
    fetcher().fetch(server.address + "/a")
    agents = [headers["User-Agent"] for _, headers in server.requests]
    assert len(agents) == 2 and all(agent.startswith("microgpt (") for agent in agents)


def test_the_second_run_makes_no_request(server, fetcher):
    server.routes["/a"] = html_page()
    url = server.address + "/a"
    first = gather([url], fetcher=fetcher())
    assert server.paths() == ["/a"]
    second = gather([url], fetcher=fetcher())
    assert server.requests == [] and fetcher.time.slept == []
    assert (second.texts(), second.sha256) == (first.texts(), first.sha256)
    server.routes["/a"] = html_page(b"<p>new", "text/html")
    assert gather([url], fetcher=fetcher(use_cache=False)).texts() == ["new\n"]
    assert server.paths() == ["/a"]
    assert gather([url], fetcher=fetcher()).texts() == ["new\n"]  # what came is kept


@pytest.mark.parametrize("damage", ["page", "json", "no json"])
def test_a_damaged_cache_is_fetched_again(server, fetcher, own_cache, damage):
    server.routes["/a"] = html_page()
    gather([server.address + "/a"], fetcher=fetcher())
    for path in (own_cache / "pages").iterdir():
        if damage == "no json" and path.suffix == ".json":
            path.unlink()
        elif path.suffix == f".{damage}":
            path.write_bytes(path.read_bytes()[:20])
    server.paths()
    assert gather([server.address + "/a"], fetcher=fetcher()).texts() == [TEXT]
    assert server.paths() == ["/a"]


def test_a_cache_that_cannot_be_written_is_no_hindrance(server, fetcher, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    server.routes["/a"] = html_page()
    found = gather([server.address + "/a"], fetcher=fetcher(cache=Cache(tmp_path / "file" / "x")))
    assert found.texts() == [TEXT] and "not kept in the cache" in found.notes[0]


def test_several_runs_at_once_share_a_cache(server, fetcher, own_cache):
    server.routes["/a"] = html_page()
    texts, url = [], server.address + "/a"
    threads = [threading.Thread(target=lambda f=fetcher(use_cache=False):
                                texts.extend(gather([url], fetcher=f).texts())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [TEXT] * 6
    assert sorted(path.suffix for path in (own_cache / "pages").iterdir()) == [".json", ".page"]
    assert Cache().get(url).data == PAGE.encode()


LATIN = "<p>Café – “naïve”".encode("cp1252")
ENCODED = {
    "latin-1 that says so": html_page(LATIN, "text/html; charset=ISO-8859-1"),
    "latin-1 in a meta tag": html_page(b"<meta charset='latin-1'>" + LATIN, "text/html"),
    "latin-1 in an older meta tag": html_page(
        b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">' + LATIN,
        "text/html"),
    "latin-1 that does not say so": html_page(LATIN, "text/html"),
    "latin-1 that says it is UTF-8": html_page(LATIN),
    "a charset that there is not": html_page(LATIN, "text/html; charset=none-such"),
    "UTF-8 that does not say so": html_page("<p>Café – “naïve”".encode(), "text/html"),
    "UTF-8 with a mark that says latin-1": html_page(
        "\ufeff<p>Café – “naïve”".encode(), "text/html; charset=latin-1"),
    "UTF-16 with a mark": html_page("\ufeff<p>Café – “naïve”".encode("utf-16-le"), "text/html"),
    "gzip": html_page(gzip.compress("<p>Café – “naïve”".encode()), **{"Content-Encoding": "gzip"}),
    "gzip of several members": html_page(
        gzip.compress("<p>Café – “".encode()) + gzip.compress("naïve”".encode()) + b"\0\0",
        **{"Content-Encoding": "gzip"}),
    "deflate": html_page(zlib.compress("<p>Café – “naïve”".encode()),
                         **{"Content-Encoding": "deflate"}),
    "deflate without a header": html_page(zlib.compress("<p>Café – “naïve”".encode())[2:-4],
                                          **{"Content-Encoding": "deflate"}),
    "not gzip, though it says so": html_page("<p>Café – “naïve”".encode(),
                                             **{"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("page", ENCODED.values(), ids=list(ENCODED))
def test_charsets_and_encodings(server, fetcher, page):
    server.routes["/a"] = page
    assert gather([server.address + "/a"], fetcher=fetcher()).texts() == ["Café – “naïve”\n"]


def test_encoding_is_what_the_user_says(server, fetcher):
    server.routes["/a"] = html_page("<p>Привет".encode("koi8-r"), "text/html; charset=latin-1")
    found = gather([server.address + "/a"], encoding="koi8-r", fetcher=fetcher())
    assert found.texts() == ["Привет\n"] and found.provenance[0]["encoding"] == "koi8-r"


LYING = {
    "html as text/plain": (html_page(content_type="text/plain; charset=utf-8"), TEXT),
    "html as a picture": (html_page(content_type="image/png"), TEXT),
    "html without a type": ((200, {}, PAGE.encode()), TEXT),
    "text as html": (html_page(b"if a < b:\n    c > d\n"), "if a < b:\n    c > d\n"),
    "markdown as text": (html_page(b"# A\n\n* b <c@d.org>\n", "text/plain"),
                         "# A\n\n* b <c@d.org>\n"),
}


@pytest.mark.parametrize("page, text", LYING.values(), ids=list(LYING))
def test_content_types_that_lie(server, fetcher, page, text):
    server.routes["/a"] = page
    assert gather([server.address + "/a"], fetcher=fetcher()).texts() == [text]


def test_redirects_are_followed(server, fetcher):
    server.routes.update({"/a": (301, {"Location": "/b"}, b""),
                          "/b": (307, {"Location": server.address + "/c?x=1"}, b""),
                          "/c?x=1": html_page()})
    found = gather([server.address + "/a"], fetcher=fetcher())
    assert found.texts() == [TEXT] and found.provenance[0]["final_url"] == server.address + "/c?x=1"


def test_letters_beyond_ascii_in_a_url(server, fetcher):
    server.routes["/caf%C3%A9%20x?q=%C3%A9"] = html_page()
    assert fetcher().fetch(server.address + "/café x?q=é").data == PAGE.encode()


def test_progress_of_a_large_page(server, fetcher):
    server.routes["/a"] = html_page(b"word " * 100_000, "text/plain")
    seen = []
    fetcher(progress=lambda *values: seen.append(values)).fetch(server.address + "/a")
    assert len(seen) > 2 and seen[-1] == (server.address + "/a", 500_000, 500_000)
    assert [got for _, got, _ in seen] == sorted(got for _, got, _ in seen)


# ---- pages that are not

def fails_then(times, status=500, **headers):
    """Returns a route that answers with an error so many times, and then with the page."""
    left = [times]

    def answer(_):
        left[0] -= 1
        return (status, headers, b"") if left[0] >= 0 else html_page()
    return answer


def test_trouble_of_the_server_is_waited_for(server, fetcher):
    server.routes["/a"] = fails_then(2)
    assert gather([server.address + "/a"], fetcher=fetcher()).texts() == [TEXT]
    assert server.paths() == ["/a"] * 3 and fetcher.time.slept[-2:] == [1.0, 2.0]
    server.routes["/b"] = fails_then(1, 503, **{"Retry-After": "7"})
    assert gather([server.address + "/b"], fetcher=fetcher()).texts() == [TEXT]
    assert 7.0 in fetcher.time.slept


def slowly(handler):
    handler.server.release.wait(5)
    return None


def cut_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"<p>half")
    return None


def huge(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    return None


BOMB = gzip.compress(b"x" * 20_000_000)
BAD = {
    "slow": (slowly, r"no answer within 0.2 s \(2 attempts\)"),
    "huge and says so": ((200, {"Content-Length": str(HUGE)}, b"x"),
                         "it has 50,000,000 bytes, and 1,000,000 is the most"),
    "huge and does not": (huge, "it has more, and 1,000,000 is the most that is fetched; download"),
    "huge when unpacked": (html_page(BOMB, **{"Content-Encoding": "gzip"}),
                           "it has more, and 1,000,000 is the most"),
    "404": ((404, {}, b"none"), "the server answers 404 Not Found$"),
    "500": (fails_then(99), r"the server answers 500 Internal Server Error \(2 attempts\)"),
    "to a file": ((302, {"Location": "file:///etc/passwd"}, b""),
                  "it redirects to file:///etc/passwd: only http and https are fetched, not file"),
    "to ftp": ((302, {"Location": "ftp://127.0.0.1/x"}, b""),
               "only http and https are fetched, not ftp"),
    "in a loop": ((302, {"Location": "/loop"}, b""),
                  "its redirects go in a circle, back to http.*/loop"),
    "on and on": (lambda handler: (302, {"Location": handler.path + "0"}, b""),
                  "it redirects more than 10 times"),
    "to nowhere": ((302, {}, b""), "the server answers 302 Found"),
    "cut short": (cut_short, "the connection ended after 7 of 1000 bytes"),
    "cut gzip": (html_page(gzip.compress(PAGE.encode())[:-12], **{"Content-Encoding": "gzip"}),
                 "what came is damaged"),
    "wrong gzip": (html_page(b"\x1f\x8bxxxxxxxxxxxxxxx", **{"Content-Encoding": "gzip"}),
                   "what came is damaged"),
    "a picture": (html_page(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"), "byte 8 is NUL"),
    "a picture that says it is a page": (html_page(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
                                         "byte 8 is NUL, so it is not text"),
    "nothing to read": (html_page(b"<script>render()</script>"), "it holds no text"),
    "no answer": (lambda handler: None, r"\(2 attempts\)"),
}


@pytest.mark.parametrize("route, message", BAD.values(), ids=list(BAD))
def test_a_bad_page_is_named_and_the_others_go_on(server, fetcher, route, message):
    server.release = threading.Event()
    path = "/loop" if "circle" in message else "/bad"
    server.routes.update({path: route, "/good": html_page()})
    if "more than 10" in message:
        server.routes.update({path + "0" * i: route for i in range(20)})
    bad, good = server.address + path, server.address + "/good"
    settings = {"timeout": 0.2 if route is slowly else 5, "attempts": 2, "max_bytes": 1_000_000}
    found = gather([bad, good], fetcher=fetcher(**settings))
    server.release.set()
    assert found.texts() == [TEXT] and len(found.notes) == 1
    assert found.notes[0].startswith(f"left out --data {bad}: ")
    assert re.search(message, found.notes[0]) and "\n" not in found.notes[0]
    if route is not slowly:
        with pytest.raises(ValueError, match="no text to learn from: --data http.*" + message):
            gather([bad], fetcher=fetcher(**settings))
        kept = "NUL" in message or "holds no text" in message  # it came whole
        assert bool(Cache().get(bad)) == kept


def test_a_page_that_trickles_ends_at_the_deadline(server, fetcher):
    server.routes["/a"] = html_page(b"x" * 1_000_000)
    now = iter(range(0, 10_000, 30))
    slow = fetcher(deadline=100, clock=lambda: next(now))
    with pytest.raises(FetchError, match="not complete after 100 s, at [0-9]+ bytes"):
        slow.request(server.address + "/a")


def test_nobody_listens_there(fetcher, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(ValueError, match="learn from: --urls http://127.0.0.1:1/:.*refused"):
        gather(urls=["http://127.0.0.1:1/"], fetcher=fetcher())


NO_URLS = [("file:///etc/passwd", "only http and https are fetched, not file"),
           ("ftp://example.org/x", "only http and https are fetched, not ftp"),
           ("example.org", "only http and https are fetched, not this"),
           ("http:///x", "it names no host"), ("http://[::1/x", "it is no URL"),
           ("http://a:b/", "it is no URL"),
           ("http://me:secret@a.org/", "it has a user name or a password in it")]


@pytest.mark.parametrize("url, message", NO_URLS)
def test_what_is_no_url(url, message, fetcher):
    with pytest.raises(FetchError, match=message):
        check_url(url)
    with pytest.raises(ValueError, match="no text to learn from: --urls .*" + message):
        gather(urls=[url], fetcher=fetcher())


# ---- politeness

def test_robots_txt_is_respected(server, fetcher):
    server.routes.update({
        "/robots.txt": (200, {}, b"User-agent: *\nDisallow: /\n\nUser-agent: microgpt\n"
                                 b"Disallow: /private\nCrawl-delay: 5\n"),
        "/private/a": html_page(), "/b": html_page(), "/c": (302, {"Location": "/private/a"}, b"")})
    urls = [server.address + path for path in ("/private/a", "/b", "/c")]
    found = gather(urls, fetcher=fetcher())
    assert server.paths() == ["/b", "/c"]  # the redirect is not followed to where we may not go
    assert [source.name for source in found.sources] == [urls[1]]
    assert [note.split(": ")[-1] for note in found.notes] == [
        f"robots.txt of {server.address[7:]} does not allow it"] * 2
    assert fetcher.time.slept == [1.0, 5.0]


@pytest.mark.parametrize("status, allowed", [(404, True), (410, True), (401, False), (403, False),
                                             (500, False)])
def test_a_robots_txt_that_cannot_be_had(server, fetcher, status, allowed):
    """RFC 9309: none means that all is allowed, trouble with it that nothing is."""
    server.routes.update({"/robots.txt": (status, {}, b""), "/a": html_page(), "/b": html_page()})
    urls = [server.address + "/a", server.address + "/b"]
    if allowed:
        assert len(gather(urls, fetcher=fetcher()).sources) == 2
    else:
        message = "does not allow it" if status < 500 else "its robots.txt cannot be had: .* 500"
        with pytest.raises(ValueError, match=message):
            gather(urls, fetcher=fetcher())
        assert server.paths() == []


def test_one_request_a_second_to_one_host(server, fetcher):
    server.routes.update({f"/{i}": html_page() for i in range(3)})
    gather([f"{server.address}/{i}" for i in range(3)], fetcher=fetcher())
    assert fetcher.time.slept == [1.0, 1.0, 1.0]  # robots.txt was the first request
    other = fetcher()
    other.wait("a.org"), other.wait("b.org")
    assert fetcher.time.slept == []  # of two hosts neither waits for the other


# ---- files

def test_one_plain_file_gives_the_documents_of_the_file(reference_names, tmp_path, monkeypatch):
    """gather() and split_documents() are load_docs() of microgpt.py, in its order."""
    from microgpt.corpus.documents import split_documents
    odd = tmp_path / "odd.txt"
    odd.write_bytes("\ufeff one \r\n\r\n two\u2028three\x0c\rfour\x85\n\n".encode())
    for path in (reference_names, odd):
        found = gather([path])
        assert (split_documents(found.texts(), "lines"), path) == microgpt.load_docs(path)
        assert found.name == str(path)


def test_without_data_the_same_texts_come_first(tmp_path, monkeypatch):
    from microgpt.corpus.documents import split_documents
    monkeypatch.chdir(tmp_path)
    for step in range(3):
        if step == 1:
            monkeypatch.setattr(sources, "BUNDLED", tmp_path / "none")
            monkeypatch.setattr(microgpt, "__path__", [str(tmp_path)])
        if step == 2:
            (tmp_path / "input.txt").write_text("b\na\n", encoding="utf-8")
        found = gather()
        docs, name = microgpt.load_docs()
        assert split_documents(found.texts(), "lines") == docs
        assert name.endswith(["names.txt", "the words of Python's manual", "input.txt"][step])
        assert found.name == ["names", "the words of Python's manual", "input.txt"][step]


def test_a_folder_of_mixed_files(tmp_path):
    for name, data in {"b.txt": b"b\n", "a/z.md": b"# z\n", "a/y.html": b"<p>y",
                       "c.png": b"\x89P\0", "d.bin": b"\xff\xfe\xfd", "empty": b"", ".hidden": b"h",
                       ".git/x": b"x", "e.txt": b" \n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = gather([str(tmp_path)])
    assert found.texts() == ["y\n", "# z\n", "b\n"]
    assert [about["kind"] for about in found.provenance] == ["html", "markdown", "text"]
    note, = found.notes
    assert note.startswith(f"--data {tmp_path}: left out 4 files: {tmp_path / 'c.png'} (byte ")
    assert note.endswith(" and 1 more") and f"{tmp_path / 'e.txt'} (it holds no text)" in note


def test_globs(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "sub/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name + "\n", encoding="utf-8")
    assert gather([f"{tmp_path}/*.txt"]).texts() == ["a.txt\n", "b.txt\n"]
    assert gather([f"{tmp_path}/**/*.txt", str(tmp_path / "c.md")]).texts() == [
        "a.txt\n", "b.txt\n", "sub/d.txt\n", "c.md\n"]
    (tmp_path / "x[1].txt").write_text("named so\n", encoding="utf-8")
    assert gather([f"{tmp_path}/x[1].txt"]).texts() == ["named so\n"]


def test_a_pipe_can_be_read_only_once(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    thread = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"a\nb\n"))
    thread.start()
    assert gather([tmp_path / "pipe"]).texts() == ["a\nb\n"]
    thread.join()


def test_project_gutenbergs_licence_is_left_out_of_files(tmp_path):
    (tmp_path / "book.txt").write_text(
        "The Project Gutenberg eBook of X\n\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\nIt "
        "began.\n\n*** END OF THE PROJECT GUTENBERG EBOOK X ***\nLICENSE\n", encoding="utf-8")
    found = gather([tmp_path / "book.txt", "names"])
    assert found.texts()[0] == "It began.\n"
    assert found.provenance[0]["licence_left_out"] == 136 and len(found.notes) == 1
    assert found.notes == ["the licence of Project Gutenberg is left out of 1 text"]


def test_a_large_file_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "WHOLE", 100)
    monkeypatch.setattr(decode, "PIECE", 64)
    text = "".join(f"line {i} é\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    source, = gather([tmp_path / "a.txt"]).sources
    assert source.read() == text and source.text is None


BAD_FILES = {
    "NUL": (b"abc\0def", {},
            "--data .*x.txt: byte 3 is NUL, so it is not text; .*--encoding utf-16"),
    "invalid UTF-8": ("né".encode() + b"\xff", {},
                      "x.txt: byte 3 is not utf-8; .*--encoding latin-1"),
    "cut UTF-8": ("né".encode()[:-1], {}, "byte 1 is not utf-8"),
    "behind a mark": (b"\xef\xbb\xbfab\xff", {}, "byte 5 is not utf-8"),
    "another encoding": ("né".encode("latin-1"), {"encoding": "ascii"}, "byte 1 is not ascii"),
    "no encoding": (b"abc", {"encoding": "none"}, "--encoding none: there is no such encoding"),
    "no encoding of text": (b"abc", {"encoding": "base64"}, "--encoding base64: there is no such"),
    "empty": (b"", {}, "x.txt: it holds no text; give a text with at least one line"),
    "blank": (b" \n\n", {}, "x.txt: it holds no text"),
    "no extractor": (b"abc", {"extract": "x"}, "--extract x: it takes builtin or library"),
}


@pytest.mark.parametrize("data, settings, message", BAD_FILES.values(), ids=list(BAD_FILES))
def test_a_bad_file(tmp_path, data, settings, message):
    (tmp_path / "x.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        gather([tmp_path / "x.txt"], **settings)
    assert "\n" not in str(error.value)


def test_the_position_counts_from_the_start_of_a_large_file(tmp_path):
    data = ("é" * 700_001 + "\n").encode()
    (tmp_path / "a").write_bytes(data + b"\xff")
    with pytest.raises(ValueError, match=f"byte {len(data)} is not utf-8"):
        gather([tmp_path / "a"])
    (tmp_path / "a").write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=f"byte {len(data)} is NUL"):
        gather([tmp_path / "a"])


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="--data .*none.txt: No such file.*, shakespeare"):
        gather([tmp_path / "none.txt"])
    with pytest.raises(ValueError, match=r"--data .*\*.txt: no file is named so"):
        gather([f"{tmp_path}/*.txt"])
    with pytest.raises(ValueError, match="there is no text file in it; give files of UTF-8 text"):
        gather([tmp_path])
    (tmp_path / "a.png").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"no text file in it; left out: 1 file: .*a.png \(byte"):
        gather([tmp_path])


ENCODINGS = ["utf-8", "utf-16", "latin-1", "cp1252", "utf-16-le", "gb18030", "utf-8-sig", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("\r\nCafé\r\n".encode(encoding))
    assert gather([tmp_path / "a.txt"], encoding=encoding).texts() == ["\nCafé\n"]
    if encoding in ("utf-16", "utf-8-sig", "utf-32"):  # a byte order mark says it
        assert gather([tmp_path / "a.txt"]).texts() == ["\nCafé\n"]


@many
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
       st.sampled_from(["utf-8", "utf-16-le", "gb18030"]), st.integers(1, 9))
def test_pieces_are_the_whole(text, encoding, size):
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.startswith("\ufeff"):
        return
    pieces = decode.decode_pieces(io.BytesIO(text.encode(encoding)), encoding, size=size)
    assert "".join(pieces) == expected


# ---- lists of URLs

def test_a_file_of_urls(server, fetcher, tmp_path):
    server.routes.update({"/a": html_page(b"a", "text/plain"), "/b": html_page(b"b", "text/plain")})
    (tmp_path / "urls.txt").write_text(f"# pages\n\n{server.address}/a#x  # the first\n  # none\n"
                                       f"{server.address}/b\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("c", encoding="utf-8")
    found = gather([tmp_path / "c.txt"], urls=[server.address + "/b"],
                   url_file=tmp_path / "urls.txt", fetcher=fetcher())
    assert found.texts() == ["c", "b", "a", "b"]
    assert found.name == f"4 texts, {tmp_path / 'c.txt'} first"
    assert server.paths() == ["/b", "/a"]


def test_bad_files_of_urls(tmp_path):
    with pytest.raises(ValueError, match="--url-file .*none: No such file.*; give a text file"):
        gather(url_file=tmp_path / "none")
    (tmp_path / "urls").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="--url-file .*: there is no URL in it; give one a line"):
        gather(url_file=tmp_path / "urls")


# ---- known names

def test_names_and_the_manual(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = gather(["names", "python-manual"])
    assert [about["origin"] for about in found.provenance] == ["bundled", "python-manual"]
    assert found.sources[0].read() == sources.BUNDLED.read_text(encoding="utf-8")
    assert len(found.sources[1].read().split()) > 2000
    (tmp_path / "names").write_text("mine\n", encoding="utf-8")
    assert "--data ./names takes that" in gather(["names"]).notes[0]
    assert gather(["./names"]).texts() == ["mine\n"]


def test_the_sums_are_those_of_the_reference_data():
    for name, file in (("shakespeare", "tinyshakespeare.txt"), ("makemore-names", "names.txt")):
        url, sha256 = sources.DOWNLOADS[name]
        assert url.startswith("https://")
        assert hashlib.sha256(reference(file).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("name, file", [("shakespeare", "tinyshakespeare.txt"),
                                        ("makemore-names", "names.txt")])
def test_known_texts_from_a_cache_that_was_filled_before(fetcher, own_cache, name, file):
    """The bytes alone are enough, for their sha256 is known."""
    data, url = reference(file).read_bytes(), sources.DOWNLOADS[name][0]
    (own_cache / "pages").mkdir(parents=True)
    (own_cache / "pages" / f"{hashlib.sha256(url.encode()).hexdigest()}.page").write_bytes(data)
    found = gather([name], fetcher=fetcher())
    assert found.texts() == [data.decode()] and found.name == name
    assert found.provenance[0]["url"] == url


def test_known_texts_from_a_server(server, fetcher, monkeypatch, own_cache):
    data = b"a text that is known\n"
    known = (server.address + "/known.txt", hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(sources.DOWNLOADS, "shakespeare", known)
    server.routes["/known.txt"] = html_page(b"something else\n", "text/plain")
    with pytest.raises(ValueError, match="--data shakespeare: http.*its sha256 is [0-9a-f]{64}, "
                                         "and should be [0-9a-f]{64}: it is not the file"):
        gather(["shakespeare"], fetcher=fetcher())
    assert not own_cache.exists()  # nothing is kept
    server.routes["/known.txt"] = html_page(data, "text/plain")
    server.paths()
    for _ in range(2):
        assert gather(["shakespeare"], fetcher=fetcher()).texts() == [data.decode()]
    assert server.paths() == ["/known.txt"]


def test_a_known_text_that_was_changed_in_the_cache_is_fetched_again(server, fetcher, monkeypatch):
    data = b"a text that is known\n"
    url = server.address + "/known.txt"
    monkeypatch.setitem(sources.DOWNLOADS, "shakespeare", (url, hashlib.sha256(data).hexdigest()))
    server.routes["/known.txt"] = html_page(data, "text/plain")
    other = b"another\n"
    Cache().put(url, other, {"sha256": hashlib.sha256(other).hexdigest()})
    assert gather(["shakespeare"], fetcher=fetcher()).texts() == [data.decode()]


# ---- one digest for all

def test_the_digest_of_a_corpus(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name, encoding="utf-8")
    a, b = tmp_path / "a", tmp_path / "b"
    assert gather([a, b]).sha256 == gather([a, b]).sha256
    assert len({gather(data).sha256 for data in ([a], [b], [a, b], [b, a])}) == 4
    assert gather([a, b]).size == 2
    json.dumps(gather([a, b]).provenance)


@some
@given(st.binary(max_size=3000), st.sampled_from(["gzip", "deflate", "", "br"]), st.booleans(),
       st.integers(1, 700))
@example(b"", "gzip", True, 1)
@example(b"a text", "gzip", True, 1)
@example(b"a text", "deflate", True, 1)
def test_bodies_in_any_pieces(data, encoding, packed, size):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)
    sent = pack(data) if packed else data
    body = Body(encoding, 10_000)
    try:
        assert all(body.add(sent[i:i + size]) for i in range(0, len(sent), size))
        whole = body.whole()
    except TryAgain:  # bytes that look packed and are not
        assert not packed
        return
    assert whole == data or not packed


# ---- what a person may not have meant


@pytest.mark.parametrize("item", ["", " "])
def test_an_empty_name_is_not_the_folder_here(item, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.txt").write_text("some", encoding="utf-8")
    with pytest.raises(ValueError, match="it is empty; give a file, a folder"):
        gather([item])


def test_what_runs_left_in_a_folder_is_not_its_text(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    before = gather([tmp_path]).sha256
    for folder, name in (("runs/x", "last.safetensors"), ("runs/sweep", "sweep.json")):
        (tmp_path / folder / "deeper").mkdir(parents=True)
        (tmp_path / folder / name).write_text("{}", encoding="utf-8")
        (tmp_path / folder / "samples.txt").write_text("written", encoding="utf-8")
        (tmp_path / folder / "deeper" / "samples.txt").write_text("written", encoding="utf-8")
    found = gather([tmp_path])
    assert found.texts() == ["mine"] and found.sha256 == before


def test_a_folder_that_may_not_be_looked_into_is_left_out(tmp_path, monkeypatch):
    """os.stat() may refuse even to say what is there."""
    (tmp_path / "good.txt").write_text("good", encoding="utf-8")
    (tmp_path / "secret.txt").symlink_to("/nowhere")
    real = os.stat

    def stat(path, *args, **kwargs):
        if str(path).endswith("secret.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)
    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr("pathlib.Path.stat", lambda self, **words: stat(self, **words))
    found = gather([tmp_path])
    assert found.texts() == ["good"]
    assert "left out 1 file: " in found.notes[0] and "secret.txt" in found.notes[0]
