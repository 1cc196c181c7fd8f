"""Sweeps: what they are made of, and that nothing is run twice, however they are stopped."""
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import microgpt
from conftest import ROOT
from microgpt.cli import sweep as command
from microgpt.cli import sweeping, train
from microgpt.training import checkpoint, runs, sweep
from microgpt.training.lock import Lock

TINY = {"backend": "matrix", "n_embd": 4, "n_head": 1, "num_samples": 0}


def made(*flags, **document):
    """Returns the Sweep of a definition; flags: those of --grid."""
    definition = sweep.check_definition({"name": "s", **document})
    return sweep.expand(sweep.overridden(definition, {}, map(sweep.parse_axis, flags)))


# ---- what a sweep is -----------------------------------------------------------------------------


def test_a_grid_is_every_combination():
    assert made("n_layer=1,2", "n-embd=8,16", base={"seed": 1}).runs == {
        "n_layer=1,n_embd=8": {"seed": 1, "n_layer": 1, "n_embd": 8},
        "n_layer=1,n_embd=16": {"seed": 1, "n_layer": 1, "n_embd": 16},
        "n_layer=2,n_embd=8": {"seed": 1, "n_layer": 2, "n_embd": 8},
        "n_layer=2,n_embd=16": {"seed": 1, "n_layer": 2, "n_embd": 16}}


def test_runs_times_grid_and_what_varies():
    found = made(base={"batch_size": 2}, grid={"seed": [1, 2]},
                 runs=[{"tokenizer": "char", "batch_size": 2},
                       {"tokenizer": "bpe", "bpe_merges": 5, "batch_size": 2}])
    assert list(found.runs) == [
        "tokenizer=char,seed=1", "tokenizer=char,seed=2", "tokenizer=bpe,bpe_merges=5,seed=1",
        "tokenizer=bpe,bpe_merges=5,seed=2"]
    assert found.varying == ["tokenizer", "bpe_merges", "seed"]
    assert found.variation("tokenizer=char,seed=1") == {"tokenizer": "char", "seed": 1}


def test_one_run_and_equal_runs():
    assert list(made(base={"n_layer": 2}).runs) == ["run"]
    assert list(made(runs=[{"n_layer": 2}, {"n_layer": 2}]).runs) == ["run"]
    assert list(made("learning_rate=1,1.0,2").runs) == ["learning_rate=1.0", "learning_rate=2.0"]


def test_the_command_line_wins_everywhere():
    definition = sweep.check_definition({
        "name": "s", "base": {"n_layer": 1, "data": "shakespeare"}, "grid": {"n_embd": [64, 128]},
        "runs": [{"seed": 1}, {"seed": 2}], "prompts": ["a"]})
    changed = sweep.overridden(definition, {"seed": 5, "urls": ["u"]}, [("n_embd", [8])], ["b"])
    assert changed["base"] == {"n_layer": 1, "seed": 5, "urls": ["u"]}
    assert (changed["grid"], changed["prompts"]) == ({"n_embd": [8]}, ["b"])
    assert len(sweep.expand(changed).runs) == 1
    with pytest.raises(ValueError, match="n_embd is varied by --grid, and set by --n-embd"):
        sweep.overridden(definition, {"n_embd": 8}, [("n_embd", [8])])


settings = st.fixed_dictionaries({}, optional={
    "n_layer": st.integers(1, 9), "learning_rate": st.floats(1e-6, 1e6), "dedupe": st.booleans(),
    "documents": st.text(max_size=5), "encoding": st.text(max_size=200) | st.none(),
    "data": st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=3)})


@given(entries=st.lists(settings, min_size=1, max_size=6))
def test_names_are_folders_unique_and_stable(entries):
    found = made(runs=entries)
    names = list(found.runs)
    for name in names:
        assert runs.NAME.fullmatch(name) and name.isascii() and len(name) <= 100
        assert not re.search(r'[/\\:*?"<>|\s]', name) and name[-1] not in ". "
        assert name not in sweep.OURS
    assert len({name.lower() for name in names}) == len(names) == len(found.runs)
    again = sweep.expand(sweep.check_definition(json.loads(json.dumps(found.definition))))
    assert again.runs == found.runs and again.difference(found) is None


