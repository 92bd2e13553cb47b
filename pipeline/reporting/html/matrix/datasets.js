// The datasets: their images first, and at the end of the page where they come from.

const cards = DATA.datasets.map((dataset, i) => {
  const card = make("article", null, { class: "dataset" });
  const head = make("p", null, {}, card);
  const button = make("button", DATA.names[i], { type: "button", "aria-pressed": "false" }, head);
  button.addEventListener("click", () => choose(i));
  make("span", dataset.line, { class: "quiet" }, head);
  if (dataset.samples.length) photos(dataset.samples, card);
  const page = DATA.dataset_pages[i];
  if (page)
    make("a", `More of ${DATA.names[i]}`, { href: page }, make("p", null, { class: "quiet" }, card));
  rankingLinks([i], card);
  for (const note of dataset.notes) make("p", note, { class: "quiet" }, card);
  return card;
});

// Links to the rankings of images by their distance to one of some datasets.
function rankingLinks(datasets, parent) {
  for (const { text, href } of DATA.rankings.filter((of) => datasets.includes(of.dataset)))
    make("a", text, { href }, make("p", null, { class: "quiet" }, parent));
}

const mostImages = Math.max(...DATA.datasets.map((dataset) => dataset.samples.length));

function drawDatasets() {
  const held = document.activeElement; // keeps the focus when the page is drawn again
  $("strips").classList.toggle("narrow", mostImages <= 2);
  $("strips").replaceChildren(...view.order.map((i) => cards[i]));
  const buttons = stripButtons();
  const stays = buttons.includes(held);
  stopAt(buttons, stays ? held : buttons[0]);
  if (stays) held.focus({ preventScroll: true });
  showChosen();
}

const stripButtons = () => [...$("strips").querySelectorAll("button")];

// Two datasets that are chosen one after the other open as a pair.
function choose(i) {
  if (state.chosen === null || state.chosen === i) {
    state.chosen = state.chosen === i ? null : i;
    showChosen();
    remember(false);
    return;
  }
  const first = state.chosen;
  state.chosen = null;
  show(first, i, true);
}

// Opens a pair that somebody chose, which is a step that Back undoes.
async function show(i, j, go) {
  if (i === j) return;
  [state.row, state.column] = [i, j];
  showSelected();
  await openPair(i, j, go);
  remember();
}

function showChosen() {
  const isHeld = (i) => i === state.chosen || Boolean(state.open?.includes(i));
  for (const [i, card] of cards.entries()) {
    card.classList.toggle("held", isHeld(i));
    card.querySelector("button").setAttribute("aria-pressed", String(isHeld(i)));
  }
  for (const marker of document.querySelectorAll("#map .marker")) {
    const held = isHeld(Number(marker.dataset.dataset));
    marker.classList.toggle("held", held);
    marker.setAttribute("aria-pressed", String(held));
  }
  $("chosen").textContent =
    state.chosen === null
      ? "Choose two datasets, one after the other, to see what differs between them."
      : `${DATA.names[state.chosen]} is chosen. Choose another dataset to see what differs between the two.`;
}

function listRankings() {
  $("rankings").hidden = !DATA.rankings.length;
  for (const { text, href } of DATA.rankings)
    make("a", text, { href }, make("li", null, {}, $("rankings").lastElementChild));
}

function drawProvenance() {
  $("about").textContent = DATA.about;
  factList(DATA.shared, $("shared"));
  drawPanels(fillPanel);
}
