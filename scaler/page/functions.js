// The table of functions: sorted, searched, filtered; one of them selected.

import { spark } from "./chart.js";
import { byId, drawn, element, keep, say, set, style } from "./dom.js";
import { look } from "./gpus.js";
import { STATES, grantOf, isKnown, keyOf, latency, percent, short, stateOf } from "./words.js";

/** Rows keep their places for so long, so that one can be read and pointed at, ms. */
const STILL = 5000;
const ORDER = Object.keys(STATES);

const lateOf = (f) => (f.slo && f.requests_total > 0 ? (100 * f.late_total) / f.requests_total : null);
const ready = (f) => f.replicas.filter((replica) => replica.state === "ready").length;
const strain = (f) => (isKnown(f.slo_latency_ms) ? f.slo_latency_ms / f.slo_bound_ms : null);

/** Title, what is sorted by, and whether the largest comes first. */
const COLUMNS = {
  name: ["Function", (f) => f.name, false],
  state: ["State", (f) => ORDER.indexOf(stateOf(f)), false],
  replicas: ["Replicas", (f) => f.replicas.length, true],
  rate: ["Requests/s", (f) => f.rate_rps, true],
  grant: ["Quota", grantOf, true],
  latency: ["Latency", strain, true],
  late: ["Late", lateOf, true],
  policy: ["Policy", (f) => f.policy ?? "", false],
};

export class Functions {
  #select;
  #sort = { by: "name", down: false };
  #order = [];
  #sorted = 0;
  #overview = null;
  #history = null;
  #selected = null;
  #current = null;

