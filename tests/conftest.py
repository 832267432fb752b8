"""What the tests of several modules take in."""

import pytest


@pytest.fixture
def inbox(tmp_path):
    """An empty folder, as a camera's program writes into."""
    path = tmp_path / "inbox"
    path.mkdir()
    return path
