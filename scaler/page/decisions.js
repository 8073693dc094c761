// What was decided and why, the newest first: of all functions, or of the selected one.

import { byId, element, keep } from "./dom.js";
import { clock, isKnown, short } from "./words.js";

/** Entries that are kept, and shown at most. */
const KEPT = 2000;
const SHOWN = 100;

/** Said without what was before and after. */
const WHOLE = ["park", "wake"];
const VERBS = { grant: "quota", withdraw: "quota taken back", scale: "replicas", need: "replicas needed", park: "parked", wake: "woken", start: "started", stop: "stopped", died: "died" };

let kept = [];

/** Takes in what was decided since; `started` is when the server started, ms. */
export function addDecisions(decisions, started, isNew) {
  if (isNew) kept = [];
  for (const decision of decisions) kept.unshift({ ...decision, at: started + decision.at_s * 1000 });
  kept.length = Math.min(kept.length, KEPT);
}

/** Shows them; those of `f` alone if there is one. */
export function showDecisions(f) {
  const fitting = kept.filter((decision) => !f || isOf(decision, f)).slice(0, SHOWN);
  byId("decisions-none").hidden = fitting.length > 0;
  keep(byId("decision-list"), fitting, (decision) => `${decision.seq} ${decision.at_s}`, entry, () => {});
}

/** Functions of the default namespace are named without it, the others as NAME.NAMESPACE, or with it beside. */
function isOf(decision, f) {
  if (decision.namespace) return decision.function === f.name && decision.namespace === f.namespace;
  return decision.function === f.name || decision.function === `${f.name}.${f.namespace}`;
}

function entry(decision) {
  const time = element("time", { datetime: new Date(decision.at).toISOString() }, clock(decision.at));
  const change = element("span", { class: "change" }, VERBS[decision.action] ?? decision.action);
  if (isKnown(decision.to) && !WHOLE.includes(decision.action)) {
    const unit = decision.action === "grant" || decision.action === "withdraw" ? " %" : "";
    const from = isKnown(decision.from) ? `${short(decision.from)} → ` : "";
    change.append(" ", element("b", {}, `${from}${short(decision.to)}${unit}`));
  }
  const who = element("span", { class: "who", title: decision.instance }, decision.function);
  return element("li", {}, time, " ", who, " ", change, " ", element("span", { class: "why soft" }, why(decision)));
}

/** The reason without the function's name, which stands before it already. */
function why({ function: name, reason }) {
  const [first, ...rest] = reason.split(": ");
  return rest.length && (first === name || first.startsWith(`${name}.`)) ? rest.join(": ") : reason;
}
