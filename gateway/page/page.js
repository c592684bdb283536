// The gateway's page: asks /v1/stack once, /v1/live every two seconds, and draws what changed between two answers.
import { drawChart } from "./chart.js";
import { Graph } from "./graph.js";
import { byId, make, number } from "./dom.js";
import { showAnswer } from "./answer.js";
import { showDrift } from "./drift.js";

const PERIOD = 2000; // ms between two looks
const WINDOW = 30; // seconds that rates and shares are of
const KEPT = 120; // seconds that the charts show at most

let apiKey = sessionStorage.getItem("tristage.key") ?? "";
let stack = null;
let graph = null;
const looks = []; // answers of /v1/live, oldest first

async function ask(path, body) {
  const headers = { Accept: "application/json" };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body });
  const answer = await response.json().catch(() => ({ reason: `HTTP ${response.status}` }));
  byId("key").hidden = response.status !== 401;
  if (!response.ok) throw new Error(answer.reason ?? `HTTP ${response.status}`);
  return answer;
}

// ---------------------------------------------------------------------------------------------------------- status

function say(words, kind) {
  const status = byId("status");
  if (status.textContent !== words) status.textContent = words;
  status.className = `status ${kind}`;
}

// --------------------------------------------------------------------------------------------------------- traffic

function between(before, after) {
  const seconds = Math.max(after.at - before.at, 1e-3);
  const count = (look, wanted) =>
    Object.entries(look.gateway.requests).reduce((sum, [status, n]) => sum + (wanted(Number(status)) ? n : 0), 0);
  const rate = (wanted) => Math.max(0, count(after, wanted) - count(before, wanted)) / seconds;
  const older = new Map(before.gateway.seconds);
  const buckets = after.gateway.seconds.map(([le, n]) => [le, n - (older.get(le) ?? 0)]);
  return {
    at: after.at,
    answered: rate((status) => status === 200),
    refused: rate((status) => [429, 503].includes(status)),
    failed: rate((status) => status >= 500 && status !== 503),
    rows: Math.max(0, after.gateway.rows - before.gateway.rows) / seconds,
    p50: quantile(buckets, 0.5),
    p99: quantile(buckets, 0.99),
  };
}

function quantile(buckets, part) {
  const whole = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (whole <= 0) return null;
  let [low, below] = [0, 0];
  for (const [le, n] of buckets) {
    if (n >= part * whole) return 1000 * (low + ((le - low) * (part * whole - below)) / Math.max(n - below, 1e-9));
    [low, below] = [le, n];
  }
  return 1000 * low;
}

function showTraffic(now, look) {
  const tiles = [
    ["Requests", number(now.answered), "/s"],
    ["Rows", number(now.rows), "/s"],
    ["Latency p50", now.p50 === null ? "–" : number(now.p50), "ms"],
    ["Latency p99", now.p99 === null ? "–" : number(now.p99), "ms"],
    ["In flight", number(look.in_flight), `of ${look.max_in_flight}`],
    ["Refused", number(now.refused), "/s", now.refused > 0],
    ["Failed", number(now.failed), "/s", now.failed > 0],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, unit, bad]) =>
      make("div", { class: bad ? "bad" : "" }, make("dt", {}, name), make("dd", {}, value, " ", make("small", {}, unit))),
    ),
  );
  const points = looks.slice(1).map((after, n) => between(looks[n], after));
  const seconds = Math.max(look.at - looks[0].at, 20);
  drawChart(byId("chart-rate"), "Requests a second", seconds, look.at, [points.map((p) => [p.at, p.answered])]);
  drawChart(byId("chart-latency"), "Latency in milliseconds, median and 99th percentile", seconds, look.at, [
    points.map((p) => [p.at, p.p50]),
    points.map((p) => [p.at, p.p99]),
  ]);
}

// ----------------------------------------------------------------------------------------------------------- steps

