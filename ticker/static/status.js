"use strict";

/* The status page: tickers over the WebSocket, figures from /healthz and /api/stats.
   Everything that comes from the server is shown with textContent, never as markup. */

const MAX_ROWS = 100;        // of the table; a page with thousands of rows is of no use and costs the server
const DRAW_MS = 200;         // the table shows the newest state this often, however many messages come
const MAX_QTY_DECIMALS = 4;  // the columns are as wide as quantities with four; the wire has all of them
const FIGURES_MS = 2000;
const SILENCE_MS = 10000;    // with a subscription the server sends a heartbeat every second
const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 10000;
const REWOUND_MS = 5000;     // market time that goes back by more was set back, by a tape that loops

const $ = (id) => document.getElementById(id);
const secure = location.protocol === "https:";
const url = `${secure ? "wss:" : "ws:"}//${location.host}/v2`;

const board = { rows: new Map(), dirty: new Set(), marketTime: "" };
let socket = null;
let symbols = [];            // of the table's rows, once the server has listed them
let subscribed = false;
let mayStart = false;        // opening this page does not start a recording; the button, or another client, does
let health = null;
let heardAt = 0;
let delay = FIRST_DELAY_MS;
let retryAt = 0;

/* The connection */

function connect() {
  show("connecting", "connecting");
  symbols = [];
  subscribed = false;
  health = null;
  socket = new WebSocket(url);
  socket.onopen = opened;
  socket.onmessage = (event) => { heardAt = performance.now(); receive(JSON.parse(event.data)); };
  socket.onclose = (event) => lost(event.code);
}

function opened() {
  heardAt = performance.now();
  show("connected", "connected");
  send("subscribe", { channel: "instrument" });
  readHealth().catch(() => {});  // the next round of figures tries again
}

function lost(code) {
  mayStart = false;
  $("rows").classList.add("stale");
  if (code >= 4500 && code < 5000) {  // the server says that coming back is of no use
    show("ended", `closed by the server (${code})`);
    return;
  }
  // "Decorrelated jitter": pages that lost the server together do not come back together.
  delay = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS + Math.random() * (3 * delay - FIRST_DELAY_MS));
  retryAt = performance.now() + delay;
  setTimeout(connect, delay);
  countDown();
}

function countDown() {
  const left = retryAt - performance.now();
  if (left <= 0) return;
  show("waiting", `connection lost, next try in ${Math.ceil(left / 1000)} s`);
  setTimeout(countDown, 500);
}

function show(state, text) {
  $("link").dataset.state = state;
  $("link-text").textContent = text;
}

function send(method, params) {
  socket.send(JSON.stringify({ method, params }));
}

function subscribe() {
  const waits = health !== null && health.mode === "replay" && health.feed === "waiting" && !mayStart;
  $("waiting").hidden = !waits;
  if (waits || health === null || subscribed || !symbols.length || socket.readyState !== WebSocket.OPEN) return;
  subscribed = true;
  // Both triggers: a recording of trades alone never has a quote, one of quotes alone never a trade.
  for (const event_trigger of ["bbo", "trades"]) {
    send("subscribe", { channel: "ticker", symbol: symbols, event_trigger });
  }
}

function receive(message) {
  if (message.channel === "instrument") listPairs(distinct(message.data.pairs));
  else if (message.channel === "ticker") message.data.forEach((row) => take(row, message.type));
  else if (message.channel === "status") $("version").textContent = `ticker ${message.data[0].version}`;
}

/* The table */

function distinct(pairs) {
  // A recorded BTCUSDT is offered as BTC/USDT too; both would have the same rows.
  const spelled = new Set();
  for (const { symbol, base, quote } of pairs) {
    const others = [`${base}${quote}`, `${base}-${quote}`, `${base}_${quote}`];
    if (base && quote && others.includes(symbol)) spelled.add(`${base}/${quote}`);
  }
  return pairs.filter((pair) => !spelled.has(pair.symbol));
}