  /** `select` is told the key of a function when it is chosen. */
  constructor(select) {
    this.#select = select;
    for (const [id, [title]] of Object.entries(COLUMNS)) {
      const button = element("button", { type: "button" }, title, element("span", { "aria-hidden": "true" }));
      button.addEventListener("click", () => this.#sortBy(id));
      byId("heads").append(element("th", { scope: "col", "data-by": id }, button));
    }
    const states = [["", "All states"], ["!", "Needs attention"], ...Object.entries(STATES).map(([id, [, word]]) => [id, `State: ${word}`])];
    byId("state").append(...states.map(([value, text]) => element("option", { value }, text)));
    for (const id of ["search", "state", "namespace"]) byId(id).addEventListener("input", () => this.#show());
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
    byId("rows").addEventListener("keydown", (event) => this.#move(event));
    byId("rows").addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row && !getSelection().toString()) this.#select(row.dataset.key);
    });
    byId("rows").addEventListener("focusin", (event) => this.#stop(event.target.closest("tr")));
    this.#heads();
  }

  show(overview, history, selected) {
    const isFirst = !this.#overview;
    [this.#overview, this.#history, this.#selected] = [overview, history, selected];
    this.#namespaces();
    this.#show();
    // The address may have named one that is far down.
    if (isFirst && selected) byId("rows").querySelector(".selected")?.scrollIntoView({ block: "nearest" });
  }

  #show() {
    if (!this.#overview) return;
    const all = this.#overview.functions;
    const fitting = all.filter((f) => this.#fits(f));
    const sorted = this.#sortedAll(fitting);
    const now = this.#overview.seen;
    keep(byId("rows"), sorted, keyOf, () => row(), (node, f) => this.#fill(node, f, now));
    this.#stop();
    const none = byId("functions-none");
    none.hidden = sorted.length > 0;
    byId("heads").parentElement.parentElement.hidden = all.length === 0;
    if (!all.length) empty(none, this.#overview.server);
    else say(none, "No function fits the search.");
    say(byId("shown"), fitting.length === all.length ? `all ${all.length}` : `${fitting.length} of ${all.length}`);
  }

  #fits(f) {
    const [state, namespace] = [byId("state").value, byId("namespace").value];
    const is = stateOf(f);
    if (state === "!" ? ORDER.indexOf(is) > ORDER.indexOf("starting") : state && state !== is) return false;
    if (namespace && f.namespace !== namespace) return false;
    const text = [f.name, f.namespace, f.model, f.policy, ...f.replicas.flatMap((replica) => [replica.gpu, replica.node])].join(" ").toLowerCase();
    return byId("search").value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }

  /** Sorted anew now and then, and not under the hand of whoever points at a row or goes through them. */
  #sortedAll(functions) {
    const rows = byId("rows");
    const isHeld = rows.matches(":hover") || rows.contains(document.activeElement);
    if (!this.#sorted || (performance.now() - this.#sorted > STILL && !isHeld)) {
      const [, value] = COLUMNS[this.#sort.by];
      const sign = this.#sort.down ? -1 : 1;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === y) return keyOf(a) < keyOf(b) ? -1 : 1;
        // What is not known is last, either way.
        if (x === null || y === null) return x === null ? 1 : -1;
        return x < y ? -sign : sign;
      };
      this.#order = new Map([...this.#overview.functions].sort(compare).map((f, place) => [keyOf(f), place]));
      this.#sorted = performance.now();
    }
    const place = (f) => this.#order.get(keyOf(f)) ?? Infinity;
    return functions.sort((a, b) => place(a) - place(b) || (keyOf(a) < keyOf(b) ? -1 : 1));
  }

  #sortBy(by) {
    const down = COLUMNS[by][2];
    this.#sort = { by, down: this.#sort.by === by ? !this.#sort.down : down };
    this.#sorted = 0;
    this.#heads();
    this.#show();
  }

  #heads() {
    for (const head of byId("heads").children) {
      const is = head.dataset.by === this.#sort.by;
      set(head, "aria-sort", is ? (this.#sort.down ? "descending" : "ascending") : null);
      say(head.querySelector("span"), is ? (this.#sort.down ? " ↓" : " ↑") : "");
    }
  }

  #namespaces() {
    const select = byId("namespace");
    const names = [...new Set(this.#overview.functions.map((f) => f.namespace))].sort();
    select.hidden = names.length < 2 && !select.value;
    keep(
      select,
      ["", ...names],
      (name) => name,
      (name) => element("option", { value: name }),
      (option, name) => say(option, name || "All namespaces"),
    );
  }

  #fill(node, f, now) {
    const key = keyOf(f);
    const [sign, word, meaning] = STATES[stateOf(f)];
    const part = (name) => node.querySelector(name);
    set(node, "class", key === this.#selected ? "selected" : null);
    set(part(".swatch"), "class", `swatch ${look(key)}`);
    say(part("button"), f.name);
    set(part("button"), "aria-pressed", key === this.#selected ? "true" : "false");
    const several = !byId("namespace").hidden;
    say(part(".name small"), [several ? f.namespace : "", f.model !== f.name ? f.model : ""].filter(Boolean).join(" · "));
    set(part(".state b"), "class", `state-${stateOf(f)}`);
    say(part(".sign"), sign);
    say(part(".word"), word);
    set(part(".state b"), "title", f.problem ?? meaning);
    say(part(".replicas b"), isKnown(f.replicas_wanted) ? `${ready(f)} of ${f.replicas_wanted}` : `${ready(f)}`);
    const parked = f.replicas.filter((replica) => replica.state === "parked").length;
    const needed = Math.ceil(f.replicas_needed ?? 0);
    say(part(".replicas small"), [parked ? `${parked} parked` : "", needed > f.replicas_wanted ? `needs ${needed}` : ""].filter(Boolean).join(", "));
    set(part(".rate path"), "d", spark(this.#history.of(key), "rate", now) || null);
    say(part(".rate b"), short(f.rate_rps));
    say(part(".rate small"), f.held > 0 ? `${f.held} held` : "");
    quota(part(".grant"), f);
    bound(part(".latency"), f);
    say(part(".late b"), percent(lateOf(f)));
    say(part(".policy"), f.policy ?? "–");
  }

  /** One row takes part in the tab order; the others are reached by arrow keys. */
  #stop(row) {
    if (row) this.#current = row.dataset.key;
    const rows = [...byId("rows").children];
    const here = rows.find((one) => one.dataset.key === this.#current) ?? rows.find((one) => one.dataset.key === this.#selected) ?? rows[0];
    for (const one of rows) set(one.querySelector("button"), "tabindex", one === here ? "0" : "-1");
  }

  #move(event) {
    const row = event.target.closest("tr");
    const to = {
      ArrowDown: row.nextElementSibling,
      ArrowUp: row.previousElementSibling,
      Home: row.parentElement.firstElementChild,
      End: row.parentElement.lastElementChild,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    to.querySelector("button").focus();
  }
}

function row() {
  const swatch = element("i", { class: "swatch", "aria-hidden": "true" });
  const cell = (name, ...children) => element("td", { class: name }, ...children);
  return element(
    "tr",
    {},
    element("th", { scope: "row", class: "name" }, element("div", {}, swatch, element("div", {}, element("button", { type: "button" }), element("small")))),
    cell("state", element("b", {}, element("span", { class: "sign", "aria-hidden": "true" }), element("span", { class: "word" }))),
    cell("replicas", element("b"), element("small")),
    cell(
      "rate",
      drawn("svg", { class: "spark", viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, drawn("path", { class: "line rate" })),
      element("div", {}, element("b"), element("small")),
    ),
    cell("grant", element("b"), meter(), element("small")),
    cell("latency", element("b"), meter(), element("small")),
    cell("late", element("b")),
    cell("policy"),
  );
}

const meter = () => element("div", { class: "meter", "aria-hidden": "true" }, element("i", { class: "range" }), element("i", { class: "fill" }), element("i", { class: "mark" }));

function quota(cell, f) {
  const share = f.replicas.find((replica) => isKnown(replica.sm_percent));
  const grant = grantOf(f);
  say(cell.querySelector("b"), percent(grant));
  cell.querySelector(".meter").hidden = !share;
  say(cell.querySelector("small"), share ? `${short(share.floor_percent)}–${percent(share.ceiling_percent)}, SM ${percent(share.sm_percent)}` : "");
  if (!share) return;
  style(cell.querySelector(".range"), "left", `${share.floor_percent}%`);
  style(cell.querySelector(".range"), "width", `${share.ceiling_percent - share.floor_percent}%`);
  style(cell.querySelector(".fill"), "width", `${grant ?? 0}%`);
}

function bound(cell, f) {
  const seen = f.slo_latency_ms ?? f.p95_ms;
  const isOver = isKnown(f.slo_latency_ms) && f.slo_latency_ms > f.slo_bound_ms;
  say(cell.querySelector("b"), `${isOver ? "▲ " : ""}${latency(seen)}`);
  say(cell.querySelector("small"), f.slo ? f.slo.replace("<", " < ").replace("ms", " ms") : isKnown(seen) ? "p95, no objective" : "no objective");
  const meter = cell.querySelector(".meter");
  meter.hidden = !isKnown(f.slo_latency_ms);
  set(meter, "class", isOver ? "meter over" : "meter");
  if (meter.hidden) return;
  // The mark is the bound, at two thirds, so that there is room beyond.
  style(meter.querySelector(".fill"), "width", `${Math.min(100, (200 / 3) * (f.slo_latency_ms / f.slo_bound_ms))}%`);
  style(meter.querySelector(".mark"), "left", `${200 / 3}%`);
}

function empty(node, server) {
  if (node.dataset.empty) return;
  node.dataset.empty = "yes";
  const isLocal = !server?.startsWith("gpufn-scaler");
  const command = isLocal
    ? `faas-cli deploy --gateway ${location.origin} --name hello --image file:///path/of/program --annotation gpufn.dev/sm=20`
    : "kubectl patch deployment NAME --patch '{\"spec\":{\"template\":{\"metadata\":{\"labels\":{\"gpufn.dev/enabled\":\"true\"}}}}}'";
  node.replaceChildren(
    element("p", {}, element("strong", {}, "No functions yet.")),
    element("p", {}, isLocal ? "Deploy one, and it appears here:" : "A Deployment whose pods have the label gpufn.dev/enabled: \"true\" appears here:"),
    element("p", {}, element("code", {}, command)),
  );
}