function showSteps(before, after) {
  const took = (look, model) => Object.values(look.models[model]?.ns ?? {}).reduce((sum, ns) => sum + ns, 0);
  const known = (look) => Object.keys(look.models).length > 0;
  const names = stack.graph.steps.map((step) => step.model);
  const calls = (from) => names.reduce((sum, name) => sum + grown(from, name, "calls"), 0);
  const grown = (from, name, what) => after.models[name][what] - (from?.models[name]?.[what] ?? 0);
  if (!known(after)) return;
  // a restarted Triton counts from zero again
  const usable = before && known(before) && names.every((name) => grown(before, name, "calls") >= 0) ? before : null;
  const since = usable && calls(usable) > 0 ? usable : null;
  const spent = new Map(names.map((name) => [name, took(after, name) - (since ? took(since, name) : 0)]));
  const whole = Math.max([...spent.values()].reduce((sum, ns) => sum + ns, 0), 1);
  const seconds = since ? after.at - since.at : null;
  byId("window").textContent = since
    ? `Time in Triton, the last ${Math.round(seconds)} s`
    : "Time in Triton since it started; no request has come lately";
  for (const name of names) {
    const n = grown(since, name, "calls");
    graph.update(name, {
      share: spent.get(name) / whole,
      calls: seconds === null ? `${number(n)} calls` : `${number(n / seconds)} calls/s`,
      ms: n > 0 ? `${number(spent.get(name) / n / 1e6)} ms` : "– ms",
      errors: grown(since, name, "errors"),
      version: after.models[name].version,
    });
  }
}

// ---------------------------------------------------------------------------------------------------------- export

function showExport() {
  const list = (pairs) =>
    make("dl", { class: "facts-list" }, ...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const parts = [];
  if (stack.note) parts.push(make("p", { class: "fault" }, stack.note));
  const about = stack.export;
  if (about === null) {
    parts.push(make("p", { class: "quiet" }, "Start the gateway with --repository to see versions and checksums here."));
  } else {
    parts.push(list([["Target", about.target], ["Layout", about.layout], ...Object.entries(about.versions)]));
    if (about.notes.length) parts.push(make("details", {}, make("summary", {}, "Notes"), ...about.notes.map((note) => make("p", {}, note))));
    const files = Object.entries(about.files);
    const rows = files.map(([name, digest]) => make("tr", {}, make("td", {}, make("code", {}, name)), make("td", {}, digest)));
    const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "File"), make("th", { scope: "col" }, "SHA-256")));
    parts.push(make("details", {}, make("summary", {}, `Checksums of ${files.length} files`), make("div", { class: "wide files" }, make("table", {}, head, make("tbody", {}, ...rows)))));
  }
  byId("export").replaceChildren(...parts);
}

// ------------------------------------------------------------------------------------------------------------ form

const example = () => JSON.stringify(stack?.example ?? {}, null, 1).replace(/\[\s+([^\]]*?)\s+\]/g, (_, inner) => `[${inner.replace(/\s*\n\s*/g, " ")}]`);

byId("reset").addEventListener("click", () => {
  byId("row").value = example();
  byId("row-fault").textContent = "";
});

byId("row-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("row-form").querySelector("button.main");
  const fault = byId("row-fault");
  fault.textContent = "";
  button.disabled = true;
  try {
    // the text goes as it stands: a number of 64 bits would not survive JavaScript
    JSON.parse(byId("row").value);
    showAnswer(byId("answer"), await ask("v1/steps", `{"row": ${byId("row").value}}`));
  } catch (error) {
    fault.textContent = error.message;
  } finally {
    button.disabled = false;
  }
});

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = byId("key-value").value;
  sessionStorage.setItem("tristage.key", apiKey);
  look();
});

// ------------------------------------------------------------------------------------------------------------ loop

async function describe() {
  const fresh = await ask("v1/stack");
  if (JSON.stringify(fresh) === JSON.stringify(stack)) return;
  const first = stack === null || byId("row").value === example();
  stack = fresh;
  document.title = `${stack.stack} – tristage`;
  byId("name").textContent = stack.stack;
  byId("about").textContent = [
    `${stack.inputs.length} columns in, ${stack.outputs.length} out`,
    `${stack.graph.steps.length} Triton models`,
    `up to ${stack.max_batch} rows a call`,
  ].join(", ");
  graph = new Graph(byId("graph"), stack);
  if (first) byId("row").value = example();
  showExport();
}

async function look() {
  try {
    const now = await ask("v1/live");
    if (now.away === null && (stack === null || looks.at(-1)?.away !== null || looks.length % 15 === 0)) await describe();
    if (looks.length && now.at <= looks.at(-1).at) looks.length = 0; // the gateway was restarted
    looks.push(now);
    while (now.at - looks[0].at > KEPT) looks.shift();
    const before = looks.find((old) => now.at - old.at <= WINDOW && old !== now) ?? null;
    showTraffic(between(before ?? now, now), now);
    showDrift(byId("drift"), now.drift);
    if (stack !== null && now.away === null) showSteps(before, now);
    if (now.away === null) say("Triton answers", "up");
    else say(now.away, "down");
  } catch (error) {
    say(error instanceof TypeError ? "the gateway does not answer" : error.message, "down");
  }
}

async function loop() {
  if (!document.hidden) await look();
  setTimeout(loop, PERIOD);
}

loop();
