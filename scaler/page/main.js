// The page: asks the server, remembers the last minutes, shows, and listens to keys.

import { Chart } from "./chart.js";
import { addDecisions, showDecisions } from "./decisions.js";
import { byId, element, keep, say, set } from "./dom.js";
import { Functions } from "./functions.js";
import { showGpus, table } from "./gpus.js";
import { History } from "./history.js";
import { Source } from "./source.js";
import { STATES, clock, count, gib, isKnown, keyOf, latency, percent, short, span, stateOf } from "./words.js";

const history = new History();
const functions = new Functions(choose);
const charts = [];
const page = { overview: null, before: null, selected: decodeURIComponent(location.hash.slice(1)) || null, lostUntil: null };

function seen(overview, decisions) {
  const now = Date.now();
  overview.seen = now;
  [page.before, page.overview] = [overview.isNew ? null : page.overview, overview];
  history.add(overview, now);
  addDecisions(decisions, now - overview.uptime_s * 1000, overview.isNew);
  page.lostUntil = null;
  show();
}

function lost(why, next) {
  page.lostUntil = next;
  say(byId("lost-why"), why);
  if (page.overview) say(byId("lost-since"), clock(page.overview.seen));
  else say(byId("lost-since"), "never");
  connection();
}

const source = new Source(seen, lost);

function show() {
  connection();
  const { overview, selected } = page;
  if (!overview) return;
  const policy = overview.policy ? `policy ${overview.policy}` : "";
  say(byId("server"), [overview.server, policy, `up ${span(overview.uptime_s)}`].filter(Boolean).join(" · "));
  glance(overview);
  showGpus(overview, used, selected, choose);
  functions.show(overview, history, selected);
  detail(overview);
}

/** Part of the time that a replica used since the overview before, percent; null if nobody measures it. */
function used(f, replica) {
  const before = page.before?.functions.find((one) => keyOf(one) === keyOf(f))?.replicas.find((one) => one.instance === replica.instance);
  const passed = page.overview.uptime_s - page.before?.uptime_s;
  if (!before || !isKnown(replica.used_seconds) || !isKnown(replica.sm_percent) || !(passed > 0)) return null;
  return Math.min(100, Math.max(0, (100 * (replica.used_seconds - before.used_seconds)) / passed));
}

function glance({ gpus, functions }) {
  const sum = (of) => functions.reduce((all, f) => all + (of(f) ?? 0), 0);
  const states = Object.keys(STATES).map((state) => [STATES[state][1], functions.filter((f) => stateOf(f) === state).length]);
  const replicas = functions.flatMap((f) => f.replicas);
  const are = (state) => replicas.filter((replica) => replica.state === state).length;
  const seen = functions.map((f) => (f.slo ? history.late(keyOf(f)) : null)).filter(Boolean);
  const [requests, late] = [seen.reduce((all, one) => all + one.requests, 0), seen.reduce((all, one) => all + one.late, 0)];
  const tiles = [
    ["GPUs reserved", `${short(gpus.reduce((all, gpu) => all + gpu.reserved_ratio, 0))} of ${gpus.length}`, `${gib(gpus.reduce((all, gpu) => all + gpu.memory_bound_bytes, 0))} of memory bound`],
    ["Functions", short(functions.length), states.filter(([, number]) => number).map(([word, number]) => `${number} ${word}`).join(", ")],
    ["Replicas ready", `${are("ready")} of ${sum((f) => f.replicas_wanted)}`, ["parked", "starting", "draining"].filter(are).map((state) => `${are(state)} ${state}`).join(", ")],
    ["Requests a second", short(sum((f) => f.rate_rps)), `${short(sum((f) => f.in_flight))} at replicas, ${short(sum((f) => f.held))} held`],
  ];
  if (seen.length) tiles.push(["Late, last minutes", percent(requests ? (100 * late) / requests : null), requests ? `${short(late)} of ${count(requests, "request", "requests")}` : "no request with an objective"]);
  keep(
    byId("glance"),
    tiles,
    ([title]) => title,
    ([title]) => element("div", {}, element("dt", {}, title), element("dd", { class: "value" }), element("dd", { class: "soft" })),
    (node, [, value, text]) => {
      say(node.children[1], value);
      say(node.children[2], text);
    },
  );
}

const ALL = [new Chart("Load", "/s"), new Chart("Nearest to its objective", " %"), new Chart("GPUs reserved", "")];
const ONE = [new Chart("Load", "/s"), new Chart("Latency", " ms"), new Chart("Quota", " %")];