function listPairs(pairs) {
  const shown = pairs.slice(0, MAX_ROWS);
  board.rows.clear();
  $("rows").replaceChildren(...shown.map(addRow));
  $("rows").classList.remove("stale");
  $("more").hidden = shown.length === pairs.length;
  $("more").textContent = `and ${pairs.length - shown.length} more`;
  writeSnippet(shown.length ? shown[0].symbol : "BTC/USD");
  symbols = shown.map((pair) => pair.symbol);
  subscribe();
}

const CELLS = [
  ["symbol", "name"], ["bid_qty", "side third"], ["bid", ""], ["ask", ""], ["ask_qty", "side third"], ["last", ""],
  ["change_pct", ""], ["volume", "second"],
];

function addRow(pair) {
  const line = document.createElement("tr");
  const cells = {};
  for (const [key, kind] of CELLS) {
    const cell = document.createElement("td");
    cell.className = kind;
    cell.textContent = key === "symbol" ? pair.symbol : "–";
    cells[key] = cell;
    line.append(cell);
  }
  board.rows.set(pair.symbol, { pair, cells, values: {}, direction: 0 });
  return line;
}

function take(values, type) {
  const row = board.rows.get(values.symbol);
  if (row === undefined) return;
  const before = row.values.last;
  if (before != null && values.last != null && values.last !== before) row.direction = values.last > before ? 1 : -1;
  row.values = values;
  board.dirty.add(row);
  delay = FIRST_DELAY_MS;  // data came, so the connection is a good one
  const back = Date.parse(board.marketTime) - Date.parse(values.timestamp);
  if (values.timestamp > board.marketTime || (type === "update" && back > REWOUND_MS)) {
    board.marketTime = values.timestamp;
  }
}

function draw() {
  for (const row of board.dirty) drawRow(row);
  board.dirty.clear();
  if (board.marketTime) showTime(board.marketTime);
  if (subscribed && socket.readyState === WebSocket.OPEN && performance.now() - heardAt > SILENCE_MS) {
    socket.close();
  }
}

function drawRow({ pair, cells, values, direction }) {
  const price = pair.price_precision;
  const qty = Math.min(pair.qty_precision, MAX_QTY_DECIMALS);
  cells.bid.textContent = fixed(values.bid, price);
  cells.ask.textContent = fixed(values.ask, price);
  cells.bid_qty.textContent = fixed(values.bid_qty, qty);
  cells.ask_qty.textContent = fixed(values.ask_qty, qty);
  cells.last.textContent = fixed(values.last, price);
  cells.last.className = direction > 0 ? "up" : direction < 0 ? "down" : "";
  cells.change_pct.textContent = percent(values.change_pct);
  cells.change_pct.className = values.change_pct > 0 ? "up" : values.change_pct < 0 ? "down" : "";
  cells.volume.textContent = fixed(values.volume, qty);
}

function fixed(value, decimals) {
  return value == null ? "–" : value.toFixed(decimals);
}

function percent(value) {
  return value == null ? "–" : `${value > 0 ? "+" : ""}${value.toFixed(2)}`;
}

function showTime(rfc3339) {
  $("market-date").textContent = rfc3339.slice(0, 10);
  $("market-time").textContent = rfc3339.slice(11, 19);
}

/* The figures */

const counted = { events: null, at: 0 };

async function figures() {
  try {
    const [stats] = await Promise.all([page("/api/stats", "json"), readHealth()]);
    showStats(stats);
    await readTape();
  } catch {
    for (const id of ["feed", "events", "sessions", "subscriptions", "lateness"]) $(id).textContent = "–";
    counted.events = null;
  }
  setTimeout(figures, FIGURES_MS);
}

async function page(path, kind) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(SILENCE_MS) });
  return response[kind]();
}

