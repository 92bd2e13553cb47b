// A pair, opened: both sides' images, the distance in words, by stage and layer, and the neurons.

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
  const rows = await layerRows(i, j);
  for (const [side, kind] of [
    [i, "first-name"],
    [j, "second-name"],
  ]) {
    const named = make("p", null, { class: `${kind} side` }, body);
    datasetName(DATA.names[side], DATA.dataset_pages[side], named);
    const { samples, notes } = DATA.datasets[side];
    if (samples.length) photos(samples, body);
    else make("p", notes[0] ?? "no images", { class: "quiet" }, body);
  }
  for (const text of inWords(i, j)) make("p", text, { class: "words" }, body);
  stages(rows, body);
  explanation(i, j, body);
  profile(rows, body);
  make("h3", "Neurons that differ most", {}, body);
  if (verdict(view.layer, i, j) === "alike")
    make("p", "The pair is not told apart here: they may differ by chance.", { class: "quiet" }, body);
  neurons(i, j, body);
  const every = make("details", null, {}, body);
  make("summary", "All numbers of this pair", {}, every);
  factList(facts(view.layer, i, j), every);
  folding("figures", every);
  if (state.open !== mine) return; // another was opened meanwhile
  $("pair-title").textContent = `${DATA.names[i]} and ${DATA.names[j]}, ${titleName(view.plane)}`;
  $("pair-body").replaceChildren(body);
  showChosen();
  if (go) {
    $("pair").focus({ preventScroll: true });
    $("pair").scrollIntoView({ block: "nearest" });
  }
}

const columnOfRows = () => (columnShown() === "emd_corrected" ? "emd" : columnShown());

// The distance of the pair in each layer, as the quantity that is chosen, and as the corrected distance.
async function layerRows(i, j) {
  const { planes } = view.matrix;
  const scale = state.quantity === "emd_range" ? 1 / DATA.bins : 1;
  const emd = ["emd", "emd_range", "emd_corrected"].includes(state.quantity);
  const rows = await Promise.all(
    planes.map(async (plane, index) => {
      const read = async (column) => at(await numbers(state.matrix, column, index), i, j);
      const columns = ["low", "high", "emd_corrected", "q", "emd"];
      const [low, high, corrected, q, distance] = await Promise.all(columns.map(read));
      const barred = emd && [low, high, corrected].every(Number.isFinite);
      const known = emd && Number.isFinite(corrected);
      const value = known ? corrected : emd ? distance : await read(columnShown());
      return {
        plane,
        index,
        known,
        value: value * scale,
        low: barred ? low * scale : NaN,
        high: high * scale,
        bins: { distance: Number.isFinite(corrected) ? corrected : distance, low, high, q },
      };
    }),
  );
  // Among many layers one is below the rate by chance, so each must be as much clearer (Bonferroni).
  const tested = rows.filter((row) => row.plane !== ALL && Number.isFinite(row.bins.q)).length;
  return rows.map((row) => {
    const rate = row.plane === ALL ? state.rate : state.rate / tested;
    return { ...row, rate, alike: row.bins.q >= rate };
  });
}

// What differs, by stage of the network.
function stages(rows, parent) {
  const layers = rows
    .filter((row) => row.plane !== ALL)
    .map((row) => ({ stage: view.matrix.stages[row.index], rate: row.rate, ...row.bins }));
  drawStages(stageMeans(layers), Math.min(480, $("pair-body").clientWidth || 440), parent);
}

// The command that writes the explanation of the pair: which neurons differ, and on which images.
function explanation(i, j, parent) {
  explanationLink(i, j, parent);
  if (!DATA.rankings.some((of) => of.dataset === i || of.dataset === j)) return;
  make("h3", "Which images are near", {}, parent);
  rankingLinks([i, j], parent);
}

function explanationLink(i, j, parent) {
  const { lens, through } = matrixNow();
  const any = DATA.pair_pages && `${DATA.pair_pages}${i}-${j}.html`;
  const page = through ? undefined : (DATA.explained[`${i}-${j}`] ?? any);
  if (page) {
    make("h3", "Why they differ", {}, parent);
    make(
      "a",
      "The neurons that differ, and the images that they react to",
      { href: page },
      make("p", null, {}, parent),
    );
    return;
  }
  if (!DATA.snapshot.length) return;
  const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);
  const words = [
    "vdna",
    "explain",
    DATA.names[i],
    DATA.names[j],
    ...(through ? ["--lens", lens] : []),
    ...DATA.snapshot,
    "--html",
    "why.html",
  ];
  make("h3", "Why they differ", {}, parent);
  make(
    "p",
    "This command writes a page with the neurons that differ, and the images that they react to:",
    { class: "quiet" },
    parent,
  );
  make("code", words.map(quoted).join(" "), { class: "command", tabindex: 0 }, parent);
}

function profile(rows, parent) {
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
        : leftOut(columnOfRows(), row.plane)
          ? "not on this page"
          : "not defined",
    })),
    Math.min(480, $("pair-body").clientWidth || 440),
    parent,
  );
  make(
    "p",
    corrected
      ? `Corrected for the sizes of the samples${barred ? ", with 95% intervals" : ""}${rows.some(plain) ? "; plain: not corrected, as the correction of that layer is not on this page" : ""}; hollow: not told apart, as so many layers are tested at once.`
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
  return `${first} [95% interval]; tested over all neurons of the pair.`;
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
    const symbol = state.symbols ? ` (q ${short(neuron.q)})` : "";
    const q = tested ? `, ${alike ? "not told apart" : "told apart"}${symbol}` : "";
    if (alike) figure.classList.add("alike");
    make(
      "figcaption",
      `${neuron.layer}, neuron ${neuron.neuron}: ${told(value)} bins${interval}${weight}${q}`,
      {},
      figure,
    );
    histogram(neuron, `Histograms of ${neuron.layer}, neuron ${neuron.neuron}`, figure);
  }
}
