"""No wheel contains the pre-training code."""

from __future__ import annotations

from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MODULES = {path.stem for path in (ROOT / "pretraining").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("project", [ROOT, *sorted(ROOT.glob("plugins/*/"))], ids=lambda path: path.name)
def test_a_wheel_has_one_package_and_no_pretraining_code(project: Path) -> None:
    files = [Path(file.distribution_path) for file in WheelBuilder(str(project)).recurse_included_files()]
    package = "r3core" if project == ROOT else project.name.replace("-", "_")
    assert {file.parts[0] for file in files} == {package}
    modules = {file.stem for file in files if file.suffix == ".py"}
    assert len(modules) > 3
    assert modules.isdisjoint(MODULES - {"trainer"})  # the core's GRPO trainer has that name too
