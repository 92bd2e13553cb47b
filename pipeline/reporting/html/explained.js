// The page of an explanation, with what is in draw.js before it.

const ALL = "all";
const state = { layer: "", differ: false, picture: null };
const known = Number.isFinite; // null stands for what is not

const differs = (row) => known(row.q) && row.q < DATA.rate;
const alike = (row) => known(row.q) && row.q >= DATA.rate;
const nameOf = (row) => (row.layer !== ALL ? row.layer : DATA.through ? "all layers" : "all neurons");

function verdict(row) {
  if (differs(row)) return "differs";
  return alike(row) ? "not told apart" : "not tested";
}

function distance(row) {
  if (!known(row.emd)) return "not defined";
  if (!known(row.emd_corrected)) return `${told(row.emd)} bins, not corrected for the sizes of the samples`;
  const interval = known(row.low) && known(row.high) ? ` [${told(row.low)}, ${told(row.high)}]` : "";
  return `${told(row.emd_corrected)} bins${interval}`;
}

// The whole, and its layers.

function headline() {
  const whole = DATA.layers.find((row) => row.layer === ALL);
  if (!whole) return "";
  const pair = `${DATA.names[0]} and ${DATA.names[1]}`;
  const of = `${nameOf(whole)}${DATA.through ? ` ${DATA.through}` : ""}: ${distance(whole)}`;
  if (differs(whole))
    return `${pair} differ at a false discovery rate of ${percent(DATA.rate)}. Of ${of}, q ${short(whole.q)}.`;
  if (alike(whole))
    return `${pair} are not told apart: they may differ by chance. Of ${of}, q ${short(whole.q)}.`;
  return `${pair} are not tested: that takes folds, and weights that are not negative. Of ${of}.`;
}

function drawLayers() {
  const rows = DATA.layers.filter((row) => row.neurons);
  const corrected = rows.some((row) => known(row.emd_corrected));
  const place = $("layers");
  place.replaceChildren();
  intervals(
    rows.map((row) => {
      const barred = known(row.emd_corrected) && known(row.low) && known(row.high);
      return {
        name: nameOf(row),
        value: row.emd_corrected ?? row.emd ?? NaN,
        low: barred ? row.low : NaN,
        high: row.high,
        alike: alike(row),
        here: row.layer === (state.layer || ALL),
        plain: corrected && !known(row.emd_corrected) && known(row.emd) ? " plain" : "",
        blank: "not defined",
      };
    }),
    Math.min(560, place.clientWidth || 440),
    place,
  );
  const blind = DATA.layers.filter((row) => !row.neurons).map((row) => row.layer);
  $("layers-note").textContent =
    (corrected
      ? "Earth Mover's Distance in bins, corrected for the sizes of the samples, with 95% intervals; hollow: not told apart."
      : "Earth Mover's Distance in bins, not corrected for the sizes of the samples; there are no error bars.") +
    (blind.length ? ` The lens gives no weight to ${blind.join(", ")}.` : "");
}

function drawTable() {
  const place = $("numbers").lastElementChild;
  place.replaceChildren();
  if (!$("numbers").open) return;
  const table = make("table", null, {}, place);
  const head = make("tr", null, {}, make("thead", null, {}, table));
  for (const text of [
    "layer",
    "corrected",
    "95% interval",
    "emd",
    "q",
    "verdict",
    "neurons that differ",
    "share",
  ])
    make("th", text, { scope: "col" }, head);
  const body = make("tbody", null, {}, table);
  for (const row of DATA.layers.filter((one) => one.neurons)) {
    const line = make("tr", null, {}, body);
    make("th", nameOf(row), { scope: "row" }, line);
    const interval = known(row.low) && known(row.high) ? `${told(row.low)} to ${told(row.high)}` : "";
    for (const text of [known(row.emd_corrected) ? told(row.emd_corrected) : "", interval, told(row.emd)])
      make("td", text, { class: "number" }, line);
    make("td", known(row.q) ? short(row.q) : "", { class: "number" }, line);
    make("td", verdict(row), {}, line);
    const count = DATA.neurons.some((neuron) => known(neuron.q))
      ? `${row.differing} of ${row.neurons}`
      : `${row.neurons}, not tested`;
    make("td", count, { class: "number" }, line);
    make("td", percent(row.share), { class: "number" }, line);
  }
}

// Neurons, with both histograms and the images that they react to.

function drawNeurons() {
  const wanted = DATA.neurons
    .map((neuron, at) => ({ neuron, at }))
    .filter(
      ({ neuron }) => (!state.layer || neuron.layer === state.layer) && (!state.differ || differs(neuron)),
    );
  const cards = $("cards");
  cards.replaceChildren(...wanted.map(({ neuron, at }) => card(neuron, at)));
  $("shown").textContent =
    wanted.length === DATA.neurons.length
      ? `The first ${wanted.length}, by what they add to the distance.`
      : `${wanted.length} of the first ${DATA.neurons.length}${wanted.length ? "" : ": none is so"}.`;
  choose(state.picture);
}

