// What a reader has chosen, and what all parts of the page ask about it.

const SIZE = DATA.names.length;
const ALL = "all";

const QUANTITIES = {
  emd: "Earth Mover's Distance, bins",
  emd_range: "Earth Mover's Distance, share of the range",
  emd_corrected: "corrected distance, bins",
  nfd: "Fréchet distance of neurons",
  fd: "Fréchet distance of the layer",
};
const DETAILS = ["emd", "emd_corrected", "low", "high", "se", "floor", "p", "q", "nfd", "fd"];

const state = {
  matrix: 0,
  plane: 0,
  quantity: null,
  asked: false, // whether a reader chose the quantity
  order: "cluster",
  origin: 0,
  colours: "value",
  rate: DATA.rate,
  cells: 0,
  filter: "",
  row: null, // until the first drawing opens a pair
  column: null,
  open: null,
  symbols: false, // whether numbers are called as files call them, too
  boxes: {}, // which boxes that fold are open
  chosen: null, // the first dataset of a pair that is being chosen
};
let view = null; // what is drawn: order, cell, numbers of the layer
let turn = 0; // of several changes, the last is drawn

// What is shown is of: a layer, all neurons, or what a lens weighs of them.
const NO_WEIGHT = "the lens gives this layer no weight in sum";
const matrixNow = () => DATA.matrices[state.matrix];
const weightless = (plane) => matrixNow().weightless.includes(plane);
const leftOut = (column, plane) => Boolean(matrixNow().left_out[column]?.includes(plane));
const columnShown = () => (state.quantity === "emd_range" ? "emd" : state.quantity);
function layerName(plane) {
  const { through } = matrixNow();
  if (!through) return plane === ALL ? "all neurons" : plane;
  return plane === ALL ? through : `${plane} ${through}`;
}
const shortName = (plane) => (plane !== ALL ? plane : matrixNow().through ? "all layers" : "all neurons");
// No lens weighs Fréchet distances of whole layers.
const titleName = (plane) => (state.quantity === "fd" ? shortName(plane) : layerName(plane));
