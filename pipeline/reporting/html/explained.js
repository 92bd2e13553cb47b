// The page of an explanation, with what is in draw.js and stages.js before it.

const ALL = "all";
const state = { stage: null, layer: "", differ: false, picture: null };
const known = Number.isFinite; // null stands for what is not

const differs = (row) => known(row.q) && row.q < DATA.rate;
const alike = (row) => known(row.q) && row.q >= DATA.rate;
const nameOf = (row) => (row.layer !== ALL ? row.layer : DATA.through ? "all layers" : "all neurons");

function verdict(row) {
  if (differs(row)) return "differs";
  return alike(row) ? "not told apart" : "not tested";
}

function distance(row, digits = told) {
  if (!known(row.emd)) return "not defined";
  if (!known(row.emd_corrected)) return `${digits(row.emd)} bins, not corrected for the sizes of the samples`;
  const interval = known(row.low) && known(row.high) ? `, with a 95% interval of ${digits(row.low)} to ${digits(row.high)}` : "";
  return `${digits(row.emd_corrected)} bins${interval}`;
}

// The whole, and its layers.

const wholeRow = () => DATA.layers.find((row) => row.layer === ALL);

function headline() {
  const whole = wholeRow();
  if (!whole) return "";
  const pair = `${DATA.names[0]} and ${DATA.names[1]}`;
  const over = `Over ${nameOf(whole)}${DATA.through ? ` ${DATA.through}` : ""}: ${distance(whole, short)}.`;
  if (differs(whole)) return `${pair} differ by more than chance. ${over}`;
  const layers = DATA.layers.filter((row) => row !== whole && row.neurons);
  const apart = layers.filter(differs).length;
  if (alike(whole) && apart)
    return `${pair} differ in ${apart} of ${layers.length} layers, and are not told apart by all neurons together. ${over}`;
  if (alike(whole))
    return `${pair} are not told apart: they may differ by chance. ${over}`;
  return `${pair} are not tested: that takes folds, and weights that are not negative. ${over}`;
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
      ? "Earth Mover's Distance in bins, corrected for the sizes of the samples, with 95% intervals; hollow: not told apart " + `at a false discovery rate of ${percent(DATA.rate)}.`
      : "Earth Mover's Distance in bins, not corrected for the sizes of the samples; there are no error bars.") +
    (blind.length ? ` The lens gives no weight to ${blind.join(", ")}.` : "");
}

// The stages of this network from its input on, each with its layers.
function allStages() {
  const layers = Object.keys(DATA.stages);
  return [...new Set(Object.values(DATA.stages))]
    .filter(Boolean)
    .map((name) => ({ name, layers: layers.filter((layer) => DATA.stages[layer] === name) }));
}

function drawStageMeans() {
  const rows = new Map(DATA.layers.map((row) => [row.layer, row]));
  const layers = Object.entries(DATA.stages)
    .filter(([layer]) => rows.get(layer)?.neurons)
    .map(([layer, stage]) => {
      const { emd, emd_corrected, low, high, q } = rows.get(layer);
      return { stage, distance: emd_corrected ?? emd, low, high, q, rate: DATA.rate };
    });
  $("stages").replaceChildren();
  drawStages(stageMeans(layers), Math.min(560, $("stages").clientWidth || 440), $("stages"));
}

// A table of rows with distances, in a <details> that is filled when it is opened.
function drawTable(id, first, rows, more) {
  const place = $(id).lastElementChild;
  place.replaceChildren();
  if (!$(id).open) return;
  const table = make("table", null, {}, place);
  const head = make("tr", null, {}, make("thead", null, {}, table));
  const headings = [first, "corrected", "95% interval", "emd", "q", "verdict", ...Object.keys(more)];
  for (const text of headings) make("th", text, { scope: "col" }, head);
  const body = make("tbody", null, {}, table);
  for (const row of rows) {
    const line = make("tr", null, {}, body);
    const of = first === "layer" ? nameOf(row) : `${row.layer}, neuron ${row.neuron}`;
    make("th", of, { scope: "row" }, line);
    const interval = known(row.low) && known(row.high) ? `${told(row.low)} to ${told(row.high)}` : "";
    for (const text of [known(row.emd_corrected) ? told(row.emd_corrected) : "", interval, told(row.emd)])
      make("td", text, { class: "number" }, line);
    make("td", known(row.q) ? short(row.q) : "", { class: "number" }, line);
    make("td", verdict(row), {}, line);
    for (const text of Object.values(more)) make("td", text(row), { class: "number" }, line);
  }
}

const share = (row) => (known(row.share) ? percent(row.share) : "");

function drawTables() {
  const tested = DATA.neurons.some((neuron) => known(neuron.q));
  drawTable("numbers", "layer", DATA.layers.filter((row) => row.neurons), {
    "neurons that differ": (row) =>
      tested ? `${row.differing} of ${row.neurons}` : `${row.neurons}, not tested`,
    share,
  });
  drawTable("first", "neuron", DATA.neurons, {
    shift: (row) => (known(row.shift) ? told(row.shift) : ""),
    ...(DATA.through ? { weight: (row) => told(row.weight) } : {}),
    share,
  });
}