function card(neuron, at) {
  const name = `${neuron.layer}, neuron ${neuron.neuron}`;
  const article = make("article", null, { "aria-label": name, class: alike(neuron) ? "alike" : "" });
  make("h3", `${at + 1}. ${name}`, {}, article);
  const top = make("div", null, { class: "told" }, article);
  const figure = make("figure", null, {}, top);
  if (neuron.histogram) histogram(neuron.histogram, name, figure);
  const list = make("dl", null, { class: "facts" }, top);
  const facts = [
    ["distance", distance(neuron)],
    ["q", known(neuron.q) ? `${short(neuron.q)}: ${verdict(neuron)}` : "not tested"],
  ];
  if (known(neuron.shift))
    facts.push(["shift", `${neuron.shift > 0 ? "+" : ""}${told(neuron.shift)} bins in ${DATA.names[1]}`]);
  if (DATA.through) facts.push(["weight", told(neuron.weight)]);
  if (known(neuron.share)) facts.push(["share", `${percent(neuron.share)} of the distance`]);
  for (const [term, text] of facts) {
    make("dt", term, {}, list);
    make("dd", text, {}, list);
  }
  for (const [side, images] of neuron.images.entries()) strip(name, side, images, article);
  return article;
}

function strip(name, side, images, parent) {
  const kind = side ? "second-name" : "first-name";
  make("p", `${DATA.names[side]}: it reacts most to`, { class: `${kind} quiet` }, parent);
  if (!images?.length) {
    make("p", images ? "no image" : "no images are kept of this neuron", { class: "quiet" }, parent);
    return;
  }
  const row = make(
    "div",
    null,
    { class: "strip", role: "group", "aria-label": `Images of ${DATA.names[side]} for ${name}` },
    parent,
  );
  for (const [k, [picture, reaction]] of images.entries()) {
    const { name: file, place, image, why } = DATA.pictures[picture];
    const said = `${file}, reaction ${told(reaction)}${why ? `; not shown: ${why}` : ""}`;
    const button = make(
      "button",
      null,
      {
        type: "button",
        "data-picture": picture,
        "aria-pressed": "false",
        "aria-label": said,
        title: `${place} (${told(reaction)})`,
        tabindex: k ? -1 : 0,
      },
      row,
    );
    if (image) make("img", null, { src: image, alt: "", width: 96, height: 96 }, button);
    else make("span", "not shown", { class: "gone" }, button);
    make("span", told(reaction), { class: "reaction" }, button);
    button.addEventListener("click", () => choose(state.picture === picture ? null : picture));
  }
  row.addEventListener("keydown", (event) => rove(event, [...row.children]));
}

// One image may stand at several neurons: all of its places are marked, and it is named in full.
function choose(picture) {
  state.picture = picture;
  for (const button of document.querySelectorAll("button[data-picture]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.picture) === picture));
  const at = picture === null ? null : DATA.pictures[picture];
  const seen = DATA.neurons.filter((neuron) =>
    neuron.images.some((images) => images?.some(([one]) => one === picture)),
  );
  $("selected").hidden = at === null;
  $("selected").textContent =
    at === null
      ? ""
      : `${at.place}${at.why ? `: not shown, ${at.why}` : ""}. Among the first images of ${seen.map((neuron) => `${neuron.layer}[${neuron.neuron}]`).join(", ")}.`;
}

// Beginning.

function update() {
  drawLayers();
  drawTable();
  drawNeurons();
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
}

function begin() {
  $("title").textContent = DATA.title;
  for (const [text, href] of DATA.links) make("a", text, { href }, $("back"));
  $("about").textContent = DATA.about;
  $("verdict").textContent = headline();
  $("summary").textContent = DATA.summary;
  for (const note of DATA.notes) make("li", note, {}, $("notes"));
  pairLegend(...DATA.names, $("neurons-legend"));
  for (const text of [
    "The share of activations in each part of a neuron's range; heights are square roots of shares.",
    "Below them the images that the neuron reacts to most, with its mean activation over each. Press one to name it, and to mark wherever else it stands; arrow keys move along a row.",
  ])
    make("p", text, { class: "quiet" }, $("neurons-legend"));
  option($("layer"), "", "all layers");
  for (const layer of new Set(DATA.neurons.map((neuron) => neuron.layer))) option($("layer"), layer, layer);
  drawPanels((details, dataset) => {
    fillPanel(details, { ...dataset, facts: [...dataset.facts, ...DATA.shared] });
    photos(dataset.samples, details);
  });
  $("layer").addEventListener("change", () => {
    state.layer = $("layer").value;
    update();
  });
  $("which").addEventListener("change", () => {
    state.differ = $("which").value === "differ";
    update();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("numbers").addEventListener("toggle", drawTable);
  let width = $("layers").clientWidth;
  new ResizeObserver(() => {
    if ($("layers").clientWidth !== width) {
      width = $("layers").clientWidth;
      drawLayers();
    }
  }).observe($("layers"));
  update();
}

begin();
