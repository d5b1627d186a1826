// Closed forms of the linear model, and rotations that do not add: the formulas behind the sliders.
//
// The world of aclam.linear with other agents in directions orthogonal to ours: every eigenvector is
// of one of three kinds, ours (d_a of them), the others' (d_b) and the rest. A test holds each
// function against Python's linear algebra on a grid.
globalThis.Closed = (() => {
  // --- the linear model ------------------------------------------------------------------------

  // Variance of an action that is chi parts a function of the frame.
  const spread = ({ chi }) => (1 - chi) ** 2 + chi ** 2;

  // lambda of Proposition 4.4 for this share of labels, both losses being means over coordinates.
  const lambda = ({ d_o, d_a, share }) => (d_o / d_a) * share;

  // What an eigenvalue of ours exceeds the rest by. plain: what the frame predicts of the change
  // does not count. Otherwise C = -D: all of the change counts, and a label adds its weight.
  function lead(p) {
    if (p.plain) return p.gain * (1 - p.chi) ** 2;
    const signal = p.gain * spread(p);
    const noise = p.sigma_iid ** 2;
    return signal + (lambda(p) * signal * spread(p)) / (signal + noise);
  }

  // The three kinds of eigenvalues, largest first, each with its number.
  function kinds(p) {
    const noise = p.sigma_iid ** 2;
    const all = [
      { kind: "own", value: lead(p) + noise, count: p.d_a },
      { kind: "others", value: p.sigma_agents ** 2 + noise, count: p.d_b },
      { kind: "rest", value: noise, count: p.d_o - p.d_a - p.d_b },
    ];
    return all.sort((a, b) => b.value - a.value);
  }

  function spectrum(p) {
    return kinds(p).flatMap(({ kind, value, count }) => Array(count).fill({ kind, value }));
  }

  // The errors of the best linear readings of a, eps and o from the latent, and LLO (Eq. 6).
  function llo(p, d_z) {
    const kept = { own: 0, others: 0, rest: 0 };
    let left = d_z;
    for (const { kind, count } of kinds(p)) {
      kept[kind] = Math.min(left, count);
      left -= kept[kind];
    }
    const noise = p.sigma_iid ** 2, agents = p.sigma_agents ** 2;
    const signal = p.gain * spread(p);
    const read = signal + noise; // variance of a number of the latent that reads one of ours
    const total = noise * p.d_o + agents * p.d_b;
    const known = (kept.own * noise ** 2) / read + kept.others * (agents + noise) + kept.rest * noise;
    const nmse_a = 1 - (kept.own / p.d_a) * (signal / read);
    const nmse_o = 1 - (kept.own * p.gain * p.chi ** 2) / read / p.d_o;
    const nmse_eps = total > 0 ? 1 - known / total : 1;
    return { llo: -nmse_a + nmse_eps + nmse_o, nmse_a, nmse_eps, nmse_o, kept };
  }

  // The strength of the other agents at which their directions overtake ours.
  const threshold = (p) => Math.sqrt(lead(p));

  // --- the shift family, with explicit matrices (lists of rows) --------------------------------

  const product = (a, b) => a.map((row) => b[0].map((_, c) => row.reduce((sum, x, k) => sum + x * b[k][c], 0)));
  const plus = (a, b, weight = 1) => a.map((row, r) => row.map((x, c) => x + weight * b[r][c]));
  const apply = (m, x) => m.map((row) => row.reduce((sum, value, k) => sum + value * x[k], 0));

  const encode = (m, o, next) => apply(m.C, o).map((x, n) => x + apply(m.D, next)[n]);
  const decode = (m, o, z) => apply(m.A, o).map((x, n) => x + apply(m.B, z)[n]);

  const shift = (m, T) => ({ A: plus(m.A, product(m.B, T), -1), B: m.B, C: plus(m.C, T), D: m.D });

  // Eq. 4 on samples [{o, next}]: squared errors, summed over coordinates, averaged over samples.
  function sampleLoss(m, samples) {
    const errors = samples.map(({ o, next }) => {
      const guess = decode(m, o, encode(m, o, next));
      return guess.reduce((sum, x, n) => sum + (x - next[n]) ** 2, 0);
    });
    return errors.reduce((sum, x) => sum + x, 0) / samples.length;
  }

  // The share of a latent z = t r o + s a + noise that is frame, for a unit row r.
  const frameShare = (t, own, noise) => t ** 2 / (t ** 2 + own ** 2 + noise ** 2);

  // --- rotations -------------------------------------------------------------------------------

  const length = (v) => Math.hypot(...v);
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const dot = (a, b) => a.reduce((sum, x, n) => sum + x * b[n], 0);

  // A rotation vector (radians) as [w, [x, y, z]], a unit quaternion.
  function quaternion(v) {
    const angle = length(v);
    const scale = angle > 1e-12 ? Math.sin(angle / 2) / angle : 0.5;
    return [Math.cos(angle / 2), v.map((x) => scale * x)];
  }

  // The rotation vector of exp(a) exp(b), of length at most pi.
  function composed(a, b) {
    const [v, p] = quaternion(a), [w, q] = quaternion(b);
    const sign = v * w - dot(p, q) < 0 ? -1 : 1;
    const real = sign * (v * w - dot(p, q));
    const turn = cross(p, q).map((x, n) => sign * (x + v * q[n] + w * p[n]));
    const sine = length(turn);
    const scale = sine > 1e-12 ? (2 * Math.atan2(sine, real)) / sine : 2;
    return turn.map((x) => scale * x);
  }

  const bchError = (a, b) => length(composed(a, b).map((x, n) => x - a[n] - b[n]));
  const commutator = (a, b) => length(cross(a, b)) / 2; // the second-order term of BCH

  // A point turned by a rotation vector.
  function turned(v, x) {
    const [w, q] = quaternion(v);
    const t = cross(q, x).map((y) => 2 * y);
    return x.map((y, n) => y + w * t[n] + cross(q, t)[n]);
  }

  return { lambda, spectrum, llo, threshold, shift, encode, sampleLoss, frameShare,
    composed, bchError, commutator, turned };
})();
