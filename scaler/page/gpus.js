// GPUs as pictures: rows of SMs, each divided by quota, and a bar of memory. The same as a table beside each.

import { byId, element, keep, say, set, style } from "./dom.js";
import { gib, isKnown, keyOf, percent, short, tail } from "./words.js";

/** Cards at first, and more of them at a time. */
const FEW = 10;
const MORE = 50;
/** More GPUs than these get small cards. */
const LARGE = 4;
const HUES = 8;

let shown = FEW;
let again = () => {};
const looks = new Map();

/** The look of a function, kept as long as the page: a hue, and where hues run out a pattern besides. */
export function look(key) {
  if (!looks.has(key)) looks.set(key, looks.size);
  const place = looks.get(key);
  return `hue${place % HUES} pattern${Math.floor(place / HUES) % 3}`;
}

byId("gpus-more").addEventListener("click", () => {
  shown += MORE;
  again();
});

/** Shows the GPUs of an overview; `used` tells the time that a replica used since the one before, in percent. */
export function showGpus(overview, used, selected, select) {
  again = () => showGpus(overview, used, selected, select);
  const gpus = overview.gpus.map((gpu, index) => ({ ...gpu, index, key: placeOf(gpu.node, gpu.uuid), slices: [] }));
  const byPlace = new Map(gpus.map((gpu) => [gpu.key, gpu]));
  for (const f of overview.functions) {
    for (const replica of f.replicas) {
      byPlace.get(placeOf(replica.node, replica.gpu))?.slices.push({ f, replica, key: keyOf(f), used: used(f, replica) });
    }
  }
  byId("legend").hidden = gpus.length === 0;
  const hasRows = gpus.every((gpu) => gpu.slices.every((slice) => isKnown(slice.replica.row)));
  say(byId("legend-size"), hasRows ? "height: SM share, width: quota granted" : "width: part of the GPU, SM share × quota granted");
  const none = byId("gpus-none");
  none.hidden = gpus.length > 0;
  say(none, overview.functions.length ? "No replica says which GPU it is on." : "No GPU is in use.");
  set(byId("gpu-cards"), "class", gpus.length > LARGE ? "gpus small" : "gpus");
  keep(byId("gpu-cards"), gpus.slice(0, shown), (gpu) => gpu.key, () => card(select), (node, gpu) => fill(node, gpu, selected));
  const more = byId("gpus-more");
  more.hidden = gpus.length <= shown;
  say(more, `Show ${Math.min(MORE, gpus.length - shown)} more of ${gpus.length} GPUs`);
}

const placeOf = (node, uuid) => `${node ?? ""} ${uuid ?? ""}`;

function card(select) {
  const map = element("div", { class: "map", role: "img" });
  map.addEventListener("click", (event) => {
    const slice = event.target.closest(".slice");
    if (slice) select(slice.dataset.function);
  });
  return element(
    "li",
    { class: "gpu" },
    element("div", { class: "bar" }, element("h3"), element("p", { class: "reserved" })),
    element("p", { class: "health", hidden: "" }),
    map,
    element("div", { class: "memory", role: "img" }),
    element("p", { class: "soft memory-text" }),
    element("p", { class: "soft parked", hidden: "" }),
    element("details", {}, element("summary", {}, "As a table"), element("div", { class: "wide", role: "group", "aria-label": "Slices", tabindex: "0" })),
  );
}

function fill(node, gpu, selected) {
  const part = (name) => node.querySelector(name);
  const name = gpu.node ? `${gpu.node} · ${gpu.uuid}` : `GPU ${gpu.index}${gpu.name ? ` · ${gpu.name}` : ""}`;
  say(part("h3"), name);
  set(part("h3"), "title", name);
  say(part(".reserved"), `${percent(gpu.reserved_ratio * 100)} reserved`);
  const health = part(".health");
  health.hidden = !gpu.health || gpu.health.state === "healthy";
  if (!health.hidden) say(health, `! ${gpu.health.state}: ${gpu.health.why}`);
  const run = gpu.slices.filter((slice) => slice.replica.grant_percent !== 0 && isKnown(slice.replica.sm_percent));
  map(part(".map"), gpu, run, selected);
  memory(part(".memory"), part(".memory-text"), gpu, selected);
  const parked = gpu.slices.filter((slice) => slice.replica.grant_percent === 0);
  part(".parked").hidden = parked.length === 0;
  say(part(".parked"), `‖ parked, without time: ${counted(parked.map((slice) => slice.f.name))}`);
  const details = part("details");
  if (details.open) table(part(".wide"), gpu.slices);
  details.ontoggle = () => details.open && table(part(".wide"), gpu.slices);
}

/** Names, each once, with how often it is there. */
function counted(names) {
  const times = new Map();
  for (const name of names) times.set(name, (times.get(name) ?? 0) + 1);
  return [...times].map(([name, number]) => (number > 1 ? `${number} × ${name}` : name)).join(", ");
}

/** Rows of SMs as high as their share; without rows, slices beside each other as wide as their part of the GPU. */
function map(node, gpu, slices, selected) {
  const rows = new Map();
  const hasRows = slices.every((slice) => isKnown(slice.replica.row));
  for (const slice of slices) {
    const row = hasRows ? slice.replica.row : 0;
    if (!rows.has(row)) rows.set(row, []);
    rows.get(row).push(slice);
  }
  const isWhole = !hasRows || gpu.sharing === "exclusive";
  const height = (members) => (isWhole ? 100 : Math.max(...members.map((slice) => slice.replica.sm_percent)));
  const sorted = [...rows].sort(([a], [b]) => a - b);
  set(node, "aria-label", describe(sorted, hasRows));
  keep(
    node,
    sorted,
    ([row]) => String(row),
    () => element("div", { class: "row" }),
    (line, [, members]) => {
      style(line, "height", `${height(members)}%`);
      keep(
        line,
        members,
        (slice) => `${slice.key} ${slice.replica.instance}`,
        () => element("div", {}, element("i", { class: "floor" }), element("i", { class: "used" }), element("b"), element("span")),
        (box, slice) => fillSlice(box, slice, hasRows, selected),
      );
    },
  );
}

