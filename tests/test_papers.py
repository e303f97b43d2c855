"""Papers: every row that is printed passes, and the contract of the command holds."""

import json
import sys

import pytest

from hardware import SpecError
from opgraph import cli
from validation.papers import PAPERS, Row, reproduce


@pytest.mark.parametrize("paper", PAPERS)
def test_every_row_passes(paper):
    rows = reproduce(paper)
    assert len(rows) >= 4
    assert not [row for row in rows if not row.passes]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_command_prints_the_rows(paper, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["opgraph", "reproduce", paper, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row.keys() >= {"case", "published", "ours", "difference", "passes"} for row in rows)


def test_a_row_says_how_far_it_is_off():
    row = Row("half as much again", published=2.0, ours=3.0, tolerance=0.4)
    assert (row.difference, row.passes) == (0.5, False)
    assert Row("as far as allowed", 2.0, 2.8, 0.4 + 1e-12).passes


def test_an_unknown_paper_is_refused():
    with pytest.raises(SpecError, match="did you mean 'fpga'"):
        reproduce("fpgas")
