"""The table of what branching costs."""

from pathlib import Path

import pytest

from sb3_hybrid_grpo.benchmark import branching_costs
from sb3_hybrid_grpo.branching import costs


def test_the_table_has_a_row_for_each_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SECONDS", 0.01)
    envs = ["CartPole-v1", "tests.toy_envs:Unbranchable-v0", "Missing-v0"]
    assert branching_costs.main(["--output", str(tmp_path / "new"), "--envs", *envs]) == 0
    lines = (tmp_path / "new" / "branching.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [one[0] for one in rows] == ["env", *envs]
    assert all(len(one) == 7 for one in rows)
    assert rows[1][1] == "copies" and float(rows[1][-1]) > 0
    assert rows[2][1] == "refused"
    assert rows[3][1].startswith("not measured")
