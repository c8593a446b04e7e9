"""Proxies that nobody here wrote, which ask who somebody is before they let them through: nginx and Apache."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

if TYPE_CHECKING:
    from typing import Self

USERNAME, PASSWORD, REALM = "user", 'pass, "word"', "a realm, with commas"


def free_port() -> int:
    """Return a port that was free a moment ago: these programs can't say which one they have found."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


class Proxy:
    """A proxy while the ``with`` block lasts.

    Args:
        backend: the port that it leads to.
        seconds: what its start may take.
    """

    program: ClassVar[str]
    modules: ClassVar[Path | None] = None

    def __init__(self, backend: int, seconds: float) -> None:
        found = shutil.which(self.program) or shutil.which(f"/usr/sbin/{self.program}")
        if found is None or (self.modules is not None and not self.modules.is_dir()):
            pytest.skip(f"{self.program} isn't installed")
        self._found = found
        self._backend = backend
        self._seconds = seconds
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self, folder: Path) -> list[str]:
        """Write what it needs, and return the command that starts it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.chmod(0o755)  # it may change to another user, who reads passwords there
            process = subprocess.Popen([self._found, *self.command(folder)], stderr=subprocess.PIPE)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            self._await_start(process)
            self._stack = stack.pop_all()
        return self

    def _await_start(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + self._seconds
        pause = threading.Event()
        while True:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < end, "it doesn't start"
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            pause.wait(0.005)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Nginx(Proxy):
    """nginx, which asks by Basic."""

    program = "nginx"

    def command(self, folder: Path) -> list[str]:
        (folder / "passwords").write_text(f"{USERNAME}:{{PLAIN}}{PASSWORD}\n", encoding="utf-8")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        (folder / "conf").write_text(
            f"""
            daemon off; master_process off; pid {folder}/pid; error_log stderr;
            events {{}}
            http {{
                access_log off; {temporary}
                server {{
                    listen {self.address};
                    auth_basic "{REALM}"; auth_basic_user_file {folder}/passwords;
                    location / {{
                        proxy_pass http://127.0.0.1:{self._backend};
                        proxy_http_version 1.1;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection upgrade;
                    }}
                }}
            }}
            """,
            encoding="utf-8",
        )
        return ["-c", str(folder / "conf"), "-e", "stderr"]


class Apache(Proxy):
    """Apache, which asks by Digest, with MD5: it knows no other algorithm."""

    program = "apache2"
    modules = Path("/usr/lib/apache2/modules")

    def command(self, folder: Path) -> list[str]:
        key = hashlib.md5(f"{USERNAME}:{REALM}:{PASSWORD}".encode(), usedforsecurity=False).hexdigest()
        (folder / "passwords").write_text(f"{USERNAME}:{REALM}:{key}\n", encoding="utf-8")
        names = "mpm_event authn_core authn_file auth_digest authz_core authz_user proxy proxy_http proxy_wstunnel"
        loads = "\n".join(f"LoadModule {name}_module {self.modules}/mod_{name}.so" for name in names.split())
        (folder / "conf").write_text(
            f"""
            {loads}
            ServerRoot {folder}
            ServerName 127.0.0.1
            DefaultRuntimeDir {folder}
            PidFile {folder}/pid
            ErrorLog /dev/stderr
            Listen {self.address}
            User nobody
            Group nogroup
            <Location "/">
                AuthType Digest
                AuthName "{REALM}"
                AuthDigestProvider file
                AuthUserFile {folder}/passwords
                Require valid-user
            </Location>
            ProxyPass "/" "ws://127.0.0.1:{self._backend}/"
            """,
            encoding="utf-8",
        )
        return ["-X", "-f", str(folder / "conf")]
