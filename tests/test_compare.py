"""compare: the same prompts over several runs, in columns and one under the other."""
import json
import sys

import pytest

import microgpt


@pytest.fixture
def two_runs(capsys):
    for name, seed in (("one", "1"), ("two", "2")):
        assert not microgpt.main(["--backend", "matrix", "--num-steps", "2", "--num-samples", "0",
                                  "--name", name, "--seed", seed])
    capsys.readouterr()
    return ["one", "two"]


def compare(capsys, *words):
    assert not microgpt.main(["compare", *words])
    return capsys.readouterr()


def test_as_json(two_runs, capsys):
    found = json.loads(compare(capsys, *two_runs, "names", "--prompt", "ann", "jo", "--json").out)
    assert found["seed"] == 42 and found["prompts"] == ["ann", "jo"]
    assert [run["run"] for run in found["runs"]] == [*two_runs, "names"]
    for run in found["runs"]:
        assert run["parameters"] == 4192 and [text["prompt"] for text in run["texts"]] == [
            "ann", "jo"]
        assert run["bits_per_character"] == pytest.approx(run["val_loss"] * 1.442695, rel=1e-4)


def test_the_texts_are_those_of_sample(two_runs, capsys):
    found = json.loads(compare(capsys, *two_runs, "--prompt", "ann", "--seed", "3", "--json").out)
    for run in found["runs"]:
        assert not microgpt.main(["sample", "--run", run["run"], "--prompt", "ann", "--seed", "3"])
        assert capsys.readouterr().out == f"ann{run['texts'][0]['text']}\n"


def test_one_under_the_other_when_piped(two_runs, capsys):
    out, err = compare(capsys, "--prompt", "ann")
    assert "the latest runs: " in err
    lines = out.splitlines()
    assert lines[0].startswith("two: char, 4,192 parameters, held out 3.") or (
        lines[0].startswith("one: char"))
    assert lines[3] == "1. after 'ann'" and {line.split()[0] for line in lines[4:6]} == {
        "one:", "two:"}
    assert lines[4].split()[1].startswith("ann")


def test_without_runs_there_is_the_model_that_comes_along(capsys):
    out, err = compare(capsys)
    assert "the latest runs: names" in err and out.count("without a prompt") == 5


def test_a_run_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        microgpt.main(["compare", "nothing"])
    assert "there is no run 'nothing'" in capsys.readouterr().err


def test_a_damaged_run_is_left_out_unless_it_is_named(two_runs, capsys, runs_folder):
    (runs_folder / "bad").mkdir()
    (runs_folder / "bad" / "config.json").write_text("{}", encoding="utf-8")
    out, err = compare(capsys, "--prompt", "a")
    assert "bad" in err and "bad" not in out
    with pytest.raises(SystemExit):
        microgpt.main(["compare", "bad"])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("columns, beside", [(80, True), (40, False)])
def test_in_columns_that_fit(two_runs, columns, beside):
    from pseudoterminal import Session
    session = Session("compare", *two_runs, "--prompt", "ann", columns=columns, NO_COLOR="1")
    assert session.finish() == 0
    lines, over = session.screen()
    assert over == []
    assert any(line.startswith("one") and line.rstrip().endswith("| two")
               for line in lines) == beside
