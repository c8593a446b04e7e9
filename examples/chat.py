"""Chat in rooms, such as ws://127.0.0.1:PORT/kitchen?name=Anna: python chat.py [PORT]."""

from __future__ import annotations

import sys

import wspy


class ChatServer(wspy.AsyncServer):
    rooms: dict[str, set[wspy.AsyncClient]] = {}  # noqa: RUF012 -- there is one server

    def onopen(self, client: wspy.AsyncClient) -> None:
        name = client.request.query.get("name") if client.request else None
        client.data = str(client.path).partition("?")[0], name or "Somebody"
        self.rooms.setdefault(client.data[0], set()).add(client)
        self.tell(client, "has joined")

    def onmessage(self, client: wspy.AsyncClient, message: wspy.Message) -> None:
        if message.is_text:
            self.tell(client, f"says: {message.text}")
        else:
            client.close(1003, "this is a chat")

    def onclose(self, client: wspy.AsyncClient, code: int, reason: str) -> None:
        self.tell(client, "has left")
        self.rooms[client.data[0]].remove(client)
        if not self.rooms[client.data[0]]:
            del self.rooms[client.data[0]]

    def tell(self, client: wspy.AsyncClient, what: str) -> None:
        room, name = client.data
        self.broadcast(f"{name} {what}", self.rooms[room])


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        server = ChatServer(("127.0.0.1", port))
    except OSError as error:
        sys.exit(f"can't serve: {error}")
    server.call_soon(lambda: print("ws://{}:{}/".format(*server.address), flush=True))
    server.run()
