// What differs, by stage of the network: of a pair on the page of a matrix, and of an explanation.

// Sums up layers, { stage, distance, low, high, q, rate } each, by stage, in the order in which stages come.
// The mean of the layers' intervals is no narrower than the interval of the mean, since it takes the
// layers' errors to be one and the same.
function stageMeans(rows) {
  const known = rows.filter((row) => row.stage && Number.isFinite(row.distance));
  return [...new Set(known.map((row) => row.stage))].map((name) => {
    const layers = known.filter((row) => row.stage === name);
    const mean = (column) => layers.reduce((sum, row) => sum + row[column], 0) / layers.length;
    const tested = layers.filter((row) => Number.isFinite(row.q));
    const barred = layers.every((row) => Number.isFinite(row.low) && Number.isFinite(row.high));
    return {
      name,
      layers: layers.length,
      tested: tested.length,
      differing: tested.filter((row) => row.q < row.rate).length,
      value: mean("distance"),
      low: barred ? mean("low") : NaN,
      high: barred ? mean("high") : NaN,
    };
  });
}

function drawStages(found, wide, parent) {
  if (!found.length) return;
  make("h3", "What differs, by stage of the network", {}, parent);
  make("p", stagesInWords(found), { class: "words" }, parent);
  intervals(
    found.map((stage) => ({
      ...stage,
      here: false,
      alike: stage.tested > 0 && !stage.differing,
      plain: stage.tested
        ? `, ${stage.differing} of ${stage.tested} ${stage.tested === 1 ? "layer" : "layers"}`
        : "",
    })),
    wide,
    parent,
  );
  make(
    "p",
    `Mean distance of the stage's layers, in bins${found.some((stage) => stage.tested) ? ", and how many of those that are tested are told apart, as so many layers are tested at once" : ""}. The names are a rule of thumb for how deep a layer lies, not a finding: in networks that were trained on ImageNet, the first layers react to colour and edges, then to texture, then to shape, and the last ones to objects.`,
    { class: "quiet" },
    parent,
  );
}

function stagesInWords(found) {
  const listed = (of) => {
    const names = of.map((stage) => `in ${stage.name}`);
    return names.length > 1 ? `${names.slice(0, -1).join(", ")}, and ${names.at(-1)}` : names[0];
  };
  const tested = found.filter((stage) => stage.tested);
  if (!tested.length) return "No layer is tested: differences may be chance.";
  const apart = tested.filter((stage) => stage.differing);
  if (!apart.length) return "They are told apart in no layer.";
  const [all, some] = [apart.length === found.length, listed(apart)];
  const where = all ? "They are told apart at every stage" : `They are told apart ${some}`;
  const first = apart.reduce((most, stage) => (stage.value > most.value ? stage : most));
  const clear = found.every((stage) => stage === first || first.low > stage.high);
  if (found.length === 1 || !found.every((stage) => Number.isFinite(stage.low))) return `${where}.`;
  return clear
    ? `${where}, and most in ${first.name}.`
    : `${where}. By their intervals, no stage differs more than all others.`;
}
