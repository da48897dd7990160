// Sentences: interpolation between two, and sums of moves.

import { $, calm, make, options, run, say, trying } from "./api.js";

const STEPS = 9;
const FARTHEST = 2.5; // tried at first where a classifier decides how far a sentence is moved
const AXES = [["negative", "positive"], ["past", "present"]]; // pairs of opposite styles, where a model has both

export function startText(models) {
  const model = () => models.find((one) => one.name === $("#text-model").value);
  options($("#text-model"), models.map((one) => one.name), "reviews");

  // --- between two sentences ---

  let steps = [];

  function point(i) {
    $("#walk-amount").value = i;
    $("#walk-amount").setAttribute("aria-valuetext", `${i + 1} of ${steps.length}: ${steps[i].text}`);
    $("#walk-now").textContent = steps[i].text;
    for (const [k, item] of [...$("#walk-steps").children].entries()) {
      if (k === i) item.firstElementChild.setAttribute("aria-current", "step");
      else item.firstElementChild.removeAttribute("aria-current");
    }
  }

  async function walk() {
    await trying(async () => {
      steps = await run("walk", "/api/text/steps",
        { model: model().name, a: $("#walk-a").value, b: $("#walk-b").value, steps: STEPS });
      $("#walk-result").hidden = false;
      $("#walk-amount").max = steps.length - 1;
      $("#walk-steps").replaceChildren(...steps.map((step, i) => {
        const same = i > 0 && steps[i - 1].text === step.text;
        return make("li", {}, make("button", { type: "button", class: same ? "same" : "", onclick: () => point(i) },
          make("span", {}, `${i + 1}`), make("span", {}, step.text || "(no words)")));
      }));
      point(0);
      say(`${steps.length} steps`);
    });
  }

  $("#walk").addEventListener("submit", (event) => { event.preventDefault(); walk(); });
  $("#walk-amount").addEventListener("input", (event) => point(Number(event.target.value)));

  // --- sums of moves ---

  const probability = () => ($("#move-until").checked ? Number($("#move-probability").value) : null);

  async function move() {
    const text = $("#move-text").value;
    if (!text.trim() || !model()) return;
    const moves = [...$("#move-rows").children].map((row) => ({
      source: $(".from", row).value || null, target: $(".to", row).value, amount: Number($("input", row).value),
    })).filter((one) => one.amount !== 0);
    await trying(async () => {
      const until = probability();
      const found = await run("move", "/api/text/blend", { model: model().name, text, moves, until });
      $("#move-result").hidden = false;
      $("#move-now").textContent = found.text || "(no words)";
      const short = found.probability < until ? "no sentence found reaches it: " : "";
      $("#move-how").hidden = found.probability === null;
      $("#move-how").textContent =
        `${short}moved by ${found.amounts.join(" and ")}, probability ${found.probability?.toFixed(2)}`;
      $("#move-unmoved").textContent = found.unmoved;
    });
  }
  const soon = calm(move);

  let rows = 0;
  function add(source, target) {
    const id = `move-amount-${rows += 1}`;
    const names = model()?.styles ?? [];
    const from = make("select", { class: "from", "aria-label": `Move ${rows}: from`, onchange: move });
    const to = make("select", { class: "to", "aria-label": `Move ${rows}: to`, onchange: move });
    options(from, [["", "itself"], ...names], source);
    options(to, names, target);
    const said = make("output", { for: id }, "0");
    const slider = make("input", { id, type: "range", step: 0.1, value: 0, oninput: (event) => {
      said.textContent = event.target.value;
      soon();
    } });
    $("#move-rows").append(make("div", { class: "move", role: "group", "aria-label": `Move ${rows}` },
      make("div", { class: "pair" }, make("label", {}, "From", from), make("label", {}, "To", to)),
      make("div", { class: "slider" }, make("label", { for: id }, "Amount"), said, slider)));
    range();
  }

  // The ranges of the amounts; where a classifier decides, at least one is above 0.
  function range() {
    const sliders = [...$("#move-rows").querySelectorAll("input")], chosen = probability() !== null;
    for (const slider of sliders) {
      slider.min = chosen ? 0 : -1.5;
      slider.max = chosen ? 3 : 1.5;
    }
    if (chosen && sliders.length && sliders.every((slider) => slider.value === "0")) sliders[0].value = FARTHEST;
    for (const slider of sliders) {
      const place = slider.parentElement;
      $("output", place).textContent = slider.value;
      $("label", place).textContent = chosen ? "At most" : "Amount";
    }
    $("#move-sure").hidden = !chosen;
  }

  function begin() {
    $("#move-rows").replaceChildren();
    rows = 0;
    const names = model()?.styles ?? [];
    const axes = AXES.filter((axis) => axis.every((name) => names.includes(name)));
    if (axes.length) axes.forEach(([source, target]) => add(source, target));
    else if (names.length > 1) add(names[0], names[1]);
    else if (names.length) add("", names[0]);
  }

  begin();
  $("#text-model").addEventListener("change", begin);
  $("#move-add").addEventListener("click", () => {
    const names = model()?.styles ?? [];
    add("", names[0]);
    $("#move-rows").lastElementChild.querySelector("select").focus();
  });
  $("#move").addEventListener("submit", (event) => { event.preventDefault(); move(); });
  $("#move-text").addEventListener("input", soon);
  $("#move-until").addEventListener("change", () => { range(); move(); });
  $("#move-probability").addEventListener("input", (event) => {
    $("#move-sure output").textContent = event.target.value;
    soon();
  });
}