async function readHealth() {
  const details = await page("/healthz", "json");
  health = details;
  document.title = `ticker: ${details.market}`;
  $("market").textContent = details.market;
  $("mode").textContent = details.mode;
  $("mode").hidden = false;
  $("feed").textContent = details.feed_restarts ? `${details.feed}, ${details.feed_restarts} restarts` : details.feed;
  $("subscriptions").textContent = details.subscriptions.toLocaleString("en");
  if (!board.marketTime && details.market_time_ns) {
    showTime(new Date(details.market_time_ns / 1e6).toISOString());
  }
  subscribe();
}

function showStats(stats) {
  const now = performance.now();
  const events = stats.events;
  const rate = counted.events === null ? null : (1000 * (events - counted.events)) / (now - counted.at);
  counted.events = events;
  counted.at = now;
  // A server that was started again counts from 0.
  $("events").textContent = rate === null || rate < 0 ? "–" : Math.round(rate).toLocaleString("en");
  $("sessions").textContent = stats.sessions.toLocaleString("en");
  $("lateness").textContent = `${stats.flush_lateness_ms.p99.toFixed(1)} ms`;
}

/* The tape, where the server replays one */

const SPEEDS = [0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 0];  // 0: as fast as possible
const JUMP_MS = 10000;
let tape = null;

async function readTape() {
  if (health === null || health.mode !== "replay") return;
  showTape(await page("/api/replay", "json"));
}

function showTape(state) {
  tape = state;
  $("replay").hidden = state.source === null;
  if (state.source === null) return;
  $("replay-state").textContent = state.state;
  $("replay-toggle").textContent = state.state === "playing" ? "Pause" : "Play";
  $("replay-ts").textContent = `${state.ts.slice(0, 23).replace("T", " ")} UTC`;
  if (document.activeElement !== $("replay-seek")) $("replay-seek").value = state.progress;
  if (document.activeElement !== $("replay-speed")) showSpeed(state.speed);
}

function showSpeed(speed) {
  const speeds = SPEEDS.includes(speed) ? SPEEDS : [speed, ...SPEEDS];
  $("replay-speed").replaceChildren(...speeds.map((value) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = value ? `${value}×` : "max";
    option.selected = value === speed;
    return option;
  }));
}

async function control(body) {
  try {
    const response = await fetch("/api/replay", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    const answer = await response.json();
    $("replay-error").textContent = response.ok ? "" : answer.error;
    if (response.ok) showTape(answer);
  } catch (error) {
    $("replay-error").textContent = String(error);
  }
}

function seek(ms) {
  control({ action: "seek", to: new Date(ms).toISOString() });
}

function seekShare(share) {
  const [from, to] = [Date.parse(tape.from), Date.parse(tape.to)];
  seek(Math.round(from + share * (to - from)));
}

$("replay-toggle").onclick = () => control({ action: tape.state === "playing" ? "pause" : "resume" });
$("replay-back").onclick = () => seek(Date.parse(tape.ts) - JUMP_MS);
$("replay-on").onclick = () => seek(Date.parse(tape.ts) + JUMP_MS);
$("replay-step").onclick = () => control({ action: "step" });
$("replay-seek").onchange = (event) => { seekShare(Number(event.target.value)); event.target.blur(); };
$("replay-speed").onchange = (event) => {
  control({ action: "speed", speed: Number(event.target.value) });
  event.target.blur();
};

/* How to connect */

function writeSnippet(symbol) {
  const request = JSON.stringify({ method: "subscribe", params: { channel: "ticker", symbol: [symbol] } });
  $("snippet").textContent = [
    "from websockets.sync.client import connect",
    `with connect("${url}") as market:`,
    `    market.send('${request}')`,
    "    for message in market: print(message)",
  ].join("\n");
}

async function copy() {
  try {
    await navigator.clipboard.writeText(url);  // exists on https and on localhost only
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("url"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

$("url").textContent = url;
$("copy").onclick = copy;
$("start").onclick = () => { mayStart = true; subscribe(); };
writeSnippet("BTC/USD");
setInterval(draw, DRAW_MS);
figures();
connect();
