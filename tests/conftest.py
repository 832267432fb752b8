"""What holds for all tests: drawn examples are the same each time, and no clock judges them."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture
def inbox(tmp_path):
    """An empty folder, as a camera's program writes into."""
    path = tmp_path / "inbox"
    path.mkdir()
    return path
