"""Run folders that are damaged, hostile, or on a disk that is full: one clear line each, exit code
2, the good checkpoint as it was, and nothing written outside the folder."""
import errno
import json
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microgpt.cli.runs import row_of
from microgpt.training import checkpoint, runs
from small import TINY, a_run, command, content, end_of, finished, main, texts

ROOT_USER = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of a run, name -> bytes."""
    folder = tmp_path_factory.mktemp("made")
    os.environ["MICROGPT_RUNS"] = str(folder / "runs")
    return content(a_run(folder)), folder / "text.txt"


@pytest.fixture
def path(made, runs_folder):
    """The folder of a fresh copy of that run, named x."""
    folder = runs_folder / "x"
    folder.mkdir(parents=True)
    for name, data in made[0].items():
        (folder / name).write_bytes(data)
    return folder


def refused(capsys, *flags):
    """Returns the line that the command ends with."""
    capsys.readouterr()
    assert main(*flags) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("microgpt: the latest run")]
    assert len(lines) == 1 and lines[0].startswith("microgpt: "), err
    return lines[0]


# ---- a full disk


def fail_with(monkeypatch, name, number=errno.ENOSPC, after=0):
    """Makes a function of os fail, from its call `after` on."""
    calls, real = [], getattr(os, name)

    def failing(*arguments, **more):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **more)
    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("after", range(4))
def test_a_full_disk_leaves_the_good_checkpoint(path, name, after, capsys, monkeypatch, made):
    before = end_of(path)
    with monkeypatch.context() as patch:
        fail_with(patch, name, after=after)
        line = refused(capsys, "--resume", "x", "--num-steps", 8)
    assert re.search(r"x.(config.json|log.jsonl|last.safetensors|best.safetensors|loss.svg) could "
                     "not be written: No space left on device; what stood there before is whole; "
                     "make room, or take another folder", line)
    run = runs.open_run(path)
    assert run.load_last()[2].step >= before["state"]["step"]
    assert not list(path.glob(".*"))
    assert main("--resume", "x", "--num-steps", 8) == 0
    assert runs.open_run(path).load_last()[2].step == 8


@pytest.mark.parametrize("name, after", [("fsync", 0), ("fsync", 1), ("replace", 2)])
def test_a_disk_that_is_full_at_the_beginning(tmp_path, runs_folder, name, after, capsys,
                                              monkeypatch):
    data = texts(tmp_path)
    fail_with(monkeypatch, name, after=after)
    line = refused(capsys, "--data", data, *TINY, "--name", "y")
    assert "could not be written: No space left on device" in line
    assert not list(runs_folder.iterdir())  # no half of a run


def test_a_full_disk_of_its_own(tmp_path, made):
    """A real one, where a small file system can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        flags = ["--data", made[1], *TINY, "--val-fraction", 0.2, "--name", "y"]
        assert finished(command(*flags, "--num-steps", 3, folder=disk))[0] == 0
        (disk / "fill").write_bytes(b"x" * (1 << 14))
        with open(disk / "fill", "ab", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 512)
        code, out, err = finished(command("--resume", "y", "--num-steps", 30, folder=disk))
        assert code == 2 and err.count("\n") == 1 and "No space left on device" in err
        (disk / "fill").unlink()
        assert finished(command("--resume", "y", "--num-steps", 30, folder=disk))[0] == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path, runs_folder, capsys, monkeypatch):
    data = texts(tmp_path)
    if ROOT_USER:  # whom no permission stops
        def denied(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(Path, "mkdir", denied)
    else:
        runs_folder.mkdir(0o500)
    line = refused(capsys, "--data", data, *TINY, "--name", "y")
    assert re.search("runs(.y)? could not be made: Permission denied|y could not be made: Perm",
                     line) and "--no-save" in line


def test_a_runs_folder_that_is_a_file(tmp_path, runs_folder, capsys):
    data = texts(tmp_path)
    runs_folder.write_text("not a folder")
    line = refused(capsys, "--data", data, *TINY, "--name", "y")
    assert "runs is not a folder; name another with --name PATH or MICROGPT_RUNS" in line
    assert main("sample") == 0  # of the model that comes along
    assert "the model that comes with microgpt" in capsys.readouterr().err
    assert main("runs") == 0 and runs_folder.read_text() == "not a folder"


# ---- damaged checkpoints


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + length]), data[8 + length:]


