"""What the documents show is true: examples run, commands exist, outputs are the program's."""
import doctest
import importlib
import re
import shlex

import pytest

import microgpt
from conftest import ROOT
from microgpt.cli import COMMANDS

DOCUMENTS = ["README.md", "USAGE.md", "HOW_IT_WORKS.md", "GPU_EXPERIMENTS.md"]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_of_python(name, monkeypatch):
    monkeypatch.chdir(ROOT)  # as a reader who types along in the checkout
    results = doctest.testfile(str(ROOT / name), module_relative=False)
    assert results.failed == 0


def test_the_readme_shows_the_golden_run(golden):
    text = text_of("README.md")
    shown = dict(re.findall(r"^step +(\d+) / 1000 \| loss ([\d.]+)$", text, re.MULTILINE))
    assert {int(step): float(loss) for step, loss in shown.items()} == {
        1: golden["losses"][0], 1000: golden["losses"][-1]}
    samples = re.findall(r"^sample +\d+: (\w+)$", text, re.MULTILINE)
    assert samples and samples == golden["samples"][:len(samples)]


def commands():
    """Yields every `python3 microgpt.py ...` of the documents, as a list of arguments."""
    for name in DOCUMENTS:
        for line in re.findall(r"python3 microgpt\.py([^`\n]*)", text_of(name)):
            yield shlex.split(line.split("   ")[0])


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_commands_of_the_documents_parse(words):
    name = words.pop(0) if words and not words[0].startswith("-") else "train"
    assert name in COMMANDS
    parser = importlib.import_module(f"microgpt.cli.{name}").make_parser()
    if "--help" not in words:
        parser.parse_args(words)


def test_every_flag_of_the_usage_exists():
    known = set()
    for name in COMMANDS:
        parser = importlib.import_module(f"microgpt.cli.{name}").make_parser()
        known |= {flag for action in parser._actions for flag in action.option_strings}
    used = set(re.findall(r"(--[a-z][a-z-]+)", text_of("USAGE.md")))
    assert used <= known
    assert {"--" + name.replace("_", "-") for name, _, _ in microgpt.FLAGS} <= used
