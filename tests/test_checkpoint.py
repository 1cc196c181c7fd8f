"""Safetensors files: there and back bit for bit, as the official package has them, and hostile."""
import contextlib
import errno
import io
import json
import os
import random
import struct
import sys
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import many, some

from microgpt.training import checkpoint

try:
    import tracemalloc
except ImportError:  # PyPy
    tracemalloc = None

ONE = {"a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}
WEIRD = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1e-45, 1 / 3, 3e38, -2.5]
in_place = dict(suppress_health_check=[HealthCheck.function_scoped_fixture])


def file_of(header, numbers=b"", length=None):
    """Returns the bytes of a file: of a header, as it is or as JSON, and the numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def entry(**changes):
    """Returns a file of one tensor of two F32, with changes of what its header says."""
    return file_of({"a": {**ONE["a"], **changes}}, bytes(8))


def read(tmp_path, content, shapes=None):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    return checkpoint.read(path, shapes)


def bits(rows):
    """Returns what is to be equal, NaN and all: typecode and bytes of each row."""
    return [(memoryview(row).format, bytes(row)) for row in rows]


@contextlib.contextmanager
def memory_below(limit):
    """Asserts that what runs inside takes less than so many bytes, where Python can tell."""
    if tracemalloc is None:
        yield
        return
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit


def packed(rows, code="d"):
    return [array(code, row) for row in rows]


# ---- there and back ------------------------------------------------------------------------------

@st.composite
def tensors(draw):
    """Name -> rows, of lists, arrays and memoryviews of any floats."""
    found = {}
    names = st.text(st.characters(exclude_categories=["Cs"])).filter("__metadata__".__ne__)
    for name in draw(st.sets(names, max_size=4)):
        columns, code = draw(st.integers(0, 5)), draw(st.sampled_from("df"))
        floats = st.floats(width=64 if code == "d" else 32) | st.sampled_from(WEIRD)
        rows = draw(st.lists(st.lists(floats, min_size=columns, max_size=columns), max_size=4))
        form = draw(st.sampled_from([list, array, memoryview]))
        if form is not list:
            rows = packed(rows, code)
        found[name] = [memoryview(row) for row in rows] if form is memoryview else rows
    return found


metadata = st.none() | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])),
                                       st.text(st.characters(exclude_categories=["Cs"])))


@settings(many, max_examples=100, **in_place)
@given(tensors(), metadata, st.sampled_from(["F64", "F32"]))
def test_what_is_written_is_read_bit_for_bit(tmp_path, given_tensors, given_metadata, dtype):
    path = tmp_path / "file"
    checkpoint.write(path, given_tensors, given_metadata, dtype=dtype)
    found, found_metadata = checkpoint.read(path)
    assert found_metadata == checkpoint.read_metadata(path) == (given_metadata or {})
    assert found.keys() == given_tensors.keys()
    for name, rows in given_tensors.items():
        as_lists = packed([row for row in rows if isinstance(row, list)], "fd"[dtype == "F64"])
        assert bits(found[name]) == bits(as_lists or rows)


def test_rows_are_views_that_can_be_written_to(tmp_path):
    checkpoint.write(tmp_path / "file", {"a": [[1.0, 2.0], [3.0, 4.0]]})
    rows = checkpoint.read(str(tmp_path / "file"))[0]["a"]
    assert [type(row) for row in rows] == [memoryview] * 2
    rows[0][1] = 5.0
    assert [row.tolist() for row in rows] == [[1.0, 5.0], [3.0, 4.0]]


@pytest.mark.parametrize("code, dtype", [("d", "F64"), ("f", "F32")])
def test_a_file_is_little_endian_on_any_machine(tmp_path, monkeypatch, code, dtype):
    path, row = tmp_path / "file", array(code, [1.0, -2.5, 1e-30])
    other = "big" if sys.byteorder == "little" else "little"
    swapped = array(code, row)
    swapped.byteswap()
    with monkeypatch.context() as patch:  # this machine, which believes that it is the other kind
        patch.setattr(sys, "byteorder", other)
        checkpoint.write(path, {"packed": [row], "list": [row.tolist()]}, dtype=dtype)
        there = checkpoint.read(path)[0]
    assert path.read_bytes().endswith(2 * struct.pack(f"{'>' if other == 'big' else '<'}3{code}",
                                                      *row))
    assert row.tolist() == [array(code, [x])[0] for x in (1.0, -2.5, 1e-30)]  # left as it was
    assert bits(there["packed"]) == bits(there["list"]) == bits([row])
    if other == "big":
        assert bits(checkpoint.read(path)[0]["list"]) == bits([swapped])


def test_16_bits_are_widened_on_a_big_endian_machine(tmp_path, monkeypatch):
    numbers = bytes.fromhex("803f003c")  # 1.0 as BF16, and as F16
    content = file_of({"b": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
                       "h": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}, numbers)
    one = array("f", [1.0])
    assert [bits(rows) for rows in read(tmp_path, content)[0].values()] == [bits([one])] * 2
    if sys.byteorder == "little":
        monkeypatch.setattr(sys, "byteorder", "big")
        found = read(tmp_path, content)[0]
        one.byteswap()  # there, the same bytes in the other order would be 1.0
        assert bits(found["b"]) == bits([one])
        assert found["h"][0].tolist() == [1.0]  # Python itself gives these in the machine's order


def test_shapes_are_held_to_and_give_the_order(tmp_path):
    path = tmp_path / "file"
    checkpoint.write(path, {"wte": [[1.0]] * 3, "a": [[2.0, 3.0]]}, {"width": "2"})
    shapes = {"wte": (3, 1), "a": (1, 2)}
    assert list(checkpoint.read(path)[0]) == ["a", "wte"]
    assert list(checkpoint.read(path, shapes)[0]) == ["wte", "a"]
    found, _ = checkpoint.read(path, lambda found: {"a": (1, int(found["width"])), "wte": (3, 1)})
    assert list(found) == ["a", "wte"]
    with pytest.raises(ValueError, match=r"another model: 'wte' is 3 x 1, and must be 3 x 2"):
        checkpoint.read(path, {**shapes, "wte": (3, 2)})
    with pytest.raises(ValueError, match=r"missing \['b', 'c'\], extra \['a'\]"):
        checkpoint.read(path, {"wte": (3, 1), "b": (1, 1), "c": (1, 1)})


def test_tensors_of_fewer_dimensions_are_one_row(tmp_path):
    found, _ = read(tmp_path, file_of({
        "line": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "point": {"dtype": "F64", "shape": [], "data_offsets": [8, 16]},
        "no rows": {"dtype": "F64", "shape": [0, 3], "data_offsets": [16, 16]},
        "no columns": {"dtype": "F16", "shape": [3, 0], "data_offsets": [0, 0]},
    }, struct.pack("<2fd", 1, 2, 3)))
    assert {name: [row.tolist() for row in rows] for name, rows in found.items()} == {
        "line": [[1.0, 2.0]], "point": [[3.0]], "no rows": [], "no columns": [[], [], []]}


# ---- what is not written -------------------------------------------------------------------------

@pytest.mark.parametrize("tensors, message", [
    ({"a": [[1.0], [1.0, 2.0]]}, "tensor 'a' has rows of 1 to 2 numbers"),
    ({"a": [array("f", [1]), array("d", [1])]}, "rows of F32 and F64, needs one"),
    ({"a": [array("i", [1])]}, "a row of the type array of i: needs a list"),
    ({"a": [memoryview(b"12345678")]}, "of the type memoryview of B"),
    ({"a": [memoryview(array("d", [1, 2, 3]))[::2]]}, "contiguous"),
    ({"a": ["text"]}, "a row of the type str: needs"),
    ({"a": [[1.0, "2"]]}, "tensor 'a' has a row that is not of floats"),
    ({"a": [[10 ** 400]]}, "tensor 'a' has a row that is not of floats"),
    ({"__metadata__": [[1.0]]}, "named '__metadata__'"),
    ({3: [[1.0]]}, "named 3: needs a string"),
    ({"\ud800": [[1.0]]}, "surrogates not allowed"),
])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.write(tmp_path / "file", tensors)
    assert os.listdir(tmp_path) == []


def test_metadata_and_dtype_are_checked(tmp_path, monkeypatch):
    for wrong in ({"step": 1}, {1: "step"}):
        with pytest.raises(ValueError, match="metadata must be strings -> strings; got .*JSON"):
            checkpoint.write(tmp_path / "file", {}, wrong)
    with pytest.raises(ValueError, match="dtype is 'F16', needs one of F64, F32"):
        checkpoint.write(tmp_path / "file", {}, dtype="F16")
    monkeypatch.setattr(checkpoint, "LARGEST_HEADER", 100)
    with pytest.raises(ValueError, match="the header would have .* the format allows 100: keep"):
        checkpoint.write(tmp_path / "file", {}, {"text": "x" * 100})


class FullDisk(io.FileIO):
    """A file on a disk that has room for its header only."""

    def write(self, data):
        if self.tell():
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    checkpoint.write(path, {"a": [[1.0]]})
    old = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(os, "fdopen", FullDisk)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(path, {"a": [[2.0]]})
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["file"]


def test_memory_does_not_double(tmp_path):
    rows = [[float(i)] * 500 for i in range(2000)]
    size = 8 * 500 * 2000
    with memory_below(size / 8):
        checkpoint.write(tmp_path / "file", {"a": rows})
    with memory_below(size * 1.25):
        kept = checkpoint.read(tmp_path / "file")
    assert len(kept[0]["a"]) == 2000


# ---- the official package ------------------------------------------------------------------------

def official_bytes(tensors, metadata=None):
    """Returns what the official package writes for torch's tensors.

    note: not its save_file(), which needs numpy.
    """
    package = pytest.importorskip("safetensors")
    specs = {}
    for name, tensor in tensors.items():
        kind, shape = str(tensor.dtype).split(".")[-1], list(tensor.shape)
        if hasattr(package, "TensorSpec"):  # since 0.8
            specs[name] = package.TensorSpec(dtype=kind, shape=shape, data_ptr=tensor.data_ptr(),
                                             data_len=tensor.numel() * tensor.element_size())
        else:
            data = bytes(tensor.view(-1).view(torch().uint8).tolist())
            specs[name] = {"dtype": kind, "shape": shape, "data": data}
    return bytes(package.serialize(specs, metadata))


def torch():
    return pytest.importorskip("torch")


@pytest.mark.torch
def test_the_official_package_reads_what_is_written_here(tmp_path):
    load_file = pytest.importorskip("safetensors.torch", exc_type=ImportError).load_file
    path = tmp_path / "file"
    checkpoint.write(path, {"list": [WEIRD, WEIRD], "f": packed([WEIRD], "f")}, {"a": "b"})
    found = load_file(str(path))
    for name, row, kind in (("list", WEIRD, torch().float64), ("f", WEIRD, torch().float32)):
        expected = torch().tensor([row] * len(found[name]), dtype=torch().float64).to(kind)
        assert found[name].dtype == kind
        assert torch().equal(found[name].nan_to_num(7.0), expected.nan_to_num(7.0))
    with pytest.importorskip("safetensors").safe_open(str(path), "pt") as file:
        assert file.metadata() == {"a": "b"}


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_what_the_official_package_writes_is_read_here(tmp_path, kind):
    generator = torch().Generator().manual_seed(1)
    numbers = torch().randn(100, 90, generator=generator, dtype=torch().float64) * 1e3
    numbers[0, :len(WEIRD)] = torch().tensor(WEIRD, dtype=torch().float64)
    numbers[1, :3] = torch().tensor([6e-8, -3e-5, 1e-39])  # subnormal in F16, in F16 and in BF16
    numbers = numbers.to(getattr(torch(), kind))
    found, metadata = read(tmp_path, official_bytes({"a": numbers, "b": numbers[0].clone()},
                                                    {"é": "ü\n"}))
    assert metadata == {"é": "ü\n"}
    assert {row.format for row in found["a"]} == {"d" if kind == "float64" else "f"}
    for name, expected in (("a", numbers), ("b", numbers[:1])):
        got = torch().tensor([row.tolist() for row in found[name]], dtype=torch().float64)
        assert torch().equal(got.isnan(), expected.double().isnan())
        assert torch().equal(got.nan_to_num(7.0), expected.double().nan_to_num(7.0))
        assert torch().equal(got.signbit()[~got.isnan()], expected.signbit()[~got.isnan()])


@pytest.mark.torch
@pytest.mark.parametrize("metadata", [None, {}, {"a": "é\"\\/\x7f\n\x01\t"}])
def test_the_bytes_are_those_of_the_reference_writer(tmp_path, metadata):
    rows = {"b": packed([[1, 2], [3, 4]], "f"), "layer10.é\"\x1f": packed([[5]], "f"),
            "layer2": packed([[6]] * 3), "a": packed([[7, 8]], "f"), "z": packed([[9]])}
    tensors = {name: torch().tensor([row.tolist() for row in tensor], dtype=(
        torch().float64 if tensor[0].typecode == "d" else torch().float32))
        for name, tensor in rows.items()}
    checkpoint.write(tmp_path / "file", rows, metadata)
    assert (tmp_path / "file").read_bytes() == official_bytes(tensors, metadata)


# ---- hostile files -------------------------------------------------------------------------------

TOO_DEEP = b'{"a":' + b"[" * 200_000
HOSTILE = {
    "empty": (b"", "the file is empty"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "it has 7 bytes"),
    "no header": (file_of(b""), r"does not begin with \{"),
    "header of 100 GB": (file_of(ONE, bytes(8), 10 ** 11), "header's length of 100000000000"),
    "header of 2**64": (b"\xff" * 8 + b"{}", "header's length of 18446744073709551615"),
    "header a byte too long": (file_of(b"{}", length=3), "it has 10 bytes.*length of 3"),
    "header cut": (file_of(b'{"a": 1}', length=5), "in the header, "),
    "leading space": (file_of(b" {}"), r"does not begin with \{"),
    "byte order mark": (file_of(b"\xef\xbb\xbf{}"), r"does not begin with \{"),
    "a list": (file_of(b"[]"), r"does not begin with \{"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "in the header, 'utf-8' codec"),
    "UTF-16": (file_of("{}".encode("utf-16-le")), "in the header, "),
    "no JSON": (file_of(b"{a: 1}"), "in the header, Expecting property name"),
    "JSON and more": (file_of(b"{} {}"), "in the header, Extra data"),
    "padded with zeros": (file_of(b"{}\0\0"), "in the header, Extra data"),
    "a name twice": (file_of(b'{"a": 1, "a": 2}'), "in the header, 'a' is there twice"),
    "a key twice": (file_of(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' is there twice"),
    "metadata twice": (file_of(b'{"__metadata__": {}, "__metadata__": {}}'), "is there twice"),
    "depth bomb": (file_of(TOO_DEEP), "the header is nested too deeply"),
    "half a character": (file_of({"\ud800": ONE["a"]}, bytes(8)), "lone surrogate"),
    "half in metadata": (file_of({"__metadata__": {"a": "\udfff"}}), "lone surrogate"),
    "metadata a list": (file_of({"__metadata__": ["a"]}), "metadata are .*strings -> strings"),
    "metadata a number": (file_of({"__metadata__": {"a": 1}}), "metadata are {'a': 1}"),
    "metadata null": (file_of({"__metadata__": None}), "metadata are None"),
    "entry a list": (file_of({"a": []}), r"tensor 'a' is \[\], and must have data_offsets, dtype"),
    "a key missing": (file_of({"a": {"dtype": "F32", "shape": []}}), "and must have"),
    "a key more": (entry(strides=[1]), "and must have"),
    "dtype a number": (entry(dtype=32), "of the dtype 32, no string"),
    "dtype a list": (entry(dtype=["F32"]), "no string"),
    "whole numbers": (entry(dtype="I64", shape=[1, 1]),
                      "the dtype 'I64'; those read here are F64, F32, F16, BF16: save"),
    "dtype unheard of": (entry(dtype="F7\n\x1b[2J"), r"the dtype 'F7\\n\\x1b\[2J'"),
    "shape a number": (entry(shape=2), "the shape 2, no list"),
    "shape negative": (entry(shape=[-1, -2]), r"the shape \[-1, -2\]"),
    "shape of bools": (entry(shape=[True, 2]), r"the shape \[True, 2\]"),
    "shape a fraction": (entry(shape=[1, 2.0]), "the number 2.0, and all must be whole"),
    "shape text": (entry(shape=["1", 2]), r"the shape \['1', 2\]"),
    "shape nested": (entry(shape=[[1, 2]]), r"the shape \[\[1, 2\]\]"),
    "three dimensions": (entry(shape=[1, 1, 2]), "has 3 dimensions.*at most: reshape"),
    "a number of 5000 digits": (file_of(b'{"a": ' + b"1" * 5000 + b"}"),
                                "a number of 5000 digits"),
    "a number that overflows": (entry(shape=[2 ** 62, 4]), "is 4611686018427387904 x 4 in F32"),
    "1e400": (file_of(b'{"a": 1e400}'), "the number 1e400"),
    "NaN": (file_of(b'{"a": NaN}'), "the number NaN"),
    "-Infinity": (file_of(b'{"a": -Infinity}'), "the number -Infinity"),
    "offsets one": (entry(data_offsets=[8]), r"the data_offsets \[8\], no begin and end"),
    "offsets three": (entry(data_offsets=[0, 8, 8]), "no begin and end"),
    "offsets backwards": (entry(data_offsets=[8, 0]), "no begin and end"),
    "offsets negative": (entry(data_offsets=[-8, 0]), "no begin and end"),
    "offsets of bools": (entry(data_offsets=[False, 8]), "no begin and end"),
    "offsets null": (entry(data_offsets=None), "no begin and end"),
    "too few bytes": (entry(data_offsets=[0, 4]), "1 x 2 in F32, which is not the 4 bytes"),
    "too many bytes": (file_of({"a": {**ONE["a"], "data_offsets": [0, 16]}}, bytes(16)),
                       "1 x 2 in F32, which is not the 16 bytes"),
    "hole at the start": (file_of({"a": {**ONE["a"], "data_offsets": [4, 12]}}, bytes(12)),
                          "begins at byte 4, and 0 is next, so there is a hole"),
    "hole": (file_of({**ONE, "b": {**ONE["a"], "data_offsets": [12, 20]}}, bytes(20)),
             "'b' begins at byte 12, and 8 is next"),
    "overlap": (file_of({**ONE, "b": {**ONE["a"], "data_offsets": [4, 12]}}, bytes(12)),
                "'b' begins at byte 4, and 8 is next"),
    "the same place": (file_of({**ONE, "b": ONE["a"]}, bytes(8)), "'b' begins at byte 0, and 8"),
    "cut short": (entry()[:-1], "and its header says"),
    "longer": (entry() + b"\0", "and its header says"),
    "100 GB claimed": (entry(shape=[5 * 10 ** 4, 5 * 10 ** 5], data_offsets=[0, 10 ** 11]),
                       "and its header says 1000000000"),
    "rows of nothing": (entry(shape=[10 ** 15, 0], data_offsets=[0, 0]),
                        "it has 1000000000000000 rows without numbers"),
    "zip": (b"PK\x03\x04\x14\0\0\0\x08\x08" + bytes(90), "but a zip file, .*never opened here: sa"),
    "pickle": (b"\x80\x04\x95\x0c\0\0\0\0\0\0\0}\x94." + bytes(90), "but a pickle.*never opened"),
    "old torch.save": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "but a pickle"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "`git lfs pull`"),
    "web page": (b"<!doctype html><html>" + bytes(90), "but a web page: fetch the file itself"),
}


@pytest.mark.parametrize("content, message", HOSTILE.values(), ids=list(HOSTILE))
def test_each_damage_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    for function in (checkpoint.read, checkpoint.read_metadata):
        with pytest.raises(ValueError, match=message) as caught:
            function(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < 500


def test_a_header_as_long_as_the_pickle_sign_is_no_pickle(tmp_path):
    text = b"{}".ljust(0x0280)
    assert file_of(text).startswith(b"\x80\x02")
    assert read(tmp_path, file_of(text)) == ({}, {})
    with pytest.raises(ValueError, match="damaged one"):
        read(tmp_path, file_of(text)[:-1])


def test_a_header_beyond_the_formats_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGEST_HEADER", 16)
    assert read(tmp_path, file_of(b"{}".ljust(16))) == ({}, {})
    with pytest.raises(ValueError, match="it has 25 bytes.*length of 17"):
        read(tmp_path, file_of(b"{}".ljust(17)))


def test_what_is_no_file_is_a_line_and_never_waited_for(tmp_path):
    with pytest.raises(ValueError, match="none: No such file"):
        checkpoint.read(tmp_path / "none")
    with pytest.raises(ValueError, match="Is a directory|Permission denied"):
        checkpoint.read(tmp_path)
    with pytest.raises(ValueError, match="null"):
        checkpoint.read("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", "/dev/zero"):
            with pytest.raises(ValueError, match=f"{path}: it is a pipe or a device, not a file"):
                checkpoint.read_metadata(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read it all")
def test_a_file_that_may_not_be_read_is_a_line(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(file_of(b"{}"))
    path.chmod(0)
    with pytest.raises(ValueError, match="file: Permission denied"):
        checkpoint.read(path)


def test_a_file_larger_than_memory_is_refused_before_any_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "machine_memory", lambda: 1 << 20)
    monkeypatch.setattr(checkpoint, "read_rows", None)
    path = tmp_path / "file"
    header = file_of({"a": {"dtype": "BF16", "shape": [1000, 300], "data_offsets": [0, 600_000]}})
    path.write_bytes(header + bytes(600_000))  # these become twice as long
    with pytest.raises(ValueError, match="take 0.0 GB of memory, and this machine has 0.0; use"):
        checkpoint.read(path)
    assert checkpoint.read_metadata(path) == {}
    monkeypatch.undo()
    assert checkpoint.machine_memory() is None or checkpoint.machine_memory() > 1 << 26
    assert len(checkpoint.read(path)[0]["a"]) == 1000


def test_a_container_has_what_it_is_given(tmp_path, monkeypatch):
    whole = checkpoint.machine_memory()
    limits = [tmp_path / "max", tmp_path / "limit", tmp_path / "not there"]
    monkeypatch.setattr(checkpoint, "CONTAINER_LIMITS", limits)
    limits[0].write_text("max\n")
    limits[1].write_text("9223372036854771712\n")  # what says "none" in older systems
    assert checkpoint.machine_memory() == whole or whole is None
    limits[1].write_text("1048576\n")
    assert checkpoint.machine_memory() == (whole and 1 << 20)


def test_a_system_that_does_not_say_how_much_memory_it_has(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert checkpoint.machine_memory() is None
    assert read(tmp_path, entry())[0]["a"][0].tolist() == [0.0, 0.0]


def test_too_little_memory_is_a_line(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError
    monkeypatch.setattr(checkpoint, "read_rows", full)
    with pytest.raises(ValueError, match="not enough memory for it; close something"):
        read(tmp_path, entry())


def test_a_file_that_shrinks_while_it_is_read_is_a_line(tmp_path):
    path = tmp_path / "file"
    checkpoint.write(path, {"a": [[1.0] * 1000] * 1000})  # more than a file's buffer

    def shrink(_):
        os.truncate(path, path.stat().st_size - 4)
        return {"a": (1000, 1000)}
    with pytest.raises(ValueError, match="became shorter while it was read; try again"):
        checkpoint.read(path, shrink)


def damage(content, rng):
    """Returns the bytes of a file flipped, cut, lengthened or swapped, at random."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        place = rng.randrange(len(content) + 1) if rng.random() < 0.3 else rng.randrange(
            min(len(content), 400) + 1)
        way = rng.randrange(5)
        if way == 0:
            content[place:place + 1] = bytes([rng.randrange(256)])
        elif way == 1:
            content[place:place + 1] = rng.choice((b"0", b"9", b"-", b'"', b"[", b"}", b"e", b" "))
        elif way == 2:
            del content[place:place + rng.choice((1, 8, 1000))]
        elif way == 3:
            content[place:place] = content[place // 2:place // 2 + rng.randrange(20)]
        else:
            content[place:place] = rng.choice((b"0", b"000000000000", b"\0", b"[" * 2000, b"1,"))
    return bytes(content)


VALID = file_of({"__metadata__": {"step": "10"},
                 "wte": {"dtype": "F64", "shape": [3, 2], "data_offsets": [0, 48]},
                 "wpe": {"dtype": "F32", "shape": [2], "data_offsets": [48, 56]},
                 "h": {"dtype": "F16", "shape": [1, 2], "data_offsets": [56, 60]},
                 "b": {"dtype": "BF16", "shape": [], "data_offsets": [60, 62]},
                 "no": {"dtype": "F32", "shape": [2, 0], "data_offsets": [62, 62]}}, bytes(62))


@settings(many, max_examples=100, **in_place)
@given(st.integers(0, 2 ** 32))
def test_damaged_files_are_refused_or_are_whole(tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(10):
        content = damage(VALID, rng)
        try:
            with memory_below(2_000_000):
                found, metadata = read(tmp_path, content)
        except ValueError as error:
            assert str(error).isprintable()
            continue
        check_against_the_official_reader(content, found, metadata)


def check_against_the_official_reader(content, found, metadata):
    """What is accepted here has whole rows, and the official package accepts it and agrees."""
    for rows in found.values():
        assert len({len(row) for row in rows}) <= 1
    assert all(isinstance(text, str) for item in metadata.items() for text in item)
    there = dict(pytest.importorskip("safetensors").deserialize(content))
    assert there.keys() == found.keys()
    for name, tensor in there.items():
        if tensor["dtype"] in checkpoint.TYPECODES and sys.byteorder == "little":
            assert b"".join(map(bytes, found[name])) == bytes(tensor["data"])


@settings(some, **in_place)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_whole(tmp_path, content):
    for header in (content, b"{" + content):
        try:
            found, _ = read(tmp_path, file_of(header))
        except ValueError:
            continue
        assert found == {}
