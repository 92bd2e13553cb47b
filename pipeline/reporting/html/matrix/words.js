// What is said of a pair, and of all.

function verdict(layer, i, j) {
  const q = i === j ? NaN : at(layer.q, i, j);
  return Number.isNaN(q) ? "untested" : q < state.rate ? "differs" : "alike";
}

const anyTested = (layer) => Boolean(layer.q && layer.q.some(Number.isFinite));

function facts(layer, i, j) {
  const value = (column) => at(layer[column], i, j);
  const found = [];
  if (Number.isFinite(value("emd"))) {
    found.push(
      ["emd", `${told(value("emd"))} bins`],
      ["emd_range", `${told(value("emd") / DATA.bins)} of the range`],
    );
  } else if (leftOut("emd", view.plane)) {
    found.push(["emd", "left out of this page for its size"]);
  } else {
    const why = weightless(view.plane) ? NO_WEIGHT : "a dataset lacks activations of some neuron";
    found.push(["emd", `not defined: ${why}`]);
  }
  if (Number.isFinite(value("emd_corrected"))) {
    const known = Number.isFinite(value("low")) && Number.isFinite(value("high"));
    found.push([
      "corrected",
      told(value("emd_corrected")) +
        (known ? `, 95% interval ${told(value("low"))} to ${told(value("high"))}` : ""),
    ]);
  }
  for (const [column, text] of [
    ["se", "standard error"],
    ["floor", "noise floor"],
    ["p", "p"],
    ["q", "q"],
    ["nfd", "nfd"],
    ["fd", "fd"],
  ]) {
    if (Number.isFinite(value(column))) found.push([text, told(value(column))]);
  }
  const said = verdict(layer, i, j);
  if (said === "differs")
    found.push(["verdict", `differs at a false discovery rate of ${percent(state.rate)}`]);
  if (said === "alike")
    found.push(["verdict", `not told apart at a false discovery rate of ${percent(state.rate)}`]);
  if (said === "untested" && !weightless(view.plane))
    found.push(["verdict", `not tested: ${view.matrix.no_test}`]);
  return found;
}

function sentence(i, j) {
  const here = `${DATA.names[i]} and ${DATA.names[j]}`;
  if (i === j) return `${DATA.names[i]} and itself: 0`;
  const value = at(view.layer[state.quantity], i, j);
  const first = ["emd", "emd_range"].includes(state.quantity)
    ? ""
    : `${QUANTITIES[state.quantity]} ${told(value)}; `;
  return `${here}, ${titleName(view.plane)}: ${first}${facts(view.layer, i, j)
    .map((fact) => fact.join(" "))
    .join("; ")}`;
}

function summary() {
  if (weightless(view.plane)) return `${NO_WEIGHT[0].toUpperCase()}${NO_WEIGHT.slice(1)}: no distances.`;
  const counts = { differs: 0, alike: 0, untested: 0 };
  for (let i = 0; i < SIZE; i++) for (let j = i + 1; j < SIZE; j++) counts[verdict(view.layer, i, j)]++;
  const pairs = (SIZE * (SIZE - 1)) / 2;
  const count = `${pairs.toLocaleString("en")} ${pairs === 1 ? "pair" : "pairs"}`;
  if (counts.untested === pairs)
    return `None of ${count} is tested: ${view.matrix.no_test}.`;
  const rest = counts.untested
    ? `; ${counts.untested.toLocaleString("en")} ${counts.untested === 1 ? "is" : "are"} not tested`
    : "";
  const differ = counts.differs === 1 || pairs === 1 ? "differs" : "differ";
  return `${counts.differs.toLocaleString("en")} of ${count} ${differ} at a false discovery rate of ${percent(state.rate)}; ${counts.alike.toLocaleString("en")} ${counts.alike === 1 ? "is" : "are"} not told apart${rest}.`;
}
