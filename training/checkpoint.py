"""Checkpoints: tensors of floats in a safetensors file, written and read with plain Python.

    write("best.safetensors", weights, {"step": "100"})
    weights, metadata = read("best.safetensors")

The file: 8 bytes with the length of the header; the header, JSON that gives each tensor's dtype,
shape and place; then all numbers, little-endian (https://github.com/huggingface/safetensors).
Unlike a pickle it holds no code, so a stranger's file can at worst be wrong. All of it is checked
before memory is taken for any tensor, and whatever is wrong is a ValueError of one line.

Left out: tensors of whole numbers or of more than two dimensions, and reading a part of a file.
"""
import binascii
import contextlib
import json
import os
import re
import stat
import struct
import sys
from array import array
from typing import NamedTuple

from microgpt.corpus.cache import write_atomically

TYPECODES = {"F64": "d", "F32": "f"}  # dtype -> what an array of it is called in Python
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # dtype -> bytes a number
LARGEST_HEADER = 100_000_000  # bytes, the limit of the format
KEYS = {"dtype", "shape", "data_offsets"}
# What Linux says of a container's memory: its second control groups, and its first
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Entry(NamedTuple):
    """Where a tensor is: `begin` and `end` count bytes from the end of the header."""

    dtype: str
    rows: int
    columns: int
    begin: int
    end: int


# ---- writing -------------------------------------------------------------------------------------

def write(path, tensors, metadata=None, *, dtype="F64"):
    """Writes tensors, name -> rows of equal length, to a safetensors file, whole or not at all.

    A row is an array or memoryview of "d", stored as F64, or of "f", stored as F32, without a copy;
    or a list of floats, stored as dtype says. (In F32, what is beyond 3.4e38 becomes infinite.)
    metadata: strings -> strings. ValueError for rows of another kind; OSError where the disk is
    full or the folder closed to us, and then the file that was there still is.
    """
    if dtype not in TYPECODES:
        raise ValueError(f"dtype is {dtype!r}, needs one of {', '.join(TYPECODES)}")
    shapes = {name: stored_as(name, rows, dtype) for name, rows in tensors.items()}
    # The order of the reference writer, which keeps each number aligned: by bytes, then by name.
    layout, end = {}, 0
    for name in sorted(shapes, key=lambda name: (-BYTES[shapes[name][0]], name)):
        kind, rows, columns = shapes[name]
        begin, end = end, end + rows * columns * BYTES[kind]
        layout[name] = Entry(kind, rows, columns, begin, end)
    header = header_bytes(layout, metadata)
    write_atomically(path, pieces(header, layout, tensors))


def stored_as(name, rows, dtype):
    """Returns (dtype, rows, columns) of a tensor; ValueError if its rows differ, or are no rows."""
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(f"a tensor is named {name!r}: needs a string, other than '__metadata__'")
    kinds = {kind_of(name, row, dtype) for row in rows}
    lengths = {len(row) for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"tensor {name!r} has rows of {' and '.join(sorted(kinds))}, needs one")
    if len(lengths) > 1:
        raise ValueError(f"tensor {name!r} has rows of {min(lengths)} to {max(lengths)} numbers, "
                         "needs rows of equal length")
    return kinds.pop() if kinds else dtype, len(rows), lengths.pop() if lengths else 0


def kind_of(name, row, dtype):
    """Returns the dtype that a row is stored as."""
    code = None
    if isinstance(row, (list, tuple)):
        return dtype
    if isinstance(row, array):
        code = row.typecode
    elif isinstance(row, memoryview) and row.ndim == 1 and row.c_contiguous:
        code = row.format
    for kind, typecode in TYPECODES.items():
        if code == typecode:
            return kind
    found = type(row).__name__ + (f" of {code}" if code else "")
    raise ValueError(f"tensor {name!r} has a row of the type {found}: needs a list of floats, or "
                     "an array or contiguous memoryview of 'd' or 'f'")


