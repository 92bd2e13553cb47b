// The map of the datasets.

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
    spot.addEventListener("click", () => choose(i));
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
