// Anomalies: sessions, their p-values, and their surprising tokens; raw logs, and detectors learned from them.

import { $, droppable, make, options, run, say, trying } from "./api.js";

const LARGEST = 3e6; // most bytes of a dropped file
const HARDLY = 8; // nats of surprise with the full colour

// A time in most of the first lines: a raw log, not sessions of events.
const looksRaw = (text) => {
  const first = text.split("\n", 20).filter((line) => line.trim());
  return first.filter((line) => /\d\d:\d\d:\d\d/.test(line)).length > first.length / 2;
};

const three = (value) => (value >= 0.001 ? value.toPrecision(3) : value.toExponential(1));

export function startAnomalies(models) {
  const model = () => $("#sessions-model").value;
  const raw = () => models.find((one) => one.name === model())?.raw;
  const choose = (name) => {
    options($("#sessions-model"), models.map((one) => one.name), name);
    $("#sessions-example").hidden = raw(); // samples are events, not lines
  };
  choose("hdfs");

  function token(one, anomalous) {
    const element = make(one.marked && anomalous ? "mark" : "span", { title: `log-probability ${one.log_prob.toFixed(2)} nats` }, one.text.trim());
    const share = Math.min(1, Math.max(0, -one.log_prob / HARDLY));
    if (share > 0.03) element.style.backgroundColor = `color-mix(in srgb, var(--alarm) ${Math.round(60 * share)}%, transparent)`;
    return [one.text.startsWith(" ") ? " " : "", element];
  }

  function row(session, i) {
    const more = session.length > session.tokens.length ? [` … ${session.length} ${session.name ? "lines" : "tokens"} in total`] : [];
    return make("div", { class: `session ${session.anomalous ? "anomalous" : ""}`, role: "listitem" },
      make("span", { class: "verdict" }, session.anomalous ? "anomalous" : "normal"),
      make("span", { class: "p", title: `session ${session.name ?? i + 1}, score ${session.score.toFixed(3)}` }, `p ${three(session.p_value)}`),
      make("span", { class: session.name ? "tokens lines" : "tokens" }, ...(session.name ? [make("b", {}, session.name)] : []), ...session.tokens.flatMap((one) => token(one, session.anomalous)), ...more));
  }

  // Sessions of a raw log with the strangest first; others as they were given.
  const order = (a, b) => (raw() ? a.p_value - b.p_value || a.score - b.score : 0);

  async function score() {
    const lines = $("#sessions-lines").value.split(/\r?\n/);
    while (lines.length > 1 && !lines.at(-1).trim()) lines.pop();
    await trying(async () => {
      const found = raw()
        ? await run("sessions", "/api/logs", { model: model(), text: lines.join("\n") })
        : await run("sessions", "/api/anomalies", { model: model(), lines });
      const odd = found.sessions.filter((session) => session.anomalous).length;
      const rule = found.p_value === null ? "" : ` at p ≤ ${Number(found.p_value.toPrecision(3))}`;
      const other = found.strange ? `; ${Math.round(100 * found.unknown)} % of the lines match no known template: this log seems to be from another source` : "";
      const said = `${odd} of ${found.sessions.length} anomalous${rule}${other}`;
      const place = $("#sessions-result");
      place.hidden = false;
      place.replaceChildren(
        make("p", { class: "summary" }, said),
        make("p", { class: "note key" }, "expected", make("i"), "surprising; the most surprising parts of an anomalous session are underlined"),
        make("div", { role: "list", "aria-label": "Sessions" }, ...found.sessions.toSorted(order).map(row)));
      say(said);
    });
  }

  async function learn() {
    await trying(async () => {
      const found = await run("sessions", "/api/logs/learn", { text: $("#sessions-lines").value });
      models.push({ name: found.model, raw: true });
      choose(found.model);
      const said = `${found.model}: ${found.sessions} sessions (${found.grouping}), ${found.templates} templates; `
        + `${found.alarms} of ${found.checked} held-out sessions are anomalous at p ≤ ${found.p_value.toPrecision(2)}. Now drop the log to score.`;
      $("#sessions-result").hidden = false;
      $("#sessions-result").replaceChildren(make("p", { class: "summary" }, said));
      say(said);
    });
  }

  $("#sessions-model").addEventListener("change", () => choose(model()));
  $("#sessions-learn").addEventListener("click", () => { if ($("#sessions").reportValidity()) learn(); });
  $("#sessions").addEventListener("submit", (event) => { event.preventDefault(); score(); });
  $("#sessions-example").addEventListener("click", () => trying(async () => {
    const lines = await run("sessions", "/api/anomalies/examples", { model: model() });
    $("#sessions-lines").value = lines.join("\n");
    await score();
  }));
  droppable($("#anomalies"), (file) => trying(async () => {
    if (file.size > LARGEST) throw new Error(`${file.name}: larger than 3 MB; drop fewer lines`);
    $("#sessions-lines").value = (await file.text()).replace(/\n$/, "");
    if (looksRaw($("#sessions-lines").value) && !raw()) throw new Error("this is a raw log: learn a detector from it, or choose a detector of raw logs");
    await score();
  }));
}
