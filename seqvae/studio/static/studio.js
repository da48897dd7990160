// The page: its tabs, and the models for all views.

import { $, get, trying } from "./api.js";
import { startAnomalies } from "./anomalies.js";
import { startMap } from "./map.js";
import { startMusic } from "./music.js";
import { startText } from "./text.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const opened = new Map(); // panel -> function to call when it is first shown

function open(tab, focus = false) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(`#${other.getAttribute("aria-controls")}`).hidden = !chosen;
  }
  const panel = tab.getAttribute("aria-controls");
  history.replaceState(null, "", `#${panel}`);
  if (focus) tab.focus();
  opened.get(panel)?.();
  opened.delete(panel);
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step ? tabs.at((i + step) % tabs.length) : { Home: tabs[0], End: tabs.at(-1) }[event.key];
    if (!next) return;
    event.preventDefault();
    open(next, true);
  });
}

// A file dropped outside its target must not replace the page.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => event.preventDefault());

trying(async () => {
  const models = await get("/api/models");
  startMusic(models.filter((model) => model.content === "songs"));
  startText(models.filter((model) => model.content === "sentences"));
  opened.set("map", startMap(models));
  startAnomalies(models.filter((model) => model.detector && model.content !== "songs"));
  const asked = tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash);
  if (asked) open(asked);
  document.body.dataset.ready = "yes";
});