// The images of each dataset that are nearer to their own than to the other.

function drawUnlike() {
  $("unlike-section").hidden = !DATA.unlike.some((images) => images.length);
  $("unlike-note").textContent =
    "Each is farther from the other dataset than from its own; where that difference is largest comes first. The number on an image is its distance to the other dataset, in bins, so the numbers need not fall. Of images that look alike, one is shown. Press one to name it.";
  for (const [side, images] of DATA.unlike.entries()) {
    const other = DATA.names[1 - side];
    make("p", `${DATA.names[side]}: most unlike ${other}`, { class: sideClass(side) }, $("unlike"));
    const shown = images.map(([picture, toOther, toOwn]) => ({
      picture,
      text: toOther.toFixed(1),
      said: `${toOther.toFixed(1)} bins from ${other}, ${toOwn.toFixed(1)} from ${DATA.names[side]}`,
    }));
    strip(`Images of ${DATA.names[side]} that are most unlike ${other}`, shown, $("unlike"));
  }
}

const sideClass = (side) => (side ? "second-name side-name" : "first-name side-name");

// Neurons by stage, the deep ones first, with both histograms and images. Those that tell the same are one.

function drawNeurons() {
  const wanted = DATA.groups.filter(
    (group) =>
      (state.stage === null || group.stage === state.stage) &&
      (!state.layer || group.layer === state.layer) &&
      (!state.differ || differs(group)),
  );
  const parts = [];
  for (const stage of new Set(wanted.map((group) => group.stage))) {
    const part = make("div", null, { class: "stage" });
    if (stage) {
      make("h3", stage, {}, part);
      make("p", stageLine(stage), { class: "quiet" }, part);
    }
    const grid = make("div", null, { class: "cards" }, part);
    grid.append(...wanted.filter((group) => group.stage === stage).map(card));
    parts.push(part);
  }
  $("cards").replaceChildren(...parts);
  const all = DATA.groups.length;
  $("shown").textContent =
    wanted.length === all
      ? `${all} ${all === 1 ? "neuron is" : "neurons are"} shown.`
      : `${wanted.length} of ${all} are shown${wanted.length ? "" : ": none is so"}.`;
  choose(state.picture);
}

// How much of a stage differs. Its layers are named, so that a reader can find them above.
function stageLine(name) {
  const { layers } = allStages().find((stage) => stage.name === name);
  const rows = DATA.layers.filter((row) => layers.includes(row.layer) && row.neurons);
  const sum = (column) => rows.reduce((total, row) => total + row[column], 0);
  const count = sum("neurons").toLocaleString("en");
  const tested = DATA.groups.some((group) => known(group.q));
  const said = tested ? `${sum("differing").toLocaleString("en")} of ${count} neurons differ` : `${count} neurons`;
  return `${said}, in ${rows.length > 1 ? `layers ${layers[0]} to ${layers.at(-1)}` : layers[0]}.`;
}

function card(group) {
  const name = `${group.layer}, neuron ${group.neuron}`;
  const article = make("article", null, { "aria-label": name, class: alike(group) ? "alike" : "" });
  const heading = make("h4", name, {}, article);
  const others = group.others.length;
  if (others) make("span", `, and ${others} like it`, { class: "quiet" }, heading);
  if (!differs(group)) make("span", ` (${verdict(group)})`, { class: "quiet" }, heading);
  make("p", group.caption, { class: "caption" }, article);
  if (group.description) make("p", group.description, { class: "description" }, article);
  if (group.failure) make("p", `Not described: ${group.failure}.`, { class: "quiet" }, article);
  histogram(group.histogram, `Histograms of ${name}. ${group.caption}`, make("figure", null, {}, article), {
    wide: 330,
    tall: 84,
    parting: group.parting,
  });
  for (const [side, images] of group.images.entries()) examples(group, name, side, images, article);
  numbersOf(group, article);
  return article;
}

function numbersOf(group, article) {
  const details = make("details", null, {}, article);
  make("summary", "Numbers", {}, details);
  const facts = [
    ["distance", distance(group)],
    ["q", known(group.q) ? `${short(group.q)}: ${verdict(group)}` : "not tested"],
  ];
  if (known(group.shift))
    facts.push(["shift", `${group.shift > 0 ? "+" : ""}${told(group.shift)} bins in ${DATA.names[1]}`]);
  if (DATA.through) facts.push(["weight", told(group.weight)]);
  if (known(group.share)) facts.push(["share", `${percent(group.share)} of the distance`]);
  if (group.others.length) facts.push(["like it", group.others.join(", ")]);
  factList(facts, details);
}

function examples(group, name, side, images, parent) {
  const label = `${DATA.names[side]}: ${group.telling ? tellingWords(group, images) : "it reacts most to"}`;
  make("p", label, { class: `${sideClass(side)} quiet` }, parent);
  if (!images?.length) {
    const none = group.telling ? "none shows it clearly" : "no image";
    make("p", images ? none : "no images are kept of this neuron", { class: "quiet" }, parent);
    return;
  }
  const shown = images.map(([picture, number]) => {
    const text = group.telling ? `${(100 * number).toFixed(0)}%` : told(number);
    const said = group.telling
      ? `${text} of its values are above ${short(group.parting.value)}`
      : `reaction ${text}`;
    return { picture, text, said };
  });
  strip(`Images of ${DATA.names[side]} for ${name}`, shown, parent);
}

