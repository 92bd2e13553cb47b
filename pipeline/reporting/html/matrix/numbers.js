// Numbers: the upper triangle of each column and layer, float32, its bytes sorted by weight, deflated.

const unpacked = new Map();

function numbers(matrix, column, plane) {
  const key = `${matrix}/${column}/${plane}`;
  if (!unpacked.has(key)) unpacked.set(key, unpack(DATA.matrices[matrix].columns[column]?.[plane]));
  return unpacked.get(key);
}

async function unpack(text) {
  if (!text) return null;
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = bytes.length / 4;
  const sorted = new Uint8Array(bytes.length);
  for (let byte = 0; byte < 4; byte++) {
    for (let i = 0; i < count; i++) sorted[4 * i + byte] = bytes[byte * count + i];
  }
  const reader = new DataView(sorted.buffer);
  return Float32Array.from({ length: count }, (_, i) => reader.getFloat32(4 * i, true));
}

const anyKnown = (values) => Boolean(values?.some(Number.isFinite));

const place = (i, j) => (i < j ? (i * (2 * SIZE - i - 1)) / 2 + j - i - 1 : place(j, i));

// Corrected for the sizes of the samples where that is known, and else plain: as the tree and the order.
function shownValues(layer) {
  const corrected = layer.emd_corrected;
  return corrected
    ? layer.emd.map((value, k) => (Number.isFinite(corrected[k]) ? corrected[k] : value))
    : layer.emd;
}

function at(values, i, j) {
  if (!values) return NaN;
  return i === j ? 0 : values[place(i, j)];
}

async function layerNumbers(matrix, plane) {
  const found = {};
  await Promise.all(
    DETAILS.map(async (column) => {
      found[column] = await numbers(matrix, column, plane);
    }),
  );
  found.emd_range = found.emd && found.emd.map((value) => value / DATA.bins);
  return found;
}
