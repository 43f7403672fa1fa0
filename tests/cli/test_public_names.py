"""The Python API: cheap to import, complete, and told to type checkers as it is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quantriage

STUB = ast.parse((Path(quantriage.__file__).parent / "__init__.pyi").read_text(encoding="utf-8"))


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, quantriage; quantriage.RecoverOptions; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_type_checkers_are_told_the_same_places() -> None:
    told = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in STUB.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == quantriage._PLACES  # the table itself is what the stub repeats
    (listed,) = (n.value for n in STUB.body if isinstance(n, ast.Assign))
    assert sorted(ast.literal_eval(listed)) == sorted(quantriage.__all__)


@pytest.mark.parametrize("name", quantriage.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(quantriage, name) is not None
    assert name in dir(quantriage)


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"it has .*recover"):
        quantriage.recovver  # noqa: B018
