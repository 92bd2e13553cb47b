// The page of a matrix, with what is in draw.js before it.

const SIZE = DATA.names.length;
const ALL = "all";
const STOPS = ["fee838", "ddc858", "bbad6d", "9a9376", "7c7b78", "60646f", "424e6c", "18376f", "00224e"].map(
  (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)),
); // cividis, near to far
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
  order: "cluster",
  origin: 0,
  colours: "value",
  rate: DATA.rate,
  cells: 0,
  filter: "",
  row: null, // until the first drawing opens a pair
  column: null,
  open: null,
};
let view = null; // what is drawn: order, cell, numbers of the layer
let turn = 0; // of several changes, the last is drawn

function fits(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = text;
  while (kept && context.measureText(kept + "…").width > width) kept = kept.slice(0, -1);
  return kept + "…";
}

const shade = (at) => {
  const place = Math.max(0, Math.min(1, at)) * (STOPS.length - 1);
  const low = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[low].map((from, i) => Math.round(from + (STOPS[low + 1][i] - from) * (place - low)));
};
const ink = (at) => (at > 0.5 ? "#fff" : "#000");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
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

// Numbers: the upper triangle of each column and layer, float32, its bytes sorted by weight, deflated.

const unpacked = new Map();

function numbers(matrix, column, plane) {
  const key = `${matrix}/${column}/${plane}`;
  if (!unpacked.has(key)) unpacked.set(key, unpack(DATA.matrices[matrix].columns[column]?.[plane]));
  return unpacked.get(key);
}

async function unpack(text) {
  if (!text) return null;
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / 4;
  const sorted = new Uint8Array(bytes.length);
  for (let byte = 0; byte < 4; byte++) {
    for (let i = 0; i < count; i++) sorted[4 * i + byte] = bytes[byte * count + i];
  }
  const reader = new DataView(sorted.buffer);
  return Float32Array.from({ length: count }, (_, i) => reader.getFloat32(4 * i, true));
}

const anyKnown = (values) => Boolean(values?.some(Number.isFinite));

const place = (i, j) => (i < j ? (i * (2 * SIZE - i - 1)) / 2 + j - i - 1 : place(j, i));

// Corrected for the sizes of the samples where that is known, and else plain: as the tree and the order.
function shownValues(layer) {
  const corrected = layer.emd_corrected;
  return corrected ? layer.emd.map((value, k) => (Number.isFinite(corrected[k]) ? corrected[k] : value)) : layer.emd;
}

function at(values, i, j) {
  if (!values) return NaN;
  return i === j ? 0 : values[place(i, j)];
}

async function layerNumbers(matrix, plane) {
  const found = {};
  await Promise.all(
    DETAILS.map(async (column) => {
      found[column] = await numbers(matrix, column, plane);
    }),
  );
  found.emd_range = found.emd && found.emd.map((value) => value / DATA.bins);
  return found;
}

// A pair: what is known of it.

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

// Orders.

function orderNow(matrix, layer) {
  const wanted = state.filter.toLowerCase();
  const shown = (i) => !wanted || DATA.names[i].toLowerCase().includes(wanted);
  let order = [...DATA.names.keys()];
  if (state.order === "cluster") order = [...matrix.arranged[state.plane].order];
  else if (state.order === "name") order.sort((i, j) => (DATA.names[i] < DATA.names[j] ? -1 : 1));
  else {
    const values = layer[state.quantity] ?? layer.emd;
    const far = (i) => {
      const v = at(values, state.origin, i);
      return Number.isNaN(v) ? Infinity : v;
    };
    order.sort((i, j) => (i === state.origin ? -1 : j === state.origin ? 1 : far(i) - far(j) || i - j));
  }
  return order.filter(shown);
}

// The matrix.

