// Numbers and states as people read them.

const GIB = 2 ** 30;

/** Three digits that matter. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${trim((value / 1e6).toFixed(1))} M`;
  if (size >= 1e4) return `${Math.round(value / 1e3)} k`;
  return trim(value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2));
}

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

export const percent = (value) => (isKnown(value) ? `${trim(value.toFixed(value > 0 && value < 10 ? 1 : 0))} %` : "–");
export const gib = (bytes) => `${short(bytes / GIB)} GiB`;
export const isKnown = (value) => typeof value === "number" && Number.isFinite(value);

/** A latency, from milliseconds. */
export function latency(ms) {
  if (!isKnown(ms)) return "–";
  return ms >= 10_000 ? `${short(ms / 1000)} s` : `${short(ms)} ms`;
}

/** A span, from seconds. */
export function span(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");

export const count = (number, one, many) => `${number} ${number === 1 ? one : many}`;

/** States of functions, those that need somebody first: a sign, a word, and what it means. */
export const STATES = {
  problem: ["!", "problem", "it has fewer replicas than it should, or its need can't be told"],
  late: ["▲", "late", "its latency is beyond its objective now"],
  starting: ["◐", "starting", "no replica is ready yet"],
  busy: ["●", "busy", "it has requests"],
  idle: ["○", "idle", "it has replicas, and no request"],
  parked: ["‖", "parked", "its replicas have no GPU time, and keep their model on the GPU"],
  empty: ["–", "none", "it has no replica"],
};

/** The state of a function. */
export function stateOf(f) {
  const has = (state) => f.replicas.some((replica) => replica.state === state);
  if (f.problem) return "problem";
  if (isKnown(f.slo_latency_ms) && f.slo_latency_ms > f.slo_bound_ms) return "late";
  if (has("ready")) return f.rate_rps >= 0.05 || f.in_flight >= 1 ? "busy" : "idle";
  if (has("starting") || f.held > 0) return "starting";
  return has("parked") ? "parked" : "empty";
}

/** What tells a function from all others. */
export const keyOf = (f) => `${f.namespace}/${f.name}`;

/** The mean of the replicas' grants, in percent of the time: of those that are not parked, if any is not. */
export function grantOf(f) {
  const known = f.replicas.map((replica) => replica.grant_percent).filter(isKnown);
  const grants = known.some((grant) => grant > 0) ? known.filter((grant) => grant > 0) : known;
  return grants.length ? grants.reduce((sum, grant) => sum + grant, 0) / grants.length : null;
}

/** A replica's name without what it shares with all others of its function. */
export const tail = (f, instance) =>
  instance.startsWith(`${f.name}-`) && instance.length > f.name.length + 1 ? instance.slice(f.name.length + 1) : instance;
