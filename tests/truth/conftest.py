"""The nights of the measures, each worked through once for all tests that ask for it."""

import pytest

from tests.truth import measures
from tests.truth.nights import plan_for, worked

CASES = [("mono", 1), ("mono", 2), ("mono", 3), ("RGGB", 1), ("RGGB", 2)]


@pytest.fixture(scope="session", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path_factory):
    """(night, its truth, the exact stack) of a monochrome or colour camera."""
    kind, seed = request.param
    plan = plan_for(seed, bayer=None if kind == "mono" else kind)
    with worked(plan, tmp_path_factory.mktemp(f"{kind}-{seed}")) as night:
        yield night, measures.expected_stack(night), night.final()
