// The nearest and farthest of each dataset, and the numbers as a table.

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
      .map((j) => `${DATA.names[j]}${state.symbols ? ` (q ${short(at(layer.q, i, j))})` : ""}`)
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
  make("td", "", {}, head);
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
