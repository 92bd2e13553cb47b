// The matrix by mouse and by keyboard.

function cellAt(event) {
  const box = $("stage").getBoundingClientRect();
  const [px, py] = [event.clientX - box.left - view.left, event.clientY - box.top - view.above];
  if (px < view.sight.x || py < view.sight.y) return null; // a name
  const [x, y] = [px, py].map((pixel) => Math.floor(pixel / view.cell));
  const inside = x >= 0 && y >= 0 && x < view.order.length && y < view.order.length;
  return inside ? [view.order[y], view.order[x]] : null;
}

function hover(event) {
  const pair = view && cellAt(event);
  $("tip").classList.toggle("on", Boolean(pair));
  if (!pair) return;
  const [i, j] = pair;
  const lines = i === j ? ["itself"] : facts(view.layer, i, j).map((fact) => fact.join(": "));
  showTip(event, [DATA.names[i], DATA.names[j], ...lines].join("\n"));
}

function showTip(event, text) {
  const tip = $("tip");
  tip.classList.add("on");
  tip.textContent = text;
  const [wide, tall] = [tip.offsetWidth, tip.offsetHeight];
  const x = event.clientX + 16 + wide > window.innerWidth ? event.clientX - wide - 12 : event.clientX + 16;
  const y = event.clientY + 16 + tall > window.innerHeight ? event.clientY - tall - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, y)}px`;
}

function press(event) {
  if (!view || !view.order.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const { order, cell } = view;
  let [y, x] = [Math.max(0, order.indexOf(state.row)), Math.max(0, order.indexOf(state.column))];
  const last = order.length - 1;
  const moves = {
    ArrowUp: () => {
      y--;
    },
    ArrowDown: () => {
      y++;
    },
    ArrowLeft: () => {
      x--;
    },
    ArrowRight: () => {
      x++;
    },
    Home: () => {
      x = 0;
    },
    End: () => {
      x = last;
    },
    PageUp: () => {
      y -= 10;
    },
    PageDown: () => {
      y += 10;
    },
  };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    show(state.row, state.column, true);
  } else if (moves[event.key]) {
    event.preventDefault();
    moves[event.key]();
    y = Math.max(0, Math.min(last, y));
    x = Math.max(0, Math.min(last, x));
    [state.row, state.column] = [order[y], order[x]];
    showSelected();
    const frame = $("frame"); // what is selected stays in sight, in a matrix that scrolls
    const [px, py] = [x * cell, y * cell]; // beside the names, which stay in sight
    const [right, below] = [px + view.left + cell - frame.clientWidth, py + view.above + cell - frame.clientHeight];
    if (px < frame.scrollLeft) frame.scrollLeft = px;
    if (right > frame.scrollLeft) frame.scrollLeft = right;
    if (py < frame.scrollTop) frame.scrollTop = py;
    if (below > frame.scrollTop) frame.scrollTop = below;
  }
}