def header_bytes(layout, metadata):
    """Returns the beginning of a file, up to the numbers."""
    header = {}
    if metadata is not None:
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise ValueError("metadata must be strings -> strings; got "
                             f"{shown(dict(metadata))}: turn numbers into text, or all into JSON")
        header["__metadata__"] = dict(metadata)
    for name, entry in layout.items():
        header[name] = {"dtype": entry.dtype, "shape": [entry.rows, entry.columns],
                        "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(f"the header would have {len(text)} bytes, and the format allows "
                         f"{LARGEST_HEADER}: keep less in the metadata")
    return struct.pack("<Q", len(text)) + text


def pieces(header, layout, tensors):
    """Yields a file, a row at a time."""
    yield header
    for name, entry in layout.items():
        code = TYPECODES[entry.dtype]
        for row in tensors[name]:
            if isinstance(row, (list, tuple)):
                try:
                    row = array(code, row)
                except (OverflowError, TypeError) as error:
                    raise ValueError(f"tensor {name!r} has a row that is not of floats: {error}"
                                     ) from None
            if sys.byteorder == "big":
                row = array(code, row)  # a copy: the caller's stays as it is
                row.byteswap()
            yield row


def checksum(tensors, metadata):
    """Returns the CRC-32 of tensors, as write() stores lists in F64, and of metadata: 8 digits.

    The format has none of its own, and a number with another bit is a number.
    """
    crc = binascii.crc32(json.dumps(metadata, sort_keys=True).encode("ascii"))
    for name in sorted(tensors):
        crc = binascii.crc32(name.encode("utf-8"), crc)
        for row in tensors[name]:
            if isinstance(row, (list, tuple)):
                row = array("d", row)
            if sys.byteorder == "big":
                row = array(row.typecode if isinstance(row, array) else row.format, row)
                row.byteswap()
            crc = binascii.crc32(row, crc)
    return f"{crc:08x}"


# ---- reading -------------------------------------------------------------------------------------

def read(path, shapes=None):
    """Returns (tensors, metadata) of a safetensors file: name -> rows, and strings -> strings.

    Each row is a memoryview of "d" or "f", which list() or row.tolist() makes floats of; F16 and
    BF16 come as "f". A tensor of one dimension is one row, and one of none a row of one number.

    shapes: name -> (rows, columns) of all tensors that must be there, or a function that returns
    it for the metadata; the tensors then come in its order, else in that of the file.

    ValueError, of one line with the path, for a file that is not there, not whole, not of floats,
    larger than memory, or not of these shapes. It is read and not mapped: Windows would not let
    anybody replace a file that is mapped.
    """
    with opened(path) as file:
        metadata, layout = read_header(file)
        if callable(shapes):
            shapes = shapes(metadata)
        if shapes is not None:
            check_shapes(layout, shapes)
        check_memory(layout)
        tensors = {name: read_rows(file, entry) for name, entry in layout.items()}
    return {name: tensors[name] for name in (layout if shapes is None else shapes)}, metadata


def read_metadata(path):
    """Returns the metadata of a safetensors file, strings -> strings, without reading its tensors.

    ValueError as of read(): the header is checked all the same, and against the file's length.
    """
    with opened(path) as file:
        return read_header(file)[0]


