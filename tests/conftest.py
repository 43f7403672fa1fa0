"""Models of seven architectures, saved once for all rooms. Being here puts `small_models` on the path."""

import pytest

from small_models import CONFIGS, Saved, save


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """Every architecture by name."""
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in CONFIGS}


@pytest.fixture(params=CONFIGS)
def saved(request: pytest.FixtureRequest, saved_models: dict[str, Saved]) -> Saved:
    """Each architecture in turn."""
    return saved_models[request.param]


@pytest.fixture
def llama(saved_models: dict[str, Saved]) -> Saved:
    """The plainest of them."""
    return saved_models["llama"]
