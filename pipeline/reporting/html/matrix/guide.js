// How to read the page: what is compared, and what distances of this catalogue look like.

const READ = "vdna-guide-was-shown";

function isFirstTime() {
  try {
    const first = localStorage.getItem(READ) === null;
    localStorage.setItem(READ, "1");
    return first;
  } catch {
    return true; // a frame may have no storage
  }
}

function drawGuide() {
  const place = $("examples");
  place.replaceChildren();
  const { layer } = view;
  const values = shownValues(layer);
  const pairs = [];
  for (let i = 0; i < SIZE; i++)
    for (let j = i + 1; j < SIZE; j++) if (Number.isFinite(at(values, i, j))) pairs.push([i, j]);
  if (!pairs.length) {
    $("floor").textContent = "0 is the distance of a dataset to itself. No other distance is defined here.";
    return;
  }
  const least = (among, of) =>
    among.reduce((best, pair) => (best === null || of(...pair) < of(...best) ? pair : best), null);
  const near = least(pairs, (i, j) => at(values, i, j));
  const apart = least(
    pairs.filter((pair) => verdict(layer, ...pair) === "differs"),
    (i, j) => at(values, i, j),
  );
  const far = least(pairs, (i, j) => -at(values, i, j));
  const floors = pairs.map((pair) => at(layer.floor, ...pair)).filter(Number.isFinite);
  // Of many datasets there are more pairs than a function takes arguments.
  const [lowest, highest] = [Math.min, Math.max].map((of) => short(floors.reduce((a, b) => of(a, b), floors[0])));
  $("floor").textContent = floors.length
    ? `0 is the distance of a dataset to itself. Two samples of one source are never quite alike: at these sizes, chance alone makes ${lowest === highest ? lowest : `${lowest} to ${highest}`} bins, the noise floor. A corrected distance has it taken away, so that there 0 means: no more than chance.`
    : "0 is the distance of a dataset to itself. There are no error bars here, so nothing says how much of a distance is chance.";
  const shown = [];
  for (const [title, pair] of [
    [pairs.length === 1 ? "The only pair" : "The nearest pair", near],
    ["The nearest pair that is told apart", apart],
    ["The farthest pair", far],
  ]) {
    if (!pair || shown.some(([i, j]) => i === pair[0] && j === pair[1])) continue;
    shown.push(pair);
    example(title, pair, values, place);
  }
}

function example(title, [i, j], values, parent) {
  const { layer } = view;
  const [low, high, emd, floor] = ["low", "high", "emd", "floor"].map((column) => at(layer[column], i, j));
  const interval = Number.isFinite(low) && Number.isFinite(high) ? ` [${short(low)}, ${short(high)}]` : "";
  const said = {
    differs: "told apart",
    alike: "not told apart: no more than chance explains",
    untested: "not tested",
  }[verdict(layer, i, j)];
  const before =
    Number.isFinite(floor) && Number.isFinite(at(layer.emd_corrected, i, j))
      ? `; before the correction ${short(emd)}, of which chance makes about ${short(floor)}`
      : "";
  const figure = make("figure", null, { class: "example" }, parent);
  make("figcaption", `${title}: ${short(at(values, i, j))} bins${interval}, ${said}${before}`, {}, figure);
  for (const side of [i, j]) {
    const row = make("div", null, { class: "side" }, figure);
    make("p", DATA.names[side], { class: "quiet" }, row);
    photos(DATA.datasets[side].samples, row);
  }
}
