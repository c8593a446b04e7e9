"""Is the use of a nonce known to all who share the memory, and is no foreign file taken for it?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from wspy.nonces import Nonces

MADE = 1_800_000_000_000


def test_a_count_rises() -> None:
    nonces = Nonces(4)
    assert [nonces.is_used(MADE, 1, count) for count in (1, 1, 3, 2, 3, 4, 0)] == [
        *(False, True, False, True, True, False, True)
    ]


def test_the_newest_nonce_of_a_place_is_known_and_older_ones_count_as_used() -> None:
    nonces = Nonces(4)
    assert not nonces.is_used(MADE, 1, 9)
    assert not nonces.is_used(MADE - 1, 2, 1), "another place"
    assert nonces.is_used(MADE - 1, 5, 10), "the same place"
    assert not nonces.is_used(MADE + 1, 5, 1)
    assert nonces.is_used(MADE, 1, 10)
    assert not nonces.is_used(MADE + 1, 1, 2), "made at the same time: either is refused too often, not too seldom"


@pytest.mark.parametrize(("made", "count"), [(MADE, 1 << 20), (MADE, 0xFFFF_FFFF), (1 << 44, 1)])
def test_what_is_out_of_range_counts_as_used_and_changes_nothing(made: int, count: int) -> None:
    nonces = Nonces(1)
    assert nonces.is_used(made, 0, count)
    assert not nonces.is_used(MADE, 0, 1)
    assert not nonces.is_used((1 << 44) - 1, 0, (1 << 20) - 1)


def test_a_file_is_shared_and_outlives_who_has_made_it(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    assert not Nonces(4, path).is_used(MADE, 3, 1)
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (32, 0o600)
    one, other = Nonces(4, str(path)), Nonces(4, path)
    assert one.is_used(MADE, 3, 1)
    assert not one.is_used(MADE, 3, 2)
    assert other.is_used(MADE, 3, 2)


def test_an_empty_file_becomes_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    path.touch(0o600)
    assert not Nonces(4, path).is_used(MADE, 0, 1)
    assert path.stat().st_size == 32


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606])
def test_k14_a_file_that_others_can_reach(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "nonces"
    path.touch()
    path.chmod(mode)
    with pytest.raises(ValueError, match="mode 600"):
        Nonces(4, path)
    assert path.stat().st_size == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_k14_a_file_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    path.touch(0o600)
    os.chown(path, 65_534, -1)
    with pytest.raises(ValueError, match="this user"):
        Nonces(4, path)


def test_k14_a_file_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    Nonces(4, path)
    for places in (3, 5):
        with pytest.raises(ValueError, match="max_nonces"):
            Nonces(places, path)
    assert path.stat().st_size == 32


def test_k14_what_is_no_file(tmp_path: Path) -> None:
    target, link, fifo = tmp_path / "target", tmp_path / "link", tmp_path / "fifo"
    target.touch(0o600)
    link.symlink_to(target)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        Nonces(4, link)
    assert target.stat().st_size == 0
    os.mkfifo(fifo, 0o600)
    with pytest.raises(ValueError, match="a file"):
        Nonces(4, fifo)
    with pytest.raises(IsADirectoryError):
        Nonces(4, tmp_path)
    with pytest.raises(FileNotFoundError):
        Nonces(4, tmp_path / "nowhere" / "nonces")


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(3):
        Nonces(4 + number, tmp_path / str(number))
        with pytest.raises(ValueError, match="max_nonces"):
            Nonces(9, tmp_path / str(number))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
