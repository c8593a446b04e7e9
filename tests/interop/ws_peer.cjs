// Connections of the package ws, driven by lines of JSON: an operation comes in, its result goes out.
"use strict";

const readline = require("node:readline");
const WebSocket = require("ws");

const connections = new Map();
let opened = 0;

class Connection {
  constructor(socket) {
    this.socket = socket;
    this.messages = [];
    this.waiting = [];
    this.closed = new Promise((resolve) => {
      socket.on("close", (code, reason) => {
        this.deliver(null);
        resolve([code, reason.toString()]);
      });
    });
    socket.on("message", (data, isBinary) => this.deliver(pack(data, isBinary)));
  }

  deliver(message) {
    if (this.waiting.length) this.waiting.shift()(message);
    else this.messages.push(message);
  }

  receive() {
    // null, the end, stays for whoever asks again
    if (this.messages.length) return this.messages[0] === null ? null : this.messages.shift();
    return new Promise((resolve) => this.waiting.push(resolve));
  }
}

const pack = (data, isBinary) => (isBinary ? { binary: data.toString("base64") } : { text: data.toString() });
const unpack = (message) => ("text" in message ? message.text : Buffer.from(message.binary, "base64"));
const pairs = (list) => (list.length ? [list.slice(0, 2), ...pairs(list.slice(2))] : []);

const operations = {
  open({ url, subprotocols, headers, deflate }) {
    const socket = new WebSocket(url, subprotocols, { headers, perMessageDeflate: deflate });
    const id = ++opened;
    connections.set(id, new Connection(socket));
    return new Promise((resolve, reject) => {
      let response;
      socket.on("upgrade", (incoming) => (response = incoming));
      socket.on("open", () =>
        resolve({ id, subprotocol: socket.protocol, headers: pairs(response.rawHeaders) }),
      );
      socket.on("unexpected-response", (request, incoming) => {
        resolve({ status: incoming.statusCode });
        incoming.resume();
        request.destroy();
      });
      socket.on("error", reject);
    });
  },

  send({ id, message, fin }) {
    const data = unpack(message);
    connections.get(id).socket.send(data, { fin, binary: typeof data !== "string" });
  },

  receive: ({ id }) => connections.get(id).receive(),

  ping({ id, message }) {
    const { socket } = connections.get(id);
    const pong = new Promise((resolve) => socket.once("pong", (data) => resolve(pack(data, true))));
    socket.ping(unpack(message));
    return pong;
  },

  close({ id, code, reason }) {
    connections.get(id).socket.close(code, reason);
    return connections.get(id).closed;
  },

  closed: ({ id }) => connections.get(id).closed,

  free({ id }) {
    connections.get(id).socket.terminate();
    connections.delete(id);
  },
};

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const { operation, ...rest } = JSON.parse(line);
  let answer;
  try {
    answer = { result: (await operations[operation](rest)) ?? null };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});
