// What was seen in the last minutes, kept in this page only: gone when it is loaded anew.

import { grantOf, keyOf } from "./words.js";

/** How long it is kept, ms. */
export const KEPT = 300_000;
/** What lies further apart was not looked at in between. */
export const GAP = 20_000;

export class History {
  #functions = new Map();
  #all = [];

  /** Adds an overview that was seen at `now`, ms. */
  add(overview, now) {
    const seen = new Set();
    for (const f of overview.functions) {
      const key = keyOf(f);
      seen.add(key);
      if (!this.#functions.has(key)) this.#functions.set(key, []);
      push(this.#functions.get(key), now, {
        rate: f.rate_rps,
        forecast: f.forecast_rps,
        p50: f.p50_ms,
        p95: f.p95_ms,
        objective: f.slo_latency_ms,
        grant: grantOf(f),
        replicas: f.replicas.length,
        requests: f.requests_total,
        late: f.late_total,
      });
    }
    for (const key of this.#functions.keys()) if (!seen.has(key)) this.#functions.delete(key);
    const parts = overview.functions.map((f) => (100 * f.slo_latency_ms) / f.slo_bound_ms).filter(Number.isFinite);
    push(this.#all, now, {
      rate: overview.functions.reduce((sum, f) => sum + f.rate_rps, 0),
      worst: parts.length ? Math.max(...parts) : null,
      reserved: overview.gpus.reduce((sum, gpu) => sum + gpu.reserved_ratio, 0),
    });
  }

  of(key) {
    return this.#functions.get(key) ?? [];
  }

  get all() {
    return this.#all;
  }

  /** Requests that came while this page looked, and how many of them were late; null if nobody counts them. */
  late(key) {
    const points = this.of(key);
    // A new deployment or server counts from zero again.
    const first = points.findLastIndex((point, index) => index > 0 && point.requests < points[index - 1].requests);
    const [from, to] = [points[Math.max(first, 0)], points.at(-1)];
    if (!to || to.requests === undefined || to.late === undefined) return null;
    return { requests: to.requests - from.requests, late: to.late - from.late };
  }
}

function push(points, at, values) {
  points.push({ at, ...values });
  while (points[0].at < at - KEPT) points.shift();
}
