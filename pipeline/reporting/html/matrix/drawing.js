// The matrix, drawn.

const STOPS = ["fee838", "ddc858", "bbad6d", "9a9376", "7c7b78", "60646f", "424e6c", "18376f", "00224e"].map(
  (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)),
); // cividis, near to far

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
  $("stage").style.width = `${view.width}px`;
  $("stage").style.height = `${view.height}px`;
  look();
}

// What is in sight: all of a matrix of usual size, which is printed too. Of a larger one it is what the
// frame shows, as a canvas of it all would be slow, and larger than browsers make.
const LARGE = 4e6; // pixels

function look() {
  const frame = $("frame");
  view.scrolls = view.width * view.height > LARGE;
  const [x, y] = view.scrolls ? [frame.scrollLeft, frame.scrollTop] : [0, 0];
  const wide = view.scrolls ? Math.min(view.width, frame.clientWidth) : view.width;
  const tall = view.scrolls ? Math.min(view.height, frame.clientHeight) : view.height;
  const cellAt = (pixel) => Math.max(0, Math.min(view.order.length, pixel));
  const rows = [y, y + tall].map((edge) => (edge - view.above) / view.cell);
  const columns = [x, x + wide].map((edge) => (edge - view.left) / view.cell);
  view.sight = {
    x,
    y,
    wide,
    tall,
    rows: [cellAt(Math.floor(rows[0])), cellAt(Math.ceil(rows[1]))],
    columns: [cellAt(Math.floor(columns[0])), cellAt(Math.ceil(columns[1]))],
  };
}

function scrolled() {
  if (!view?.scrolls) return;
  look();
  drawMatrix();
  drawCursor();
}

function prepared(canvas) {
  const { x, y, wide, tall } = view.sight;
  const ratio = Math.min(window.devicePixelRatio || 1, 12000 / Math.max(wide, tall));
  canvas.width = Math.ceil(wide * ratio);
  canvas.height = Math.ceil(tall * ratio);
  Object.assign(canvas.style, { left: `${x}px`, top: `${y}px`, width: `${wide}px`, height: `${tall}px` });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, -x * ratio, -y * ratio);
  context.font = `${Math.min(12, Math.max(8, view.cell - 1))}px system-ui, Arial, sans-serif`;
  return context;
}

function drawMatrix() {
  const { order, cell, left, above, side, layer, values } = view;
  const context = prepared($("drawing"));
  const { sight } = view;
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
  if (view.tree) drawTree(context);
  // Names stay at the edges of what is in sight.
  context.fillStyle = card;
  if (sight.x) context.fillRect(sight.x, sight.y, left, sight.tall);
  if (sight.y) context.fillRect(sight.x, sight.y, sight.wide, above);
  context.fillStyle = text;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (let k = sight.rows[0]; k < sight.rows[1] && left; k++) {
    const y = above + (k + 0.5) * cell;
    if (y < sight.y + above) continue;
    context.fillText(fits(context, DATA.names[order[k]], left - 8), sight.x + left - 5, y);
  }
  context.textAlign = "left";
  for (let k = sight.columns[0]; k < sight.columns[1] && above; k++) {
    const x = left + (k + 0.5) * cell;
    if (x < sight.x + left) continue;
    context.save();
    context.translate(x, sight.y + above - 5);
    context.rotate(-Math.PI / 2);
    context.fillText(fits(context, DATA.names[order[k]], above - 8), 0, 0);
    context.restore();
  }
  $("cursor").setAttribute(
    "aria-label",
    `${QUANTITIES[state.quantity]} of ${count} datasets, ${titleName(view.plane)}. Arrow keys move, Enter opens a pair.`,
  );
}

function drawCells(context, card) {
  const { order, cell, left, above, side, layer, values } = view;
  const { rows, columns } = view.sight;
  const count = order.length;
  context.lineWidth = 1;
  for (let y = rows[0]; y < rows[1]; y++) {
    for (let x = columns[0]; x < columns[1]; x++) {
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
        ? "the tests of this layer are left out: no pair is marked"
        : "no error bars: no pair is tested",
      {},
      marks,
    );
  } else if (view.cell < 8) {
    make(
      "span",
      `grey: not told apart${state.symbols ? ` (q ≥ ${percent(state.rate)})` : ""}, not tested, or not known; coloured cells differ`,
      { class: "key void" },
      marks,
    );
  } else {
    make(
      "span",
      `differs${state.symbols ? ` (q < ${percent(state.rate)})` : ""}`,
      { class: "key dot" },
      marks,
    );
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
  const { order } = view;
  const held = drawCursor();
  if (held) $("selected").textContent = sentence(state.row, state.column);
  else $("selected").textContent = order.length ? "" : "No dataset has such a name.";
}

// Outlines the selected cell, with its row and column. Tells whether it is among those that are shown.
function drawCursor() {
  const { order, cell, left, above, side, sight } = view;
  const context = prepared($("cursor"));
  const [y, x] = [order.indexOf(state.row), order.indexOf(state.column)];
  if (y < 0 || x < 0) return false;
  context.beginPath();
  context.rect(sight.x && sight.x + left - 3, sight.y && sight.y + above - 3, sight.wide, sight.tall);
  context.clip();
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
  return true;
}
