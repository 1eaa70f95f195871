"""The command line: names, statuses, and a comparison from end to end."""

import dataclasses
import json
import os

import pytest

from gensamp import runner
from gensamp.cli import main


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("gmm40", "eight_schools", "digits", "nuts", "ddpm", "score_langevin"))
    assert out.index("posterior of posteriordb") < out.index("arK-arK") < out.index("sblrc-blr") < out.index("sampler")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["compare", "bananna"], "did you mean 'banana'?"),
        (["compare", "banana", "--with", "nutz"], "did you mean 'nuts'?"),
        (["compare", "garch-garch12"], "did you mean 'garch-garch11'?"),
        (["compare", "banana", "digits", "--with", "nuts"], "digits"),
        (["compare", "banana", "--with", "nuts,all"], "expected 'all' alone"),
        (["compare", "banana", "--out", __file__], "is a file; choose another folder"),
        (["compare", "banana", "--out", __file__ + "/results"], "cannot be written; choose another folder"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_sentence_and_status_2(arguments, hint, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert hint in said and said.count("\n") == 1


@pytest.mark.parametrize(("option", "said"), [(["--budget", "huge"], "huge"), (["--seed", "abc"], "abc is no seed; expected")])
def test_usage_errors_have_status_2(option, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "banana", *option])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_ctrl_c_ends_with_status_130_and_the_report_of_what_was_finished(tmp_path, capsys, monkeypatch):
    made = runner.sample

    def interrupted_after_one(key, sampler, *args, **keywords):
        monkeypatch.setattr(runner, "sample", interrupted)
        return made(key, sampler, *args, **keywords)

    def interrupted(key, sampler, *args, **keywords):
        return dataclasses.replace(made(key, sampler, *args, **keywords), ending="interrupted", interrupted=True)

    monkeypatch.setattr(runner, "sample", interrupted_after_one)
    monkeypatch.setattr("gensamp.plot.save_comparison", lambda *args: {})
    command = ["compare", "banana", "--budget", "tiny", "--out", str(tmp_path), "--with"]
    with pytest.warns(UserWarning, match="without rows: mala"):
        assert main([*command, "inverse_transform,mala"]) == 130
    said = capsys.readouterr()
    assert "1 sampler," in said.out and "interrupted; the report holds what was finished" in said.err
    assert "mala was not run to its end" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())[0]["unfinished"] == ["mala"]


def test_ctrl_c_before_anything_was_finished_writes_nothing(tmp_path, capsys, monkeypatch):
    def compare(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("gensamp.evaluate.compare.compare", compare)
    assert main(["compare", "banana", "--with", "mala", "--out", str(tmp_path / "results")]) == 130
    assert "nothing was finished" in capsys.readouterr().err and not any((tmp_path / "results").iterdir())


def test_compare_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["compare", "banana", "--with", "mala,inverse_transform", "--budget", "tiny", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\nmala" in printed and "\ninverse_transform" in printed and "report.md" in printed
    assert max(map(len, printed.splitlines()[:-1])) < 130
    assert {path.name for path in out.iterdir()} == {
        "report.md", "comparison.json", "banana_draws.png", "banana_error_evaluations.png", "banana_error_seconds.png"
    }  # fmt: skip
    rows = json.loads((out / "comparison.json").read_text())[0]["rows"]
    assert [row["name"] for row in rows] == ["mala", "inverse_transform"]


@pytest.mark.skipif("GENSAMP_DATA" not in os.environ, reason="needs files of posteriordb in GENSAMP_DATA")
def test_a_posterior_of_posteriordb_is_compared_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gensamp.plot.save_comparison", lambda *args: {})
    name = "eight_schools-eight_schools_noncentered"
    assert main(["compare", name, "--with", "mala,inverse_transform", "--budget", "tiny", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{name}: 1 sampler," in said and "inverse_transform left out: " in said
    (found,) = json.loads((tmp_path / "comparison.json").read_text())
    assert found["target"] == name and found["rows"][0]["report"]["source"].startswith("reference draws")


def test_a_posterior_without_its_files_is_one_sentence(tmp_path, capsys, monkeypatch):
    def unreachable(*args, **options):
        raise OSError("no network")

    monkeypatch.setenv("GENSAMP_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.retrieve", unreachable)
    assert main(["compare", "ark-ark", "--out", str(tmp_path / "results")]) == 2
    said = capsys.readouterr().err
    assert "arK-arK.json of posteriordb is not at" in said and "set GENSAMP_DATA" in said and said.count("\n") == 1
