// A pair, opened.

// The one to begin with: the nearest that differs, of those whose neurons are on the page. That it is
// real, and in what, is what a reader cannot see from the matrix; those far apart speak for themselves.
function telling() {
  const { layer, order } = view;
  const values = shownValues(layer);
  let best = [order[0], order[Math.min(1, SIZE - 1)]];
  let least = [Infinity, Infinity];
  for (let i = 0; i < SIZE; i++)
    for (let j = i + 1; j < SIZE; j++) {
      const value = at(values, i, j);
      if (!Number.isFinite(value)) continue;
      const lacks = (view.matrix.neurons[`${i}-${j}`] ? 0 : 2) + (verdict(layer, i, j) === "differs" ? 0 : 1);
      if (lacks > least[0] || (lacks === least[0] && value >= least[1])) continue;
      [best, least] = [
        [i, j],
        [lacks, value],
      ];
    }
  return best;
}

async function openPair(one, other, go) {
  if (one === other) return;
  const [i, j] = [Math.min(one, other), Math.max(one, other)]; // as its histograms are drawn
  const mine = (state.open = [i, j]);
  const body = document.createDocumentFragment();
  factList(facts(view.layer, i, j), body);
  await profile(i, j, body);
  make("h3", "Neurons that differ most", {}, body);
  if (verdict(view.layer, i, j) === "alike")
    make("p", "The pair is not told apart here: they may differ by chance.", { class: "quiet" }, body);
  neurons(i, j, body);
  if (state.open !== mine) return; // another was opened meanwhile
  $("pair-title").textContent = `${DATA.names[i]} and ${DATA.names[j]}, ${titleName(view.plane)}`;
  $("pair-body").replaceChildren(body);
  showChosen();
  if (go) {
    $("pair").focus({ preventScroll: true });
    $("pair").scrollIntoView({ block: "nearest" });
  }
}

async function profile(i, j, parent) {
  const { planes } = view.matrix;
  const scale = state.quantity === "emd_range" ? 1 / DATA.bins : 1;
  const emd = ["emd", "emd_range", "emd_corrected"].includes(state.quantity);
  const rows = await Promise.all(
    planes.map(async (plane, index) => {
      const read = async (column) => at(await numbers(state.matrix, column, index), i, j);
      const [low, high, corrected, q] = await Promise.all(["low", "high", "emd_corrected", "q"].map(read));
      const barred = emd && [low, high, corrected].every(Number.isFinite);
      const plain = columnShown();
      const known = emd && Number.isFinite(corrected);
      const value = known ? corrected : await read(plain);
      return {
        plane,
        index,
        known,
        value: value * scale,
        low: barred ? low * scale : NaN,
        high: high * scale,
        alike: q >= state.rate,
      };
    }),
  );
  const corrected = rows.some((row) => row.known);
  const barred = rows.some((row) => Number.isFinite(row.low));
  const plain = (row) => (corrected && !row.known && Number.isFinite(row.value) ? " plain" : "");
  const also = corrected && state.quantity !== "emd_corrected" ? ", corrected" : "";
  make("h3", `By layer: ${QUANTITIES[state.quantity]}${also}`, {}, parent);
  intervals(
    rows.map((row) => ({
      ...row,
      name: shortName(row.plane),
      here: row.index === state.plane,
      plain: plain(row),
      blank: weightless(row.plane)
        ? "no weight"
        : leftOut(columnShown(), row.plane)
          ? "not on this page"
          : "not defined",
    })),
    Math.min(480, $("pair-body").clientWidth || 440),
    parent,
  );
  make(
    "p",
    corrected
      ? `Corrected for the sizes of the samples${barred ? ", with 95% intervals" : ""}${rows.some(plain) ? "; plain: not corrected, as the correction of that layer is not on this page" : ""}; hollow: not told apart.`
      : "There are no error bars.",
    { class: "quiet" },
    parent,
  );
}

// How the neurons of a pair are ranked, and whether they are told apart: as vdna explain says it.
function rankedBy(found) {
  const corrected = found.some((neuron) => neuron.corrected);
  const distance = `${corrected ? "corrected" : "plain"} distance`;
  const first = `First those of the largest ${matrixNow().through ? `weight times ${distance}` : distance}`;
  if (!corrected) return `${first}; they are not tested.`;
  return `${first} [95% interval]; q over all neurons of the pair.`;
}

function neurons(i, j, parent) {
  const found = matrixNow().neurons[`${Math.min(i, j)}-${Math.max(i, j)}`];
  if (!found) {
    make("p", matrixNow().neurons_note, { class: "quiet" }, parent);
    return;
  }
  const [first, second] = [Math.min(i, j), Math.max(i, j)];
  pairLegend(DATA.names[first], DATA.names[second], parent);
  make(
    "p",
    `${rankedBy(found)} The share of activations in each part of a neuron's range; heights are square roots of shares.`,
    { class: "quiet" },
    parent,
  );
  const grid = make("div", null, { id: "neurons" }, parent);
  for (const neuron of found) {
    const figure = make("figure", null, {}, grid);
    const weight = matrixNow().through ? `, weight ${told(neuron.weight)}` : "";
    const [value, low, high] = neuron.corrected ?? [neuron.emd];
    const interval = neuron.corrected ? ` [${short(low)}, ${short(high)}]` : "";
    const tested = Number.isFinite(neuron.q);
    const alike = tested && neuron.q >= state.rate;
    const q = tested ? `, q ${short(neuron.q)}${alike ? ": not told apart" : ""}` : "";
    if (alike) figure.classList.add("alike");
    make(
      "figcaption",
      `${neuron.layer}, neuron ${neuron.neuron}: ${told(value)} bins${interval}${weight}${q}`,
      {},
      figure,
    );
    histogram(neuron, `${neuron.layer}, neuron ${neuron.neuron}`, figure);
  }
}
