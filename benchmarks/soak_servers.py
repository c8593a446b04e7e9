"""How does soak.py start servers, ask them how they are, stop them, and see whether anything is left?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from soak_frames import Fault
from soak_wire import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from soak_wire import Target

State = dict[str, Any]

POLL_SECONDS = 0.05

ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""With an arena of malloc for each thread, what these keep of many threads would hide what is lost."""


@dataclass(frozen=True)
class Recipe:
    """How one server is started, again and again."""

    script: Path
    target: Target
    name: str
    front_end: str
    pem: Path | None
    deadline: float

    def command(self, name: str) -> list[str]:
        """Return the command of a process of that name."""
        words = [sys.executable, "-W", "default", str(self.script), f"--port={self.target.port}", f"--name={name}"]
        words += [f"--front-end={self.front_end}", f"--deadline={self.deadline}"]
        return [*words, f"--pem={self.pem}"] if self.pem else words


@dataclass
class Server:
    """A process that serves, and what it has told."""

    recipe: Recipe
    name: str
    generation: int
    process: asyncio.subprocess.Process
    log: IO[bytes]
    start: State = field(default_factory=dict)
    idle: list[State] = field(default_factory=list)
    """What it told whenever nobody was connected."""
    trimmed: list[int] = field(default_factory=list)
    """Its resident memory, in bytes, like this and with all given back: after its first whole round, and last."""
    end: State = field(default_factory=dict)

    @classmethod
    async def launch(cls, recipe: Recipe, generation: int) -> Server:
        """Start a process, and return once it listens."""
        name = f"{recipe.name}#{generation}"
        log = tempfile.TemporaryFile()  # noqa: SIM115 -- it is closed with the process
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *recipe.command(name), stdin=pipe, stdout=pipe, stderr=log, env={**ONE_ARENA, **os.environ}
        )
        server = cls(recipe, name, generation, process, log)
        server.start = await server._line()
        return server

    async def _line(self) -> State:
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self.process.stdout.readline()
            state: State = json.loads(line)
        except (TimeoutError, ValueError) as error:
            raise Fault(f"server {self.name} has not answered: {error!r}\n{self.said()}") from None
        return state

    async def ask(self, line: bytes = b"\n") -> State:
        """Return what the process has now."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # _line tells of it
            self.process.stdin.write(line)
            await self.process.stdin.drain()
        return await self._line()

    def said(self) -> str:
        """Return what it has written to stderr: warnings and errors, of which there should be none."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()

    async def idles(self, *, last: bool) -> None:
        """Wait until all connections are gone, and note what the process has; raise Fault if anything of them stays."""
        end = time.monotonic() + self.recipe.deadline + PATIENCE
        state = await self.ask()
        while not is_idle(state):
            if time.monotonic() > end:
                raise Fault(f"server {self.name} is not idle after all clients have gone: {state}")
            await asyncio.sleep(POLL_SECONDS)
            state = await self.ask()
        self.idle.append(state)
        if state["descriptors"] != self.start["descriptors"]:
            was = self.start["descriptors"]
            raise Fault(f"server {self.name} has {state['descriptors']} descriptors open, and {was} at its start")
        is_warm = len(self.idle) > (self.generation > 0)  # of a restarted one the first round was only a part
        if is_warm and (last or not self.trimmed):
            self.trimmed.append((await self.ask(b"trim\n"))["rss"])

    async def stop(self) -> None:
        """Stop it in order, by SIGTERM; raise Fault if that, or anything that it has written before, is amiss."""
        self.recipe.target.stopping.add(self.name)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.end = await self._line()
            async with asyncio.timeout(PATIENCE):
                status = await self.process.wait()
            if status != 0:
                raise Fault(f"server {self.name} ended with status {status}")
            calls = self.end["calls"]
            if calls.get("onopen", 0) != calls.get("onclose", 0):
                raise Fault(f"server {self.name} ended with {calls}")
            if said := self.said():
                raise Fault(f"server {self.name} said: {said}")
        except TimeoutError:
            raise Fault(f"server {self.name} did not end within {PATIENCE:.0f} s") from None
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End it in whatever way."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self.log.close()


def is_idle(state: State) -> bool:
    """Whether nothing is left of any connection but counts, and these are even."""
    calls, stats = state["calls"], state["stats"]
    opened, closed = calls.get("onopen", 0), calls.get("onclose", 0)
    left = any(stats[name] for name in ("clients", "connections", "handshakes", "backlog"))
    return opened == closed == stats["opened"] and stats["accepted"] == stats["closed"] and not left


class Fleet:
    """All servers: two processes on each port. One of the two is stopped now and then, and another one started."""

    def __init__(self, recipes: list[Recipe]) -> None:
        self._recipes = recipes
        self.servers: dict[str, Server] = {}
        self.ended: list[Server] = []

    async def start(self) -> None:
        """Start all of them."""
        for recipe in self._recipes:
            self.servers[recipe.name] = await Server.launch(recipe, 0)

    async def restart(self, name: str) -> None:
        """Stop one in order, and start another one in its place."""
        server = self.servers[name]
        target = server.recipe.target
        target.restarts += 1
        try:
            await server.stop()
        finally:
            target.restarts += 1
        self.ended.append(server)
        self.servers[name] = await Server.launch(server.recipe, server.generation + 1)

    async def stop(self) -> None:
        """Stop all of them in order."""
        for server in self.servers.values():
            await server.stop()
            self.ended.append(server)

    async def kill(self) -> None:
        """End those that are left in whatever way."""
        for server in self.servers.values():
            if server not in self.ended:
                await server.kill()


def reserve(stack: contextlib.ExitStack) -> int:
    """Return a free port, which stays ours: a socket that is bound and does not listen gets no connections."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    return port
