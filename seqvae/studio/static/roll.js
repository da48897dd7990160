// A piano roll on a canvas: a colour for each instrument, bars as lines, and a play-head above it.

import { make } from "./api.js";

const DRUMS = 128;
const dark = matchMedia("(prefers-color-scheme: dark)");
const KEYS = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
const BLACK = new Set([1, 3, 6, 8, 10]);

// A colour of the server's palette; on a dark page, dark colours are lightened most.
export const tint = (colour) => `light-dark(${colour}, oklch(from ${colour} calc(0.35 + 0.6 * l) c h))`;

const key = (pitch) => `${KEYS[pitch % 12]}${Math.floor(pitch / 12) - 1}`;

export class PianoRoll {
  constructor(seek) {
    this.canvas = make("canvas", { role: "img" });
    this.head = make("div", { class: "head", hidden: true });
    this.element = make("div", { class: "roll" }, this.canvas, this.head);
    this.element.addEventListener("pointerdown", (event) => {
      if (!this.roll) return;
      const box = this.element.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * this.seconds);
    });
    this.muted = new Set();
    new ResizeObserver(() => this.draw()).observe(this.element);
    dark.addEventListener("change", () => this.draw());
  }

  // `seconds` is the width, the same for rolls below each other.
  show(roll, title, seconds, muted) {
    Object.assign(this, { roll, seconds, muted });
    const pitches = roll.tracks.flatMap((track) => track.notes.map((note) => note[2]));
    const range = pitches.length ? `, ${key(Math.min(...pitches))} to ${key(Math.max(...pitches))}` : "";
    const names = roll.tracks.map((track) => track.name).join(", ") || "silence";
    this.canvas.setAttribute("aria-label",
      `Piano roll of ${title}: ${pitches.length} notes in ${roll.bars.length - 1} bars${range}; ${names}`);
    this.draw();
  }

  move(seconds) {
    this.head.hidden = seconds === null || !this.roll;
    if (!this.head.hidden) this.head.style.left = `${(100 * seconds) / this.seconds}%`;
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !this.roll) return;
    const scale = devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const pitched = this.roll.tracks.filter((track) => track.program !== DRUMS).flatMap((track) => track.notes);
    const drums = this.roll.tracks.some((track) => track.program === DRUMS && track.notes.length);
    const pitches = pitched.map((note) => note[2]);
    const low = Math.min(48, ...pitches) - 1, high = Math.max(72, ...pitches) + 1;
    const strip = drums ? Math.max(26, height * 0.17) : 0; // drums have no pitch: a strip of their own
    const row = (height - strip) / (high - low + 1);
    const x = (seconds) => (seconds / this.seconds) * width;
    pen.fillStyle = this.css("var(--black-key)");
    for (let pitch = low; pitch <= high; pitch += 1) {
      if (BLACK.has(((pitch % 12) + 12) % 12)) pen.fillRect(0, (high - pitch) * row, width, row);
    }
    pen.fillStyle = this.css("var(--bar)");
    const every = Math.ceil(this.roll.bars.length / (width / 14)); // bar lines at least 14 pixels apart
    for (const [i, bar] of this.roll.bars.entries()) if (i % every === 0) pen.fillRect(x(bar), 0, 1, height);
    if (drums) pen.fillRect(0, height - strip, width, 1);
    for (const [i, track] of this.roll.tracks.entries()) {
      pen.fillStyle = this.css(tint(track.colour));
      pen.globalAlpha = this.muted.has(i) ? 0.12 : 0.9;
      for (const [start, length, pitch, velocity] of track.notes) {
        if (track.program === DRUMS) {
          const place = Math.min(1, Math.max(0, (pitch - 35) / 25));
          pen.fillRect(x(start), height - 6 - place * (strip - 11), width < 500 ? 2 : 3, 4);
        } else {
          const thick = Math.max(2, row - 0.6);
          pen.globalAlpha = this.muted.has(i) ? 0.12 : 0.55 + 0.4 * (velocity / 127);
          pen.beginPath();
          pen.roundRect(x(start), (high - pitch) * row + (row - thick) / 2, Math.max(2, x(length) - 1), thick, Math.min(2, thick / 2));
          pen.fill();
        }
      }
    }
    pen.globalAlpha = 1;
  }

  // A CSS colour for the canvas, which does not resolve light-dark() itself.
  css(colour) {
    this.head.style.color = colour;
    return getComputedStyle(this.head).color;
  }
}
