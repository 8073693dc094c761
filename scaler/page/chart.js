// Lines over the last minutes, as small drawings with a text that says the same.

import { drawn, element, say, set } from "./dom.js";
import { GAP, KEPT } from "./history.js";
import { clock, isKnown, short } from "./words.js";

const [WIDTH, HEIGHT] = [400, 118];
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 8, 8, 20];

/** A chart: `show(points, lines, rule)` draws anew. Lines differ in stroke and are named, colour only helps. */
export class Chart {
  #title;
  #unit;
  #svg;
  #legend;
  #state = { points: [], lines: [] };
  #pointed = null;

  constructor(title, unit) {
    this.#title = title;
    this.#unit = unit;
    this.#svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "chart" });
    this.#legend = element("p", { class: "values" });
    this.node = element("figure", {}, element("figcaption", {}, element("strong", {}, title), this.#legend), this.#svg);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event));
    this.#svg.addEventListener("pointerleave", () => this.#point(null));
  }

  /** `lines`: objects with `of`, the name of a value of the points, `name` and `class`; `rule`: a value and its name. */
  show(points, lines, rule, now) {
    this.#state = { points, lines: lines.filter((line) => points.some((point) => isKnown(point[line.of]))), rule, now };
    this.#draw();
  }

  #draw() {
    const { points, lines, rule, now } = this.#state;
    const values = points.flatMap((point) => lines.map((line) => point[line.of])).filter(isKnown);
    const high = above(Math.max(0, ...values, rule?.value ?? 0));
    const x = (at) => LEFT + (1 - (now - at) / KEPT) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (Math.min(value, high) / high) * (HEIGHT - BOTTOM - TOP);
    const parts = [];
    for (const tick of [0, high / 2, high]) {
      parts.push(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
      parts.push(drawn("text", { class: "end", x: LEFT - 6, y: y(tick) + 3.5 }, short(tick)));
    }
    for (let minute = 0; minute <= KEPT / 60_000; minute += 1) {
      const at = now - minute * 60_000;
      const anchor = minute === 0 ? "end" : "mid";
      parts.push(drawn("text", { class: anchor, x: x(at), y: HEIGHT - 5 }, minute === 0 ? "now" : `−${minute} min`));
    }
    if (isKnown(rule?.value)) {
      parts.push(drawn("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: y(rule.value), y2: y(rule.value) }));
    }
    for (const line of lines) parts.push(drawn("path", { class: `line ${line.class}`, d: path(points, line.of, x, y) }));
    if (this.#pointed !== null) {
      parts.push(drawn("line", { class: "pointed", x1: this.#pointed, x2: this.#pointed, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    this.#svg.replaceChildren(...parts);
    set(this.#svg, "aria-label", this.#text(values));
    this.#values(x);
  }

  /** The values now, or where the pointer is. */
  #values(x) {
    const { points, lines, rule } = this.#state;
    const near = (best, point) => (Math.abs(x(point.at) - this.#pointed) < Math.abs(x(best.at) - this.#pointed) ? point : best);
    const point = this.#pointed === null ? points.at(-1) : points.length ? points.reduce(near) : undefined;
    const parts = lines.map((line) =>
      element("span", {}, element("i", { class: `stroke ${line.class}` }), `${line.name} `, element("b", {}, this.#value(point?.[line.of]))),
    );
    if (isKnown(rule?.value)) {
      parts.push(element("span", {}, element("i", { class: "stroke rule" }), `${rule.name} `, element("b", {}, this.#value(rule.value))));
    }
    if (this.#pointed !== null && point) parts.push(element("span", {}, `at ${clock(point.at)}`));
    this.#legend.replaceChildren(...parts);
    if (!parts.length) say(this.#legend, "not known here, or nothing yet");
  }

  #value(value) {
    return isKnown(value) ? `${short(value)}${this.#unit}` : "–";
  }

  #text(values) {
    if (!values.length) return `${this.#title}: nothing yet`;
    const { points, lines, rule } = this.#state;
    const now = lines.map((line) => `${line.name} ${this.#value(points.at(-1)?.[line.of])}`).join(", ");
    const range = `between ${this.#value(Math.min(...values))} and ${this.#value(Math.max(...values))}`;
    const bound = isKnown(rule?.value) ? `; ${rule.name} ${this.#value(rule.value)}` : "";
    return `${this.#title} in the last minutes: now ${now}; ${range}${bound}`;
  }

  #point(event) {
    if (event) {
      const box = this.#svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * WIDTH;
      this.#pointed = Math.min(Math.max(at, LEFT), WIDTH - RIGHT);
    } else {
      this.#pointed = null;
    }
    if (this.#state.now) this.#draw();
  }
}

/** A line without axes for a row of a table: `d` of a path of 100 by 20. */
export function spark(points, of, now) {
  const high = Math.max(1e-9, ...points.map((point) => point[of] ?? 0));
  return path(points, of, (at) => 100 * (1 - (now - at) / KEPT), (value) => 18.5 - (value / high) * 17);
}

function path(points, of, x, y) {
  let [text, before] = ["", null];
  for (const point of points) {
    if (!isKnown(point[of])) {
      before = null;
      continue;
    }
    const move = before !== null && point.at - before <= GAP ? "L" : "M";
    text += `${move}${x(point.at).toFixed(1)} ${y(point[of]).toFixed(1)}`;
    // A lone value would have no length.
    if (move === "M") text += "h.6";
    before = point.at;
  }
  return text;
}

/** The next of 1, 2, 5, 10, … at or above a value. */
function above(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value * 0.999_999);
}