def test_names_stay_when_a_grid_grows():
    small, large = made("n_layer=2"), made("n_layer=1,2,4")
    assert set(small.runs) < set(large.runs)
    assert large.difference(small) is None
    assert small.difference(large) == (
        "there it has a run n_layer=1, which is not among these")


def test_a_difference_is_named():
    before, after = made("n_layer=1,2", base={"seed": 1}), made("n_layer=1,2", base={"seed": 2})
    assert after.difference(before) == "seed of n_layer=1 was 1, and is 2"
    assert made("n_layer=1").difference(made("n_layer=1", base={"seed": 1})) == (
        "seed of n_layer=1 was 1, and is none")


def test_flags_say_the_settings():
    wanted = {"n_layer": 2, "learning_rate": 1e-4, "dedupe": True, "data": ["a", "-b"],
              "optimizer": "sgd", "grad_clip": None, "max_time": 60.0, "seed": 1}
    args = train.make_parser().parse_args(sweep.flags_of(wanted))
    assert {name: getattr(args, name) for name in wanted} == wanted


@pytest.mark.parametrize("text, found", [
    ("n_layer=1,2", ("n_layer", [1, 2])), ("grad-clip=none,1", ("grad_clip", [None, 1.0])),
    ("dedupe=true,false", ("dedupe", [True, False])), ("data=a.txt", ("data", ["a.txt"])),
    ("optimizer=adam, muon", ("optimizer", ["adam", "muon"]))])
def test_axes_are_parsed(text, found):
    assert sweep.parse_axis(text) == found


@pytest.mark.parametrize("text, words", [
    ("n_layer", "--grid n_layer: it takes a setting and its values, as n_layer=1,2,4"),
    ("n_layer=", "it takes a setting and its values"), ("=1", 'there is no setting ""'),
    ("n_layr=1", 'there is no setting "n_layr"'),
    ("n_layer=1,x", 'n_layer is "x": it takes a whole number'),
    ("n_layer=1.5", 'n_layer is "1.5": it takes a whole number'),
    ("n_layer=none", 'n_layer is "none"'), ("learning_rate=nan", "learning_rate is NaN"),
    ("dedupe=yes", 'dedupe is "yes": it takes true or false'),
    ("name=a,b", 'there is no setting "name"'), ("resume=a", 'there is no setting "resume"')])
