import tempfile

import pytest


@pytest.fixture
def leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Nothing stays in the temporary folder or in the current directory."""
    scratch, here = tmp_path_factory.mktemp("scratch"), tmp_path_factory.mktemp("here")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(here)
    yield
    assert list(scratch.iterdir()) == []
    assert [path.name for path in here.iterdir() if path.suffix != ".py" and path.name != "__pycache__"] == []
