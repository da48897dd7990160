// Music: a song, its move, and the original and the blend to see and hear.

import { $, calm, droppable, get, make, options, run, say, trying } from "./api.js";
import { Player } from "./player.js";

export function startMusic(models) {
  let piece = null; // the roll of the original
  let given = null; // its source, for opening it again with another length
  let player = null;

  const model = () => models.find((one) => one.name === $("#music-model").value);
  const kept = () => [...document.querySelectorAll("#music [name=keep]:checked")].map((box) => box.value);

  function styles() {
    const names = model()?.styles ?? [];
    const [source, target] = [$("#music-source").value, $("#music-target").value];
    options($("#music-source"), [["", "itself"], ...names], names.includes(source) ? source : "");
    options($("#music-target"), names, names.includes(target) ? target : names.at(-1));
  }

  async function open(source) {
    await trying(async () => {
      const bars = Number($("#music-bars").value);
      let found;
      if (source instanceof File) {
        const form = new FormData();
        form.append("file", source);
        form.append("bars", bars);
        form.append("tune", $("#music-tune").value || 1);
        found = await run("piece", "/api/music/pieces", form);
      } else {
        found = await run("piece", "/api/music/corpus", { name: source, bars });
      }
      [piece, given] = [found, source];
      $("#music-empty").hidden = true;
      $("#music-result").hidden = false;
      player ??= new Player($("#music-result"), { original: "Original", blend: "Blend" });
      player.show("original", piece);
      say(`opened ${piece.name}`);
      await blend();
    });
  }

  async function blend() {
    if (!piece || !model()?.styles.length) return;
    await trying(async () => {
      if (player.takes.get("blend").roll) player.stale("blend");
      const roll = await run("blend", "/api/music/blend", {
        model: model().name, piece: piece.id, source: $("#music-source").value || null, target: $("#music-target").value,
        amount: Number($("#music-amount").value), keep: kept(),
      });
      player.show("blend", roll);
      say(`blend ready, ${roll.tracks.length} instruments`);
    });
  }

  options($("#music-model"), models.map((one) => one.name), "music");
  styles();
  if (model()?.styles.includes("rock")) $("#music-target").value = "rock";
  $("#music-model").addEventListener("change", () => { styles(); blend(); });
  const soon = calm(blend);
  $("#music-amount").addEventListener("input", (event) => {
    $("#music-said").textContent = event.target.value;
    soon();
  });
  for (const id of ["#music-source", "#music-target"]) $(id).addEventListener("change", blend);
  for (const box of document.querySelectorAll("#music [name=keep]")) box.addEventListener("change", blend);
  $("#music-bars").addEventListener("change", () => given && open(given));
  $("#music-tune").addEventListener("change", () => given instanceof File && open(given));
  $("#music-file").addEventListener("change", (event) => {
    if (event.target.files.length) open(event.target.files[0]);
    event.target.value = "";
  });
  droppable($("#music"), open);
  const typed = () => { if ($("#music-corpus").value.trim()) open($("#music-corpus").value.trim()); };
  $("#music-open").addEventListener("click", typed);
  $("#music-corpus").addEventListener("change", (event) => {
    if ([...$("#corpus").options].some((option) => option.value === event.target.value)) typed();
  });
  $("#music .controls").addEventListener("submit", (event) => { event.preventDefault(); typed(); });

  trying(async () => {
    const names = await get("/api/music/corpus");
    $("#corpus").replaceChildren(...names.map((name) => make("option", { value: name })));
    const few = ["bach/bwv66.6", "joplin/maple_leaf_rag", "schubert/lindenbaum", "verdi/laDonnaEMobile"];
    $("#music-chips").replaceChildren(...few.filter((name) => names.includes(name)).map((name) =>
      make("button", { type: "button", onclick: () => { $("#music-corpus").value = name; open(name); } }, name)));
  });
}
