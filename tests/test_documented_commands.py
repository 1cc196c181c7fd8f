"""Every command line that the documents show runs, as typed but for its length: fewer steps, a
smaller model, the CPU. The texts and runs that it names are small ones of these names."""
import io
import shutil
import sys

import pytest

from conftest import ROOT
from microgpt.corpus import sources
from microgpt.training import runs
from small import TEXT, a_run, main
from test_docs import commands
from website import website

SMALL = ["--n-embd", "8", "--n-head", "2", "--n-layer", "1", "--block-size", "16"]
SHORT = {
    "train": [*SMALL, "--num-steps", "2", "--batch-size", "2", "--eval-tokens", "20",
              "--num-samples", "1"],
    "resume": ["--num-steps", "5", "--num-samples", "1"],
    "sweep": ["--num-steps", "1", "--batch-size", "2", "--eval-tokens", "20", "--data", "my.txt"],
    "bench": ["--only", "startup", "--quick"],
    "gradcheck": ["--n-embd", "8", "--n-head", "2", "--vocab-size", "7"]}


def without(words, *flags):
    """Returns words without some flags and what follows each."""
    return [word for i, word in enumerate(words)
            if word not in flags and (i == 0 or words[i - 1] not in flags)]


def shortened(words):
    """Returns a command line that says the same of a smaller model, for fewer steps, on a CPU."""
    name = words[0] if words and not words[0].startswith("-") else "train"
    if "--help" in words or "--dry-run" in words:
        return words
    words = ["cpu" if before == "--device" else word for before, word in zip(["", *words], words)]
    if name == "sweep":
        words = without(words, "--devices")
    return words + SHORT.get("resume" if "--resume" in words else name, [])


def named_runs(words):
    """Returns the runs that a command line speaks of."""
    named = [word for before, word in zip(["", *words], words) if before in ("--run", "--resume")]
    if words and words[0] in ("compare", "runs"):
        named += [word for word in words[1:] if word in ("play", "names")]
    return {*named} - {"names"}


@pytest.fixture(scope="module")
def server():
    """The address of a server on this machine that has a text at every path."""
    with website(lambda path: None if path == "/robots.txt" else ("text/plain", TEXT)) as found:
        yield found[0]


@pytest.fixture
def here(tmp_path, monkeypatch, server):
    """A working folder with all files that the documents name."""
    for name in ("FILE", "my.txt", "notes/one.txt", "notes/two.md", "letters/three.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(TEXT, encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("# names\nan\n", encoding="utf-8")
    (tmp_path / "pages.txt").write_text(f"{server}/page\n", encoding="utf-8")
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.setenv("MICROGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "DOWNLOADS", {name: (f"{server}/{name}", None)
                                               for name in sources.DOWNLOADS})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def takes_long(words):
    return words[:1] == ["sweep"] and "--dry-run" not in words


@pytest.mark.parametrize("words", [
    pytest.param(words, marks=[pytest.mark.slow] * takes_long(words), id=" ".join(words) or "none")
    for words in dict(zip(map(tuple, commands()), commands())).values()])
def test_a_command_of_the_documents_runs(words, here, server, tmp_path, monkeypatch, capsys):
    if "torch" in words or "--device" in words or any(
            word.startswith(("shakespeare-", "experiments/")) for word in words):
        pytest.importorskip("torch")
    for name in named_runs(words):
        a_run(tmp_path)
        (runs.runs_folder() / name).parent.mkdir(exist_ok=True)
        (runs.runs_folder() / "x").rename(runs.runs_folder() / name)
    words = [word.replace("https://example.org", server) for word in shortened(words)]
    if "--data" not in words and "--dry-run" in words:
        words += ["--data", "my.txt"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("an\n" * ("chat" in words)
                                                   + "\n" * 20 * ("--interactive" in words)))
    capsys.readouterr()
    assert main(*words) == 0
    assert capsys.readouterr().out
