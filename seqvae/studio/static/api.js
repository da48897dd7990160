// Requests to the server: jobs, their progress, and errors in one line. Each slot has one job: a new job in the same slot
// cancels the one before.

const slots = new Map(); // slot -> {controller, job}

export class Superseded extends Error {}

async function answered(response) {
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({ error: `the server responded with status ${response.status}` }));
  if (!response.ok) throw new Error(body.error);
  return body;
}

export async function get(path) {
  return answered(await fetch(path));
}

// The result of a job; `body` is an object, or FormData for files.
export async function run(slot, path, body) {
  stop(slot);
  const mine = { controller: new AbortController(), job: null };
  slots.set(slot, mine);
  const { signal } = mine.controller;
  const form = body instanceof FormData;
  try {
    let told = await answered(await fetch(path, {
      method: "POST", signal, body: form ? body : JSON.stringify(body),
      headers: form ? {} : { "Content-Type": "application/json" },
    }));
    while (told.state !== "done") {
      mine.job = told.job;
      show(slot, told);
      told = await answered(await fetch(`/api/jobs/${told.job}?wait=1`, { signal }));
    }
    return told.result;
  } catch (error) {
    if (signal.aborted) throw new Superseded();
    throw error instanceof TypeError ? new Error("the server does not respond; check that it is still running") : error;
  } finally {
    if (slots.get(slot) === mine) {
      slots.delete(slot);
      show(slot, null);
    }
  }
}

export function stop(slot) {
  const old = slots.get(slot);
  if (!old) return;
  slots.delete(slot);
  old.controller.abort();
  drop(old);
  show(slot, null);
}

function drop(one) {
  if (one.job) fetch(`/api/jobs/${one.job}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

addEventListener("pagehide", () => slots.forEach(drop));

// --- progress ------------------------------------------------------------------------------------------------------

const work = document.querySelector("#work");
const working = new Map();

function show(slot, told) {
  if (told) working.set(slot, told);
  else working.delete(slot);
  const last = [...working.values()].pop();
  work.hidden = !last;
  if (!last) return;
  const share = last.state === "working" ? last.progress : 0;
  const what = last.message || "working";
  const bar = work.querySelector(".bar");
  bar.classList.toggle("unsure", !share);
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.setAttribute("aria-valuetext", what);
  bar.firstElementChild.style.transform = `scaleX(${0.04 + 0.96 * share})`;
  const text = share ? `${what}, ${Math.round(100 * share)} %` : what;
  work.querySelector(".what").textContent = text;
  if (document.querySelector("#said").dataset.last !== what) say(what);
}

// Progress of long work that is not a job: shown after half a second, until the returned function is called.
export function busy(slot, message, cancel) {
  const timer = setTimeout(() => {
    slots.set(slot, { controller: { abort: cancel }, job: null });
    show(slot, { state: "working", progress: 0, message });
  }, 500);
  return () => {
    clearTimeout(timer);
    slots.delete(slot);
    show(slot, null);
  };
}

work.querySelector("button").addEventListener("click", () => [...slots.keys()].forEach(stop));

// Announce to screen readers.
export function say(text) {
  const said = document.querySelector("#said");
  said.dataset.last = text;
  said.textContent = text;
}

export function complain(error) {
  if (error instanceof Superseded) return;
  const place = document.querySelector("#problem");
  place.textContent = error.message;
  place.hidden = false;
}

// Run an action, and show its error.
export async function trying(action) {
  document.querySelector("#problem").hidden = true;
  try {
    return await action();
  } catch (error) {
    complain(error);
    return undefined;
  }
}

// --- helpers of all views ------------------------------------------------------------------------------------------

export const $ = (selector, inside = document) => inside.querySelector(selector);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

export function options(select, names, chosen) {
  select.replaceChildren(...names.map((name) => {
    const [value, text] = Array.isArray(name) ? name : [name, name];
    return make("option", { value, selected: value === chosen }, text);
  }));
}

// Debounce: calls in quick succession count once.
export function calm(action, milliseconds = 250) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), milliseconds);
  };
}

// Accept dropped files on an element.
export function droppable(element, take) {
  const over = (on) => element.classList.toggle("over", on);
  element.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
  element.addEventListener("dragleave", () => over(false));
  element.addEventListener("drop", (event) => {
    over(false);
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
}
