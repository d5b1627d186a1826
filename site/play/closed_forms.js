// Sliders on the closed forms: each part reads its sliders, computes, and draws anew.
(() => {
  const SIZES = { d_o: 128, d_a: 8, d_b: 8 };
  const DEGREE = Math.PI / 180;
  const W = 320, H = 170, LEFT = 30, BOTTOM = 22;
  const parts = {};

  // A part of the page, drawn again whenever one of its controls is moved.
  function part(id, draw) {
    const root = document.getElementById(id);
    if (!root) return;
    const find = (query) => root.querySelector(query);
    const read = () => Object.fromEntries([...root.querySelectorAll("input")].map((input) =>
      [input.name, input.type === "checkbox" ? input.checked : +input.value]));
    const show = () => {
      const values = read();
      for (const input of root.querySelectorAll("input[type=range]")) {
        const shown = input.parentElement.querySelector("output");
        shown.textContent = (+input.value).toFixed(input.dataset.digits ?? 2) + (input.dataset.unit ?? "");
      }
      parts[id] = draw(find, values);
    };
    root.addEventListener("input", show);
    show();
  }

  // --- axes ------------------------------------------------------------------------------------

  const across = (x, [low, high]) => LEFT + ((x - low) / (high - low)) * (W - LEFT - 6);
  const up = (y, [low, high]) => H - BOTTOM - ((y - low) / (high - low)) * (H - BOTTOM - 10);

  function axes(xs, ys, words, [high, low] = [ys[1], ys[0]]) {
    const base = H - BOTTOM;
    return `<line class="axis" x1="${LEFT}" x2="${W}" y1="${base}" y2="${base}"></line>` +
      `<text x="${W}" y="${H - 4}" text-anchor="end">${words}</text>` +
      `<text x="${LEFT}" y="${H - 4}">${xs[0]}</text>` +
      `<text x="${LEFT - 4}" y="${up(high, ys) + 4}" text-anchor="end">${+high.toPrecision(2)}</text>` +
      `<text x="${LEFT - 4}" y="${base + 3}" text-anchor="end">${+low.toPrecision(2)}</text>`;
  }

  function curve(points, xs, ys, kind = "") {
    const d = points.map(([x, y], n) => `${n ? "L" : "M"}${across(x, xs).toFixed(1)} ${up(y, ys).toFixed(1)}`).join("");
    return `<path class="line ${kind}" d="${d}"></path>`;
  }

  const spot = (x, y, xs, ys) => `<circle class="up" cx="${across(x, xs)}" cy="${up(y, ys)}" r="4"></circle>`;

  // --- the linear model ------------------------------------------------------------------------

  const SHOWN = 24; // eigenvalues
  const KIND = { own: "up", others: "down", rest: "soft" };

  function drawSpectrum(p, d_z) {
    const values = Closed.spectrum(p).slice(0, SHOWN);
    const ys = [0, Math.max(values[0].value, 0.1)];
    const wide = (W - LEFT) / SHOWN;
    const bars = values.map(({ kind, value }, n) => {
      const y = up(value, ys);
      return `<rect class="${KIND[kind]}" opacity="${n < d_z ? 1 : 0.35}" x="${LEFT + n * wide + 1}" width="${wide - 2}" y="${y}" height="${H - BOTTOM - y}"></rect>`;
    });
    const cut = LEFT + d_z * wide;
    return axes([1, SHOWN], ys, "eigenvalues, largest first") + bars.join("") +
      `<line class="dash" x1="${cut}" x2="${cut}" y1="4" y2="${H - BOTTOM}"></line>` +
      `<text x="${cut + 3 > W - 20 ? cut - 20 : cut + 3}" y="12">d_z</text>`;
  }

  function drawSizes(p, d_z) {
    const points = Array.from({ length: SHOWN }, (_, n) => [n + 1, Closed.llo(p, n + 1).llo]);
    const xs = [1, SHOWN], ys = [0, 2];
    return axes(xs, ys, "d_z") + curve(points, xs, ys) + spot(d_z, Closed.llo(p, d_z).llo, xs, ys);
  }

  function drawAgents(p, d_z) {
    const xs = [0, 6], ys = [0, 2];
    const points = Array.from({ length: 241 }, (_, n) => n / 40).map((sigma_agents) =>
      [sigma_agents, Closed.llo({ ...p, sigma_agents }, d_z).llo]);
    const edge = Closed.threshold(p);
    const line = edge <= xs[1] ? `<line class="dash" x1="${across(edge, xs)}" x2="${across(edge, xs)}" y1="4" y2="${H - BOTTOM}"></line>` : "";
    return axes(xs, ys, "strength of the other agents") + line + curve(points, xs, ys) +
      spot(p.sigma_agents, Closed.llo(p, d_z).llo, xs, ys);
  }

  part("play-linear", (find, { d_z, plain, ...values }) => {
    const p = { ...SIZES, ...values, plain, share: plain ? 0 : values.share };
    find("[name=share]").disabled = plain;
    find(".spectrum").innerHTML = drawSpectrum(p, d_z);
    find(".sizes").innerHTML = drawSizes(p, d_z);
    find(".agents").innerHTML = drawAgents(p, d_z);
    const found = Closed.llo(p, d_z);
    const edge = Closed.threshold(p);
    find(".play-says").textContent = `LLO ${found.llo.toFixed(3)}: the latent misses ${percent(found.nmse_a)} of the action, ` +
      `${percent(found.nmse_eps)} of the noise and ${percent(found.nmse_o)} of the frame. It keeps ${found.kept.own} of our directions, ` +
      `${found.kept.others} of the others' and ${found.kept.rest} of the rest. The others come first from a strength of ${edge.toFixed(2)}` +
      `${plain ? "" : ` (λ = ${Closed.lambda(p).toFixed(2)})`}.`;
    return { p, d_z, ...found, edge };
  });

  function percent(x) {
    return `${(100 * x).toFixed(1)} %`;
  }

  // --- the shift family ------------------------------------------------------------------------

  const NOISE = 0.2; // standard deviation in each of two coordinates
  let seed = 1;
  const uniform = () => (seed = (48271 * seed) % 2147483647) / 2147483647;
  const gauss = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  const samples = Array.from({ length: 240 }, () => {
    const o = [gauss(), gauss()], a = gauss();
    return { o, a, next: [o[0] + a + NOISE * gauss(), o[1] + NOISE * gauss()] };
  });
  const best = { A: [[1, 0], [0, 1]], B: [[1], [0]], C: [[-1, 0]], D: [[1, 0]] };

  function cloud(points, words) {
    const range = [-6, 6];
    const dots = points.map(([x, y]) => `<circle class="up" opacity=".55" r="1.8" cx="${across(x, range).toFixed(1)}" cy="${up(y, range).toFixed(1)}"></circle>`);
    return axes(range, range, words) + dots.join("");
  }

  part("play-shift", (find, { t, angle }) => {
    const r = [Math.cos(angle * DEGREE), Math.sin(angle * DEGREE)];
    const T = [r.map((x) => t * x)];
    const model = Closed.shift(best, T);
    const z = samples.map(({ o, next }) => Closed.encode(model, o, next)[0]);
    find(".action").innerHTML = cloud(samples.map(({ a }, n) => [a, z[n]]), "action");
    find(".frame").innerHTML = cloud(samples.map(({ o }, n) => [r[0] * o[0] + r[1] * o[1], z[n]]), "frame, along the shift");
    const loss = Closed.sampleLoss(model, samples);
    const share = Closed.frameShare(t, 1, NOISE);
    find(".play-says").textContent = `Loss ${loss.toFixed(6)}. Of the latent's variance, ${percent(share)} is frame.`;
    return { T, model, samples, z, loss, share };
  });

  // --- two rotations ---------------------------------------------------------------------------

  const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => [n & 1, (n >> 1) & 1, n >> 2].map((bit) => 2 * bit - 1));
  const EDGES = CORNERS.flatMap((_, n) => [1, 2, 4].filter((bit) => !(n & bit)).map((bit) => [n, n + bit]));

  // Drawn from a point above and to the side.
  function flat([x, y, z]) {
    return [H + 42 * (0.86 * x - 0.5 * y), H / 2 - 34 * (0.25 * x + 0.43 * y + 0.87 * z)];
  }

  function cube(turn, kind) {
    const at = CORNERS.map((corner) => flat(Closed.turned(turn, corner)));
    const lines = EDGES.map(([n, m]) => `M${at[n].map((x) => x.toFixed(1))}L${at[m].map((x) => x.toFixed(1))}`);
    const mark = `<circle class="${kind === "other" ? "down" : "up"}" cx="${at[7][0]}" cy="${at[7][1]}" r="4"></circle>`;
    return `<path class="line ${kind}" d="${lines.join("")}"></path>${mark}`;
  }

  part("play-bch", (find, { first, second, between }) => {
    const a = [first * DEGREE, 0, 0];
    const b = [Math.cos(between * DEGREE), Math.sin(between * DEGREE), 0].map((x) => second * DEGREE * x);
    find(".cubes").innerHTML = cube(Closed.composed(a, b), "") + cube(a.map((x, n) => x + b[n]), "other");
    const xs = [0, 180];
    const points = Array.from({ length: 91 }, (_, n) => 2 * n).map((angle) => {
      const other = [Math.cos(angle * DEGREE), Math.sin(angle * DEGREE), 0].map((x) => second * DEGREE * x);
      return [angle, Closed.bchError(a, other) / DEGREE, Closed.commutator(a, other) / DEGREE];
    });
    const ys = [0, Math.max(1, ...points.map(([, x, y]) => Math.max(x, y)))];
    const error = Closed.bchError(a, b) / DEGREE, half = Closed.commutator(a, b) / DEGREE;
    find(".error").innerHTML = axes(xs, ys, "degrees between the axes") + curve(points, xs, ys) +
      curve(points.map(([x, , y]) => [x, y]), xs, ys, "other") + spot(between, error, xs, ys);
    find(".play-says").textContent = `Adding is wrong by ${error.toFixed(2)}°; half the commutator says ${half.toFixed(2)}°.`;
    return { a, b, error, half };
  });

  globalThis.closedForms = parts; // for the console: what each part has computed
})();
