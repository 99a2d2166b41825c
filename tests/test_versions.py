"""Versions of libraries."""

import pytest

from xlr.errors import UserError
from xlr.versions import LIBRARIES, require_same, version, versions


def test_the_version_of_xlr_ends_with_a_digest_of_its_source() -> None:
    found = version("xlr")
    assert found is not None
    assert len(found.rpartition("+")[2]) == 12
    assert version("no-such-library") is None


def test_a_node_with_another_version_is_refused_by_name() -> None:
    ours = versions(LIBRARIES)
    require_same("n1", dict(ours), ours)
    with pytest.raises(UserError, match=r"n2: version of torch is 2.12.0 there and .* here; use one environment"):
        require_same("n2", ours | {"version of torch": "2.12.0"}, ours)
    with pytest.raises(UserError, match=r"n2: version of transformers is None there"):
        require_same("n2", {"version of torch": ours["version of torch"]}, ours)