async function update() {
  const mine = ++turn;
  const matrix = DATA.matrices[state.matrix];
  const layer = await layerNumbers(state.matrix, state.plane);
  if (mine !== turn) return;
  const order = orderNow(matrix, layer);
  view = { matrix, layer, order, plane: matrix.planes[state.plane] };
  if (state.row === null) state.open = [state.row, state.column] = telling();
  scaleNow();
  measure();
  drawMatrix();
  drawLegend();
  showSelected();
  drawMap();
  drawSentences();
  drawTable();
  $("summary").textContent = summary();
  const plain = ["emd", "emd_range"].includes(state.quantity) && anyKnown(layer.emd_corrected) ? ", plain" : "";
  $("matrix-title").textContent = `${QUANTITIES[state.quantity]}${plain}: ${titleName(view.plane)}`;
  if (state.open) await openPair(...state.open, false);
  document.body.dataset.drawn = String(mine);
}

function scaleNow() {
  const values = view.layer[state.quantity];
  view.values = values;
  const known = values ? values.filter(Number.isFinite) : new Float32Array();
  view.most = known.reduce((a, b) => Math.max(a, b), 0);
  view.least = Math.min(
    0,
    known.reduce((a, b) => Math.min(a, b), 0),
  );
  view.ranks = state.colours === "rank" ? Float32Array.from(known).sort() : null;
}

