"""The command line: names, statuses, and a comparison from end to end."""

import json

import pytest

from gensamp.cli import main


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("gmm40", "eight_schools", "digits", "nuts", "ddpm", "score_langevin"))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["compare", "bananna"], "did you mean 'banana'?"),
        (["compare", "banana", "--with", "nutz"], "did you mean 'nuts'?"),
        (["compare", "banana", "digits", "--with", "nuts"], "digits"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_sentence_and_status_2(arguments, hint, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert hint in said and said.count("\n") == 1


def test_usage_errors_have_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "banana", "--budget", "huge"])
    assert ended.value.code == 2
    capsys.readouterr()


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
