// Drawing all of it, and the beginning.

async function update() {
  const mine = ++turn;
  if (!state.asked) $("quantity").value = state.quantity = usualQuantity();
  const matrix = DATA.matrices[state.matrix];
  const layer = await layerNumbers(state.matrix, state.plane);
  if (mine !== turn) return;
  const order = orderNow(matrix, layer);
  view = { matrix, layer, order, plane: matrix.planes[state.plane] };
  if (state.row === null) state.open = [state.row, state.column] = telling();
  else if (state.open === null) state.open = [state.row, state.column];
  scaleNow();
  measure();
  drawMatrix();
  drawLegend();
  showSelected();
  drawMap();
  drawDatasets();
  drawGuide();
  drawSentences();
  drawTable();
  $("headline").textContent = matrix.headlines[state.plane][DATA.rates.indexOf(state.rate)];
  $("summary").textContent = summary();
  const plain = ["emd", "emd_range"].includes(state.quantity) && matrix.columns.emd_corrected ? ", plain" : "";
  $("matrix-title").textContent = `${QUANTITIES[state.quantity]}${plain}: ${titleName(view.plane)}`;
  if (state.open) await openPair(...state.open, false);
  document.body.dataset.drawn = String(mine);
}

// The corrected distance in every layer that has it, as in the panel of a pair.
function usualQuantity() {
  const { arranged, columns } = matrixNow();
  const known = arranged[state.plane].corrected && columns.emd_corrected?.[state.plane];
  return known ? "emd_corrected" : "emd";
}

function fillPlanes(wanted = ALL) {
  const { planes, columns } = DATA.matrices[state.matrix];
  $("layer").replaceChildren();
  for (const [index, plane] of planes.entries()) option($("layer"), index, shortName(plane));
  state.plane = Math.max(0, planes.indexOf(planes.includes(wanted) ? wanted : ALL));
  if (!state.asked) state.quantity = usualQuantity();
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
  for (const note of DATA.notes) make("li", note, {}, $("notes"));
  for (const [index, matrix] of DATA.matrices.entries()) option($("lens"), index, matrix.lens);
  $("lens-label").hidden = DATA.matrices.length < 2 && !DATA.matrices[0].through;
  for (const [i, name] of DATA.names.entries()) option($("origin"), i, name);
  $("origin-label").hidden = true;
  for (const rate of DATA.rates) option($("rate"), rate, percent(rate));
  $("rate").value = String(DATA.rate);
  fillPlanes();
  drawProvenance();
  listRankings();
  const on = (id, change) => {
    const event = id === "filter" ? "input" : "change";
    $(id).addEventListener(event, () => {
      change($(id).value);
      update();
      remember(id !== "filter");
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
    [state.quantity, state.asked] = [value, true];
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
  $("symbols").addEventListener("change", () => {
    state.symbols = $("symbols").checked;
    update();
    remember();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  folding("table", $("numbers"));
  folding("provenance", $("provenance"));
  state.boxes.guide = isFirstTime();
  beginning = { ...written(), open: "", filter: "" };
  folding("guide", $("guide"));
  if (location.hash.length > 1) recall();
  addEventListener("popstate", () => {
    recall();
    update();
  });
  $("numbers").addEventListener("toggle", () => view && drawTable());
  $("strips").addEventListener("keydown", (event) => rove(event, stripButtons()));
  const cursor = $("cursor");
  cursor.addEventListener("keydown", press);
  cursor.addEventListener("mousemove", hover);
  cursor.addEventListener("mouseleave", () => $("tip").classList.remove("on"));
  cursor.addEventListener("click", (event) => {
    const pair = cellAt(event);
    if (!pair) return;
    show(...pair, false);
  });
  $("frame").addEventListener("scroll", () => requestAnimationFrame(scrolled));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  let width = $("frame").clientWidth;
  new ResizeObserver(() => {
    if ($("frame").clientWidth !== width) {
      width = $("frame").clientWidth;
      update();
    }
  }).observe($("frame"));
  update().then(() => {
    if (state.chosen === null) return;
    cards[state.chosen].scrollIntoView({ block: "center" });
    cards[state.chosen].querySelector("button").focus({ preventScroll: true });
  });
}

begin();
