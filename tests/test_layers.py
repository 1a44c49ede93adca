"""Imports point downwards only, and Ray and DeepSpeed stay where they belong (docs: CONTRIBUTING.md, layout)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import meltr_ray

ROOT = Path(__file__).parents[1]
ORDER = """
workloads
analysis
meltr_ray.cluster
meltr_ray.video meltr_ray.huggingface tune_spaces
meltr_ray.training
meltr_ray.config
meltr_ray.combining meltr_ray.loggers
meltr_ray.hypergrad meltr_ray.results
meltr_ray.workload
meltr_ray.bounds meltr_ray.storage meltr_ray.extras
meltr_ray.errors
"""
RANK = {unit: -height for height, line in enumerate(ORDER.split("\n")) for unit in line.split()}
FILES = [p for top in ("workloads", "tune_spaces", "analysis", "meltr_ray") for p in sorted((ROOT / top).rglob("*.py"))]


BEHIND_THE_ENGINE = tuple(
    f"meltr_ray/training/{name}.py" for name in ("engine", "zero", "within", "scalar_weights", "deepspeed_imports", "deepspeed_end")
)
"""The files that know DeepSpeed."""


def unit(module: str) -> str | None:
    """The line-up's name for a module of ours; None for others and for the library face, which is above all it shows."""
    return next((u for u in RANK if module == u or module.startswith(u + ".")), None)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    here = unit(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    if here is None:
        return
    for module in imports(path):
        there = unit(module)
        assert there in (None, here) or RANK[there] < RANK[here], f"{path.name} ({here}) imports {module}"


def test_every_file_has_its_place():
    named = [p for p in FILES if p != ROOT / "meltr_ray/__init__.py"]
    assert all(unit(".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")) for p in named)


def test_ray_and_deepspeed_stay_where_they_belong():
    for path in FILES:
        place, tops = str(path.relative_to(ROOT)), {module.split(".")[0] for module in imports(path)}
        assert "deepspeed" not in tops or place in BEHIND_THE_ENGINE, place
        assert "ray" not in tops or place.startswith(("meltr_ray/cluster/", "meltr_ray/video/datasets/extract.py")), place


def test_general_code_never_imports_video():
    """Nor does a command, but for prepare.py, which is video's own, and examples, which are a user's files."""
    for path in FILES:
        place = str(path.relative_to(ROOT))
        if not place.startswith(("meltr_ray/video/", "workloads/prepare.py", "workloads/examples/")):
            assert not [module for module in imports(path) if module.startswith("meltr_ray.video")], place


def test_the_library_face_imports_neither():
    program = "import sys; from meltr_ray import MELTR, hypergradient; print({'ray', 'deepspeed'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "set()"


def test_the_library_face_has_its_names():
    """Which it imports when asked."""
    assert set(meltr_ray.__all__) <= set(dir(meltr_ray)) and all(callable(getattr(meltr_ray, name)) for name in meltr_ray.__all__)
    with pytest.raises(ImportError, match="nothing"):
        from meltr_ray import nothing  # noqa: F401
