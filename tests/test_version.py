"""Is the version the same wherever it is asked for?"""

from __future__ import annotations

from importlib import metadata

from wspy.version import __version__


def test_the_distribution_has_the_version_of_the_package() -> None:
    assert metadata.version("wspy") == __version__
