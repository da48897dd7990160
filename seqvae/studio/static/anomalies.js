// Anomalies: sessions, their p-values, and their surprising tokens.

import { $, droppable, make, options, run, say, trying } from "./api.js";

const LARGEST = 1 << 20; // most bytes of a dropped file
const HARDLY = 8; // nats of surprise with the full colour

const three = (value) => (value >= 0.001 ? value.toPrecision(3) : value.toExponential(1));

export function startAnomalies(models) {
  const model = () => $("#sessions-model").value;
  options($("#sessions-model"), models.map((one) => one.name), "hdfs");

  function token(one, anomalous) {
    const element = make(one.marked && anomalous ? "mark" : "span", { title: `log-probability ${one.log_prob.toFixed(2)} nats` }, one.text.trim());
    const share = Math.min(1, Math.max(0, -one.log_prob / HARDLY));
    if (share > 0.03) element.style.backgroundColor = `color-mix(in srgb, var(--alarm) ${Math.round(60 * share)}%, transparent)`;
    return [one.text.startsWith(" ") ? " " : "", element];
  }

  function row(session, i) {
    const more = session.length > session.tokens.length ? [` … ${session.length} tokens in total`] : [];
    return make("div", { class: `session ${session.anomalous ? "anomalous" : ""}`, role: "listitem" },
      make("span", { class: "verdict" }, session.anomalous ? "anomalous" : "normal"),
      make("span", { class: "p", title: `session ${i + 1}, score ${session.score.toFixed(3)}` }, `p ${three(session.p_value)}`),
      make("span", { class: "tokens" }, ...session.tokens.flatMap((one) => token(one, session.anomalous)), ...more));
  }

  async function score() {
    const lines = $("#sessions-lines").value.split(/\r?\n/);
    while (lines.length > 1 && !lines.at(-1).trim()) lines.pop();
    await trying(async () => {
      const found = await run("sessions", "/api/anomalies", { model: model(), lines });
      const odd = found.sessions.filter((session) => session.anomalous).length;
      const rule = found.p_value === null ? "" : ` at p ≤ ${found.p_value}`;
      const said = `${odd} of ${found.sessions.length} anomalous${rule}`;
      const place = $("#sessions-result");
      place.hidden = false;
      place.replaceChildren(
        make("p", { class: "summary" }, said),
        make("p", { class: "note key" }, "expected", make("i"), "surprising; the five most surprising tokens of an anomalous session are underlined"),
        make("div", { role: "list", "aria-label": "Sessions" }, ...found.sessions.map(row)));
      say(said);
    });
  }

  $("#sessions").addEventListener("submit", (event) => { event.preventDefault(); score(); });
  $("#sessions-example").addEventListener("click", () => trying(async () => {
    const lines = await run("sessions", "/api/anomalies/examples", { model: model() });
    $("#sessions-lines").value = lines.join("\n");
    await score();
  }));
  droppable($("#anomalies"), (file) => trying(async () => {
    if (file.size > LARGEST) throw new Error(`${file.name}: larger than 1 MB; drop fewer sessions`);
    $("#sessions-lines").value = (await file.text()).replace(/\n$/, "");
    await score();
  }));
}
