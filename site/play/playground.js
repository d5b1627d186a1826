// The playground: its controls, the latents of three models, and the frames that they lead to.
(() => {
  const root = document.getElementById("play-lam");
  if (!root) return;
  const NAMES = ["ac_lam_cpu", "no_ac_cpu", "potential_lam_cpu"];
  const WAYS = [["z_ij", "<i>z</i><sub>ij</sub>"], ["z_ik", "<i>z</i><sub>ik</sub>"],
    ["z_ij + z_jk", "<i>z</i><sub>ij</sub> + <i>z</i><sub>jk</sub>"]];
  const TALLEST = 4; // a bar of this length fills its half; latents have a spread of 1
  const { episodes, shots, side, data } = PLAY.frames;
  const PIXELS = 3 * side * side;
  const bytes = Lam.bytesOf(data);
  const state = { film: 0, i: 0, j: 4, k: 8, scale: 1, start: "i" }; // start: i, j, k, or the number of a film
  const find = (query) => root.querySelector(query);

  // --- what is computed ------------------------------------------------------------------------

  const frames = new Map();
  function frame(film, shot) {
    const key = film * shots + shot;
    if (!frames.has(key)) {
      const part = bytes.subarray(key * PIXELS, (key + 1) * PIXELS);
      frames.set(key, Float64Array.from(part, (value) => value / 255));
    }
    return frames.get(key);
  }

  const latents = new Map();
  function latent(name, from, to) {
    const key = [name, state.film, from, to].join();
    if (!latents.has(key)) latents.set(key, models[name].encode(frame(state.film, from), frame(state.film, to)));
    return latents.get(key);
  }

  const sum = (a, b, weight = 1) => a.map((value, n) => value + weight * b[n]);
  const square = (x) => x.reduce((total, value) => total + value * value, 0);

  function compute(name) {
    const { i, j, k, scale, start } = state;
    const [ij, jk, ik] = [latent(name, i, j), latent(name, j, k), latent(name, i, k)];
    const into = start in state ? frame(state.film, state[start]) : frame(+start, 0);
    const both = sum(ij.z, jk.z);
    const scaled = [ij.z, ik.z, both].map((z) => z.map((value) => scale * value));
    const pictures = scaled.map((z) => models[name].decode(into, z));
    return {
      scaled, pictures,
      codes: { ij: ij.codes, jk: jk.codes, ik: ik.codes },
      additivity: square(sum(ik.z, both, -1)) / square(ij.z),
      apart: square(sum(pictures[1], pictures[2], -1)) / square(sum(frame(state.film, i), frame(state.film, k), -1)),
    };
  }

  // --- what is drawn ---------------------------------------------------------------------------

  function paint(canvas, picture) {
    const image = new ImageData(side, side);
    for (let n = 0; n < side * side; n++) {
      for (let c = 0; c < 3; c++) image.data[4 * n + c] = Math.round(255 * picture[c * side * side + n]);
      image.data[4 * n + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function bars(svg, z) {
    svg.querySelectorAll("rect").forEach((rect, n) => {
      const tall = 20 * Math.min(1, Math.abs(z[n]) / TALLEST);
      rect.setAttribute("y", z[n] > 0 ? 20 - tall : 20);
      rect.setAttribute("height", tall);
      rect.setAttribute("class", z[n] > 0 ? "up" : "down");
    });
  }

  const short = (x) => (Number.isFinite(x) ? (x < 1e-6 ? "0" : x.toPrecision(2)) : "not defined");

  function show() {
    const began = performance.now();
    for (const way of ["i", "j", "k"]) {
      paint(find(`[data-frame=${way}] canvas`), frame(state.film, state[way]));
      find(`[data-frame=${way}] output`).textContent = state[way];
      find(`[data-frame=${way}] input`).value = state[way];
    }
    find("#play-scale-shown").textContent = state.scale.toFixed(2);
    for (const name of NAMES) {
      const result = (playground.shown[name] = compute(name));
      const box = find(`[data-model=${name}]`);
      box.querySelectorAll("canvas").forEach((canvas, n) => paint(canvas, result.pictures[n]));
      box.querySelectorAll("svg").forEach((svg, n) => bars(svg, result.scaled[n]));
      box.querySelector("p").textContent =
        `Additivity ${short(result.additivity)}. Pictures apart ${short(result.apart)}.`;
      if (result.codes.ij) box.querySelector("code").textContent = codes(result.codes);
    }
    playground.milliseconds = performance.now() - began;
    find(".play-time").textContent = `Computed and drawn in ${playground.milliseconds.toFixed(0)} ms.`;
  }

  function codes(chosen) {
    const row = (name) => `${name}  ${chosen[name].map((n) => String(n).padStart(2)).join(" ")}`;
    return ["ij", "jk", "ik"].map(row).join("\n");
  }

  // --- the page --------------------------------------------------------------------------------

  const canvas = (label) => `<canvas width="${side}" height="${side}" role="img" aria-label="${label}"></canvas>`;

  function bar(n) {
    return `<rect x="${4 * n + 0.5}" width="3" y="20" height="0"></rect>`;
  }

  function fill() {
    for (let film = 0; film < episodes; film++) {
      const checked = film === state.film ? "checked" : "";
      find(".play-films").insertAdjacentHTML("beforeend",
        `<label><input type="radio" name="film" value="${film}" ${checked}> ${film + 1}</label>`);
      find("#play-start").insertAdjacentHTML("beforeend",
        `<option value="${film}">the first frame of film ${film + 1}</option>`);
    }
    const own = ["i", "j", "k"].map((way) => `<option value="${way}">frame ${way}</option>`);
    find("#play-start").insertAdjacentHTML("afterbegin", own.join(""));
    find("#play-start").value = state.start;
    find(".play-frames").innerHTML = ["i", "j", "k"].map((way) =>
      `<figure data-frame="${way}">${canvas(`frame ${way} of the film`)}<figcaption><label>frame <i>${way}</i>: ` +
      `<output>${state[way]}</output><input type="range" min="0" max="${shots - 1}" value="${state[way]}"></label></figcaption></figure>`,
    ).join("");
    find(".play-models").innerHTML = NAMES.map((name) =>
      `<section class="play-model" data-model="${name}"><h3>${PLAY[name].title}</h3><div>` + WAYS.map(([words, html]) =>
        `<figure>${canvas(`${PLAY[name].title}: the frame to which ${words} leads`)}<svg viewBox="0 0 128 40" role="img" aria-label="the 32 numbers of ${words}">` +
        `${Array.from({ length: 32 }, (_, n) => bar(n)).join("")}<line class="axis" x1="0" x2="128" y1="20" y2="20"></line></svg>` +
        `<figcaption><i>s</i> ${html === WAYS[2][1] ? `(${html})` : html}</figcaption></figure>`).join("") +
      `</div><p></p>${PLAY[name].family === "potential" ? "" : "<details><summary>codes of 16 tokens</summary><code></code></details>"}</section>`,
    ).join("");
  }

  function listen() {
    find(".play-films").addEventListener("change", (event) => set({ film: +event.target.value }));
    for (const way of ["i", "j", "k"]) {
      find(`[data-frame=${way}] input`).addEventListener("input", (event) => set({ [way]: +event.target.value }));
    }
    find("#play-scale").addEventListener("input", (event) => set({ scale: +event.target.value }));
    find("#play-start").addEventListener("change", (event) => set({ start: event.target.value }));
  }

  function set(change) {
    Object.assign(state, change);
    show();
  }

  const models = Object.fromEntries(NAMES.map((name) => [name, Lam.open(PLAY[name])]));
  // for the console: what is chosen, and what is shown
  globalThis.playground = { state, shown: {}, milliseconds: 0, models };
  fill();
  listen();
  show();
  for (const hidden of root.querySelectorAll("[hidden]")) hidden.hidden = false;
  find(".play-wait").remove();
})();
