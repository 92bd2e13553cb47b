"use strict";
// What the pages draw alike. Every string of #data becomes text, never markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function make(tag, text, attributes = {}, parent = null) {
  const element = document.createElement(tag);
  if (text !== null && text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function drawn(tag, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function option(select, value, text) {
  make("option", text, { value }, select);
}

function told(value) {
  // four digits, as a person writes them
  if (!Number.isFinite(value)) return "not known";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(3);
  return value.toPrecision(4);
}

function short(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || (size > 0 && size < 0.001)) return value.toExponential(0);
  return size >= 100 ? value.toFixed(0) : size >= 1 ? value.toFixed(1) : value.toFixed(size < 0.1 ? 3 : 2);
}

const TICK_LETTER = 7; // the most that a digit of a tick takes, in pixels

const percent = (rate) => `${+(100 * rate).toFixed(1)}%`;

// Distances with their intervals, a row each: { name, value, low, high, alike, here, plain, blank }.
// `plain` follows the number; `blank` stands where there is none.
function intervals(rows, wide, parent) {
  const ends = rows
    .flatMap((row) => [row.value, row.low, Number.isFinite(row.low) ? row.high : NaN])
    .filter(Number.isFinite);
  const [least, most] = [Math.min(0, ...ends), Math.max(1e-12, ...ends)];
  const [tall, names] = [19, Math.min(130, wide * 0.3)];
  const right = 62 + 5.7 * Math.max(...rows.map((row) => row.plain.length));
  const x = (value) => names + 8 + ((value - least) / (most - least)) * (wide - names - right);
  const svg = drawn(
    "svg",
    {
      viewBox: `0 0 ${wide} ${rows.length * tall + 4}`,
      width: wide,
      role: "img",
      "aria-label": rows.map((row) => `${row.name} ${told(row.value)}`).join(", "),
    },
    parent,
  );
  drawn("line", { class: "axis", x1: x(0), x2: x(0), y1: 0, y2: rows.length * tall }, svg);
  for (const [k, row] of rows.entries()) {
    const y = (k + 0.5) * tall;
    const group = drawn("g", { class: row.here ? "row here" : "row" }, svg);
    drawn(
      "title",
      {},
      group,
      `${row.name}: ${told(row.value)}${row.plain}${Number.isFinite(row.low) ? `, 95% interval ${told(row.low)} to ${told(row.high)}` : ""}`,
    );
    drawn("rect", { x: 0, y: y - tall / 2, width: wide, height: tall }, group);
    const { name } = row;
    drawn(
      "text",
      { x: names, y: y + 4, "text-anchor": "end" },
      group,
      name.length > names / 6.2 ? `${name.slice(0, names / 6.2 - 1)}…` : name,
    );
    if (!Number.isFinite(row.value)) {
      drawn("text", { class: "quiet", x: x(0) + 4, y: y + 4 }, group, row.blank);
      continue;
    }
    if (Number.isFinite(row.low))
      drawn(
        "path",
        {
          class: "bar",
          d: `M${x(row.low)} ${y}H${x(row.high)}M${x(row.low)} ${y - 4}v8M${x(row.high)} ${y - 4}v8`,
        },
        group,
      );
    drawn("circle", { class: row.alike ? "point alike" : "point", cx: x(row.value), cy: y, r: 4 }, group);
    const end = Number.isFinite(row.low) ? Math.max(x(row.high), x(row.value)) : x(row.value);
    drawn("text", { x: end + 7, y: y + 4 }, group, short(row.value) + row.plain);
  }
}

// Both histograms of a neuron, { low, high, a, b, peak }, one over the other, in the units of its
// activations; heights are square roots of shares. At `parting`, { value, told }, they part: `told`
// is the share above it in either.
function histogram(of, name, parent, { wide = 220, tall = 70, parting = null } = {}) {
  const [left, top] = [34, parting ? 16 : 4];
  const right = left + wide;
  const base = top + tall;
  const svg = drawn(
    "svg",
    { viewBox: `0 0 ${right + 4} ${base + 16}`, width: right + 4, role: "img", "aria-label": name },
    parent,
  );
  const most = Math.max(1, ...of.a, ...of.b);
  const y = (share) => base - Math.sqrt(share / of.peak) * (tall - 3);
  let above = Infinity;
  for (const share of [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]) {
    if (share > of.peak || Math.abs(y(share) - above) < 13 || base - y(share) < 10) continue;
    above = y(share);
    drawn("line", { class: "grid", x1: left, x2: right, y1: above, y2: above }, svg);
    drawn("text", { class: "tick", x: left - 4, y: above + 4, "text-anchor": "end" }, svg, percent(share));
  }
  for (const [kind, counts] of [
    ["first", of.a],
    ["second", of.b],
  ]) {
    const step = wide / counts.length;
    const path = counts
      .map((count, k) => `L${left + k * step} ${y((count / most) * of.peak)}H${left + (k + 1) * step}`)
      .join("");
    drawn("path", { class: kind, d: `M${left} ${base}${path}V${base}Z` }, svg);
  }
  drawn("line", { class: "axis", x1: left, x2: right, y1: base, y2: base }, svg);
  const ends = [
    [of.low, left, "start"],
    [of.high, right, "end"],
  ];
  if (parting) {
    const at = left + ((parting.value - of.low) / (of.high - of.low)) * wide;
    drawn("line", { class: "parting", x1: at, x2: at, y1: 0, y2: base }, svg);
    const end = at > left + wide / 2;
    for (const [side, text] of parting.told.entries()) {
      const x = end ? at - 8 - 52 * (1 - side) : at + 8 + 52 * side;
      const mark = end ? x - 44 : x;
      drawn("rect", { class: side ? "second" : "first", x: mark, y: 3, width: 8, height: 8 }, svg);
      drawn("text", { x: mark + 11, y: 11 }, svg, text);
    }
    const half = TICK_LETTER * (short(parting.value).length / 2 + 1);
    const room = (value) => half + TICK_LETTER * short(value).length;
    if (at - left > room(of.low) && right - at > room(of.high)) ends.push([parting.value, at, "middle"]);
  }
  for (const [value, x, anchor] of ends)
    drawn("text", { class: "tick", x, y: base + 13, "text-anchor": anchor }, svg, short(value));
}

function pairLegend(first, second, parent) {
  const legend = make("p", null, { class: "quiet" }, parent);
  make("span", `${first}  `, { class: "first-name" }, legend);
  legend.append(" ");
  make("span", second, { class: "second-name" }, legend);
}

// Of many elements one is a stop of the Tab key; arrows move from it to the others.
function rove(event, elements) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const here = elements.indexOf(document.activeElement);
  const last = elements.length - 1;
  const [back, on] = [here - 1, here + 1];
  const steps = { ArrowLeft: back, ArrowUp: back, ArrowRight: on, ArrowDown: on, Home: 0, End: last };
  const to = steps[event.key];
  if (to === undefined || here < 0) return;
  event.preventDefault();
  stopAt(elements, elements[Math.max(0, Math.min(last, to))]).focus();
}

