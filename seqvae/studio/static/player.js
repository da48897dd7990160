// One or several takes below each other, one of them audible: play, stop, loop, position, muted tracks, downloads. The
// server renders the sound; a change of take or track continues from the same position.

import { busy, complain, make } from "./api.js";
import { PianoRoll, tint } from "./roll.js";

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
let numbers = 0;

export class Player {
  // `names` are the takes' titles, by key.
  constructor(place, names) {
    this.audio = new Audio();
    this.audio.preload = "none";
    this.takes = new Map();
    const group = `heard-${numbers += 1}`;
    this.play = make("button", { type: "button", class: "play main", onclick: () => this.toggle() }, "Play");
    this.loop = make("button", { type: "button", class: "loop", "aria-pressed": "false", onclick: () => {
      this.audio.loop = !this.audio.loop;
      this.loop.setAttribute("aria-pressed", this.audio.loop);
    } }, "Loop");
    this.place = make("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, "aria-label": "Position in the song" });
    this.place.addEventListener("input", () => this.seek(Number(this.place.value)));
    this.clock = make("span", { class: "clock" }, "0:00 / 0:00");
    const stop = make("button", { type: "button", onclick: () => this.stop() }, "Stop");
    this.element = make("div", { role: "group", "aria-label": "Player" },
      make("div", { class: "player" }, this.play, stop, this.loop, this.place, this.clock));
    for (const [key, title] of Object.entries(names)) this.add(key, title, group, Object.keys(names).length === 1);
    place.append(this.element);
    this.heard = Object.keys(names).at(-1);
    this.wanted = null; // position to continue from, once the sound is loaded
    this.audio.addEventListener("loadedmetadata", () => {
      if (this.wanted !== null) this.audio.currentTime = Math.min(this.wanted, this.audio.duration);
      this.wanted = null;
    });
    this.audio.addEventListener("ended", () => this.tick());
    for (const event of ["play", "pause"]) this.audio.addEventListener(event, () => this.tick());
    this.audio.addEventListener("error", () => this.failed());
  }

  add(key, title, group, alone) {
    const take = { title, roll: null, muted: new Set() };
    take.choice = make("input", { type: "radio", name: group, value: key, onchange: () => this.hear(key) });
    take.name = make("span", { class: "name" });
    take.midi = make("a", { download: true }, "MIDI");
    take.wav = make("a", { download: true }, "WAV");
    take.canvas = new PianoRoll((seconds) => this.seek(seconds));
    take.legend = make("ul", { class: "legend", "aria-label": `Instruments of ${title}; press one to mute it` });
    take.element = make("div", { class: alone ? "take alone" : "take", "data-take": key, hidden: true },
      make("div", {}, make("label", {}, take.choice, title), take.name, take.midi, take.wav),
      take.canvas.element, take.legend);
    this.takes.set(key, take);
    this.element.append(take.element);
  }

  // Show a roll from the server.
  show(key, roll) {
    const take = this.takes.get(key);
    const muted = new Set(take.roll?.tracks.filter((_, i) => take.muted.has(i)).map((track) => track.program));
    take.roll = roll;
    take.muted = new Set([...roll.tracks.keys()].filter((i) => muted.has(roll.tracks[i].program)));
    take.element.hidden = false;
    take.element.classList.remove("stale");
    take.name.textContent = roll.name;
    take.midi.href = `/api/music/${roll.id}.mid`;
    take.midi.setAttribute("aria-label", `Download ${take.title} as MIDI`);
    take.wav.setAttribute("aria-label", `Download ${take.title} as WAV`);
    this.legend(take, key);
    this.place.max = this.seconds;
    for (const other of this.takes.values()) {
      if (other.roll) other.canvas.show(other.roll, other.title, this.seconds, other.muted);
    }
    if (key === this.heard) this.source();
    this.tick();
  }

  // Grey out the old result until the next one arrives.
  stale(key) {
    this.takes.get(key).element.classList.add("stale");
  }

  legend(take, key) {
    take.legend.replaceChildren(...take.roll.tracks.map((track, i) => {
      const dot = make("i");
      dot.style.background = tint(track.colour);
      return make("li", {}, make("button", { type: "button", "aria-pressed": take.muted.has(i), title: "mute", onclick: (event) => {
        take.muted.has(i) ? take.muted.delete(i) : take.muted.add(i);
        event.currentTarget.setAttribute("aria-pressed", take.muted.has(i));
        take.canvas.draw();
        take.wav.href = this.url(take);
        if (key === this.heard) this.source();
      } }, dot, track.name));
    }));
    take.wav.href = this.url(take);
  }

  get seconds() {
    return Math.max(0.1, ...[...this.takes.values()].map((take) => take.roll?.seconds ?? 0));
  }

  url(take, small = false) {
    const asked = [...take.muted].sort((a, b) => a - b).map((i) => `mute=${i}`).concat(small ? ["small=1"] : []);
    return `/api/music/${take.roll.id}.wav${asked.length ? `?${asked.join("&")}` : ""}`;
  }

  hear(key) {
    this.heard = key;
    this.source();
    this.tick();
  }

  // Load the sound of the audible take, and continue from the same position.
  source() {
    const take = this.takes.get(this.heard);
    take.choice.checked = true;
    for (const other of this.takes.values()) other.element.classList.toggle("heard", other === take && this.takes.size > 1);
    if (!take.roll || this.audio.getAttribute("src") === this.url(take, true)) return;
    const [at, playing] = [this.at, !this.audio.paused];
    this.audio.src = this.url(take, true);
    this.wanted = at;
    if (playing) this.start();
  }

  get at() {
    return this.wanted ?? this.audio.currentTime;
  }

  start() {
    const done = busy("sound", "rendering the sound", () => this.stop());
    this.audio.play().then(() => this.run()).catch((error) => { if (error.name !== "AbortError") this.failed(); }).finally(done);
  }

  toggle() {
    if (this.audio.paused) this.start();
    else this.audio.pause();
  }

  stop() {
    this.audio.pause();
    this.seek(0);
  }

  seek(seconds) {
    if (this.audio.readyState) this.audio.currentTime = seconds;
    else this.wanted = seconds;
    this.tick();
  }

  async failed() {
    if (!this.audio.getAttribute("src")) return;
    const response = await fetch(this.audio.src).catch(() => null);
    if (response?.ok) return;
    const told = response ? (await response.json().catch(() => ({}))).error : null;
    complain(new Error(told ?? "the sound cannot be played"));
  }

  run() {
    this.tick();
    if (!this.audio.paused) requestAnimationFrame(() => this.run());
  }

  tick() {
    const playing = !this.audio.paused && !this.audio.ended;
    const at = Math.min(this.at || 0, this.seconds);
    this.play.textContent = playing ? "Pause" : "Play";
    this.clock.textContent = `${clock(at)} / ${clock(this.seconds)}`;
    this.place.value = at;
    this.place.setAttribute("aria-valuetext", `${clock(at)} of ${clock(this.seconds)}`);
    for (const take of this.takes.values()) take.canvas.move(at > 0 || playing ? at : null);
  }
}
