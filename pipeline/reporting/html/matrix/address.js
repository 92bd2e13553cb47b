// What is shown stands in the address, so that a view can be sent, and that Back works.

const BOXES = {}; // boxes that fold, by name
const controlled = [
  "layer",
  "lens",
  "quantity",
  "order",
  "origin",
  "colours",
  "rate",
  "cells",
  "filter",
  "symbols",
];
let beginning = null; // the state before anybody chose

// Of a layer, a lens or a dataset the name is kept: its number may be another in the next report.
function written() {
  const { planes } = matrixNow();
  return {
    dataset: state.chosen === null ? "" : DATA.names[state.chosen],
    pair: state.open ? state.open.map((i) => encodeURIComponent(DATA.names[i])).join(" ") : "",
    layer: planes[state.plane],
    lens: matrixNow().lens,
    quantity: state.asked ? state.quantity : "",
    order: state.order,
    origin: DATA.names[state.origin],
    colours: state.colours,
    rate: String(state.rate),
    cells: String(state.cells),
    filter: state.filter,
    symbols: state.symbols ? "1" : "",
    open: Object.keys(BOXES)
      .filter((name) => state.boxes[name])
      .join(" "),
  };
}

function remember(step = true) {
  const now = Object.entries(written()).filter(([name, value]) => value !== beginning[name]);
  const address = `#${new URLSearchParams(now)}`;
  if (address === (location.hash || "#")) return;
  try {
    history[step ? "pushState" : "replaceState"](null, "", address);
  } catch {
    // a frame without an address of its own
  }
}

function recall() {
  const given = { ...beginning, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
  const one = (value, among, otherwise) => (among.includes(value) ? value : otherwise);
  const lens = DATA.matrices.findIndex((matrix) => matrix.lens === given.lens);
  state.matrix = Math.max(0, lens);
  state.quantity = one(given.quantity, Object.keys(QUANTITIES), null);
  state.asked = state.quantity !== null;
  fillPlanes(given.layer);
  state.order = one(given.order, ["cluster", "name", "distance"], "cluster");
  state.origin = Math.max(0, DATA.names.indexOf(given.origin));
  state.colours = one(given.colours, ["value", "rank"], "value");
  state.rate = one(Number(given.rate), DATA.rates, DATA.rate);
  state.cells = one(Number(given.cells), [0, 6, 14, 32], 0);
  state.filter = given.filter;
  state.symbols = given.symbols === "1";
  const open = given.open.split(" ");
  for (const [name, box] of given.open ? Object.entries(BOXES) : []) {
    state.boxes[name] = open.includes(name);
    box.open = state.boxes[name];
  }
  const pair = given.pair.split(" ").map((name) => DATA.names.indexOf(decoded(name)));
  [state.row, state.column] =
    pair.length === 2 && pair[0] !== pair[1] && !pair.includes(-1) ? pair : [null, null];
  state.open = state.row === null ? null : pair;
  const chosen = DATA.names.indexOf(given.dataset);
  state.chosen = chosen < 0 ? null : chosen;
  for (const name of controlled)
    $(name).value = { layer: state.plane, lens: state.matrix }[name] ?? state[name];
  $("symbols").checked = state.symbols;
  $("origin-label").hidden = state.order !== "distance";
}

function decoded(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return "";
  }
}

// A box that folds. Whether it is open stands in the address.
function folding(name, box) {
  BOXES[name] = box;
  box.open = Boolean(state.boxes[name]);
  box.addEventListener("toggle", () => {
    if (BOXES[name] !== box || box.open === Boolean(state.boxes[name])) return;
    state.boxes[name] = box.open;
    remember(false);
  });
}