def with_header(header, numbers):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def change(data, edit):
    header, numbers = header_of(data)
    edit(header)
    return with_header(header, numbers)


def metadata(name, value):
    def damage(data):
        header, numbers = header_of(data)
        values = header["__metadata__"]
        del values["crc32"]
        values[name] = value(values[name]) if callable(value) else value
        return with_header(header, numbers)
    return damage


def state(**values):
    return metadata("state", lambda text: json.dumps({**json.loads(text), **values}))


def flipped(place):
    def damage(data):
        place_ = place if place >= 0 else len(data) + place
        return data[:place_] + bytes([data[place_] ^ 1]) + data[place_ + 1:]
    return damage


def reshaped(header):
    shape = header["wte"]["shape"]
    shape[0], shape[1] = shape[1], shape[0]


CHECKPOINTS = {
    "cut short": (lambda data: data[:-100], "damaged one: it has .* bytes, and its header says"),
    "cut in the header": (lambda data: data[:100], "damaged one: it has 100 bytes, and begins"),
    "empty": (lambda data: b"", "the file is empty"),
    "a number changed": (flipped(-5), "some of its bytes are not those that were written"),
    "another number changed": (flipped(-3000), "some of its bytes are not those that"),
    "the header changed": (flipped(9), "damaged"),
    "a number of the state changed": (lambda data: data.replace(b'tokens\\": ', b'tokens\\": 1', 1)
                                      .replace(b" " * 1, b"", 0), "damaged"),
    "an offset beyond the file": (lambda data: change(data, lambda header: header["wte"].update(
        data_offsets=[10 ** 9, 10 ** 9 + 864])), "a hole or an overlap|which is not"),
    "a header of 100 GB": (lambda data: struct.pack("<Q", 10 ** 11) + data[8:],
                           "begins with a header's length of 100000000000"),
    "a tensor of the wrong shape": (lambda data: change(data, reshaped),
                                    "some of its bytes|the weights are another model's"),
    "a pickle": (lambda data: b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", "a pickle"),
    "a zip of torch": (lambda data: b"PK\x03\x04" + data, "a zip file, as torch.save writes them"),
    "another model's": (lambda data: change(data, lambda header: header.update(
        wxe=header.pop("wte"))), "some of its bytes|another model's"),
    "the state NaN": (state(loss_sum=float("nan")), "its state is not one: loss_sum is nan"),
    "the best loss NaN": (state(best_loss=float("nan")), "state is not one: best_loss is nan"),
    "the step infinite": (state(step=float("inf")), "its state is not one: step is inf"),
    "the step negative": (state(step=-1), "its state is not one: step is -1"),
    "the step true": (state(step=True), "its state is not one: step is True"),
    "the step enormous": (state(step=10 ** 18), "its state is not one: step is 10000"),
    "the step without end": (metadata("state", '{"step": ' + "9" * 100_000 + "}"),
                             "a number of 100000 digits"),
    "a state of another form": (metadata("state", "[1, 2]"), "its state is not one"),
    "a state too deep": (metadata("state", "[" * 100_000), "its state is not one: it is nested"),
    "an unknown state": (state(mood="good"), "its state is not one: .*mood"),
    "random numbers too few": (metadata("random", "[3, [1, 2, 3], null]"),
                               "it holds no state of random numbers"),
    "random numbers negative": (metadata("random", json.dumps([3, [-1] * 625, None])),
                                "it holds no state of random numbers"),
    "random numbers with a text": (metadata("random", lambda text: text.replace("null", '"x"')),
                                   "no state of random numbers: what is left of a pair is 'x'"),
    "random numbers of another form": (metadata("random", "7"), "no state of random numbers"),
    "an optimizer's step that is none": (metadata("optimizer_step", "-4"),
                                         "'-4' is no number of steps"),
    "an optimizer's step without end": (metadata("optimizer_step", "9" * 50_000),
                                        "is no number of steps"),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_damaged_checkpoint(path, damage, capsys):
    edit, words = CHECKPOINTS[damage]
    file = path / "last.safetensors"
    file.write_bytes(edit(file.read_bytes()))
    before = content(path)
    line = refused(capsys, "--resume", "x")
    assert re.search(words, line) and "last.safetensors" in line or "x: " in line, line
    assert content(path) == before
    assert main("sample", "--run", "x", "--num-samples", 1) == 0  # the best one is whole
    if "state" in damage or "step" in damage or "random" in damage:
        return
    refused(capsys, "eval", "--run", "x", "--weights", "last")


def test_without_a_checkpoint(path, capsys):
    (path / "last.safetensors").unlink()
    assert "last.safetensors: No such file" in refused(capsys, "--resume", "x")


def rewritten(path, edit):
    """Writes last.safetensors anew, whole, after its tensors were edited."""
    tensors, about = checkpoint.read(path / "last.safetensors")
    tensors = {name: [list(row) for row in rows] for name, rows in tensors.items()}
    edit(tensors, about)
    about.pop("crc32")
    checkpoint.write(path / "last.safetensors", tensors, about)


TENSORS = {
    "a weight NaN": (lambda t: t["wte"][0].__setitem__(0, float("nan")), "not all finite numbers"),
    "a weight of no rows": (lambda t: t.update(wte=[]), "wte is .0, 0., and config.json says"),
    "a weight too many": (lambda t: t.update(more=[[1.0]]), "not of all weights"),
    "a weight too few": (lambda t: t.pop("lm_head"), "not of all weights"),
    "the optimizer's step a tensor": (lambda t: t.update({"optimizer.step.wte": [[1.0]]}),
                                      "the optimizer's step is a tensor"),
    "an unknown memory": (lambda t: t.update({"optimizer.q.wte": t["optimizer.m.wte"]}),
                          "another optimizer's"),
    "a memory of the wrong shape": (lambda t: t.update({"optimizer.m.wte": [[1.0]]}),
                                    "another shape|another model"),
    "a memory too few": (lambda t: t.pop("optimizer.m.wte"), "optimizer"),
    "a memory below 0": (lambda t: t["optimizer.v.wte"][0].__setitem__(0, -1.0), "optimizer"),
    "a memory NaN": (lambda t: t["optimizer.m.wte"][0].__setitem__(0, float("nan")), "optimizer"),
}


@pytest.mark.parametrize("damage", TENSORS)
@pytest.mark.parametrize("backend", ["scalar", "matrix",
                                     pytest.param("torch", marks=pytest.mark.torch)])
def test_a_checkpoint_of_wrong_tensors(path, damage, backend, capsys):
    if backend == "torch":
        pytest.importorskip("torch")
    edit, words = TENSORS[damage]
    rewritten(path, lambda tensors, about: edit(tensors))
    line = refused(capsys, "--resume", "x", "--backend", backend, "--num-steps", 6)
    assert re.search(words, line), line


# ---- damaged words


def settings_edit(**values):
    return lambda about: about["settings"].update(values)


def data_edit(**values):
    return lambda about: about["data"].update(values)


CONFIGS = {
    "n_layer": (settings_edit(n_layer=10 ** 9), "n_layer is 1000000000, and the most are 4096"),
    "more layers than weights": (settings_edit(n_layer=4000), "4000 layers, and the weights are"),
    "n_embd": (settings_edit(n_embd=10 ** 12), "n_embd is 1000000000000, and the largest"),
    "block_size": (settings_edit(block_size=10 ** 9), "block_size is 1000000000, and the largest"),
    "batch_size": (settings_edit(batch_size=10 ** 12), "batch_size is 10{12}, and the largest"),
    "threads": (settings_edit(threads=10 ** 9), "threads is 1000000000, and the largest"),
    "vocab_size": (lambda about: about.update(vocab_size=10 ** 12), "vocab_size is 10{12}, and"),
    "another vocab_size": (lambda about: about.update(vocab_size=26), "wte is .27, 4., and config"),
    "vocab_size a text": (lambda about: about.update(vocab_size="27"), "vocab_size is '27'"),
    "another width": (settings_edit(n_embd=8), "wte is .27, 4., and config.json says .27, 8."),
    "unknown setting": (settings_edit(colour="red"), "damaged: there is no setting 'colour'"),
    "wrong type": (settings_edit(n_embd="4"), "damaged: n_embd is '4': it takes a whole number"),
    "a share beyond 1": (settings_edit(val_fraction=7.0), "--val-fraction 7.0: it takes"),
    "no share": (lambda about: about["settings"].pop("val_fraction"), "it has no 'val_fraction'"),
    "settings a list": (lambda about: about.update(settings=[]), "damaged: its settings is .."),
    "no settings": (lambda about: about.pop("settings"), "damaged: it has no 'settings'"),
    "no data": (lambda about: about.pop("data"), "damaged: it has no 'data'"),
    "no mode": (lambda about: about["data"].pop("mode"), "damaged: it has no 'mode'"),
    "no sha256": (lambda about: about["data"].pop("sha256"), "damaged: it has no 'sha256'"),
    "no vocab_size": (lambda about: about.pop("vocab_size"), "damaged: it has no 'vocab_size'"),
    "no tokenizer": (lambda about: about.pop("tokenizer_hash"), "it has no 'tokenizer_hash'"),
    "format 2": (lambda about: about.update(format=2), "format is 2, and this microgpt reads 1"),
    "no format": (lambda about: about.pop("format"), "damaged: it has no 'format'"),
    "mode x": (data_edit(mode="x"), "damaged: its documents are 'x'"),
    "data a text": (lambda about: about.update(data="lines"), "damaged: its data is 'lines'"),
    "engine a list": (lambda about: about.update(engine=[1]), "damaged: its engine is .1."),
    "baselines a list": (lambda about: about.update(baselines=[1]), "damaged: its baselines is"),
    "resumed a text": (lambda about: about.update(resumed="x"), "damaged: its resumed is 'x'"),
    "text a device": (data_edit(data=["/dev/zero"]), "run learned from /dev/zero, which is"),
    "text a pattern": (data_edit(data=["/dev/zer[o]"]), "no text file in it; left out: 1 file: "),
    "text a number": (data_edit(data=[7]), "damaged: its data's data is 7"),
    "text gone": (data_edit(data=["/nowhere/to/be/found"]), "No such file"),
    "text changed": (data_edit(sha256="0" * 64), "the text has changed"),
    "encoding": (settings_edit(encoding="klingon"), "klingon"),
    "device": (settings_edit(weight_decay=0.1), "adam has no weight_decay"),
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config(path, damage, capsys):
    edit, words = CONFIGS[damage]
    about = json.loads((path / "config.json").read_text())
    edit(about)
    (path / "config.json").write_text(json.dumps(about))
    before = content(path)
    line = refused(capsys, "--resume", "x", "--num-steps", 5)
    assert re.search(words, line), line
    assert content(path) == before


RAW = [(b"", "config.json is damaged: Expecting value"), (b"{", "config.json is damaged"),
       (b"[1]", "config.json is damaged: it holds a list"),
       (b"\xff\xfe{", "config.json is damaged: 'utf-8' codec"),
       (b"[" * 100_000, "config.json is damaged: it is nested too deeply"),
       (b'{"format": ' + b"1" * 1_000_000 + b"}", "damaged: there is a number of 1000000 digits"),
       (b" " * ((1 << 24) + 1), "config.json is larger than 16,777,216 bytes")]


@pytest.mark.parametrize("raw, words", RAW, ids=[words for _, words in RAW])
def test_a_config_that_is_no_json(path, raw, words, capsys):
    (path / "config.json").write_bytes(raw)
    for flags in (["--resume", "x"], ["sample", "--run", "x"], ["eval"], ["runs", "x"]):
        assert re.search(words, refused(capsys, *flags))


def test_text_that_is_a_pipe(path, tmp_path, capsys):
    """It would be waited for, for ever: alone, among others by a pattern, and in a folder."""
    (tmp_path / "pipes").mkdir()
    os.mkfifo(tmp_path / "pipes" / "fifo")
    about = json.loads((path / "config.json").read_text())
    for item, words in [("pipes/fifo", "which is not a file"), ("pipes/*", "it is not a file"),
                        ("pipes", "it is not a file")]:
        about["data"]["data"] = [str(tmp_path / item)]
        (path / "config.json").write_text(json.dumps(about))
        assert words in refused(capsys, "--resume", "x")


def test_another_runs_tokenizer(path, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("other letters\n" * 9)
    assert main("--data", tmp_path / "text.txt", *TINY, "--num-steps", 1, "--name", "other",
                "--num-samples", 1) == 0
    (path / "tokenizer.json").write_bytes((path.parent / "other" / "tokenizer.json").read_bytes())
    for flags in (["--resume", "x"], ["sample", "--run", "x"], ["eval", "--run", "x"]):
        line = refused(capsys, *flags)
        assert "this is not the tokenizer that the run x was trained with" in line


LOGS = [(b"{", "Expecting"), (b"[1]\n", "a line is not an evaluation"), (b"\xff\n", "utf-8"),
        (b'{"step": "1"}\n', "a line is not an evaluation"),
        (b'{"step": 1}\n', "after step 1, train_loss is None"),
        (b"[" * 100_000, "it is nested too deeply"), (b"9" * 100_000, "a number of 100000 digits")]


@pytest.mark.parametrize("raw, words", LOGS, ids=[words for _, words in LOGS])
def test_a_damaged_log(path, raw, words, capsys):
    (path / "log.jsonl").write_bytes(raw)
    for flags in (["--resume", "x", "--num-steps", 5], ["runs", "x"]):
        line = refused(capsys, *flags)
        assert re.search(f"log.jsonl is damaged: .*{words}.*; without it, the run goes on", line)
    (path / "log.jsonl").unlink()
    assert main("--resume", "x", "--num-steps", 5) == 0


@pytest.mark.parametrize("values", [{"val_loss": "x"}, {"train_loss": None}, {"step": 10 ** 30},
                                    {"loss": float("nan")}, {"bits_per_character": [1]},
                                    {"tokens_per_second": float("inf")}, {"seconds": {}}])
def test_a_log_of_other_things(path, values, capsys):
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    lines[1].update(values)
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(capsys, "runs", "x")
    refused(capsys, "--resume", "x", "--num-steps", 5)


# ---- every file as something else

FILES = ["config.json", "tokenizer.json", "last.safetensors", "best.safetensors", "log.jsonl",
         "samples.txt", "loss.svg"]
COMMANDS = [["--resume", "x", "--num-steps", "5"], ["sample", "--run", "x", "--num-samples", "1"],
            ["eval", "--run", "x"], ["runs"], ["runs", "x"]]


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "device", "link"])
@pytest.mark.parametrize("name", FILES)
def test_every_file_may_be_something_else(path, tmp_path, name, kind, capsys):
    """Each command works all the same, or ends with a line; none hangs, or writes elsewhere."""
    file, victim = path / name, tmp_path / "victim"
    victim.write_text("precious")
    file.unlink()
    {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file),
     "dangling link": lambda: file.symlink_to(tmp_path / "nowhere"),
     "device": lambda: file.symlink_to("/dev/zero"),
     "link": lambda: file.symlink_to(victim)}[kind]()
    for flags in COMMANDS:
        capsys.readouterr()
        code = main(*flags)
        err = capsys.readouterr().err
        assert code == 0 or code == 2 and err.count("\n") == 1 and name in err, (flags, err)
    assert victim.read_text() == "precious" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/../..", "", "/", "-x", ".hidden", "a:b", "a\nb",
                                  "a\x00b", "😀", "x" * 101, "x/..", "trailing.", "con*"])
