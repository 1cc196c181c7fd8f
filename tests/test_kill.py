"""Processes that are killed, stopped, or meet one another: the run is whole, and goes on."""
import os
import random
import re
import signal
import sys
import time

import pytest

from small import TINY, command, content, end_of, finished, main, texts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

FLAGS = [*TINY, "--num-steps", 30, "--eval-interval", 3, "--sample-every", 2, "--num-samples", 3,
         "--val-fraction", 0.2, "--batch-size", 4, "--optimizer", "adamw"]
OFTEN = "from microgpt.training import trainer\ntrainer.SAVE_EVERY = 0"
# A little slower, so that a signal comes before the end.
SLOW = OFTEN + """
import time
real = trainer.Trainer.step
def step(self):
    real(self)
    time.sleep(0.01)
trainer.Trainer.step = step"""
# The process kills itself in the middle of writing: the n-th time that it comes to a certain place.
AT_WRITE = OFTEN + """
import os, signal
count, where = {count}, {where!r}
def at(name, real):
    def call(*arguments):
        global count
        if where == name + ' before':
            count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if where == name + ' after':
            count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
os.fsync, os.replace = at('fsync', os.fsync), at('replace', os.replace)"""


def whole_run(folder, flags=FLAGS):
    """Returns the end of a run that nobody stopped; its folder is runs/whole."""
    data = texts(folder)
    assert main("--data", data, *flags, "--name", "whole") == 0
    return data, end_of(folder / "runs" / "whole")


def go_on(folder, data, code, flags=FLAGS):
    """Returns the process that begins the run `parts`, or goes on with it."""
    if (folder / "runs" / "parts" / "config.json").exists():
        return command("--resume", "parts", code=code, folder=folder / "runs")
    for path in (folder / "runs").glob("parts*"):  # killed before it was a run
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    return command("--data", data, *flags, "--name", "parts", code=code, folder=folder / "runs")


def kill_and_resume(folder, kills, seed):
    """Checks that a run that is killed so many times ends as one that is not; returns the steps
    that it was killed after."""
    data, expected = whole_run(folder)
    rng, steps = random.Random(seed), []
    while len(steps) < kills:
        process = go_on(folder, data, SLOW)
        wait_for(process, r"step +\d+ /|learned")
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        code, out, err = finished(process)
        if code != -signal.SIGKILL:  # it had come to its end: begin anew
            assert code == 0, err
            assert end_of(folder / "runs" / "parts") == expected
            for file in (folder / "runs" / "parts").iterdir():
                file.unlink()
            continue
        steps.append(out.count("step "))
    code, out, err = finished(go_on(folder, data, OFTEN))
    assert code == 0, err
    assert end_of(folder / "runs" / "parts") == expected
    return steps


def wait_for(process, pattern, stream="stdout"):
    """Returns the first line of a process's output that matches, and the others before it."""
    lines = []
    for line in getattr(process, stream):
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"{pattern} never came: {''.join(lines)} {process.communicate()}")


