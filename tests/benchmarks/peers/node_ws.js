// node_ws.js SIZE RATE SECONDS: fan-out with the `ws` package as its manual shows it, one send() per client.
// Found through NODE_PATH. Prints its port, and ends by itself after SECONDS.
"use strict";
const { WebSocketServer } = require("ws");

const [size, rate, seconds] = process.argv.slice(2).map(Number);
const payload = size - (size < 128 ? 2 : 4);
const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false, backlog: 1024 });
server.on("listening", () => console.log(server.address().port));
setTimeout(() => process.exit(), seconds * 1000);

let seq = 0;
// The same text as peers/tick.py; the time is built from two clocks because Date has milliseconds only.
const origin = BigInt(Date.now()) * 1000000n - process.hrtime.bigint();
function tick() {
  const ts = origin + process.hrtime.bigint();
  const head = `{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":67123.45,` +
    `"seq":${++seq},"ts":${ts},"pad":"`;
  return Buffer.from(head.padEnd(payload - 4, ".") + '"}]}');
}

const began = performance.now();
let ticks = 0;
function run() {
  const data = tick();
  for (const client of server.clients) client.send(data, { binary: false });
  setTimeout(run, Math.max(0, began + (++ticks * 1000) / rate - performance.now()));
}
run();