def test_names_that_a_run_cannot_have(tmp_path, name, capsys):
    data = texts(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if not name:
        assert main("--data", data, *TINY, "--num-steps", 0, "--name", name) == 0  # as without
        return
    line = refused(capsys, "--data", data, *TINY, f"--name={name}")
    assert "--name" in line and "letter or digit first" in line or "\x00" in name
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["..", "a/b", "😀", "x" * 5000, "a\x00b", "*"])
def test_names_that_no_run_has(path, name, capsys):
    for flags in (["--resume"], ["sample", "--run"], ["runs"]):
        line = refused(capsys, *flags, name)
        assert re.search(r"there is no run .*; in .*runs there are: x$", line)


@pytest.mark.parametrize("name", ["a b", "x-😀", "é", "sub/x", "100%"])
def test_names_that_a_run_can_have(tmp_path, runs_folder, name, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("--data", texts(tmp_path), *TINY, "--num-steps", 1, "--name", name,
                "--num-samples", 0) == 0
    folder = tmp_path / name if "/" in name else runs_folder / name
    assert (folder / "config.json").exists()
    again = capsys.readouterr().out.splitlines()[-2].split("--run ")[1].strip("'")
    assert main("sample", "--run", again, "--num-samples", 1) == 0


# ---- the table beside damaged ones


def test_the_table_lists_the_good_ones(path, capsys):
    for name in ("broken", "empty", "hollow"):
        (path.parent / name).mkdir()
    (path.parent / "broken" / "config.json").write_text("{")
    (path.parent / "empty" / "config.json").write_text("{}")
    (path.parent / "file").write_text("no folder")
    assert main("runs", "--json") == 0
    out, err = capsys.readouterr()
    assert [row["name"] for row in json.loads(out)] == ["x"]
    assert len(err.splitlines()) == 2 and "broken" in err and "it has no 'format'" in err


# ---- memory


def test_memory_stays_bounded(path):
    """A folder that speaks of giants is refused by a process that may have 150 MB, in a second."""
    about = json.loads((path / "config.json").read_text())
    about["settings"].update(n_embd=1 << 20, block_size=1 << 20, n_layer=4096, batch_size=1 << 20)
    about["vocab_size"] = 1 << 20
    (path / "config.json").write_text(json.dumps(about))
    for file in ("last.safetensors", "best.safetensors"):
        with open(path / file, "r+b") as handle:
            handle.truncate(1 << 40)  # of nothing: it takes no room on the disk
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))"
    for flags in (["--resume", "x"], ["sample", "--run", "x"], ["eval", "--run", "x"], ["runs"]):
        code, out, err = finished(command(*flags, code=limit, folder=path.parent), timeout=20)
        assert "Traceback" not in err and code == (0 if flags == ["runs"] else 2), err