def test_killed_three_times_it_ends_as_if_it_was_not(tmp_path):
    kill_and_resume(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_killed_forty_times_it_ends_as_if_it_was_not(tmp_path):
    kill_and_resume(tmp_path, 40, seed=2)


def killed_while_writing(folder, where, counts, flags):
    """Checks that a run that is killed at its count-th call of something ends the same."""
    data, expected = whole_run(folder, flags)
    for count in counts:
        process = go_on(folder, data, AT_WRITE.format(count=count, where=where), flags)
        code, out, err = finished(process)
        assert code in (0, -signal.SIGKILL), err
        if code == 0:
            break
        code, out, err = finished(go_on(folder, data, OFTEN, flags))
        assert code == 0, err
        assert end_of(folder / "runs" / "parts") == expected, f"killed at {where} {count}"
        for file in (folder / "runs" / "parts").iterdir():
            file.unlink()
        (folder / "runs" / "parts").rmdir()
    return code, count


FEW = [*TINY, "--num-steps", 4, "--eval-interval", 2, "--sample-every", 1, "--num-samples", 1,
       "--val-fraction", 0.2]


@pytest.mark.parametrize("where, counts", [
    ("fsync before", [1, 2]), ("replace before", [4, 9]), ("replace after", [3, 5])])
def test_killed_while_writing(tmp_path, where, counts):
    killed_while_writing(tmp_path, where, counts, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["fsync before", "replace before", "replace after"])
def test_killed_at_every_write(tmp_path, where):
    code, count = killed_while_writing(tmp_path, where, range(1, 1000), FEW)
    assert code == 0 and count > 15


def test_what_a_kill_left_is_removed(tmp_path):
    data, expected = whole_run(tmp_path, FEW)
    code, _, _ = finished(go_on(tmp_path, data,
                                AT_WRITE.format(count=9, where="fsync before"), FEW))
    path = tmp_path / "runs" / "parts"
    assert code == -signal.SIGKILL and [file for file in path.iterdir() if file.name[0] == "."]
    (path / ".mine").write_text("not microgpt's")
    (path / ".log.jsonl.abcdefgh").mkdir()
    assert finished(go_on(tmp_path, data, OFTEN))[0] == 0
    assert [file.name for file in sorted(path.iterdir()) if file.name[0] == "."] == [
        ".log.jsonl.abcdefgh", ".mine"]


# ---- signals


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, name, code):
    data, expected = whole_run(tmp_path)
    process = go_on(tmp_path, data, SLOW)
    lines = wait_for(process, "step +4 /")
    process.send_signal(getattr(signal, name))
    found, out, err = finished(process)
    last = [int(line.split()[1]) for line in (*lines, *out.splitlines())
            if re.match(r"step +\d+ /", line)][-1]
    assert found == code and 4 <= last < 30
    assert out.splitlines()[-2:] == [
        f"interrupted after step {last} of 30; kept in {tmp_path / 'runs' / 'parts'}",
        "go on with: python3 microgpt.py --resume parts"]
    assert err == ("\nstopping as soon as this is done; Ctrl-C again stops at once\n"
                   if name == "SIGINT" else "")
    code, out, err = finished(go_on(tmp_path, data, OFTEN))
    assert code == 0 and f"step {last + 1:4d} /   30" in out
    assert end_of(tmp_path / "runs" / "parts") == expected


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    data, expected = whole_run(tmp_path)
    hanging = SLOW.replace("time.sleep(0.01)", "time.sleep(60 if self.state.step == 5 else 0.01)")
    process = go_on(tmp_path, data, hanging)
    wait_for(process, "step +5 /")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping as soon as", "stderr")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 130 and time.monotonic() - start < 5
    assert finished(go_on(tmp_path, data, OFTEN))[0] == 0
    assert end_of(tmp_path / "runs" / "parts") == expected


def interrupted_at(folder, place):
    """Returns (exit code, output, errors) of a run that gets Ctrl-C where `place` is called."""
    name, _, attribute = place.rpartition(".")
    return finished(command("--data", texts(folder), *FEW, "--name", "parts",
                            folder=folder / "runs", code=OFTEN + f"""
import os, signal, importlib
holder = importlib.import_module({name.split(':')[0]!r})
holder = getattr(holder, {name.partition(':')[2]!r}) if {':' in name} else holder
real = getattr(holder, {attribute!r})
def call(*arguments, **more):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **more)
setattr(holder, {attribute!r}, call)"""))


def test_ctrl_c_while_the_text_is_read(tmp_path):
    code, out, err = interrupted_at(tmp_path, "microgpt.cli.session.load")
    assert (code, out, err) == (130, "", "\ninterrupted; nothing was kept\n")
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_while_the_text_of_a_resumed_run_is_read(tmp_path):
    whole_run(tmp_path, FEW)
    before = content(tmp_path / "runs" / "whole")
    code, out, err = finished(command("--resume", "whole", folder=tmp_path / "runs", code="""
from microgpt.cli import session
def load(*_, **__):
    raise KeyboardInterrupt
session.load = load"""))
    assert (code, out) == (130, "")
    assert err == f"\ninterrupted; {tmp_path / 'runs' / 'whole'} is as it was\n"
    assert content(tmp_path / "runs" / "whole") == before


