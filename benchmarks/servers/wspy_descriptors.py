"""wspy for descriptors.py: echo with few descriptors: python wspy_descriptors.py PORT LIMIT HOW.

HOW is "known" if the limit was there before the server was, which keeps some of them for whoever else is in the
process, or "sudden" if it comes later, so that the kernel says that there are none left.
"""

from __future__ import annotations

import resource
import sys

import wspy


class EchoServer(wspy.AsyncServer):
    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        client.send(message)


def main(kind: type[wspy.AsyncServer] = EchoServer) -> None:
    """Serve until SIGTERM."""
    limit, how = int(sys.argv[2]), sys.argv[3]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if how == "known":
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    server = kind(("127.0.0.1", int(sys.argv[1])), backlog=4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    server.run()


if __name__ == "__main__":
    main()