function stopAt(elements, stop) {
  for (const element of elements) element.setAttribute("tabindex", element === stop ? 0 : -1);
  return stop;
}

// Datasets.

// The name of a dataset, which leads to its own page where there is one.
function datasetName(name, page, parent) {
  if (page) make("a", name, { href: page }, parent);
  else parent.append(name);
}

// A strip of small images, each whole.
function photos(samples, parent) {
  const strip = make("div", null, { class: "photos" }, parent);
  for (const { name, image } of samples)
    make("img", null, { src: image, alt: `image ${name}`, title: name }, strip);
  return strip;
}

function factList(facts, parent) {
  const list = make("dl", null, { class: "facts" }, parent);
  for (const [name, text] of facts) {
    make("dt", name, {}, list);
    make("dd", text, {}, list);
  }
}

function drawPanels(fill) {
  for (const [i, dataset] of DATA.datasets.entries()) {
    const details = make("details", null, {}, $("panels"));
    make("summary", `${DATA.names[i]}: ${dataset.line}`, {}, details);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) fill(details, dataset);
    });
  }
}

// Where a dataset comes from, and what could not be read of it.
function fillPanel(details, dataset) {
  factList(dataset.facts, details);
  if (dataset.reasons.length) {
    make("h3", "Failures", {}, details);
    const reasons = make("ul", null, {}, details);
    for (const [reason, count] of dataset.reasons)
      make("li", `${count.toLocaleString("en")} × ${reason}`, {}, reasons);
    const named = make("ul", null, { class: "quiet" }, details);
    for (const text of dataset.failures) make("li", text, {}, named);
  }
  for (const note of dataset.notes) make("p", note, { class: "quiet" }, details);
}