@contextlib.contextmanager
def opened(path):
    """Yields the file, of bytes; all that goes wrong inside is a ValueError of one line."""
    try:
        with open(path, "rb", opener=without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is a pipe or a device, not a file")
            yield file
    except OSError as error:
        reason = error.strerror or error
    except MemoryError:
        reason = "there is not enough memory for it; close something, or use a larger machine"
    except RecursionError:
        reason = damaged("the header is nested too deeply")
    except ValueError as error:
        reason = error
    else:
        return
    raise ValueError(" ".join(f"{path}: {reason}".split()))


def without_waiting(path, flags):
    """An opener: a named pipe that nobody writes to would be waited for, for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def damaged(reason):
    """Returns a ValueError for what cannot be a whole safetensors file."""
    return ValueError(f"this is no safetensors file, or a damaged one: {reason}; take another copy")


def shown(value):
    """Returns something of a stranger's, short and safe to print."""
    return f"{value!r:.60}"


def check_shapes(layout, shapes):
    """Raises ValueError, which names the first difference, unless the tensors are as expected."""
    if layout.keys() != shapes.keys():
        missing, extra = (shown(sorted(names)[:3]) for names in
                          (shapes.keys() - layout.keys(), layout.keys() - shapes.keys()))
        raise ValueError(f"it is of another model: missing {missing}, extra {extra}")
    for name, (rows, columns) in shapes.items():
        entry = layout[name]
        if (entry.rows, entry.columns) != (rows, columns):
            raise ValueError(f"it is of another model: {shown(name)} is {entry.rows} x "
                             f"{entry.columns}, and must be {rows} x {columns}")


def check_memory(layout):
    """Raises ValueError if the tensors are larger than the machine's memory."""
    view = 200  # bytes, of a row that is a memoryview, besides its numbers
    needed = sum(entry.rows * (entry.columns * max(4, BYTES[entry.dtype]) + view)
                 for entry in layout.values())
    memory = machine_memory()
    if memory and needed > memory:
        raise ValueError(f"its tensors take {needed / 1e9:.1f} GB of memory, and this machine has "
                         f"{memory / 1e9:.1f}; use a larger one")


def machine_memory():
    """Returns the memory in bytes that the machine has, or that the container it looks like may
    take; None where it does not say (Windows)."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max", where there is no limit
            with open(path, encoding="ascii") as file:
                memory = min(memory, int(file.read()))
    return memory


def read_rows(file, entry):
    """Returns the rows of the tensor that comes next in a file, all views of one array."""
    count = entry.rows * entry.columns
    numbers = array(TYPECODES.get(entry.dtype, "f"), [0.0]) * count
    if entry.dtype in TYPECODES:
        fill(file, memoryview(numbers).cast("B"))
    else:
        halves = bytearray(2 * count)
        fill(file, halves)
        widen(halves, entry.dtype, numbers)
    if sys.byteorder == "big" and entry.dtype != "F16":
        numbers.byteswap()
    view, C = memoryview(numbers), entry.columns
    return [view[i * C:(i + 1) * C] for i in range(entry.rows)]


def fill(file, buffer):
    """Reads as many bytes of a file as a buffer has."""
    if file.readinto(buffer) != len(buffer):
        raise ValueError("the file became shorter while it was read; try again")


def widen(halves, dtype, numbers):
    """Writes the numbers of a 16-bit dtype, given as bytes, into an array of "f"."""
    if dtype == "BF16":  # the upper half of an F32, so still little-endian afterwards
        wide, halves = memoryview(numbers).cast("B"), memoryview(halves)
        wide[2::4], wide[3::4] = halves[::2], halves[1::2]
        return
    for i in range(0, len(numbers), 4096):
        half = halves[2 * i:2 * (i + 4096)]
        numbers[i:i + 4096] = array("f", struct.unpack(f"<{len(half) // 2}e", half))


# ---- reading the header --------------------------------------------------------------------------

RUNS_CODE = ("Loading one can run code, so it is never opened here: save the weights as "
             "safetensors where it was made")
STRANGERS = [  # how files that are often named .safetensors begin
    (rb"PK[\x03\x05]", f"a zip file, as torch.save writes them. {RUNS_CODE}"),
    (rb"\x80[\x01-\x05][^\x00]", f"a pickle. {RUNS_CODE}"),
    (rb"version https://git-lfs", "a pointer of git-lfs: get what it points to by `git lfs pull`"),
    (rb"\s*(?i:<!doctype|<html)", "a web page: fetch the file itself, by its download link"),
]


def read_header(file):
    """Returns the metadata, and name -> Entry, in the order of the file, which is read up to there.

    ValueError unless the tensors fill the file exactly.
    """
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    limit = min(LARGEST_HEADER, size - 8)
    if size < 8 or length > limit:
        raise stranger(prefix + file.read(56), f"it has {size} bytes, and begins with a header's "
                       f"length of {length}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise stranger(prefix + text[:56], "its header does not begin with {")
    metadata, layout = parse_header(text)
    place = 0
    for name, entry in layout.items():
        if entry.begin != place:
            raise damaged(f"tensor {shown(name)} begins at byte {entry.begin}, and {place} is next,"
                          " so there is a hole or an overlap")
        place = entry.end
    if 8 + length + place != size:
        raise damaged(f"it has {size} bytes, and its header says {8 + length + place}")
    return metadata, layout


def stranger(beginning, otherwise):
    """Returns a ValueError for a file that has no header, by what it begins with."""
    for pattern, what in STRANGERS:
        if re.match(pattern, beginning):
            return ValueError(f"this is no safetensors file, but {what}")
    return damaged(otherwise) if beginning else ValueError("the file is empty; take another copy")


def parse_header(text):
    """Returns the metadata, and name -> Entry, sorted by place; ValueError for any other JSON."""
    try:
        header = json.loads(text.decode("utf-8"), parse_int=whole, parse_float=no_number,
                            parse_constant=no_number, object_pairs_hook=unique)
    except ValueError as error:
        raise damaged(f"in the header, {error}") from None
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(x, str) for x in metadata.values())):
        raise damaged(f"its metadata are {shown(metadata)}, and must be strings -> strings")
    try:
        "".join([*header, *metadata, *metadata.values()]).encode("utf-8")
    except UnicodeEncodeError:
        raise damaged("in the header, half a character (a lone surrogate)") from None
    layout = {name: parse_entry(shown(name), entry) for name, entry in header.items()}
    nothing = sum(entry.rows for entry in layout.values() if not entry.columns)
    if nothing > 1 << 20:  # note: they take no byte of the file, so its length is no bound
        raise damaged(f"it has {nothing} rows without numbers")
    return metadata, dict(sorted(layout.items(), key=lambda item: item[1][3:]))


def parse_entry(name, entry):
    """Returns the Entry of a tensor."""
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        raise damaged(f"tensor {name} is {shown(entry)}, and must have {', '.join(sorted(KEYS))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise damaged(f"tensor {name} is of the dtype {shown(dtype)}, no string")
    if not counts(shape):
        raise damaged(f"tensor {name} has the shape {shown(shape)}, no list of whole numbers")
    if not counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(f"tensor {name} has the data_offsets {shown(offsets)}, no begin and end")
    if dtype not in BYTES:
        raise ValueError(f"tensor {name} is of the dtype {shown(dtype)}; those read here are "
                         f"{', '.join(BYTES)}: save it as one of them")
    if len(shape) > 2:
        raise ValueError(f"tensor {name} has {len(shape)} dimensions, and those read here have 2 "
                         "at most: reshape it where it was made")
    rows, columns = [1] * (2 - len(shape)) + shape
    begin, end = offsets
    if rows * columns * BYTES[dtype] != end - begin:
        raise damaged(f"tensor {name} is {rows} x {columns} in {dtype}, which is not the "
                      f"{end - begin} bytes that it has")
    return Entry(dtype, rows, columns, begin, end)


def counts(value):
    """Returns whether a value is a list of whole numbers, none negative and none of them a bool."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def whole(digits):
    """Returns a JSON integer; ValueError for one that counts nothing on earth.

    The limits that Python has itself differ by version, and older ones take hours for such a one.
    """
    if len(digits) > 19:
        raise ValueError(f"there is a number of {len(digits)} digits")
    return int(digits)


def no_number(text):
    """Raises ValueError: a header has no fractions, and no NaN."""
    raise ValueError(f"there is the number {text:.20}, and all must be whole")


def unique(pairs):
    """Returns a JSON object as a dict; ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{shown(key)} is there twice")
            seen.add(key)
    return found
