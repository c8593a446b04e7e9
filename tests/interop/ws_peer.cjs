// Connections and servers of the package ws, driven by lines of JSON: an operation comes in, its result goes out.
"use strict";

const https = require("node:https");
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

// What a server does is in the path; tests/foreign.py says what the paths mean.
const PIECES = 3;

const answers = {
  "/fragments": (socket, data, binary) => {
    const size = Math.floor(data.length / PIECES) + 1;
    for (let start = 0; start === 0 || start < data.length; start += size)
      socket.send(data.subarray(start, start + size), { binary, fin: start + size >= data.length });
  },

  "/ping": (socket, data, binary) => {
    socket.once("pong", (payload) => socket.send(payload, { binary }));
    socket.ping(data);
  },

  "/close": (socket, data, binary, query) => {
    if (query.has("code")) socket.close(Number(query.get("code")), query.get("reason") ?? "");
    else socket.close();
  },

  "/flood": (socket, data, binary, query) => {
    socket.seen = (socket.seen ?? 0) + 1;
    socket.received = (socket.received ?? 0) + data.length;
    if (socket.seen === Number(query.get("count"))) socket.send(String(socket.received));
  },
};

const greetings = {
  "/request": (socket, query, { url, headers }) => socket.send(JSON.stringify({ path: url, headers })),

  "/flood": (socket, query) => {
    for (let count = Number(query.get("count")); count > 0; count--) socket.send(Buffer.alloc(Number(query.get("size"))));
  },
};

const servers = new Map();

class Listener {
  constructor(subprotocols, deflate, tls) {
    this.ends = [];
    this.waiting = [];
    const handleProtocols = (offered) => subprotocols.find((name) => offered.has(name)) ?? false;
    const options = { handleProtocols, maxPayload: 0, perMessageDeflate: deflate };
    // tls: what node:https takes, or nothing
    this.web = tls && https.createServer(tls).listen(0, "127.0.0.1");
    const where = this.web ? { server: this.web } : { host: "127.0.0.1", port: 0 };
    this.server = new WebSocket.Server({ ...where, ...options });
    this.server.on("connection", (socket, request) => this.serve(socket, request));
  }

  serve(socket, request) {
    const { pathname, searchParams } = new URL(request.url, "http://here");
    const answer = answers[pathname] ?? ((to, data, binary) => to.send(data, { binary }));
    socket.on("message", (data, binary) => answer(socket, data, binary, searchParams));
    socket.on("error", () => {});
    socket.on("close", (code, reason) => {
      const end = [code, reason.toString()];
      if (this.waiting.length) this.waiting.shift()(end);
      else this.ends.push(end);
    });
    greetings[pathname]?.(socket, searchParams, request);
  }

  ended() {
    if (this.ends.length) return this.ends.shift();
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  stop() {
    for (const socket of this.server.clients) socket.terminate();
    return new Promise((resolve) => {
      const end = () => resolve(null);
      this.server.close(() => (this.web ? this.web.close(end) : end()));
    });
  }
}

const operations = {
  listen({ subprotocols, deflate, tls }) {
    const listener = new Listener(subprotocols, deflate, tls);
    return new Promise((resolve) => {
      listener.server.on("listening", () => {
        const { port } = listener.server.address();
        servers.set(port, listener);
        resolve(port);
      });
    });
  },

  ended: ({ port }) => servers.get(port).ended(),

  stop: ({ port }) => servers.get(port).stop(),

  open({ url, subprotocols, headers, deflate, tls }) {
    const socket = new WebSocket(url, subprotocols, { headers, perMessageDeflate: deflate, ...tls });
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
