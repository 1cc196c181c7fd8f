"""Pages by http and https, politely, with the standard library, and kept on disk by URL.

Polite means: a name that says who asks, robots.txt respected, one request a second to one host,
and no second request for what is in the cache. Careful means: only http and https, after redirects
too, a limit on time and size, compressed or not, and a few attempts where the server is at fault.
"""
import collections
import datetime
import hashlib
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import urllib.robotparser
import zlib

from microgpt.corpus.cache import cache_folder, write_atomically

PRODUCT = "microgpt"  # the name that a robots.txt may address
AGENT = PRODUCT + " (fetches pages to train a small GPT; respects robots.txt)"
MAX_BYTES = 100_000_000
MAX_REDIRECTS = 10
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})
PIECE = 1 << 16

# data: bytes as they were before any compression; provenance: what is in the JSON beside them.
Page = collections.namedtuple("Page", "data provenance cached")
Answer = collections.namedtuple("Answer", "url status headers data")


class FetchError(ValueError):
    """A URL that cannot be had, and why; the message does not name the URL."""


class TryAgain(FetchError):
    """The server's trouble or the network's: it may be over in a second."""

    def __init__(self, message, after=0.0):
        super().__init__(message)
        self.after = after  # seconds that the server asks for


class HTTPStatus(FetchError):
    """The server answers with something else than a page; status says what, as 404."""

    def __init__(self, status):
        super().__init__(f"the server answers {name_of(status)}")
        self.status = status


class Cache:
    """Pages on disk: name.page has the bytes, name.json the provenance; name is sha256 of the URL.

    Each file is written under another name and renamed, and a page counts only if its sha256 is
    the one in the JSON, so that several runs at once, or one that is killed, do no harm.
    """

    def __init__(self, folder=None):
        self.folder = folder or cache_folder() / "pages"

    def paths(self, url):
        name = hashlib.sha256(url.encode("utf-8")).hexdigest()
        return self.folder / f"{name}.page", self.folder / f"{name}.json"

    def get(self, url, sha256=None):
        """Returns the Page of a URL, or None; with its sha256 known, the bytes are enough."""
        page, path = self.paths(url)
        try:
            data = page.read_bytes()
        except OSError:
            return None
        found = hashlib.sha256(data).hexdigest()
        try:
            provenance = json.loads(path.read_text(encoding="utf-8"))
            if provenance["sha256"] == found and sha256 in (None, found):
                return Page(data, provenance, cached=True)
        except (OSError, ValueError, TypeError, KeyError):
            pass  # it is not there, or was half written by something else
        if sha256 != found:
            return None
        return Page(data, {"url": url, "final_url": url, "content_type": "text/plain",
                           "charset": "", "bytes": len(data), "sha256": found}, cached=True)

    def put(self, url, data, provenance):
        """Keeps a page; raises OSError where the disk is full or not ours."""
        page, path = self.paths(url)
        write_atomically(page, data)
        write_atomically(path, json.dumps(provenance, indent=1, ensure_ascii=False) + "\n")