function share(value) {
  if (!view.ranks) return view.most > view.least ? (value - view.least) / (view.most - view.least) : 0;
  let low = 0,
    high = view.ranks.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (view.ranks[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low / Math.max(1, view.ranks.length - 1);
}

function measure() {
  const context = $("drawing").getContext("2d");
  const width = $("frame").clientWidth;
  const count = Math.max(1, view.order.length);
  context.font = "12px system-ui, Arial, sans-serif";
  const longest = Math.max(20, ...view.order.map((i) => context.measureText(DATA.names[i]).width)) + 10;
  const tree = state.order === "cluster" && !state.filter ? (width < 500 ? 34 : 84) : 0;
  let names = Math.min(longest, width * 0.34);
  let cell = state.cells || Math.min(62, (width - names - tree - 2) / count);
  if (cell < 9) {
    names = 0;
    cell = state.cells || Math.max(2, Math.floor(((width - tree - 2) / count) * 2) / 2);
  } else cell = Math.floor(cell);
  const above = cell >= 9 ? Math.min(longest, 190) : 0;
  const side = cell * view.order.length;
  Object.assign(view, {
    cell,
    left: names,
    above,
    side,
    tree,
    width: names + side + tree + 2,
    height: above + side + (tree ? 16 : 2),
  });
}

function prepared(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 12000 / Math.max(view.width, view.height));
  canvas.width = Math.ceil(view.width * ratio);
  canvas.height = Math.ceil(view.height * ratio);
  canvas.style.width = `${view.width}px`;
  canvas.style.height = `${view.height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = `${Math.min(12, Math.max(8, view.cell - 1))}px system-ui, Arial, sans-serif`;
  return context;
}

function drawMatrix() {
  const { order, cell, left, above, side, layer, values } = view;
  const context = prepared($("drawing"));
  $("stage").style.width = `${view.width}px`;
  $("stage").style.height = `${view.height}px`;
  const [text, blank, card] = ["--ink", "--void", "--card"].map(colour);
  const grey = blank.match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const count = order.length;
  if (!count) return;
  const image = new ImageData(count, count);
  const small = cell < 8;
  const plain = small && anyTested(layer);
  for (let y = 0; y < count; y++) {
    for (let x = 0; x < count; x++) {
      const [i, j] = [order[y], order[x]];
      const value = at(values, i, j);
      const hidden = i === j || !Number.isFinite(value) || (plain && verdict(layer, i, j) !== "differs");
      const [r, g, b] = hidden ? grey : shade(share(value));
      image.data.set([r, g, b, i === j ? 0 : 255], 4 * (y * count + x));
    }
  }
  const tile = document.createElement("canvas");
  tile.width = tile.height = count;
  tile.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(tile, left, above, side, side);
  if (!small) drawCells(context, card);
  context.fillStyle = text;
  context.textBaseline = "middle";
  for (let k = 0; k < count && left; k++) {
    context.textAlign = "right";
    context.fillText(fits(context, DATA.names[order[k]], left - 8), left - 5, above + (k + 0.5) * cell);
  }
  for (let k = 0; k < count && above; k++) {
    context.save();
    context.translate(left + (k + 0.5) * cell, above - 5);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(fits(context, DATA.names[order[k]], above - 8), 0, 0);
    context.restore();
  }
  if (view.tree) drawTree(context);
  $("cursor").setAttribute(
    "aria-label",
    `${QUANTITIES[state.quantity]} of ${count} datasets, ${titleName(view.plane)}. Arrow keys move, Enter opens a pair.`,
  );
}

function drawCells(context, card) {
  const { order, cell, left, above, side, layer, values } = view;
  const count = order.length;
  context.lineWidth = 1;
  for (let y = 0; y < count; y++) {
    for (let x = 0; x < count; x++) {
      const said = verdict(layer, order[y], order[x]);
      const value = at(values, order[y], order[x]);
      if (!Number.isFinite(value) || order[y] === order[x]) continue;
      const [px, py] = [left + x * cell, above + y * cell];
      context.fillStyle = context.strokeStyle = ink(share(value));
      if (said === "differs") {
        context.beginPath();
        context.arc(px + cell * 0.84, py + cell * 0.16, Math.max(0.9, cell * 0.05), 0, 7);
        context.fill();
      } else if (said === "alike") {
        context.save();
        context.globalAlpha = 0.6;
        context.beginPath();
        context.rect(px, py, cell, cell);
        context.clip();
        context.beginPath();
        for (let at = 0; at < 2 * cell; at += 5) {
          context.moveTo(px + at, py);
          context.lineTo(px + at - cell, py + cell);
        }
        context.stroke();
        context.restore();
      }
      if (cell >= 30) {
        const number = short(value);
        context.textAlign = "center";
        context.textBaseline = "middle";
        if (said === "alike") {
          const wide = context.measureText(number).width + 4;
          context.fillStyle = `rgb(${shade(share(value)).join()})`;
          context.fillRect(px + (cell - wide) / 2, py + cell / 2 - 7, wide, 14);
          context.fillStyle = ink(share(value));
        }
        context.fillText(number, px + cell / 2, py + cell / 2);
      }
    }
  }
  context.strokeStyle = card;
  context.beginPath();
  for (let k = 0; k <= count; k++) {
    context.moveTo(left + k * cell, above);
    context.lineTo(left + k * cell, above + side);
    context.moveTo(left, above + k * cell);
    context.lineTo(left + side, above + k * cell);
  }
  context.stroke();
}

function drawTree(context) {
  const { merges } = view.matrix.arranged[state.plane];
  const start = view.left + view.side + 4;
  const top = merges.reduce((most, merge) => Math.max(most, merge[4]), 0) || 1;
  const x = (height) => start + (height / top) * (view.tree - 10);
  const y = (leaf) => view.above + (leaf + 0.5) * view.cell;
  context.strokeStyle = colour("--quiet");
  context.lineWidth = view.cell < 5 ? 0.7 : 1.2;
  context.beginPath();
  for (const [a, b, low, high, joined] of merges) {
    context.moveTo(x(low), y(a));
    context.lineTo(x(joined), y(a));
    context.lineTo(x(joined), y(b));
    context.lineTo(x(high), y(b));
  }
  context.stroke();
  context.fillStyle = colour("--quiet");
  context.font = "10px system-ui, Arial, sans-serif";
  context.textBaseline = "top";
  context.textAlign = "left";
  if (view.tree > 60) context.fillText("0", start, view.above + view.side + 3);
  context.textAlign = "right";
  context.fillText(short(top), start + view.tree - 6, view.above + view.side + 3);
}

function drawLegend() {
  const bar = $("bar").getContext("2d");
  for (let x = 0; x < 256; x++) {
    bar.fillStyle = `rgb(${shade(x / 255).join()})`;
    bar.fillRect(x, 0, 1, 12);
  }
  const known = view.values !== null && view.values !== undefined;
  const missing = weightless(view.plane)
    ? "no distances"
    : leftOut(columnShown(), view.plane)
      ? "left out of this page for this layer"
      : "not defined in this layer";
  $("least").textContent = known ? `${short(view.least)}, near` : missing;
  $("most").textContent = known ? `${short(view.most)}, far${view.ranks ? " (by rank)" : ""}` : "";
  const marks = $("marks");
  marks.replaceChildren();
  if (weightless(view.plane)) {
    make("span", NO_WEIGHT, {}, marks);
  } else if (!view.layer.q || !view.layer.q.some(Number.isFinite)) {
    make(
      "span",
      view.matrix.columns.q
        ? "q of this layer is left out: no pair is marked"
        : "no error bars: no pair is tested",
      {},
      marks,
    );
  } else if (view.cell < 8) {
    make(
      "span",
      `grey: not told apart (q ≥ ${percent(state.rate)}), not tested, or not known; coloured cells differ`,
      { class: "key void" },
      marks,
    );
  } else {
    make("span", `differs (q < ${percent(state.rate)})`, { class: "key dot" }, marks);
    make("span", "not told apart", { class: "key hatch" }, marks);
    const untested = (value, k) => Number.isFinite(value) && !Number.isFinite(view.layer.q[k]);
    if (view.layer.emd && view.layer.emd.some(untested)) make("span", "unmarked: not tested", {}, marks);
  }
  const plain = (value, k) => Number.isFinite(value) && !Number.isFinite(view.layer.emd_corrected[k]);
  if (state.quantity === "emd_corrected" && view.layer.emd_corrected && view.layer.emd?.some(plain))
    make("span", "grey: not corrected; Earth Mover's Distance has it", { class: "quiet" }, marks);
  if (["nfd", "fd"].includes(state.quantity) && view.layer.q)
    make("span", "marks are of the Earth Mover's Distance", { class: "quiet" }, marks);
  if (view.tree)
    make(
      "span",
      `tree: average linkage of the ${view.matrix.arranged[state.plane].corrected ? "corrected" : "Earth Mover's"} distance`,
      { class: "quiet" },
      marks,
    );
}

function showSelected() {
  const { order, cell, left, above, side } = view;
  const context = prepared($("cursor"));
  const [y, x] = [order.indexOf(state.row), order.indexOf(state.column)];
  if (y < 0 || x < 0) {
    $("selected").textContent = order.length ? "" : "No dataset has such a name.";
    return;
  }
  context.strokeStyle = colour("--ink");
  context.globalAlpha = 0.35;
  context.strokeRect(left + 0.5, above + y * cell, side - 1, cell);
  context.strokeRect(left + x * cell, above + 0.5, cell, side - 1);
  context.globalAlpha = 1;
  for (const [width, style] of [
    [5, "#fff"],
    [3, "#d6006c"],
  ]) {
    context.lineWidth = width;
    context.strokeStyle = style;
    context.strokeRect(left + x * cell - 1, above + y * cell - 1, cell + 2, cell + 2);
  }
  $("selected").textContent = sentence(state.row, state.column);
}

function cellAt(event) {
  const box = $("cursor").getBoundingClientRect();
  const x = Math.floor((event.clientX - box.left - view.left) / view.cell);
  const y = Math.floor((event.clientY - box.top - view.above) / view.cell);
  const inside = x >= 0 && y >= 0 && x < view.order.length && y < view.order.length;
  return inside ? [view.order[y], view.order[x]] : null;
}

function hover(event) {
  const pair = view && cellAt(event);
  $("tip").classList.toggle("on", Boolean(pair));
  if (!pair) return;
  const [i, j] = pair;
  const lines = i === j ? ["itself"] : facts(view.layer, i, j).map((fact) => fact.join(": "));
  showTip(event, [DATA.names[i], DATA.names[j], ...lines].join("\n"));
}

function showTip(event, text) {
  const tip = $("tip");
  tip.classList.add("on");
  tip.textContent = text;
  const [wide, tall] = [tip.offsetWidth, tip.offsetHeight];
  const x = event.clientX + 16 + wide > window.innerWidth ? event.clientX - wide - 12 : event.clientX + 16;
  const y = event.clientY + 16 + tall > window.innerHeight ? event.clientY - tall - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, y)}px`;
}

function press(event) {
  if (!view || !view.order.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const { order, cell } = view;
  let [y, x] = [Math.max(0, order.indexOf(state.row)), Math.max(0, order.indexOf(state.column))];
  const last = order.length - 1;
  const moves = {
    ArrowUp: () => {
      y--;
    },
    ArrowDown: () => {
      y++;
    },
    ArrowLeft: () => {
      x--;
    },
    ArrowRight: () => {
      x++;
    },
    Home: () => {
      x = 0;
    },
    End: () => {
      x = last;
    },
    PageUp: () => {
      y -= 10;
    },
    PageDown: () => {
      y += 10;
    },
  };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    openPair(state.row, state.column, true);
  } else if (moves[event.key]) {
    event.preventDefault();
    moves[event.key]();
    y = Math.max(0, Math.min(last, y));
    x = Math.max(0, Math.min(last, x));
    [state.row, state.column] = [order[y], order[x]];
    showSelected();
    const frame = $("frame"); // what is selected stays in sight, in a matrix that scrolls
    const [px, py] = [view.left + x * cell, view.above + y * cell];
    if (px < frame.scrollLeft) frame.scrollLeft = px;
    if (px + cell > frame.scrollLeft + frame.clientWidth) frame.scrollLeft = px + cell - frame.clientWidth;
    if (py < frame.scrollTop) frame.scrollTop = py;
    if (py + cell > frame.scrollTop + frame.clientHeight) frame.scrollTop = py + cell - frame.clientHeight;
  }
}

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
  const list = make("dl", null, { class: "facts" }, body);
  for (const [name, text] of facts(view.layer, i, j)) {
    make("dt", name, {}, list);
    make("dd", text, {}, list);
  }
  await profile(i, j, body);
  make("h3", "Neurons that differ most", {}, body);
  if (verdict(view.layer, i, j) === "alike")
    make("p", "The pair is not told apart here: they may differ by chance.", { class: "quiet" }, body);
  neurons(i, j, body);
  if (state.open !== mine) return; // another was opened meanwhile
  $("pair-title").textContent = `${DATA.names[i]} and ${DATA.names[j]}, ${titleName(view.plane)}`;
  $("pair-body").replaceChildren(body);
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

// The map.

function drawMap() {
  const { points, stress } = view.matrix.maps[state.plane];
  const known = view.order.filter((i) => points[i] !== null);
  const wide = Math.min(640, $("map").clientWidth || 560);
  const [tall, edge] = [Math.round(wide * 0.72), 22];
  const frame = $("map");
  frame.replaceChildren();
  $("stress").textContent =
    known.length < 3
      ? weightless(view.plane)
        ? `No map: ${NO_WEIGHT}.`
        : "Two datasets or fewer make no map."
      : `Distances on the map are off by ${percent(stress)} of the true ones (Kruskal's stress-1 ${stress.toFixed(3)}): ${stress < 0.1 ? "a good map" : stress < 0.2 ? "a fair one; read near and far, not details" : "a poor one; trust the matrix"}. Of the Earth Mover's Distance, ${layerName(view.plane)}; its axes mean nothing by themselves.`;
  if (known.length < 3) return;
  const span = (axis) => {
    const of = known.map((i) => points[i][axis]);
    return [Math.min(...of), Math.max(...of)];
  };
  const [[left, right], [low, high]] = [span(0), span(1)];
  const labelled = known.length <= 40;
  const unit = Math.min(
    (wide - 2 * edge - (labelled ? 110 : 0)) / (right - left || 1),
    (tall - 2 * edge) / (high - low || 1),
  );
  const x = (i) => wide / 2 + (points[i][0] - (left + right) / 2) * unit;
  const y = (i) => tall / 2 - (points[i][1] - (low + high) / 2) * unit;
  const svg = drawn(
    "svg",
    {
      viewBox: `0 0 ${wide} ${tall}`,
      width: wide,
      role: "img",
      "aria-label": "Map of the datasets; their distances are in the table",
    },
    frame,
  );
  if (known.length <= 60) {
    for (const i of known)
      for (const j of known) {
        if (i < j && verdict(view.layer, i, j) === "alike")
          drawn("line", { class: "alike-line", x1: x(i), y1: y(i), x2: x(j), y2: y(j) }, svg);
      }
  }
  const radius = known.length > 100 ? 3.5 : 5;
  const taken = known.map((i) => [x(i) - radius, y(i) - radius, x(i) + radius, y(i) + radius]);
  for (const i of known) {
    const spot = drawn(
      "circle",
      {
        class: i === state.row || i === state.column ? "spot chosen" : "spot",
        cx: x(i),
        cy: y(i),
        r: radius,
      },
      svg,
    );
    drawn("title", {}, spot, DATA.names[i]);
    spot.addEventListener("click", () => chooseOrigin(i));
  }
  if (!labelled) return;
  for (const i of known) {
    const name = DATA.names[i].length > 26 ? `…${DATA.names[i].slice(-25)}` : DATA.names[i];
    const long = name.length * 5.9;
    const ways = [
      [8, 4, "start"],
      [-8, 4, "end"],
      [0, -9, "middle"],
      [0, 17, "middle"],
      [8, -7, "start"],
      [-8, -7, "end"],
      [8, 14, "start"],
      [-8, 14, "end"],
    ];
    for (const [dx, dy, anchor] of ways) {
      const start = x(i) + dx - (anchor === "end" ? long : anchor === "middle" ? long / 2 : 0);
      const box = [start, y(i) + dy - 9, start + long, y(i) + dy + 3];
      const free = taken.every(([a, b, c, d]) => box[2] < a || box[0] > c || box[3] < b || box[1] > d);
      if (free && box[0] > 0 && box[2] < wide && box[1] > 0 && box[3] < tall) {
        taken.push(box);
        drawn("text", { x: x(i) + dx, y: y(i) + dy, "text-anchor": anchor }, svg, name);
        break;
      }
    }
  }
}

function chooseOrigin(i) {
  state.order = $("order").value = "distance";
  state.origin = i;
  $("origin").value = String(i);
  $("origin-label").hidden = false;
  update();
}

// Sentences, the table.

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

function drawSentences() {
  const table = $("sentences");
  table.replaceChildren();
  const note = make("caption", null, { class: "quiet" }, table);
  const head = make("tr", null, {}, make("thead", null, {}, table));
  for (const text of ["dataset", "nearest", "farthest", "not told apart from"])
    make("th", text, { scope: "col" }, head);
  const body = make("tbody", null, {}, table);
  const { layer } = view;
  const corrected = anyKnown(layer.emd_corrected);
  const values = shownValues(layer);
  note.textContent = corrected
    ? `Earth Mover's Distance in bins, corrected for the sizes of the samples${anyKnown(layer.low) ? " [95% interval]" : ""}`
    : "Earth Mover's Distance in bins, plain: not corrected for the sizes of the samples";
  const name = (i, j) => {
    const [low, high] = [at(layer.low, i, j), at(layer.high, i, j)];
    const plain = corrected && !Number.isFinite(at(layer.emd_corrected, i, j)) ? " (not corrected)" : "";
    const interval =
      !plain && Number.isFinite(low) && Number.isFinite(high) ? ` [${short(low)}, ${short(high)}]` : plain;
    return `${DATA.names[j]} ${short(at(values, i, j))}${interval}`;
  };
  for (const i of view.order) {
    const row = make("tr", null, {}, body);
    make("th", DATA.names[i], { scope: "row" }, row);
    const others = [...DATA.names.keys()].filter((j) => j !== i && Number.isFinite(at(values, i, j)));
    if (!others.length) {
      const why = weightless(view.plane) ? NO_WEIGHT : "at no distance that is defined";
      make("td", why, { colspan: 3 }, row);
      continue;
    }
    others.sort((j, k) => at(values, i, j) - at(values, i, k));
    const alike = others.filter((j) => verdict(layer, i, j) === "alike");
    const apart = others.find((j) => verdict(layer, i, j) !== "alike") ?? others[0];
    make("td", name(i, apart), {}, row);
    make("td", others.at(-1) === apart ? "the same" : name(i, others.at(-1)), {}, row);
    const named = alike
      .slice(0, 3)
      .map((j) => `${DATA.names[j]} (q ${short(at(layer.q, i, j))})`)
      .join(", ");
    make("td", named + (alike.length > 3 ? ` and ${alike.length - 3} more` : ""), {}, row);
  }
}

function drawTable() {
  const place = $("numbers").lastElementChild;
  place.replaceChildren();
  if (!$("numbers").open) return;
  if (view.order.length > 60) {
    make(
      "p",
      `${view.order.length} datasets are too many for a table here: narrow the names, or read the Parquet file that --out writes.`,
      {},
      place,
    );
    return;
  }
  const table = make("table", null, {}, place);
  const head = make("tr", null, {}, make("thead", null, {}, table));
  make("th", "", {}, head);
  for (const j of view.order) make("th", DATA.names[j], { scope: "col", class: "number" }, head);
  const body = make("tbody", null, {}, table);
  for (const i of view.order) {
    const row = make("tr", null, {}, body);
    make("th", DATA.names[i], { scope: "row" }, row);
    for (const j of view.order)
      make(
        "td",
        (verdict(view.layer, i, j) === "alike" ? "~" : "") + told(at(view.values, i, j)),
        { class: "number" },
        row,
      );
  }
  make("p", "~ not told apart", { class: "quiet" }, place);
}

// Beginning.

function fillPlanes(wanted = ALL) {
  const { planes, columns, arranged } = DATA.matrices[state.matrix];
  $("layer").replaceChildren();
  for (const [index, plane] of planes.entries()) option($("layer"), index, shortName(plane));
  state.plane = Math.max(0, planes.indexOf(planes.includes(wanted) ? wanted : ALL));
  state.quantity ??= arranged[state.plane].corrected ? "emd_corrected" : "emd";
  $("layer").value = String(state.plane);
  $("quantity").replaceChildren();
  for (const [name, text] of Object.entries(QUANTITIES)) {
    if (columns[name] || name === "emd" || name === "emd_range") option($("quantity"), name, text);
  }
  if (!columns[state.quantity] && state.quantity !== "emd_range") state.quantity = "emd";
  $("quantity").value = state.quantity;
}

function begin() {
  $("title").textContent = DATA.title;
  $("about").textContent = DATA.about;
  for (const note of DATA.notes) make("li", note, {}, $("notes"));
  for (const [index, matrix] of DATA.matrices.entries()) option($("lens"), index, matrix.lens);
  $("lens-label").hidden = DATA.matrices.length < 2 && !DATA.matrices[0].through;
  for (const [i, name] of DATA.names.entries()) option($("origin"), i, name);
  $("origin-label").hidden = true;
  for (const rate of DATA.rates) option($("rate"), rate, percent(rate));
  $("rate").value = String(DATA.rate);
  fillPlanes();
  drawPanels();
  const on = (id, change) => {
    const event = id === "filter" ? "input" : "change";
    $(id).addEventListener(event, () => {
      change($(id).value);
      update();
    });
  };
  on("layer", (value) => {
    state.plane = Number(value);
  });
  on("lens", (value) => {
    const { planes } = DATA.matrices[state.matrix];
    state.matrix = Number(value);
    fillPlanes(planes[state.plane]);
  });
  on("quantity", (value) => {
    state.quantity = value;
  });
  on("order", (value) => {
    state.order = value;
    $("origin-label").hidden = value !== "distance";
  });
  on("origin", (value) => {
    state.origin = Number(value);
  });
  on("colours", (value) => {
    state.colours = value;
  });
  on("rate", (value) => {
    state.rate = Number(value);
  });
  on("cells", (value) => {
    state.cells = Number(value);
  });
  on("filter", (value) => {
    state.filter = value;
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("numbers").addEventListener("toggle", () => view && drawTable());
  const cursor = $("cursor");
  cursor.addEventListener("keydown", press);
  cursor.addEventListener("mousemove", hover);
  cursor.addEventListener("mouseleave", () => $("tip").classList.remove("on"));
  cursor.addEventListener("click", (event) => {
    const pair = cellAt(event);
    if (!pair) return;
    [state.row, state.column] = pair;
    showSelected();
    openPair(...pair, false);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  let width = $("frame").clientWidth;
  new ResizeObserver(() => {
    if ($("frame").clientWidth !== width) {
      width = $("frame").clientWidth;
      update();
    }
  }).observe($("frame"));
  update();
}

begin();
