// Asks the server again and again: each second while somebody looks, seldom while it does not answer, never while hidden.

const EVERY = 1000;
/** Part of the time that may be spent on asking: large answers are asked for less often. */
const SHARE = 5;
const PATIENCE = 10_000;
const LONGEST = 15_000;
const DECISIONS = 200;

/** Calls `show` with each overview and what was decided since, `lost` with why there is none and when it is asked again. */
export class Source {
  #show;
  #lost;
  #timer;
  #asking = false;
  #failures = 0;
  #last = 0;
  #uptime = 0;
  #seen = performance.now();
  #paused = false;

  constructor(show, lost) {
    this.#show = show;
    this.#lost = lost;
    document.addEventListener("visibilitychange", () => this.now());
    addEventListener("online", () => this.now());
    this.now();
  }

  get isPaused() {
    return this.#paused;
  }

  pause(paused) {
    this.#paused = paused;
    this.now();
  }

  /** Asks at once, if anybody looks. */
  now() {
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#paused && !this.#asking) this.#ask();
  }

  async #ask() {
    this.#asking = true;
    const begun = performance.now();
    let wait;
    try {
      const overview = await this.#overview();
      const decisions = await get(`../v1/decisions?after=${this.#last}&last=${DECISIONS}`);
      this.#failures = 0;
      wait = Math.min(Math.max(EVERY, (performance.now() - begun) * SHARE), LONGEST);
      this.#last = decisions.at(-1)?.seq ?? this.#last;
      this.#show(overview, decisions);
    } catch (error) {
      this.#failures += 1;
      wait = Math.min(EVERY * 2 ** (this.#failures - 1), LONGEST);
      this.#lost(why(error), Date.now() + wait);
    }
    this.#asking = false;
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#paused) this.#timer = setTimeout(() => this.now(), wait);
  }

  async #overview() {
    const overview = await get("../v1/overview");
    if (!Array.isArray(overview?.functions) || !Array.isArray(overview?.gpus)) throw new Unexpected("no overview");
    // Another run counts its decisions from one again. It has been up for less than the one before, or than nobody has looked.
    const unseen = (performance.now() - this.#seen) / 1000;
    overview.isNew = overview.uptime_s < Math.max(this.#uptime, unseen);
    if (overview.isNew) this.#last = 0;
    [this.#uptime, this.#seen] = [overview.uptime_s, performance.now()];
    return overview;
  }
}

class Unexpected extends Error {}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) throw new Unexpected("The server asks for a password again: load the page anew.");
  if (!answer.ok) throw new Unexpected(`The server answers ${answer.status}.`);
  try {
    return await answer.json();
  } catch {
    throw new Unexpected("The server answers something else than gpufn does.");
  }
}

function why(error) {
  if (error instanceof Unexpected) return error.message;
  return error.name === "TimeoutError" ? `The server has not answered for ${PATIENCE / 1000} s.` : "The server does not answer.";
}
