// The map: the styles of a model, and the decoded point.

import { $, calm, make, options, run, say, trying } from "./api.js";
import { Player } from "./player.js";
import { tint } from "./roll.js";

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// The ellipse of a two-dimensional covariance at a number of standard deviations.
function ellipse(style, width, scale) {
  const [[a, b], [, d]] = style.covariance;
  const middle = (a + d) / 2, away = Math.hypot((a - d) / 2, b);
  return {
    rx: width * scale * Math.sqrt(middle + away), ry: width * scale * Math.sqrt(Math.max(0, middle - away)),
    angle: (-Math.atan2(2 * b, a - d) * 90) / Math.PI, // in degrees; y points up in the plane, down in SVG
  };
}

export function startMap(models) {
  let view = null; // {width, height, centre, scale, cross} of the map on screen
  let at = null; // [x, y] in the plane
  let seed = 0;
  let player = null;

  const plane = $("#map-plane");
  const model = () => $("#map-model").value;
  const screen = ([x, y]) => [view.width / 2 + (x - view.centre[0]) * view.scale, view.height / 2 - (y - view.centre[1]) * view.scale];

  function show(map) {
    const points = map.styles.flatMap((style) => [style.mean, ...style.points]);
    const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const width = Math.max(300, plane.clientWidth), height = Math.max(320, width * 0.58);
    const scale = 0.9 * Math.min(width / (right - left || 1), height / (high - low || 1));
    view = { width, height, centre: [(left + right) / 2, (low + high) / 2], scale };
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const layers = [draw("g", {}), draw("g", {}), draw("g", {})];
    for (const style of map.styles) {
      const [x, y] = screen(style.mean);
      for (const [width, opacity] of [[2.45, 0.06], [1.5, 0.12]]) { // 95 % and 67.5 % of a Gaussian in the plane
        const { rx, ry, angle } = ellipse(style, width, scale);
        const ring = draw("ellipse", { cx: x, cy: y, rx, ry, transform: `rotate(${angle} ${x} ${y})` });
        Object.assign(ring.style, { fill: tint(style.colour), fillOpacity: opacity, stroke: tint(style.colour), strokeOpacity: 0.35 });
        layers[0].append(ring);
      }
      for (const point of style.points) {
        const [cx, cy] = screen(point);
        const dot = draw("circle", { cx, cy, r: 2.5 });
        Object.assign(dot.style, { fill: tint(style.colour), fillOpacity: 0.7 });
        layers[1].append(dot);
      }
      const label = draw("text", { x, y: y + 5, "text-anchor": "middle" });
      label.textContent = style.name;
      label.style.fill = tint(style.colour);
      layers[2].append(label);
    }
    view.cross = draw("path", { class: "cross", d: "M-9 0H9M0 -9V9", visibility: "hidden" });
    svg.append(...layers, view.cross);
    plane.replaceChildren(svg);
    $("#map-legend").replaceChildren(...map.styles.map((style) => {
      const dot = make("i");
      dot.style.background = tint(style.colour);
      return make("li", {}, make("span", {}, dot, style.name));
    }));
    at = null;
    $("#map-where").textContent = "";
    $("#map-again").disabled = true;
  }

  function point(where) {
    at = where.map((value) => Math.max(-100, Math.min(100, value)));
    const [x, y] = screen(at);
    view.cross.setAttribute("transform", `translate(${x} ${y})`);
    view.cross.setAttribute("visibility", "visible");
    $("#map-again").disabled = false;
  }

  async function load() {
    await trying(async () => {
      $("#map-result").replaceChildren();
      player?.stop();
      player = null;
      show(await run("map", "/api/map", { model: model() }));
      say("map ready");
    });
  }

  async function decode() {
    if (!at) return;
    await trying(async () => {
      const found = await run("place", "/api/map/decode",
        { model: model(), x: at[0], y: at[1], spread: Number($("#map-spread").value), seed });
      const near = Object.entries(found.shares).sort((a, b) => b[1] - a[1]).filter(([, share]) => share >= 0.01);
      $("#map-where").textContent = `Here: ${near.map(([name, share]) => `${name} ${Math.round(100 * share)} %`).join(", ")}`;
      if (found.roll) {
        player ??= new Player($("#map-result"), { here: "Decoded here" });
        player.show("here", found.roll);
      } else {
        const sentence = make("p", { class: "sentence" }, found.text || "(no words)");
        $("#map-result").replaceChildren(sentence);
        say(found.text);
      }
    });
  }

  plane.addEventListener("click", (event) => {
    if (!view) return;
    const box = plane.firstElementChild.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width - 0.5) * view.width, y = ((event.clientY - box.top) / box.height - 0.5) * view.height;
    point([view.centre[0] + x / view.scale, view.centre[1] - y / view.scale]);
    decode();
  });
  plane.addEventListener("keydown", (event) => {
    if (!view) return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (step) {
      event.preventDefault();
      const from = at ?? view.centre, far = 20 / view.scale;
      point([from[0] + step[0] * far, from[1] + step[1] * far]);
      $("#map-where").textContent = `cross at ${at.map((value) => value.toFixed(1)).join(", ")}`;
    } else if (event.key === "Enter") {
      event.preventDefault();
      decode();
    }
  });
  $("#map-again").addEventListener("click", () => { seed += 1; decode(); });
  const soon = calm(decode);
  $("#map-spread").addEventListener("input", (event) => { $("#map-said").textContent = event.target.value; soon(); });
  $("#map .controls").addEventListener("submit", (event) => event.preventDefault());
  options($("#map-model"), models.map((one) => one.name), "music");
  $("#map-model").addEventListener("change", load);
  return load;
}
