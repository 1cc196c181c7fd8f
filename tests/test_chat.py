"""chat: on a pseudo-terminal, as people use it, and piped."""
import re
import subprocess
import sys

import pytest

import microgpt
from conftest import ROOT
from microgpt.cli.chat import HELP, SETTINGS, Chat
from microgpt.cli.writing import Writer
from microgpt.nn.sampling import SamplingSettings
from microgpt.training import runs

on_unix = pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")


def piped(text, *flags, **options):
    return subprocess.run([sys.executable, "microgpt.py", "chat", *flags], cwd=ROOT, input=text,
                          capture_output=True, text=True, encoding="utf-8", timeout=120, **options)


@pytest.fixture
def terminal():
    from pseudoterminal import Session
    open_sessions = []

    def start(*words, **options):
        open_sessions.append(Session(*words, **options))
        return open_sessions[-1]
    yield start
    for session in open_sessions:
        session.kill()


@pytest.fixture
def stream_run(tmp_path, capsys):
    """A run that learned one running text, quickly."""
    data = tmp_path / "prose.txt"
    data.write_text("the sea and the shore, and the sea again. " * 60, encoding="utf-8")
    assert not microgpt.main(["--data", str(data), "--documents", "stream", "--backend", "matrix",
                              "--num-steps", "3", "--num-samples", "0", "--name", "prose"])
    capsys.readouterr()
    return "prose"


def make_chat(name=None):
    run = runs.find(name)
    writer = Writer(run.backend(), run.tokenizer, run.is_stream)
    return Chat(writer, SamplingSettings(max_tokens=20), seed=1)


# ---- on a terminal

@on_unix
def test_a_conversation_on_a_terminal(terminal, tmp_path):
    """Types, streams, is interrupted, changes temperature, saves and quits."""
    chat = terminal("chat", "--run", "names")
    chat.expect(r"each line begins a new text")
    chat.expect("> ")
    chat.type("ann\n")
    chat.expect(r"ann[a-z]*\r\n> ")
    chat.type("/temperature 0\n")
    chat.expect(r"temperature 0.0\r\n")
    answers = []
    for _ in range(2):
        chat.expect("> ")
        chat.type("jo\n")
        answers.append(chat.expect(r"\n(jo[a-z]*)\r\n").group(1))
    assert answers[0] == answers[1]
    chat.type("/temprature 1\n")
    chat.expect(r"there is no /temprature; did you mean /temperature\?")
    chat.type("K\u00e4\n")
    chat.expect("the model has never seen 'K', '\u00e4': left out")
    chat.type(f"/save {tmp_path / 'said.txt'}\n")
    chat.expect("characters in")
    chat.type("/quit\n")
    assert chat.finish() == 0 and "Traceback" not in chat.seen
    assert answers[0] in (tmp_path / "said.txt").read_text(encoding="utf-8").split()


@on_unix
def test_ctrl_c_stops_the_text_and_not_the_chat(terminal, stream_run):
    chat = terminal("chat", "--max-tokens", "1000000")
    chat.expect("> ")
    chat.type("the\n")
    chat.expect(r"the\r\n[^>]{40}")  # it streams: much more is to come
    chat.type("\x03")
    chat.expect("> ")
    chat.type("/tokens 5\n")
    chat.expect("tokens 5\r\n> ")
    chat.type("sea\n")
    chat.expect("\n> ")
    chat.type("\x03")
    chat.expect("once more")
    chat.type("\x04")
    assert chat.finish() == 0 and "Traceback" not in chat.seen


@on_unix
def test_ctrl_c_twice_at_the_prompt_ends(terminal):
    chat = terminal("chat")
    chat.expect("> ")
    chat.type("\x03")
    chat.expect("once more\r\n> ")
    chat.type("\x03")
    assert chat.finish() == 130 and "Traceback" not in chat.seen


# ---- piped

def test_piped_only_answers_go_out():
    done = piped("ann\njo\n\n/temperature 0\n/nonsense\nann\n", "--seed", "3")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4
    assert lines[0].startswith("ann") and lines[1].startswith("jo") and lines[3].startswith("ann")
    assert "temperature 0.0" in done.stderr and "there is no /nonsense" in done.stderr
    assert ">" not in done.stdout