def test_axes_that_are_none(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        sweep.parse_axis(text)


def test_the_best_comes_first_and_what_cannot_be_compared_last():
    rows = [{"name": name, "bits_per_character": bits, "val_loss": loss} for name, bits, loss in (
        ("failed", None, None), ("lossy", None, 0.5), ("worse", 2.5, 1.0), ("best", 2.1, 4.0))]
    assert [row["name"] for row in sweep.ranked(rows)] == ["best", "worse", "lossy", "failed"]


def test_time_left():
    assert sweep.seconds_left(100, 0, 5) is None
    assert sweep.seconds_left(100, 25, 10) == 30


# ---- files, also a stranger's --------------------------------------------------------------------

BAD_FILES = [
    ("[]", "it holds a list"), ("{", "is no file of a sweep"), ('{"grid": {}}', "it has no name"),
    ('{"name": "s", "gird": {}}', 'there is no "gird" in a sweep; there are name, about'),
    ('{"name": "../s"}', 'the sweep\'s name is "../s"'), ('{"name": ""}', "the sweep's name"),
    ('{"name": 3}', "name is 3: it takes a text"),
    ('{"name": "s", "base": []}', "base is []: it takes names and values in {}"),
    ('{"name": "s", "runs": {}}', "runs is {}: it takes a list in []"),
    ('{"name": "s", "runs": [3]}', "run 1 of runs is 3: it takes settings and their values"),
    ('{"name": "s", "base": {"n_layr": 1}}', 'base: there is no setting "n_layr"'),
    ('{"name": "s", "base": {"name": "x"}}', 'base: there is no setting "name"'),
    ('{"name": "s", "base": {"n_layer": "1"}}', 'n_layer is "1": it takes a whole number'),
    ('{"name": "s", "base": {"n_layer": true}}', "n_layer is true: it takes a whole number"),
    ('{"name": "s", "base": {"n_layer": null}}', "n_layer is none: it takes a whole number"),
    ('{"name": "s", "base": {"learning_rate": Infinity}}', "learning_rate is Infinity"),
    ('{"name": "s", "base": {"data": []}}', "data is []: it takes a text"),
    ('{"name": "s", "runs": [{}, {"seed": 0.5}]}', "run 2 of runs: seed is 0.5"),
    ('{"name": "s", "grid": {"seed": 1}}', "grid: seed is 1: it takes a list of values"),
    ('{"name": "s", "grid": {"seed": []}}', "grid: seed is []: it takes a list of values"),
    ('{"name": "s", "grid": {"seed": [1]}, "runs": [{"seed": 2}]}',
     "seed stands both in grid and in runs"),
    ('{"name": "s", "prompts": [1]}', "prompts are texts"),
    (json.dumps({"name": "s", "grid": {name: list(range(1, 101)) for name in (
        "seed", "n_layer", "n_embd", "batch_size")}}), "these are 100,000,000 runs"),
    ("[" * 100_000, "is no file of a sweep"),
]


@pytest.mark.parametrize("content, words", BAD_FILES, ids=[words for _, words in BAD_FILES])
def test_a_wrong_file_gets_one_line(content, words, tmp_path, capsys, runs_folder):
    file = tmp_path / "sweep.json"
    file.write_text(content, encoding="utf-8")
    assert refused([str(file)], capsys).find(words) >= 0
    assert not runs_folder.exists()


def refused(flags, capsys):
    """Returns the line with which a sweep is refused."""
    with pytest.raises(SystemExit) as stop:
        microgpt.main(["sweep", *flags])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    return err


@pytest.mark.parametrize("flags, words", [
    ([], "a sweep takes a FILE.json, or what varies"),
    (["missing.json"], "missing.json: No such file"),
    (["--grid", "n_embd=8,10"], "run n_embd=10: n_embd, 10, is not a multiple of n_head, 4"),
    (["--grid", "n_layer=1,0"], "run n_layer=0: "),
    (["--grid", "batch_size=1,0"], "run batch_size=0: argument --batch-size: got '0'"),
    (["--grid", "seed=1,2", "--n-layr", "2"], "--n-layr"),
    (["--grid", "seed=1", "--grid", "seed=2"], "--grid seed is given twice"),
    (["--grid", "optimizer=sgd,adan"], "run optimizer=adan: argument --optimizer: invalid choice"),
    (["--grid", "optimizer=sgd,adam", "--weight-decay", "0.1"],
     "run optimizer=adam: adam has no weight_decay"),
    (["--grid", "dropout=0,0.1", "--backend", "scalar"], "run dropout=0.1: dropout"),
    (["--grid", "schedule=cosine,cubic"], "run schedule=cubic"),
    (["--grid", "warmup_steps=0,900", "--num-steps", "5"], "run warmup_steps=900"),
    (["--grid", "data=names,missing.txt"], "run data=missing: --data missing.txt: No such"),
    (["--grid", "tokenizer=bpe,char", "--bpe-merges", "5"], "run tokenizer=char: --bpe-merges is"),
    (["--grid", "seed=1", "--resume", "x"], "--resume is for a run of its own, not for a sweep"),
    (["--grid", "seed=1", "--no-save"], "--no-save is for a run of its own"),
    (["--grid", "seed=1", "--name", "a/b"], 'the sweep\'s name is "a/b"'),
    (["--grid", "seed=1", "--backend", "matrix", "--devices", "cuda:0"], "--device is torch's"),
    (["--grid", "seed=1", "--jobs", "0"], "--jobs: got '0'"),
])
def test_a_mistake_is_named_before_the_first_run_starts(flags, words, capsys, runs_folder):
    assert words in refused(flags, capsys)
    assert not runs_folder.exists()


def test_a_folder_that_is_no_sweeps(capsys, runs_folder):
    (runs_folder / "mine").mkdir(parents=True)
    (runs_folder / "mine" / "letter.txt").write_text("dear")
    assert "is there, and is no sweep's: give this one another --name" in refused(
        ["--grid", "seed=1,2", "--name", "mine"], capsys)
    assert [file.name for file in (runs_folder / "mine").iterdir()] == ["letter.txt"]


def test_what_is_no_part_of_a_run_is_never_removed(tmp_path):
    for name in ("config.json", "lock", ".last.safetensors.abcdefgh"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="letter.txt is no part of a run that has not begun"):
        sweeping.clear(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    (tmp_path / "letter.txt").unlink()
    sweeping.clear(tmp_path)
    assert not tmp_path.exists()


def test_dry_run(capsys, runs_folder):
    flags = ["sweep", "--grid", "tokenizer=char,word", "--backend", "matrix", "--dry-run"]
    assert microgpt.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "params", "steps", "memory"]
    assert lines[1].split()[:3] == ["tokenizer=char", "4,192", "1,000"]
    assert lines[-1].startswith("2 runs, 1 at once: about ") and "none was started" in lines[-1]
    assert not runs_folder.exists()
    assert microgpt.main([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["parameters"] == 4192


# ---- devices and threads -------------------------------------------------------------------------


class FakeJob:
    """A child that ends at the second look, and leaves nothing behind."""
    begun = []

    def __init__(self, name, argv, output, device=None):
        self.name, self.looks, self.exit_code, self.started = name, 0, 1, 0
        FakeJob.begun.append((name, device, argv))

    def has_ended(self):
        self.looks += 1
        return self.looks > 1

    def last_line(self):
        return "it is a fake"

    def stop(self):
        pass


@pytest.fixture
def fakes(monkeypatch):
    """Returns what jobs were begun: (name, device, arguments)."""
    monkeypatch.setattr(sweeping, "Job", FakeJob)
    monkeypatch.setattr(sweeping, "available_cores", lambda: 7)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(FakeJob, "begun", [])
    return FakeJob.begun


def test_devices_are_dealt_out(fakes, capsys):
    flags = ["sweep", "--grid", "seed=1,2,3,4", "--backend", "torch"]
    assert microgpt.main([*flags, "--devices", "cuda:0,cuda:1"]) == 1
    assert [(name, device) for name, device, _ in fakes] == [
        ("seed=1", "cuda:0"), ("seed=2", "cuda:1"), ("seed=3", "cuda:0"), ("seed=4", "cuda:1")]
    for _, device, argv in fakes:
        assert f"--device={device}" in argv and not any("threads" in flag for flag in argv)
    out = capsys.readouterr().out
    assert "4 runs, 2 at once" in out and "failed seed=1: it is a fake (see " in out
    assert out.count("\nfailed: seed=") == 4
    assert microgpt.main([*flags, "--devices", "cuda:0,cuda:1"]) == 1 and len(fakes) == 4
    assert "failed before, kept: seed=1: it is a fake (--retry" in capsys.readouterr().out
    assert microgpt.main([*flags, "--devices", "cuda:3", "--jobs", "4", "--retry"]) == 1
    assert [device for _, device, _ in fakes[4:]] == ["cuda:3"] * 4


def test_a_run_goes_on_where_it_began(fakes, monkeypatch, capsys):
    """Exactly only on the device that it had; it waits for that one, if that is among them."""
    own = {"seed=1": "cuda:1", "seed=2": "cuda:9"}
    monkeypatch.setattr(sweeping.Start, "own_device", lambda self, name: own.get(name))
    microgpt.main(["sweep", "--grid", "seed=1,2,3", "--backend", "torch", "--devices",
                   "cuda:0,cuda:1"])
    assert {name: device for name, device, _ in fakes} == {
        "seed=1": "cuda:1", "seed=2": "cuda:0", "seed=3": "cuda:0"}


@pytest.mark.parametrize("flags, threads", [
    (["--jobs", "2"], "--threads=3"), (["--jobs", "20"], "--threads=1"), ([], None),
    (["--jobs", "2", "--threads", "5"], "--threads=5"),
    (["--jobs", "2", "--device", "cuda"], None)])
def test_jobs_share_the_cores(fakes, capsys, flags, threads):
    microgpt.main(["sweep", "--grid", "seed=1,2", "--backend", "torch", *flags])
    for _, _, argv in fakes:
        assert [flag for flag in argv if "threads" in flag] == ([threads] if threads else [])


def test_without_torch_one_line_before_the_first_run(monkeypatch, capsys, runs_folder):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "microgpt.backends.pytorch", raising=False)
    assert "pip install torch" in refused(["--grid", "seed=1,2", "--backend", "torch"], capsys)
    assert not runs_folder.exists()


# ---- real runs -----------------------------------------------------------------------------------


def begin(*flags):
    """Returns a sweep as a process of its own."""
    return subprocess.Popen([sys.executable, str(ROOT / "microgpt.py"), "sweep", *flags],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
                            start_new_session=os.name == "posix")


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def steps_of(folder):
    """Returns run -> the steps that it printed, over all starts."""
    return {file.stem: [int(step) for step in re.findall(r"^step +(\d+) /", file.read_text(), re.M)]
            for file in folder.glob("*.txt")}


def nobody_runs_in(folder):
    """Returns whether no run's lock is held."""
    for path in folder.glob("*/lock"):
        try:
            with Lock(path):
                pass
        except ValueError:
            return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_six_runs_two_at_a_time_interrupted_and_started_again(tmp_path, runs_folder):
    """One of them fails; nothing is run twice; the table is right."""
    file = tmp_path / "six.json"
    broken = {"optimizer": "sgd", "learning_rate": 1e30}
    file.write_text(json.dumps({
        "name": "six",
        "base": {**TINY, "num_steps": 500, "eval_interval": 100, "eval_tokens": 99},
        "runs": [{"n_embd": 4}, {"n_embd": 8}, broken, {"n_embd": 12}, {"n_layer": 2},
                 {"model": "bigram"}], "prompts": ["a"]}), encoding="utf-8")
    folder = runs_folder / "six"
    first = begin(str(file), "--jobs", "2")
    wait_until(lambda: first.poll() is not None or len(steps_of(folder)) >= 3 and any(
        50 < len(steps) < 450 for steps in steps_of(folder).values()))
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, out + err
    assert nobody_runs_in(folder)
    assert out.splitlines()[-2].startswith("interrupted: ")
    assert out.splitlines()[-1] == ("go on with: python3 microgpt.py sweep "
                                    f"{folder / 'sweep.json'} --jobs 2")
    assert "bits/char" not in out
    done_before = set(re.findall(r"^done   (\S+):", out, re.M))

    second = begin(str(folder / "sweep.json"), "--jobs", "2")
    out, err = second.communicate(timeout=120)
    assert second.returncode == 1, out + err
    assert set(re.findall(r"^done   (\S+):", out, re.M)).isdisjoint(done_before)
    check_six(folder, out)
    steps = steps_of(folder)

    third = begin(str(file), "--json")
    out, err = third.communicate(timeout=60)
    assert third.returncode == 1 and "failed before, kept: n_embd=4,optimizer=sgd" in err
    assert json.loads(out) == json.loads((folder / "table.json").read_text())
    assert steps_of(folder) == steps


def check_six(folder, out):
    """Each step stands once over all logs; the table has what the runs have."""
    steps, failed = steps_of(folder), "n_embd=4,optimizer=sgd,learning_rate=1e+30"
    assert len(steps) == 6
    assert len(steps.pop(failed)) < 9
    for name, found in steps.items():
        assert found == list(range(1, 501)), name
    table = json.loads((folder / "table.json").read_text())
    rows = {row["name"]: row for row in table["runs"]}
    assert table["runs"][-1]["name"] == failed and rows[failed]["status"] == "failed"
    assert "the loss" in rows[failed]["failure"] and "nan" in rows[failed]["failure"]
    bits = [row["bits_per_character"] for row in table["runs"][:-1]]
    assert bits == sorted(bits) and rows["n_embd=4,n_layer=2"]["settings"] == {
        "n_embd": 4, "n_layer": 2}
    for name in steps:
        lines = runs.open_run(folder / name).log()
        assert [line["step"] for line in lines] == [100, 200, 300, 400, 500]
        best = min(lines, key=lambda line: line["val_loss"])
        row = rows[name]
        assert (row["status"], row["steps"], row["val_loss"]) == ("finished", 500, best["val_loss"])
        assert row["tokens"] == lines[-1]["tokens"]
    shown = [line.split()[0] for line in out.split("bits/char")[1].splitlines()[1:6]]
    assert shown == [row["name"] for row in table["runs"][:-1]]
    assert [sample["prompt"] for sample in table["samples"]] == ["a"]
    assert table["samples"][0]["texts"].keys() == steps.keys()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_killed_and_started_again_equals_the_run_alone(runs_folder):
    """After SIGTERM, and after kill -9, no child is left, and the runs go on bit for bit."""
    flags = ["--grid", "n_embd=4,8", "--jobs", "2", "--backend", "matrix", "--num-steps", "1000",
             "--num-samples", "0", "--name", "k", "--eval-tokens", "100"]
    folder = runs_folder / "k"
    for number, code, least in (signal.SIGTERM, 143, 20), (signal.SIGKILL, -9, 60):
        process = begin(*flags)
        wait_until(lambda: [len(steps) >= least for steps in steps_of(folder).values()] == [
            True, True])
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, out + err
        if number == signal.SIGKILL:  # they notice, and save
            wait_until(lambda: nobody_runs_in(folder))
        assert nobody_runs_in(folder)
        assert any(len(steps) < 1000 for steps in steps_of(folder).values())
    with Lock(folder / "n_embd=8" / "lock"):  # as if one of its children were still at it
        process = begin(*flags)
        wait_until(lambda: process.stdout.readline().startswith("wait   n_embd=8: the run "))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert nobody_runs_in(folder)
    assert {name: steps == list(range(1, 1001)) for name, steps in steps_of(folder).items()} == {
        "n_embd=4": True, "n_embd=8": True}
    assert not microgpt.main(["--n-embd", "4", "--backend", "matrix", "--num-steps", "1000",
                              "--num-samples", "0", "--eval-tokens", "100", "--name", "alone"])
    ended = [checkpoint.read(path / "last.safetensors")[0]
             for path in (folder / "n_embd=4", runs_folder / "alone")]
    assert ended[0] == ended[1]


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_a_second_signal_ends_all_at_once(runs_folder):
    process = begin("--grid", "seed=1,2", "--jobs", "2", "--name", "slow", "--backend",
                    "matrix", "--n-embd", "128", "--batch-size", "128")  # steps of seconds
    folder = runs_folder / "slow"
    wait_until(lambda: len(list(folder.glob("*/last.safetensors"))) == 2)
    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stderr.readline() + process.stderr.readline()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - start < 5
    wait_until(lambda: nobody_runs_in(folder), 5)


def test_other_settings_or_a_second_process_are_refused(runs_folder, capsys):
    flags = ["--grid", "n_embd=4,8", "--backend", "matrix", "--num-steps", "2", "--num-samples",
             "0", "--name", "s"]
    assert microgpt.main(["sweep", *flags]) == 0
    capsys.readouterr()
    line = refused([*flags, "--n-layer", "2"], capsys)
    assert "n_layer of n_embd=4 was none, and is 2; give this one another --name" in line
    with Lock(runs_folder / "s" / "lock"):
        assert "is in use by process" in refused(flags, capsys)
    more = ["--grid", "n_embd=4,8,12", *flags[2:]]
    assert microgpt.main(["sweep", *more]) == 0
    out = capsys.readouterr().out
    assert "finished before, not run again: n_embd=4, n_embd=8" in out
    assert re.findall(r"^start +(\S+)", out, re.M) == ["n_embd=12"]


def test_a_run_ended_by_patience_or_time_is_finished(runs_folder, capsys):
    flags = ["sweep", "--grid", "patience=1", "--backend", "matrix", "--num-steps", "1000",
             "--eval-interval", "1", "--eval-tokens", "50", "--learning-rate", "0",
             "--num-samples", "0", "--name", "p"]
    assert microgpt.main(flags) == 0
    run = runs.open_run(runs_folder / "p" / "patience=1")
    assert run.about["ended"] == {"step": 2, "reason": "patience"} and run.has_ended()
    assert microgpt.main(flags) == 0
    assert "finished before, not run again: patience=1" in capsys.readouterr().out
    assert steps_of(runs_folder / "p") == {"patience=1": [1, 2]}


def test_its_texts_are_those_of_compare(runs_folder, capsys):
    assert microgpt.main(["sweep", "--grid", "seed=1", "--backend", "matrix", "--num-steps", "2",
                          "--eval-tokens", "50", "--block-size", "5", "--num-samples", "0",
                          "--prompt=an", "--prompt=b", "--name", "p"]) == 0
    told = json.loads((runs_folder / "p" / "table.json").read_text())["samples"]
    capsys.readouterr()
    assert not microgpt.main(["compare", "p/seed=1", "--prompt", "an", "b", "--json"])
    shown, = json.loads(capsys.readouterr().out)["runs"]
    assert [sample["texts"]["seed=1"] for sample in told] == [
        found["text"] for found in shown["texts"]]


# ---- the experiments that come with the project --------------------------------------------------

EXPERIMENTS = {"tokenizers": [], "depth": ["--grid", "n_layer=1,2"],
               "width": ["--grid", "n_embd=4,8", "--n-head", "2"],
               "bpe-merges": ["--grid", "bpe_merges=0,5"], "large": ["--n-embd", "4"]}
ON_A_CPU = ["--backend", "matrix", "--num-steps", "2", "--batch-size", "2", "--block-size", "8",
            "--num-samples", "0", "--eval-tokens", "100", "--jobs", "2"]


def test_every_experiment_is_listed_here():
    assert {file.stem for file in (ROOT / "experiments").glob("*.json")} == EXPERIMENTS.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_sweeps(name):
    found = sweep.expand(sweep.read(ROOT / "experiments" / f"{name}.json"))
    assert (found.name, found.runs.keys() == {"run"}) == (name, name == "large")
    assert found.about and found.prompts
    for wanted in found.runs.values():
        assert wanted["backend"] == "torch"
        settings = train.asked_settings(train.make_parser().parse_args(sweep.flags_of(wanted)))
        settings.completed()


@pytest.mark.parametrize("name", ["depth", *(pytest.param(name, marks=pytest.mark.slow)
                                             for name in EXPERIMENTS if name != "depth")])
def test_experiments_run_on_a_cpu(name, tmp_path, capsys, runs_folder):
    document = json.loads((ROOT / "experiments" / f"{name}.json").read_text(encoding="utf-8"))
    if "runs" in document:  # tiktoken's vocabularies are fetched
        document["runs"] = [entry for entry in document["runs"] if "vocabulary" not in entry]
    file, text = tmp_path / "experiment.json", tmp_path / "text.txt"
    file.write_text(json.dumps(document), encoding="utf-8")
    line = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n"
    text.write_text(line * 40 + "Speak!")
    sizes = [] if name in ("width", "large") else ["--n-embd", "4", "--n-head", "2"]
    layers = [] if name == "depth" else ["--n-layer", "1"]
    heads = ["--n-head", "2"] if name == "large" else []
    assert microgpt.main(["sweep", str(file), "--data", str(text), *ON_A_CPU, *sizes, *layers,
                          *heads, *EXPERIMENTS[name]]) == 0
    table = json.loads((runs_folder / name / "table.json").read_text())
    assert {row["status"] for row in table["runs"]} == {"finished"}
    assert len(table["runs"]) == {"tokenizers": 4, "large": 1}.get(name, 2)
    assert len(table["samples"]) == len(document["prompts"])
    lossy = [row["name"] for row in table["runs"] if row["lossy"]]
    assert lossy == ["tokenizer=word,word_min_count=3"] * (name == "tokenizers")
    if lossy:
        assert "lossy" in capsys.readouterr().out


# ---- the documents -------------------------------------------------------------------------------

DOCUMENTS = "".join((ROOT / name).read_text(encoding="utf-8")
                    for name in ("USAGE.md", "GPU_EXPERIMENTS.md"))


@pytest.mark.parametrize("line", re.findall(r"^python3 microgpt\.py sweep (.*)", DOCUMENTS, re.M))
def test_sweeps_of_the_documents_can_be_run(line, fakes, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = command.make_parser().parse_args(shlex.split(line.split("   ")[0]))
    assert command.checked_runs(command.asked_sweep(args), [])


def test_files_in_the_documents_are_sweeps():
    found = re.findall(r"```json\n(\{.*?)```", DOCUMENTS, re.S)
    assert found
    for text in found:
        assert len(sweep.expand(sweep.check_definition(json.loads(text))).runs) > 1