// Whether these images lie on the upper or the lower side of where the histograms part.
function tellingWords(group, images) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const many = mean(images.map(([, number]) => number)) > mean(group.parting.above);
  return images.length ? `images with ${many ? "many" : "few"} values above it` : "images";
}

// A row of images, { picture, text, said }, that is one stop of the Tab key.
function strip(label, shown, parent) {
  const row = make("div", null, { class: "strip", role: "group", "aria-label": label }, parent);
  for (const [k, { picture, text, said }] of shown.entries()) {
    const { name: file, place, image, why } = DATA.pictures[picture];
    const button = make(
      "button",
      null,
      {
        type: "button",
        "data-picture": picture,
        "aria-pressed": "false",
        "aria-label": `${file}, ${said}${why ? `; not shown: ${why}` : ""}`,
        title: `${place} (${said})`,
        tabindex: k ? -1 : 0,
      },
      row,
    );
    if (image) make("img", null, { src: image, alt: "", width: 96, height: 96 }, button);
    else make("span", "not shown", { class: "gone" }, button);
    make("span", text, { class: "reaction" }, button);
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
  const seen = DATA.groups.filter((group) =>
    group.images.some((images) => images?.some(([one]) => one === picture)),
  );
  const among = seen.map((group) => `${group.layer}[${group.neuron}]`).join(", ");
  $("selected").hidden = at === null;
  $("selected").textContent =
    at === null
      ? ""
      : `${at.place}${at.why ? `: not shown, ${at.why}` : ""}.${among ? ` Among the images of ${among}.` : ""}`;
}

// Beginning.

function legend() {
  const telling = DATA.groups.some((group) => group.telling);
  const looked = DATA.looked ?? [0, 0];
  return [
    "Deep stages first: they tell more of what the images show. Of neurons that tell the same, because their means move together or their strongest images are the same, the one that differs most is shown.",
    "A value is what a neuron puts out at one place of an image. The histograms have the share of values in each part of its range, in its own units; heights are square roots of shares. The dashed line is the value above which the shares of the two differ most; they stand beside it.",
    telling
      ? `Below them are images whose values are those of one dataset rather than the other, of ${looked[0]} and ${looked[1]} images that were looked at again; on each stands the share of its values above the dashed line. Of images that look alike, one is shown. Press one to name it, and to mark wherever else it stands; arrow keys move along a row.`
      : "Below them are the images that the neuron reacts to most, with its mean activation over each. Press one to name it, and to mark wherever else it stands; arrow keys move along a row.",
  ];
}

function update() {
  drawLayers();
  drawTables();
  drawNeurons();
  document.body.dataset.drawn = String(Number(document.body.dataset.drawn ?? 0) + 1);
}

// The title, in which the names lead to the datasets' own pages.
function drawTitle() {
  const [first, second] = DATA.names;
  const [own, other] = DATA.dataset_pages;
  const apart = !wholeRow() || !alike(wholeRow());
  if (apart) $("title").append("Why ");
  datasetName(first, own, $("title"));
  $("title").append(" and ");
  datasetName(second, other, $("title"));
  $("title").append(`${apart ? " differ" : " compared"}${DATA.through ? ` ${DATA.through}` : ""}`);
}

function begin() {
  drawTitle();
  for (const [text, href] of DATA.links) make("a", text, { href }, $("back"));
  $("about").textContent = DATA.about;
  $("verdict").textContent = headline();
  $("summary").textContent = DATA.summary;
  for (const note of DATA.notes) make("li", note, {}, $("notes"));
  pairLegend(...DATA.names, $("neurons-legend"));
  for (const text of legend()) make("p", text, { class: "quiet" }, $("neurons-legend"));
  const stages = allStages().toReversed();
  option($("stage"), "", "all stages");
  for (const { name } of stages)
    if (DATA.groups.some((group) => group.stage === name)) option($("stage"), name, name);
  $("stage").parentElement.hidden = !stages.length;
  option($("layer"), "", "all layers");
  for (const layer of new Set(DATA.groups.map((group) => group.layer))) option($("layer"), layer, layer);
  drawStageMeans();
  drawUnlike();
  drawPanels((details, dataset) => {
    fillPanel(details, { ...dataset, facts: [...dataset.facts, ...DATA.shared] });
    photos(dataset.samples, details);
  });
  $("stage").addEventListener("change", () => {
    state.stage = $("stage").value || null;
    update();
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
  for (const id of ["numbers", "first"]) $(id).addEventListener("toggle", drawTables);
  let width = $("layers").clientWidth;
  new ResizeObserver(() => {
    if ($("layers").clientWidth !== width) {
      width = $("layers").clientWidth;
      drawStageMeans();
      drawLayers();
    }
  }).observe($("layers"));
  update();
}

begin();
