// The datasets: their images first, and at the end of the page where they come from.

const cards = DATA.datasets.map((dataset, i) => {
  const card = make("article", null, { class: "dataset" });
  const head = make("p", null, {}, card);
  const button = make("button", DATA.names[i], { type: "button", "aria-pressed": "false" }, head);
  button.addEventListener("click", () => choose(i));
  make("span", dataset.line, { class: "quiet" }, head);
  if (dataset.samples.length) photos(dataset.samples, card);
  for (const note of dataset.notes) make("p", note, { class: "quiet" }, card);
  return card;
});

function drawDatasets() {
  $("strips").replaceChildren(...view.order.map((i) => cards[i]));
  showChosen();
}

// Two datasets that are chosen one after the other open as a pair.
function choose(i) {
  if (state.chosen === null || state.chosen === i) {
    state.chosen = state.chosen === i ? null : i;
    showChosen();
    return;
  }
  const first = state.chosen;
  state.chosen = null;
  [state.row, state.column] = [first, i];
  showSelected();
  openPair(first, i, true);
}

function showChosen() {
  for (const [i, card] of cards.entries()) {
    const held = i === state.chosen || Boolean(state.open?.includes(i));
    card.classList.toggle("held", held);
    card.querySelector("button").setAttribute("aria-pressed", String(held));
  }
  $("chosen").textContent =
    state.chosen === null
      ? "Choose two datasets, one after the other, to see what differs between them."
      : `${DATA.names[state.chosen]} is chosen. Choose another dataset to see what differs between the two.`;
}

function drawProvenance() {
  $("about").textContent = DATA.about;
  factList(DATA.shared, $("shared"));
  drawPanels(fillPanel);
}