def test_a_seed_says_the_same_again():
    done = piped("ma\n/seed 42\nma\n")
    first, again = done.stdout.splitlines()
    assert first == again


def test_after_training(capsys, tmp_path):
    done = subprocess.run([sys.executable, "microgpt.py", "--num-steps", "2", "--num-samples", "1",
                           "--chat"], cwd=ROOT, input="an\n", capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("an")


# ---- what it remembers

def test_a_running_text_has_a_history_within_the_window(stream_run, capsys):
    chat = make_chat(stream_run)
    for line in ("the sea", "and the", "", "shore"):
        chat.answer(line)
    out = capsys.readouterr().out
    assert chat.said.startswith("the sea") and "\nand the" in chat.said and "\nshore" in chat.said
    assert len(chat.tokens) == runs.find(stream_run).config.block_size
    assert chat.writer.tokenizer.decode(chat.tokens) == (
        "".join(c for c in chat.said if c != "\n")[-len(chat.tokens):])
    assert out.count("shore") <= chat.said.count("shore")
    chat.command("/reset")
    assert (chat.tokens, chat.said) == ([], "")


def test_the_history_counts(stream_run, capsys):
    chat = make_chat(stream_run)
    chat.set("/temperature", "0")
    chat.answer("the sea and")
    chat.answer("")
    capsys.readouterr()
    whole = make_chat(stream_run)
    whole.set("/temperature", "0")
    whole.set("/tokens", "40")
    whole.answer("the sea and")
    # greedy: two halves say what one of twice the length does, but for where the view stands
    assert whole.said[:31] == chat.said[:31]


def test_documents_have_none(capsys):
    chat = make_chat("names")
    chat.answer("ann")
    assert chat.tokens == [] or not chat.writer.is_stream
    assert chat.said.startswith("ann") and chat.said.endswith("\n")


WRONG = [("/temperature", "-1", "takes a number, 0 or more"), ("/tokens", "0", "1 or more"),
         ("/top-k", "x", "a whole number"), ("/top-p", "2", "up to 1"),
         ("/seed", "-1", "0 or more"),
         ("/save", None, "takes the name of a file"), ("/", None, "there is no /"),
         ("/save", "/nowhere/at/all", "No such file")]


@pytest.mark.parametrize("name, value, message", WRONG, ids=[f"{n} {v}" for n, v, _ in WRONG])
def test_a_wrong_command_gets_a_line(name, value, message, capsys):
    chat = make_chat()
    before = chat.settings
    chat.command(name, value)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert chat.settings == before


def test_commands(capsys, tmp_path):
    chat = make_chat()
    for words in (("/top-k", "3"), ("/top-p", "0.5"), ("/tokens", "7"), ("/temperature", "1.5")):
        chat.command(*words)
    assert chat.settings == SamplingSettings(1.5, 3, 0.5, max_tokens=7)
    chat.command("/top-k", "off")
    assert chat.settings.top_k is None
    chat.command("/temperature")
    chat.command("/help")
    err = capsys.readouterr().err
    assert "temperature 1.5" in err and all(usage in err for usage, _ in HELP)
    assert chat.command("/quit") == "quit"
    assert set(SETTINGS) <= {usage.split()[0] for usage, _ in HELP}


def test_save_writes_over_its_own_files_alone(capsys, tmp_path):
    path = tmp_path / "said.txt"
    chat = make_chat()
    chat.answer("ann")
    chat.command("/save", str(path))
    chat.answer("jo")
    chat.command("/save", str(path))
    assert re.fullmatch("ann.*\njo.*\n", path.read_text(encoding="utf-8"))
    other = make_chat()
    capsys.readouterr()
    other.command("/save", str(path))
    assert "is there already" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").startswith("ann")


def test_a_line_that_begins_with_two_slashes_is_text(stream_run):
    done = piped("//\n", "--max-tokens", "3")
    assert done.returncode == 0 and "never seen '/'" in done.stderr
