// What is said of a pair, and of all.

// The names of the numbers in words, and as the Parquet file and --json call them.
const WORDS = {
  emd: "distance, plain",
  emd_range: "plain distance, share of the range",
  emd_corrected: "distance, corrected",
  se: "standard error",
  floor: "noise floor",
  p: "p-value",
  q: "q-value, over all pairs",
  nfd: "Fréchet distance of neurons",
  fd: "Fréchet distance of the layer",
  verdict: "verdict",
};
const wordsOf = (column) =>
  state.symbols && column !== "verdict" ? `${WORDS[column]} (${column})` : WORDS[column];

function verdict(layer, i, j) {
  const q = i === j ? NaN : at(layer.q, i, j);
  return Number.isNaN(q) ? "untested" : q < state.rate ? "differs" : "alike";
}

const anyTested = (layer) => Boolean(layer.q && layer.q.some(Number.isFinite));

function facts(layer, i, j) {
  const value = (column) => at(layer[column], i, j);
  const found = [];
  const add = (column, text) => found.push([wordsOf(column), text]);
  if (Number.isFinite(value("emd_corrected"))) {
    const known = Number.isFinite(value("low")) && Number.isFinite(value("high"));
    const interval = known ? `, 95% interval ${told(value("low"))} to ${told(value("high"))}` : "";
    add("emd_corrected", `${told(value("emd_corrected"))} bins${interval}`);
  }
  if (Number.isFinite(value("emd"))) {
    add("emd", `${told(value("emd"))} bins`);
    add("emd_range", `${told(value("emd") / DATA.bins)} of the range`);
  } else if (leftOut("emd", view.plane)) {
    add("emd", "left out of this page for its size");
  } else {
    add(
      "emd",
      `not defined: ${weightless(view.plane) ? NO_WEIGHT : "a dataset lacks activations of some neuron"}`,
    );
  }
  for (const column of ["floor", "se", "p", "q", "nfd", "fd"])
    if (Number.isFinite(value(column)))
      add(column, `${told(value(column))}${["floor", "se"].includes(column) ? " bins" : ""}`);
  const said = verdict(layer, i, j);
  if (said === "differs") add("verdict", `differs at a false discovery rate of ${percent(state.rate)}`);
  if (said === "alike") add("verdict", `not told apart at a false discovery rate of ${percent(state.rate)}`);
  if (said === "untested" && !weightless(view.plane)) add("verdict", `not tested: ${view.matrix.no_test}`);
  return found;
}

// The distance of a pair in a few sentences.
function inWords(i, j) {
  const { layer } = view;
  const of = (column) => at(layer[column], i, j);
  const value = at(shownValues(layer), i, j);
  if (!Number.isFinite(value))
    return [
      facts(layer, i, j)
        .map((fact) => fact.join(": "))
        .join("; "),
    ];
  const corrected = Number.isFinite(of("emd_corrected"));
  const barred = corrected && Number.isFinite(of("low")) && Number.isFinite(of("high"));
  const interval = barred ? `, with a 95% interval of ${short(of("low"))} to ${short(of("high"))}` : "";
  const away = `${short(value)} bins${corrected ? "" : ", not corrected for the sizes of the samples"}`;
  const said = {
    differs: `They differ: they are ${away} apart${interval}.`,
    alike: `They cannot be told apart${view.plane === ALL ? " by all neurons together" : ""}: the distance of ${away} may be chance${barred ? `. It is at most ${short(of("high"))} bins, the upper end of its 95% interval` : ""}.`,
    untested: `They are ${away} apart${interval}. Whether they differ is not tested: ${view.matrix.no_test}.`,
  }[verdict(layer, i, j)];
  const more = [];
  const values = shownValues(layer).filter(Number.isFinite);
  if (values.length > 2) {
    const nearer = values.filter((other) => other < value).length;
    const count = values.length.toLocaleString("en");
    more.push(
      nearer
        ? `${nearer.toLocaleString("en")} of the ${count} pairs ${nearer === 1 ? "has" : "have"} a smaller distance.`
        : `None of the ${count} pairs has a smaller distance.`,
    );
  }
  if (Number.isFinite(of("floor")))
    more.push(
      `Two samples of one source, as large as these, would be ${short(of("floor"))} bins apart by chance (the noise floor); ${corrected ? "that is taken away here" : "that is not taken away here"}.`,
    );
  return [said, more.join(" ")].filter(Boolean);
}

// What is said of the cell that is pointed at.
function sentence(i, j) {
  if (i === j) return `${DATA.names[i]} and itself: 0`;
  const { layer } = view;
  const of = (column) => at(layer[column], i, j);
  const here = `${DATA.names[i]} and ${DATA.names[j]}, ${titleName(view.plane)}`;
  if (weightless(view.plane)) return `${here}: ${NO_WEIGHT}`;
  const value = Number.isFinite(of(state.quantity)) ? told(of(state.quantity)) : "not known";
  const barred =
    state.quantity === "emd_corrected" && Number.isFinite(of("low")) && Number.isFinite(of("high"));
  const interval = barred ? `, 95% interval ${told(of("low"))} to ${told(of("high"))}` : "";
  const said = {
    differs: "they differ",
    alike: "not told apart",
    untested: `not tested: ${view.matrix.no_test}`,
  }[verdict(layer, i, j)];
  return `${here}: ${QUANTITIES[state.quantity]} ${value}${interval}; ${said}`;
}

function summary() {
  if (weightless(view.plane)) return `${NO_WEIGHT[0].toUpperCase()}${NO_WEIGHT.slice(1)}: no distances.`;
  const counts = { differs: 0, alike: 0, untested: 0 };
  for (let i = 0; i < SIZE; i++) for (let j = i + 1; j < SIZE; j++) counts[verdict(view.layer, i, j)]++;
  const pairs = (SIZE * (SIZE - 1)) / 2;
  const count = `${pairs.toLocaleString("en")} ${pairs === 1 ? "pair" : "pairs"}`;
  if (counts.untested === pairs)
    return `${pairs === 1 ? "The pair is not" : `None of ${count} is`} tested: ${view.matrix.no_test}.`;
  const rest = counts.untested
    ? `; ${counts.untested.toLocaleString("en")} ${counts.untested === 1 ? "is" : "are"} not tested`
    : "";
  const differ = counts.differs === 1 || pairs === 1 ? "differs" : "differ";
  return `${counts.differs.toLocaleString("en")} of ${count} ${differ} at a false discovery rate of ${percent(state.rate)}; ${counts.alike.toLocaleString("en")} ${counts.alike === 1 ? "is" : "are"} not told apart${rest}.`;
}