function fillSlice(box, { f, replica, key, used }, hasRows, selected) {
  const grant = replica.grant_percent ?? replica.floor_percent;
  set(box, "class", `slice ${look(key)}${key === selected ? " selected" : ""}${replica.state === "ready" ? "" : ` ${replica.state}`}`);
  box.dataset.function = key;
  style(box, "width", `${hasRows ? grant : (replica.sm_percent * grant) / 100}%`);
  style(box.querySelector(".floor"), "width", `${Math.min(100, (100 * replica.floor_percent) / grant)}%`);
  style(box.querySelector(".used"), "width", `${isKnown(used) ? Math.min(100, (100 * used) / grant) : 0}%`);
  say(box.querySelector("b"), f.name);
  const size = `${short(replica.sm_percent)} % × ${short(grant)} %`;
  say(box.querySelector("span"), replica.state === "ready" ? size : `${size}, ${replica.state}`);
  set(box, "title", `${key}\n${replica.instance}, ${replica.state}\n${shareText(replica)}${isKnown(used) ? `\nused now: ${percent(used)} of the time` : ""}`);
}

function shareText(replica) {
  const grant = isKnown(replica.grant_percent) ? percent(replica.grant_percent) : "not known";
  return `SM share ${percent(replica.sm_percent)}, quota ${grant} (floor ${percent(replica.floor_percent)}, ceiling ${percent(replica.ceiling_percent)})`;
}

function describe(rows, hasRows) {
  if (!rows.length) return "No slice has time.";
  const line = ([row, members]) => {
    const each = members.map(({ f, replica }) => `${f.name} ${percent(replica.sm_percent)} of the SMs for ${percent(replica.grant_percent ?? replica.floor_percent)} of the time`);
    return hasRows ? `Row ${row}: ${each.join(", ")}.` : `${each.join(", ")}.`;
  };
  return rows.map(line).join(" ");
}

function memory(bar, text, gpu, selected) {
  const bound = gpu.slices.filter((slice) => slice.replica.memory_limit_bytes > 0);
  const held = bound.map((slice) => slice.replica.memory_used_bytes).filter(isKnown);
  const use = held.length ? `, ${gib(held.reduce((sum, bytes) => sum + bytes, 0))} held` : "";
  const line = `Memory: ${gib(gpu.memory_bound_bytes).replace(" GiB", "")} of ${gib(gpu.memory_bytes)} bound${use}`;
  say(text, line);
  set(text, "title", line);
  set(bar, "aria-label", `${line}. ${bound.map(({ f, replica }) => `${f.name} ${gib(replica.memory_limit_bytes)}`).join(", ")}`);
  keep(
    bar,
    bound,
    (slice) => `${slice.key} ${slice.replica.instance}`,
    () => element("div", {}, element("i", { class: "floor" })),
    (box, { f, replica, key }) => {
      set(box, "class", `slice ${look(key)}${key === selected ? " selected" : ""}`);
      style(box, "width", `${(100 * replica.memory_limit_bytes) / gpu.memory_bytes}%`);
      style(box.firstChild, "width", `${(100 * (replica.memory_used_bytes ?? 0)) / replica.memory_limit_bytes}%`);
      set(box, "title", `${f.name}: ${gib(replica.memory_limit_bytes)} bound${isKnown(replica.memory_used_bytes) ? `, ${gib(replica.memory_used_bytes)} held` : ""}`);
    },
  );
}

const COLUMNS = [
  ["Function", ({ f }) => f.name],
  ["Replica", ({ f, replica }) => tail(f, replica.instance)],
  ["State", ({ replica }) => replica.state],
  ["Row", ({ replica }) => (isKnown(replica.row) ? String(replica.row) : "–")],
  ["SM", ({ replica }) => percent(replica.sm_percent)],
  ["Floor", ({ replica }) => percent(replica.floor_percent)],
  ["Grant", ({ replica }) => percent(replica.grant_percent)],
  ["Ceiling", ({ replica }) => percent(replica.ceiling_percent)],
  ["Used", ({ used }) => percent(used)],
  ["Memory", ({ replica }) => (replica.memory_limit_bytes ? gib(replica.memory_limit_bytes) : "–")],
];

/** Slices as a table, for a GPU or for a function. */
export function table(place, slices, columns = COLUMNS.map(([name]) => name)) {
  const wanted = COLUMNS.filter(([name]) => columns.includes(name));
  if (!place.firstChild || place.dataset.columns !== columns.join()) {
    place.dataset.columns = columns.join();
    const heads = wanted.map(([name]) => element("th", { scope: "col" }, name));
    place.replaceChildren(element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody")));
  }
  keep(
    place.querySelector("tbody"),
    slices,
    (slice) => `${slice.key} ${slice.replica.instance}`,
    () => element("tr", {}, ...wanted.map((_, index) => (index === 0 ? element("th", { scope: "row" }) : element("td")))),
    (row, slice) => wanted.forEach(([, text], index) => say(row.children[index], text(slice))),
  );
}
