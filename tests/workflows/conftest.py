"""One model and its texts for all tests of workflows that do not change them."""

import pytest
from tiny_run import Place, make_place


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The model and its texts; read only."""
    return make_place(tmp_path_factory.mktemp("place"))