class Fetcher:
    """Fetches pages. use_cache=False fetches anew, and keeps what came in the cache.

    timeout: seconds without a byte; deadline: seconds for a page in all; progress(url, bytes so
    far, bytes in all or None) is called while a page comes; sleep and clock are for tests.
    """

    def __init__(self, use_cache=True, cache=None, *, timeout=20.0, deadline=600.0, attempts=3,
                 max_bytes=MAX_BYTES, interval=1.0, progress=None, sleep=time.sleep,
                 clock=time.monotonic):
        self.use_cache, self.cache = use_cache, cache or Cache()
        self.timeout, self.deadline, self.attempts = timeout, deadline, attempts
        self.max_bytes, self.interval, self.progress = max_bytes, interval, progress
        self.sleep, self.clock = sleep, clock
        self.robots, self.next_time, self.notes = {}, {}, []
        # note: no handler for file:, ftp: or data:, and none for redirects or errors; see request()
        self.opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler,
                        urllib.request.HTTPSHandler):
            self.opener.add_handler(handler())

    def fetch(self, url, sha256=None):
        """Returns the Page of a URL, from the cache where it is; FetchError says why not.

        sha256: of the bytes, for what must be one certain file; other bytes are an error.
        """
        url = check_url(url)
        page = self.cache.get(url, sha256) if self.use_cache else None
        if page:
            return page
        answer = self.follow(url, self.check_robots)
        found = hashlib.sha256(answer.data).hexdigest()
        if sha256 and found != sha256:
            raise FetchError(f"its sha256 is {found}, and should be {sha256}: it is not the file "
                             "that was meant; nothing was kept, and another copy can be given as a "
                             "file")
        provenance = {
            "url": url, "final_url": answer.url,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "content_type": answer.headers.get_content_type() if "content-type" in answer.headers
            else "", "charset": answer.headers.get_content_charset("") or "",
            "bytes": len(answer.data), "sha256": found}
        try:
            self.cache.put(url, answer.data, provenance)
        except OSError as error:  # a full disk is no reason to do without the page
            self.notes.append(f"{url}: not kept in the cache, {self.cache.folder}: "
                              f"{error.strerror or error}")
        return Page(answer.data, provenance, cached=False)

    # -- one page: redirects, attempts

    def follow(self, url, check):
        """Returns the Answer at the end of all redirects; check(url) may refuse each address."""
        seen = set()
        while True:
            check(url)
            answer = self.attempt(url)
            if answer.status not in REDIRECTS or "location" not in answer.headers:
                if answer.status != 200:
                    raise HTTPStatus(answer.status)
                return answer
            seen.add(url)
            target = urllib.parse.urljoin(url, answer.headers["location"])
            try:
                url = check_url(target)
            except FetchError as error:
                raise FetchError(f"it redirects to {target}: {error}") from None
            if url in seen:
                raise FetchError(f"its redirects go in a circle, back to {url}")
            if len(seen) > MAX_REDIRECTS:
                raise FetchError(f"it redirects more than {MAX_REDIRECTS} times")

    def attempt(self, url):
        """Returns the Answer of a URL; where the server or the network fails, tries again."""
        for attempt in range(1, self.attempts + 1):
            try:
                return self.request(url)
            except TryAgain as error:
                if attempt == self.attempts:
                    times = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise type(error)(f"{error}{times}") from None
                self.sleep(min(max(error.after, 2.0 ** (attempt - 1)), 30.0))

    def request(self, url):
        """Returns the Answer to one request, errors and redirects too; waits for its turn."""
        parts = urllib.parse.urlsplit(url)
        self.wait(parts.netloc)
        request = urllib.request.Request(url, headers={
            "User-Agent": AGENT, "Accept": "text/html, text/plain, text/*;q=0.9, */*;q=0.1",
            "Accept-Encoding": "gzip, deflate"})
        start = self.clock()
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                if response.status in RETRIED:
                    raise retry_later(response)
                data = b"" if response.status != 200 else self.read(response, url, start)
                return Answer(url, response.status, response.headers, data)
        except (socket.timeout, TimeoutError):
            raise TryAgain(f"no answer within {self.timeout:g} s") from None
        except urllib.error.URLError as error:
            reason = error.reason
            if isinstance(reason, (socket.timeout, TimeoutError)):
                raise TryAgain(f"no answer within {self.timeout:g} s") from None
            if isinstance(reason, (ssl.SSLCertVerificationError, ConnectionRefusedError)):
                raise FetchError(f"{describe(reason)}") from None
            raise TryAgain(describe(reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(describe(error)) from None

    def read(self, response, url, start):
        """Returns the body of a response, decompressed; never reads far beyond max_bytes."""
        length = response.headers.get("content-length", "")
        total = int(length) if length.isdecimal() else None
        if total is not None and total > self.max_bytes:
            raise self.too_large(total)
        body = Body(response.headers.get("content-encoding", ""), self.max_bytes)
        received = 0
        while True:
            piece = response.read1(PIECE)
            if not piece:
                break
            received += len(piece)
            if not body.add(piece):
                raise self.too_large()
            if self.clock() - start > self.deadline:
                raise FetchError(f"not complete after {self.deadline:g} s, at {received} bytes")
            if self.progress:
                self.progress(url, received, total)
        if total is not None and received < total:
            raise TryAgain(f"the connection ended after {received} of {total} bytes")
        return body.whole()

    def too_large(self, size=None):
        has = f"it has {size:,} bytes" if size else "it has more"
        return FetchError(f"{has}, and {self.max_bytes:,} is the most that is fetched; download it "
                          "and give it as a file")

    # -- politeness

    def wait(self, host):
        """Sleeps until this host may be asked again."""
        now = self.clock()
        pause = self.next_time.get(host, now) - now
        if pause > 0:
            self.sleep(pause)
        self.next_time[host] = max(now, self.next_time.get(host, now)) + self.interval_of(host)

    def interval_of(self, host):
        rules = self.robots.get(host)
        has_rules = isinstance(rules, urllib.robotparser.RobotFileParser)
        delay = rules.crawl_delay(PRODUCT) if has_rules else None
        return max(self.interval, min(float(delay or 0), 30.0))

    def check_robots(self, url):
        """Raises FetchError where robots.txt of the host does not allow a URL."""
        parts = urllib.parse.urlsplit(url)
        if parts.netloc not in self.robots:
            self.robots[parts.netloc] = self.read_robots(f"{parts.scheme}://{parts.netloc}")
        rules = self.robots[parts.netloc]
        if isinstance(rules, FetchError):
            raise FetchError(f"its robots.txt cannot be had: {rules}")
        if not rules.can_fetch(PRODUCT, url):
            raise FetchError(f"robots.txt of {parts.netloc} does not allow it")

    def read_robots(self, site):
        """Returns the rules of a site, or why they cannot be had, which forbids all (RFC 9309)."""
        rules = urllib.robotparser.RobotFileParser()
        try:
            answer = self.follow(site + "/robots.txt", check=lambda url: None)
            rules.parse(answer.data[:500_000].decode("utf-8-sig", "replace").splitlines())
        except HTTPStatus as error:
            rules.disallow_all = error.status in (401, 403)
            rules.allow_all = not rules.disallow_all  # there is none: nothing is forbidden
        except FetchError as error:
            return error
        return rules


class Body:
    """The bytes of a response as they come, decompressed, up to a limit."""

    def __init__(self, encoding, limit):
        self.encoding, self.limit = encoding.strip().lower(), limit
        self.pieces, self.size, self.begun, self.unpacker = [], 0, False, None
        self.first = b""  # what came before there was enough to tell how it is packed

    def add(self, piece):
        """Takes a piece; returns whether all so far is within the limit."""
        if not self.begun:
            piece = self.first = self.first + piece
            if len(piece) < 2:
                return True
            self.begun, self.unpacker = True, self.choose(piece)
        while piece:
            data = piece
            if self.unpacker:
                try:  # a piece at a time: a small file may unpack to gigabytes
                    data = self.unpacker.decompress(piece, PIECE)
                except zlib.error as error:
                    raise TryAgain(f"what came is damaged ({self.encoding}: {error})") from None
            piece = self.rest()
            self.pieces.append(data)
            self.size += len(data)
            if self.size > self.limit:
                return False
        return True

    def rest(self):
        """Returns what of the piece is still packed."""
        if not self.unpacker:
            return b""
        if not self.unpacker.eof:
            return self.unpacker.unconsumed_tail
        more = self.choose(self.unpacker.unused_data)  # gzip may have several members
        if not more or self.encoding == "deflate":
            return b""  # the end, or padding behind it
        piece, self.unpacker = self.unpacker.unused_data, more
        return piece

    def choose(self, piece):
        """Returns what unpacks a body that begins so; None if it is not packed, as it may be."""
        if self.encoding in ("gzip", "x-gzip") and piece[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31)
        if self.encoding == "deflate" and piece:  # with zlib's header, as it should be, or without
            plain = piece[0] & 15 != 8 or (len(piece) > 1 and int.from_bytes(piece[:2], "big") % 31)
            return zlib.decompressobj(-15 if plain else 15)
        return None

    def whole(self):
        """Returns the whole body, unpacked; TryAgain if it ended too soon."""
        if not self.begun:  # a single byte, or none: nothing packed is that short
            return self.first
        if self.unpacker:
            self.pieces.append(self.unpacker.flush())
            if not self.unpacker.eof:
                raise TryAgain(f"what came is damaged ({self.encoding} data that ends too soon)")
        return b"".join(self.pieces)


def check_url(url):
    """Returns a URL without fragment, spaces and letters beyond ASCII quoted; else FetchError."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host = parts.hostname or ""
        netloc = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
        _ = parts.port  # raises ValueError for one that is no number
    except ValueError as error:  # UnicodeError is one
        raise FetchError(f"it is no URL ({error})") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise FetchError(f"only http and https are fetched, not {parts.scheme or 'this'}")
    if parts.username is not None:
        raise FetchError("it has a user name or a password in it, which would be kept with the "
                         "run; download it and give it as a file")
    if not host:
        raise FetchError("it names no host, as in https://example.org/page.html")
    safe = "!#$%&'()*+,/:;=?@[]~"
    return urllib.parse.urlunsplit((parts.scheme.lower(), netloc,
                                    urllib.parse.quote(parts.path or "/", safe),
                                    urllib.parse.quote(parts.query, safe), ""))


def retry_later(response):
    """Returns the TryAgain of a server that says it has trouble."""
    after = response.headers.get("retry-after", "")
    return TryAgain(f"the server answers {name_of(response.status)}",
                    float(after) if after.isdecimal() else 0.0)


def name_of(status):
    return f"{status} {http.client.responses.get(status, '')}".strip()


def describe(error):
    """Returns what an error of the network says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