function detail(overview) {
  const f = overview.functions.find((one) => keyOf(one) === page.selected);
  const shown = f ? ONE : ALL;
  if (charts[0] !== shown[0]) {
    charts.splice(0, charts.length, ...shown);
    byId("charts").replaceChildren(...shown.map((chart) => chart.node));
  }
  say(byId("detail-title"), f ? f.name : page.selected ? `${page.selected} is not there` : "All functions");
  byId("deselect").hidden = !page.selected;
  const now = overview.seen;
  if (f) {
    const points = history.of(keyOf(f));
    const share = f.replicas.find((replica) => isKnown(replica.sm_percent));
    const quantile = f.slo?.split("<")[0] ?? "p95";
    const lines = [{ of: "p50", name: "p50", class: "second" }, { of: f.slo ? "objective" : "p95", name: quantile, class: "first" }];
    ONE[0].show(points, [{ of: "forecast", name: "forecast", class: "second" }, { of: "rate", name: "requests", class: "first" }], null, now);
    ONE[1].show(points, lines, isKnown(f.slo_bound_ms) ? { value: f.slo_bound_ms, name: "objective" } : null, now);
    ONE[2].show(points, [{ of: "grant", name: "granted", class: "first" }], share ? { value: share.floor_percent, name: "floor" } : null, now);
  } else {
    const points = history.all;
    ALL[0].show(points, [{ of: "rate", name: "requests", class: "first" }], null, now);
    ALL[1].show(points, [{ of: "worst", name: "latency, % of the objective", class: "first" }], points.some((point) => isKnown(point.worst)) ? { value: 100, name: "bound" } : null, now);
    ALL[2].show(points, [{ of: "reserved", name: "reserved", class: "first" }], null, now);
  }
  describe(f);
  byId("replicas").hidden = !f?.replicas.length;
  if (f?.replicas.length) {
    const slices = f.replicas.map((replica) => ({ f, replica, key: keyOf(f), used: used(f, replica) }));
    table(byId("replicas"), slices, ["Replica", "State", "SM", "Grant", "Used", "Memory"]);
  }
  showDecisions(f);
}

function describe(f) {
  if (!f) return say(byId("detail-text"), "The last minutes, as far as this page was open. A function's name shows its own.");
  const late = history.late(keyOf(f));
  const parts = [
    f.problem ? `! ${f.problem}` : STATES[stateOf(f)][2],
    f.slo ? `objective ${f.slo.replace("<", " < ").replace("ms", " ms")}` : "no objective",
    isKnown(f.p99_ms) ? `p99 ${latency(f.p99_ms)}` : "",
    f.slo && late?.requests ? `${short(late.late)} of ${count(late.requests, "request", "requests")} late in the last minutes` : "",
    isKnown(f.replicas_needed) ? `needs ${short(f.replicas_needed)} replicas` : "",
    isKnown(f.cold_starts) ? `${count(f.cold_starts, "cold start", "cold starts")}, ${f.vertical_changes} vertical and ${f.horizontal_changes} horizontal changes so far` : "",
  ];
  const text = parts.filter(Boolean).join("; ");
  say(byId("detail-text"), `${text[0].toUpperCase()}${text.slice(1)}.`);
}

/** Selects a function, or none if it was. */
function choose(key) {
  page.selected = page.selected === key ? null : key;
  window.history.replaceState(null, "", page.selected ? `#${encodeURIComponent(page.selected)}` : location.pathname);
  show();
}

function connection() {
  const isLost = page.lostUntil !== null;
  byId("lost").hidden = !isLost;
  set(document.body, "class", isLost ? "lost" : null);
  const words = isLost ? ["lost", "▲ No connection"] : source?.isPaused ? ["paused", "‖ Paused"] : page.overview ? ["live", "● Live"] : ["wait", "Connecting …"];
  set(byId("link"), "class", `link ${words[0]}`);
  say(byId("link"), words[1]);
}

// Seconds until it is tried again: seen, not read aloud.
setInterval(() => {
  if (page.lostUntil === null) return;
  const left = Math.ceil((page.lostUntil - Date.now()) / 1000);
  say(byId("lost-next"), left > 0 ? `Trying again in ${left} s.` : "Trying …");
}, 250);

function pause() {
  source.pause(!source.isPaused);
  set(byId("pause"), "aria-pressed", String(source.isPaused));
  say(byId("pause"), source.isPaused ? "Go on" : "Pause");
  connection();
}

byId("retry").addEventListener("click", () => source.now());
byId("pause").addEventListener("click", pause);
byId("deselect").addEventListener("click", () => {
  choose(page.selected);
  byId("functions").focus();
});
byId("keys-open").addEventListener("click", () => byId("keys").showModal());
byId("keys-close").addEventListener("click", () => byId("keys").close());

const KEYS_ON = "gpufn single keys";
byId("keys-on").checked = localStorage.getItem(KEYS_ON) !== "off";
byId("keys-on").addEventListener("change", () => localStorage.setItem(KEYS_ON, byId("keys-on").checked ? "on" : "off"));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || byId("keys").open) return;
  const isTyping = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && !isTyping && page.selected) choose(page.selected);
  if (isTyping || !byId("keys-on").checked) return;
  const act = { "/": () => byId("search").focus(), p: pause, "?": () => byId("keys").showModal() }[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});
