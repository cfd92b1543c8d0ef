"""What a package offers is what its ``__init__`` lists: nothing is defined there, and each name can be imported."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

PACKAGES = (
    "protocol/parity_protocol",
    "blobs/parity_blobs",
    "fl/parity_fl",
    "contracts/python/parity_contracts",
    "client/parity_client",
    "node/parity_node",
    "market/parity_market",
    "cli/parity_cli",
)
ROOT = Path(__file__).resolve().parents[3]
INITS = sorted(init for package in PACKAGES for init in (ROOT / package).rglob("__init__.py"))


def name_of(path: Path) -> str:
    package = next(ROOT / package for package in PACKAGES if path.is_relative_to(ROOT / package))
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def listed(tree: ast.Module) -> list[str] | None:
    """Return what ``__all__`` holds, or None when there is none."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            found: list[str] = ast.literal_eval(node.value)
            return found
    return None


ELSEWHERE = ROOT / "fl/parity_fl/engines/flower/app"  # runs in flwr's environment, where it is another package
MODULES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if not path.is_relative_to(ELSEWHERE) and listed(ast.parse(path.read_text(encoding="utf-8"))) is not None
)


@pytest.mark.parametrize("path", INITS, ids=name_of)
def test_a_package_only_re_exports_and_lists_what(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))

    names = listed(tree)
    imported = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]

    assert ast.get_docstring(tree)
    assert names is not None, "every __init__ sets __all__, empty if it offers nothing"
    assert not defined, "an __init__ re-exports; what it offers is defined in a module"
    assert sorted(name for name in imported if name != "annotations") == sorted(names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_listed_name_is_defined_and_public(path: Path) -> None:
    names = listed(ast.parse(path.read_text(encoding="utf-8"))) or []
    module = importlib.import_module(name_of(path))

    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []
    assert [name for name in names if name.startswith("_")] == []
