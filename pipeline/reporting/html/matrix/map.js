// The map of the datasets: a dot where a dataset lies, and beside it an image of it and its name.

const IMAGES_ON_MAP = 60; // of more datasets, only dots
const NAMES_ON_MAP = 40;

function drawMap() {
  const { points, stress } = view.matrix.maps[state.plane];
  const known = view.order.filter((i) => points[i] !== null);
  const wide = Math.min(760, $("map").clientWidth || 560);
  const imaged = known.length <= IMAGES_ON_MAP;
  const small = wide < 500 || known.length > 24;
  const side = !imaged ? 0 : small ? 30 : 44;
  const edge = 22 + side;
  const frame = $("map");
  const held = document.activeElement.closest("#map .marker")?.dataset.dataset;
  frame.replaceChildren();
  $("stress").textContent =
    known.length < 3
      ? weightless(view.plane)
        ? `No map: ${NO_WEIGHT}.`
        : "Two datasets or fewer make no map."
      : `Near on the map is alike; its axes mean nothing by themselves. Distances on it are off by ${percent(stress)} of the true ones (Kruskal's stress-1 ${stress.toFixed(3)}): ${stress < 0.1 ? "a good map" : stress < 0.2 ? "a fair one; read near and far, not details" : "a poor one; trust the matrix"}. It is of the Earth Mover's Distance${view.matrix.arranged[state.plane].corrected ? ", corrected" : ""}, ${layerName(view.plane)}. Dashed lines join what is not told apart.`;
  if (known.length < 3) return;
  const span = (axis) => {
    const of = known.map((i) => points[i][axis]);
    return [Math.min(...of), Math.max(...of)];
  };
  const [[left, right], [low, high]] = [span(0), span(1)];
  const labelled = known.length <= NAMES_ON_MAP;
  const across = wide - 2 * edge - (labelled ? Math.min(140, wide * 0.25) : 0);
  const most = wide * (wide < 500 ? 1 : 0.7); // as tall as the map may be
  const unit = Math.min(across / (right - left || 1), (most - 2 * edge) / (high - low || 1));
  const tall = Math.round(Math.max(wide * 0.4, (high - low) * unit + 2 * edge + 30));
  const x = (i) => wide / 2 + (points[i][0] - (left + right) / 2) * unit;
  const y = (i) => tall / 2 - (points[i][1] - (low + high) / 2) * unit;
  const svg = drawn(
    "svg",
    {
      viewBox: `0 0 ${wide} ${tall}`,
      width: wide,
      role: "group",
      "aria-label": "Map of the datasets. Arrow keys move from one to the next, Enter chooses.",
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
  for (const [k, i] of known.entries()) {
    const name = DATA.names[i];
    const marker = drawn(
      "g",
      {
        class: "marker",
        role: "button",
        "data-dataset": i,
        tabindex: k ? -1 : 0,
        "aria-label": name,
        "aria-pressed": "false",
      },
      svg,
    );
    drawn("title", {}, marker, name);
    const [shown] = DATA.datasets[i].samples;
    const text = labelled ? (name.length > 26 ? `…${name.slice(-25)}` : name) : "";
    const long = text.length * 5.9;
    const box = imaged && shown ? [Math.max(side, long), side + (text ? 14 : 0)] : [long, text ? 12 : 0];
    const spot = box[1] && free([x(i), y(i)], box, radius, taken, [wide, tall]);
    if (spot) {
      const [px, py] = spot;
      taken.push([px, py, px + box[0], py + box[1]]);
      const middle = px + box[0] / 2;
      const beyond = Math.hypot(middle - x(i), py + box[1] / 2 - y(i)) > box[0] / 2 + box[1] / 2 + 14;
      if (beyond)
        drawn("line", { class: "axis", x1: x(i), y1: y(i), x2: middle, y2: py + box[1] / 2 }, marker);
      if (imaged && shown)
        drawn(
          "image",
          {
            href: shown.image,
            x: middle - side / 2,
            y: py,
            width: side,
            height: side,
            preserveAspectRatio: "xMidYMid meet",
          },
          marker,
        );
      if (text) drawn("text", { x: middle, y: py + box[1] - 3, "text-anchor": "middle" }, marker, text);
    }
    drawn("circle", { class: "spot", cx: x(i), cy: y(i), r: radius }, marker);
    marker.addEventListener("click", () => choose(i));
  }
  svg.addEventListener("keydown", walkMap);
  const markers = [...svg.querySelectorAll(".marker")];
  const again = markers.find((marker) => marker.dataset.dataset === held);
  if (again) stopAt(markers, again).focus({ preventScroll: true });
  showChosen();
}

// A free place for a box, as near to a point as there is one.
function free([x, y], [wide, tall], radius, taken, [right, below]) {
  for (let away = radius + 3; away < 130; away += 12)
    for (let turn = 0; turn < 16; turn++) {
      const angle = (turn * Math.PI) / 8;
      const [dx, dy] = [Math.cos(angle), Math.sin(angle)];
      const px = x + dx * (away + wide / 2) - wide / 2;
      const py = y + dy * (away + tall / 2) - tall / 2;
      const inside = px > 0 && px + wide < right && py > 0 && py + tall < below;
      if (inside && taken.every(([a, b, c, d]) => px + wide < a || px > c || py + tall < b || py > d))
        return [px, py];
    }
  return null;
}

function walkMap(event) {
  const markers = [...event.currentTarget.querySelectorAll(".marker")];
  const here = markers.indexOf(document.activeElement);
  if (here >= 0 && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    choose(Number(markers[here].dataset.dataset));
  } else rove(event, markers);
}
