"""Is a socket closed as soon as, and not before, nobody uses it?"""

from __future__ import annotations

import os
import select
import socket

import pytest
from drivers import DEADLINE_S, until
from sockets import Running

from wspy.deadline import Deadline
from wspy.errors import SocketClosed
from wspy.held import HeldSocket


def test_without_users_it_is_closed_at_once_and_without_a_shutdown() -> None:
    one, other = socket.socketpair()
    with other, one.dup() as kept:
        held = HeldSocket(one)
        held.close()
        held.close()
        assert one.fileno() == -1
        kept.send(b"another process still has it")
        with pytest.raises(SocketClosed) as caught, held:
            pass
        assert caught.value.initialized


def test_the_last_user_closes_it() -> None:
    one, other = socket.socketpair()
    with other:
        held = HeldSocket(one)
        with held, held as sock:
            held.close()
            assert sock.fileno() >= 0
            with pytest.raises(SocketClosed):
                held.check()
            with pytest.raises(SocketClosed), held:
                pass
            assert sock.fileno() >= 0
        assert one.fileno() == -1


def test_who_waits_is_woken_and_no_other_file_is_hit() -> None:
    one, other = socket.socketpair()
    held = HeldSocket(one)
    number = one.fileno()

    def wait() -> bytes:
        with held as sock:
            Deadline(DEADLINE_S).wait(sock, select.POLLIN)
            return sock.recv(1)

    waiting = Running(wait)
    until(lambda: held._users, "somebody waits")
    held.close()
    assert waiting.result() == b""
    with other, socket.socket() as reused:
        assert one.fileno() == -1
        assert reused.fileno() == number


def test_another_socket_takes_its_place() -> None:
    one, other = socket.socketpair()
    held = HeldSocket(one)
    held.replace(other)
    assert one.fileno() == -1
    assert held.sock is other
    assert other.gettimeout() == 0
    held.close()
    assert other.fileno() == -1


def test_another_socket_after_the_end_is_closed_too() -> None:
    one, other = socket.socketpair()
    held = HeldSocket(one)
    with held:
        held.close()
        with pytest.raises(SocketClosed):
            held.replace(other)
    assert one.fileno() == other.fileno() == -1


def test_a_forked_child_closes_its_own_descriptor_only() -> None:
    one, other = socket.socketpair()
    with other:
        held = HeldSocket(one)
        with held:
            child = os.fork()
            if child == 0:
                held.close()
                os._exit(one.fileno() + 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            other.send(b"x")
            assert one.recv(1) == b"x"
        held.close()