@pytest.mark.parametrize("place, step", [("microgpt.training.trainer.evaluate", 2),
                                         ("microgpt.cli.session:Session.new_sample", 1),
                                         ("microgpt.cli.session:Session.finish", 4),
                                         ("microgpt.cli.session:Session.describe", 0)])
def test_ctrl_c_anywhere_is_told_how_to_go_on(tmp_path, place, step):
    data, expected = whole_run(tmp_path, FEW)
    code, out, err = interrupted_at(tmp_path, place)
    assert code == 130 and "nothing was kept" not in err
    assert out.splitlines()[-2:] == [
        f"interrupted after step {step} of 4; kept in {tmp_path / 'runs' / 'parts'}",
        "go on with: python3 microgpt.py --resume parts"]
    assert finished(go_on(tmp_path, data, OFTEN))[0] == 0
    assert end_of(tmp_path / "runs" / "parts") == expected


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As under nohup, which lets a run outlive its terminal."""
    data = texts(tmp_path)
    process = command("--data", data, *FEW, "--num-steps", 60, "--name", "parts",
                      folder=tmp_path / "runs", code=SLOW,
                      preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(process, "step +4 /")
    process.send_signal(signal.SIGHUP)
    code, out, err = finished(process)
    assert code == 0 and "interrupted" not in out


def test_a_closed_terminal(tmp_path):
    """A hang-up, after which nothing can be printed any more."""
    pty = pytest.importorskip("pty")
    data, expected = whole_run(tmp_path)
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(os.path.dirname(os.path.dirname(__file__)))
        os.environ["MICROGPT_RUNS"] = str(tmp_path / "runs")
        arguments = [str(flag) for flag in ["--data", data, *FLAGS, "--name", "parts"]]
        os.execv(sys.executable, [sys.executable, "-c", "import sys\nimport microgpt\n" + SLOW
                                  + f"\nsys.exit(microgpt.main({arguments!r}))"])
    seen = b""
    while not re.search(rb"step +[4-9] /", seen):  # a terminal is not shown every step
        seen += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert finished(go_on(tmp_path, data, OFTEN))[0] == 0
    assert end_of(tmp_path / "runs" / "parts") == expected


# ---- two processes


def test_the_second_process_on_a_run_names_the_first(tmp_path):
    data, expected = whole_run(tmp_path)
    first = go_on(tmp_path, data, SLOW)
    wait_for(first, "step +3 /")
    code, out, err = finished(command("--resume", "parts", folder=tmp_path / "runs"))
    import socket
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.match(rf"microgpt: the run .*parts is in use by process {first.pid} on "
                    rf"{re.escape(socket.gethostname())}, since \d{{4}}-.*; wait for it", err)
    first.kill()
    finished(first)
    assert finished(go_on(tmp_path, data, OFTEN))[0] == 0  # the lock of the dead is none
    assert end_of(tmp_path / "runs" / "parts") == expected


def test_two_new_runs_of_one_name_have_two_folders(tmp_path):
    data = texts(tmp_path)
    both = [command("--data", data, *FEW, "--name", "same", folder=tmp_path / "runs")
            for _ in range(2)]
    assert [finished(process)[0] for process in both] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["same", "same-2"]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_a_lock_that_is_no_file_of_its_own_is_refused(tmp_path, kind, capsys):
    whole_run(tmp_path, FEW)
    lock, victim = tmp_path / "runs" / "whole" / "lock", tmp_path / "victim"
    victim.write_text("precious")
    lock.unlink()
    {"link": lambda: lock.symlink_to(victim), "hard link": lambda: os.link(victim, lock),
     "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    capsys.readouterr()
    assert main("--resume", "whole") == 2
    err = capsys.readouterr().err
    assert re.match("microgpt: .*lock cannot be opened to lock the run: ", err), err
    assert err.count("\n") == 1 and victim.read_text() == "precious"
