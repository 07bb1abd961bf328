import pytest


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    """One cache folder for the whole session, away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLA_TUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield
