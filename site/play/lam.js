// A latent action model of the playground: two small transformers, computed with plain loops.
//
//   const lam = Lam.open(packed);                  what site/play.py packs
//   const { z, codes, before } = lam.encode(a, b)  frames (3, S, S) in [0, 1]
//   const frame = lam.decode(a, z)                 in units of [0, 1], not clipped
//
// All numbers are float64. A block of tokens (n, width) lies in one array, row by row.
globalThis.Lam = (() => {
  // --- numbers -------------------------------------------------------------------------------

  function bytesOf(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  }

  // A tensor as float64. Matrices of weights get a multiple of four rows; the new ones are zero.
  function unpack(entry, buffer) {
    const [rows, ...rest] = entry.shape.length ? entry.shape : [1];
    const columns = rest.reduce((a, b) => a * b, 1);
    const count = rows * columns;
    if (entry.bits === 32) return Float64Array.from(new Float32Array(buffer, entry.at, count));
    const unit = new Float32Array(buffer, entry.at, rows);
    const upper = new Int16Array(buffer, entry.at + 4 * rows, count);
    const lower = entry.bits === 24 ? new Uint8Array(buffer, entry.at + 4 * rows + 2 * count, count) : null;
    const out = new Float64Array(fours(rows) * columns);
    for (let i = 0; i < count; i++) {
      const whole = lower ? 256 * upper[i] + lower[i] : upper[i];
      out[i] = whole * unit[Math.floor(i / columns)];
    }
    return out;
  }

  const fours = (n) => 4 * Math.ceil(n / 4);

  // Abramowitz and Stegun 7.1.26 is not exact enough; this is erfc by Chebyshev, to 1.2e-7.
  const ERFC = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807,
    -1.13520398, 1.48851587, -0.82215223, 0.17087277];

  function erf(x) {
    const a = Math.abs(x);
    const t = 1 / (1 + a / 2);
    let sum = 0;
    for (let i = ERFC.length - 1; i >= 0; i--) sum = sum * t + ERFC[i];
    const tail = t * Math.exp(-a * a + sum);
    return x < 0 ? tail - 1 : 1 - tail;
  }

  // --- layers --------------------------------------------------------------------------------

  // y = x W^T + b, for x (n, columns) and W (rows, columns): four by four, what is left one by four.
  function linear(x, n, { weight, bias, rows, columns }) {
    const width = fours(rows);
    const y = new Float64Array(n * width);
    const whole = n - (n % 4);
    for (let o = 0; o < width; o += 4) {
      for (let i = 0; i < whole; i += 4) four(x, i * columns, weight, o * columns, columns, y, i * width + o, width);
      for (let i = whole; i < n; i++) one(x, i * columns, weight, o * columns, columns, y, i * width + o);
    }
    if (bias) for (let i = 0; i < n; i++) for (let o = 0; o < rows; o++) y[i * width + o] += bias[o];
    return y;
  }

  function one(x, p, w, q, d, y, at) {
    let a0 = 0, a1 = 0, a2 = 0, a3 = 0;
    for (let k = 0; k < d; k++) {
      const x0 = x[p + k];
      a0 += x0 * w[q + k]; a1 += x0 * w[q + d + k]; a2 += x0 * w[q + 2 * d + k]; a3 += x0 * w[q + 3 * d + k];
    }
    y[at] = a0; y[at + 1] = a1; y[at + 2] = a2; y[at + 3] = a3;
  }

  function four(x, p, w, q, d, y, at, width) {
    let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
    let c0 = 0, c1 = 0, c2 = 0, c3 = 0, d0 = 0, d1 = 0, d2 = 0, d3 = 0;
    for (let k = 0; k < d; k++) {
      const x0 = x[p + k], x1 = x[p + d + k], x2 = x[p + 2 * d + k], x3 = x[p + 3 * d + k];
      const w0 = w[q + k], w1 = w[q + d + k], w2 = w[q + 2 * d + k], w3 = w[q + 3 * d + k];
      a0 += x0 * w0; a1 += x0 * w1; a2 += x0 * w2; a3 += x0 * w3;
      b0 += x1 * w0; b1 += x1 * w1; b2 += x1 * w2; b3 += x1 * w3;
      c0 += x2 * w0; c1 += x2 * w1; c2 += x2 * w2; c3 += x2 * w3;
      d0 += x3 * w0; d1 += x3 * w1; d2 += x3 * w2; d3 += x3 * w3;
    }
    y[at] = a0; y[at + 1] = a1; y[at + 2] = a2; y[at + 3] = a3; at += width;
    y[at] = b0; y[at + 1] = b1; y[at + 2] = b2; y[at + 3] = b3; at += width;
    y[at] = c0; y[at + 1] = c1; y[at + 2] = c2; y[at + 3] = c3; at += width;
    y[at] = d0; y[at + 1] = d1; y[at + 2] = d2; y[at + 3] = d3;
  }

  function layerNorm(x, n, { weight, bias, eps }) {
    const d = weight.length;
    const y = new Float64Array(n * d);
    for (let i = 0; i < n; i++) {
      let mean = 0, square = 0;
      for (let k = 0; k < d; k++) mean += x[i * d + k] / d;
      for (let k = 0; k < d; k++) square += (x[i * d + k] - mean) ** 2 / d;
      const scale = 1 / Math.sqrt(square + eps);
      for (let k = 0; k < d; k++) y[i * d + k] = (x[i * d + k] - mean) * scale * weight[k] + bias[k];
    }
    return y;
  }

  // Attention of the first `keep` tokens to all n, from q, k and v side by side (n, 3 * width).
  function attention(qkv, n, keep, width, heads) {
    const d = width / heads;
    const out = new Float64Array(keep * width);
    const share = new Float64Array(n);
    for (let h = 0; h < heads; h++) {
      for (let i = 0; i < keep; i++) {
        const q = i * 3 * width + h * d;
        let top = -Infinity, total = 0;
        for (let j = 0; j < n; j++) {
          const k = j * 3 * width + width + h * d;
          let dot = 0;
          for (let c = 0; c < d; c++) dot += qkv[q + c] * qkv[k + c];
          share[j] = dot / Math.sqrt(d);
          if (share[j] > top) top = share[j];
        }
        for (let j = 0; j < n; j++) total += share[j] = Math.exp(share[j] - top);
        for (let j = 0; j < n; j++) {
          const v = j * 3 * width + 2 * width + h * d;
          const part = share[j] / total;
          for (let c = 0; c < d; c++) out[i * width + h * d + c] += part * qkv[v + c];
        }
      }
    }
    return out;
  }

  // One pre-norm block; only the first `keep` tokens are needed behind it.
  function block(x, n, keep, layers, heads) {
    const width = layers.norm1.weight.length;
    const qkv = linear(layerNorm(x, n, layers.norm1), n, layers.qkv);
    const seen = linear(attention(qkv, n, keep, width, heads), keep, layers.proj);
    const y = new Float64Array(keep * width);
    for (let i = 0; i < keep * width; i++) y[i] = x[i] + seen[i];
    const inner = linear(layerNorm(y, keep, layers.norm2), keep, layers.fc1);
    for (let i = 0; i < inner.length; i++) inner[i] = 0.5 * inner[i] * (1 + erf(inner[i] / Math.SQRT2));
    const change = linear(inner, keep, layers.fc2);
    for (let i = 0; i < keep * width; i++) y[i] += change[i];
    return y;
  }

  // --- a transformer of the model ------------------------------------------------------------

  function transformer(packed, tensors, part, heads) {
    const shapes = Object.fromEntries(packed.tensors.map((t) => [t.name, t.shape]));
    const get = (name) => tensors[`${part}.${name}`];
    const dense = (name) => {
      const [rows, columns] = shapes[`${part}.${name}.weight`];
      return { weight: get(`${name}.weight`), bias: get(`${name}.bias`), rows, columns };
    };
    const norm = (name) => {
      return { weight: get(`${name}.weight`), bias: get(`${name}.bias`), eps: packed.eps[`${part}.${name}`] };
    };
    const blocks = [];
    for (let i = 0; get(`blocks.${i}.norm1.weight`); i++) {
      const at = `blocks.${i}`;
      blocks.push({
        norm1: norm(`${at}.norm1`), norm2: norm(`${at}.norm2`), qkv: dense(`${at}.attn.qkv`),
        proj: dense(`${at}.attn.proj`), fc1: dense(`${at}.mlp.fc1`), fc2: dense(`${at}.mlp.fc2`),
      });
    }
    const embed = dense("embed.project");
    const width = embed.rows;

    // Patches of a normalized frame as tokens, with their positions.
    function look(o) {
      const p = packed.patchSize, size = packed.imageSize, side = size / p, n = side * side;
      const patches = new Float64Array(n * embed.columns);
      for (let i = 0; i < o.length; i++) {
        const c = Math.floor(i / (size * size)), row = Math.floor(i / size) % size, column = i % size;
        const patch = Math.floor(row / p) * side + Math.floor(column / p);
        patches[patch * embed.columns + c * p * p + (row % p) * p + (column % p)] = o[i];
      }
      const x = linear(patches, n, embed);
      const positions = get("embed.positions");
      for (let i = 0; i < n * width; i++) x[i] += positions[i];
      return x;
    }

    // What the blocks make of a list of tokens, of which the first `keep` are read.
    function think(lists, keep) {
      const n = lists.reduce((sum, list) => sum + list.length, 0) / width;
      let x = new Float64Array(n * width);
      let at = 0;
      for (const list of lists) {
        x.set(list, at);
        at += list.length;
      }
      blocks.forEach((layers, i) => {
        x = block(x, n, i === blocks.length - 1 ? keep : n, layers, heads);
      });
      return layerNorm(x, keep, norm("norm"));
    }

    return { get, dense, width, look, think };
  }

  // --- the model -----------------------------------------------------------------------------

  // A function of a frame, computed once for each.
  function once(f) {
    const known = new WeakMap();
    return (o) => {
      if (!known.has(o)) known.set(o, f(o));
      return known.get(o);
    };
  }

  const added = (x, shift) => x.map((value, i) => value + shift[i % shift.length]);

  function open(packed) {
    const buffer = bytesOf(packed.data).buffer;
    const tensors = Object.fromEntries(packed.tensors.map((t) => [t.name, unpack(t, buffer)]));
    const eye = transformer(packed, tensors, "read", packed.readHeads);
    const hand = transformer(packed, tensors, "write", packed.writeHeads);
    const { tokens, codeDim, imageSize: size, patchSize: p } = packed;
    const [offset, gain, book] = ["offset", "gain", "codes"].map((name) => tensors[`channel.${name}`]);

    const normalized = once((o) => o.map((value, i) => {
      const c = Math.floor(i / (size * size));
      return (value - packed.mean[c]) / packed.std[c];
    }));
    const read = once((o) => eye.look(normalized(o))), begun = once((o) => hand.look(normalized(o)));

    function readTokens(lists) {
      const made = linear(eye.think([eye.get("query"), ...lists], tokens), tokens, eye.dense("read"));
      const out = new Float64Array(tokens * codeDim); // without the columns that pad
      for (let i = 0; i < out.length; i++) out[i] = made[Math.floor(i / codeDim) * fours(codeDim) + (i % codeDim)];
      return out;
    }

    function latents(a, b) {
      if (packed.family === "potential") {
        const from = readTokens([read(a)]), to = readTokens([read(b)]);
        return to.map((value, i) => value - from[i]);
      }
      const frame = eye.get("frame");
      return readTokens([
        added(read(a), frame.subarray(0, eye.width)),
        added(read(b), frame.subarray(eye.width)),
      ]);
    }

    function nearest(x, token) {
      const codes = book.length / codeDim / tokens;
      let best = 0, least = Infinity;
      for (let k = 0; k < codes; k++) {
        let far = 0;
        for (let c = 0; c < codeDim; c++) far += (x[token * codeDim + c] - book[(token * codes + k) * codeDim + c]) ** 2;
        if (far < least) [best, least] = [k, far];
      }
      return best;
    }

    function encode(a, b) {
      const before = latents(a, b).map((value, i) => offset[i] + gain[i] * value);
      if (!book) return { z: before, codes: null, before };
      const codes = Array.from({ length: tokens }, (_, n) => nearest(before, n));
      const each = book.length / tokens;
      const z = before.map((_, i) => {
        const n = Math.floor(i / codeDim);
        return book[n * each + codes[n] * codeDim + (i % codeDim)];
      });
      return { z, codes, before };
    }

    function decode(a, z) {
      const token = linear(z, 1, hand.dense("act"));
      const n = (size / p) ** 2;
      const seen = hand.think([token, begun(a)], n + 1).subarray(hand.width);
      const paint = linear(seen, n, hand.dense("paint"));
      const side = size / p, per = 3 * p * p;
      return normalized(a).map((value, i) => {
        const c = Math.floor(i / (size * size)), row = Math.floor(i / size) % size, column = i % size;
        const patch = Math.floor(row / p) * side + Math.floor(column / p);
        const change = paint[patch * fours(per) + c * p * p + (row % p) * p + (column % p)];
        return (packed.residual ? value + change : change) * packed.std[c] + packed.mean[c];
      });
    }

    return { title: packed.title, tokens, codeDim, encode, decode };
  }

  return { open, bytesOf, erf };
})();