# ---- a fuzz test

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10 ** 9, 10 ** 30, -1, 0, 1, 1e308, "stream", "lines", "gpt", "/dev/zero"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3), max_leaves=5)


def places(value, before=()):
    """Yields the path of everything in a JSON value."""
    yield before
    items = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ())
    for key, inner in items:
        yield from places(inner, (*before, key))


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["config.json", "log.jsonl", "tokenizer.json", "state"])
def test_any_change_of_a_file_is_a_run_or_an_error_of_a_line(path, made, name, data):
    """Never another exception than ValueError, whatever is read and shown of a run."""
    for file, whole in made[0].items():
        (path / file).write_bytes(whole)
    if name == "state":
        tensors, about = checkpoint.read(path / "last.safetensors")
        about.pop("crc32")
        part = data.draw(st.sampled_from(["state", "random", "optimizer_step"]))
        about[part] = json.dumps(mutated(json.loads(about[part]), data))
        checkpoint.write(path / "last.safetensors", tensors, about)
    else:
        text = (path / name).read_text()
        values = [json.loads(line) for line in text.splitlines()] if name == "log.jsonl" else (
            json.loads(text))
        values = mutated(values, data)
        if name == "log.jsonl" and isinstance(values, list):
            text = "".join(json.dumps(line) + "\n" for line in values)
        else:
            text = json.dumps(values)
        (path / name).write_text(text)
    for use in (lambda run: run.log(), lambda run: run.tokenizer, lambda run: run.load_last(),
                lambda run: run.weights(), lambda run: run.backend("matrix"), row_of,
                lambda run: run.log() and run.draw(run.log())):
        try:
            use(runs.open_run(path))
        except ValueError as error:
            assert "\n" not in str(error) and len(str(error)) < 600


def mutated(value, data):
    """Returns a JSON value in which something, somewhere, is another or gone."""
    value = json.loads(json.dumps(value))
    where = data.draw(st.sampled_from(list(places(value))))
    new = data.draw(json_values)
    if not where:
        return new
    inner = value
    for key in where[:-1]:
        inner = inner[key]
    if isinstance(inner, dict) and data.draw(st.booleans()):
        del inner[where[-1]]
    else:
        inner[where[-1]] = new
    return value
