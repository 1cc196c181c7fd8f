"""Bytes to text: which encoding, where a byte is wrong, and large files in pieces.

A text is never half read: a byte that is none of the encoding, or a NUL, which no text has, is an
error that names its position. Lines end in "\\n", whatever they ended in.
"""
import codecs
import io
import re

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"))
META_CHARSET = re.compile(rb"""<meta\b[^>]*?\bcharset\s*=\s*["']?\s*([-\w.:]+)"""
                          rb"""|<\?xml[^>]*?\bencoding\s*=\s*["']([-\w.:]+)""", re.IGNORECASE)
# Servers and pages that say the one mean the other (the Encoding standard of browsers).
MEANT = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030",
         "shift_jis": "cp932", "euc_kr": "cp949"}
PIECE = 1 << 20


def check_encoding(name):
    """Returns the name of an encoding of text as Python calls it; else ValueError."""
    try:
        codec = codecs.lookup(name)
        if not codec._is_text_encoding:  # such as base64 and zip
            raise LookupError
    except (LookupError, ValueError):
        raise ValueError(f"--encoding {name}: there is no such encoding; give one that Python has, "
                         "such as utf-8, latin-1, cp1252, utf-16 or gb18030") from None
    return codec.name


def bom_of(data):
    """Returns the encoding that the first bytes of a text name, and how many; or None and 0."""
    for bom, encoding in BOMS:
        if data.startswith(bom):
            return encoding, len(bom)
    return None, 0


def encoding_of(data, encoding=None):
    """Returns the encoding of a text that begins with these bytes, and how long its mark is.

    encoding: what the user says, if anything; else what the mark says, or UTF-8.
    """
    marked, skip = bom_of(data)
    if encoding is None:
        return marked or "utf-8", skip
    encoding = check_encoding(encoding)
    if marked and family(encoding) == family(marked):
        return marked, skip
    return "utf-16-le" if encoding == "utf-16" else encoding, 0  # without a mark: from Windows


def decode_pieces(file, encoding=None, name="the text", size=PIECE):
    """Yields the text of a binary file in pieces of about `size` bytes, with one file position.

    encoding: by default what a byte order mark says, else UTF-8. ValueError names the position of
    the first byte that is wrong.
    """
    data = file.read(size)
    encoding, skip = encoding_of(data, encoding)
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    position = skip  # of the first byte that is not decoded yet
    data = data[skip:]
    while True:
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeError as error:
            at = position - waiting + getattr(error, "start", 0)
            raise ValueError(f"{name}: byte {at} is not {encoding}; give UTF-8 text, or say what "
                             "it is: --encoding latin-1, cp1252, utf-16, gb18030, ...") from None
        if "\0" in text:
            before = text[:text.index("\0")].encode(encoding, "surrogatepass")
            at = position - waiting + len(before)
            raise ValueError(f"{name}: byte {at} is NUL, so it is not text; give a text file, or "
                             "--encoding utf-16 if it is that")
        text = newlines.decode(text, final=not data)
        if text:
            yield text
        if not data:
            return
        position += len(data)
        data = file.read(size)


def family(encoding):
    return "-".join(encoding.split("-")[:2])  # utf-16 of utf-16-le


def decode(data, encoding=None, name="the text"):
    """Returns the text of some bytes, as decode_pieces does.

    >>> decode(b"a\\r\\nb")
    'a\\nb'
    """
    return "".join(decode_pieces(io.BytesIO(data), encoding, name))


def decode_page(data, charset="", encoding=None, name="the page"):
    """Returns the text of a page and the encoding it is in.

    First that is known and decodes all of it: the encoding given, a byte order mark, the charset
    that the server names, the one that the page itself does, UTF-8; else it is taken as
    Windows-1252, as browsers do. A page with a NUL in it is no text: ValueError.
    """
    if encoding:
        return decode(data, encoding, name), check_encoding(encoding)
    meta = META_CHARSET.search(data[:4096])
    named = (meta.group(1) or meta.group(2)).decode("ascii", "replace") if meta else ""
    if bom_of(data)[0]:
        named = charset = bom_of(data)[0]
    for candidate in (charset, named, "utf-8", "cp1252"):
        try:
            codec = check_encoding(candidate) if candidate else None
        except ValueError:
            continue  # the server names something that is no encoding
        if codec == "utf-16" or codec is None:  # without a mark, a page cannot be in it
            continue
        codec = MEANT.get(codec, codec)
        try:
            return decode(data, codec, name), codec
        except ValueError as error:
            if "is NUL" in str(error):
                raise
    return decode(data, "latin-1", name), "latin-1"


def stream_pieces(pieces, size=PIECE):
    """Yields the same text in pieces of about `size` characters, cut where no tokenizer joins.

    That is behind a newline between two lines that are neither blank nor indented, or else before
    a newline that follows a letter: GPT-2's way to cut words joins nothing there. Where a text has
    no such place, it is cut behind a newline; a line longer than 4 x size, behind a space or in
    its midst. Then a token or two may be others than if the text were encoded as a whole.
    """
    waiting = ""
    for piece in pieces:
        waiting += piece
        while len(waiting) > size:
            cut = last_cut(waiting, size)
            if not cut:
                break
            yield waiting[:cut]
            waiting = waiting[cut:]
    if waiting:
        yield waiting


def last_cut(text, size):
    """Returns where to cut a text that is longer than size; 0 to wait for more of it."""
    limit, before, behind = 4 * size, 0, 0
    end = min(len(text) - 1, limit)  # the character behind the cut must be known
    while True:
        newline = text.rfind("\n", 1, end)
        if newline < 0:
            break
        if not text[newline - 1].isspace() and not text[newline + 1].isspace():
            return newline + 1
        if text[newline - 1].isalnum():
            before = before or newline
        behind = behind or newline + 1
        end = newline
    if before or len(text) < limit:
        return before
    return behind or text.rfind(" ", 1, limit) + 1 or limit
