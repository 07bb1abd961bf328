"""The canary that a stranger's code would touch."""

import pytest


@pytest.fixture
def canary(tmp_path, monkeypatch):
    file = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(file))
    yield file
    assert not file.exists()
