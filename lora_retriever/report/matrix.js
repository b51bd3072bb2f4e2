// Heat maps: tables whose cells are shaded by their value. The arrow keys move between cells.

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** A matrix, and a line that describes the cell under the pointer or the focus. `digits`: cells show percentages. */
function heatMap(matrix, digits) {
  const readout = element("output", { class: "readout" }, "The value of the chosen cell is shown here.");
  const cells = matrix.values.map((values) =>
    values.map((value, column) => heatCell(value, digits, edge(matrix.columns, column))));
  const columnHeads = matrix.columns.map((label, column) =>
    element("th", { scope: "col", class: edge(matrix.columns, column) }, element("span", {}, label.name)));
  const lines = matrix.rows.map((label, row) => {
    const first = row === 0 || matrix.rows[row - 1].domain !== label.domain;
    const size = matrix.rows.filter((other) => other.domain === label.domain).length;
    return element("tr", { class: edge(matrix.rows, row) },
      ...(first ? [element("th", { scope: "rowgroup", rowspan: String(size), class: "domain" }, label.domain)] : []),
      element("th", { scope: "row" }, label.name),
      ...cells[row]);
  });
  const table = element("table", { class: "heat" },
    element("thead", {}, element("tr", {}, element("td", { colspan: "2" }), ...columnHeads)),
    element("tbody", {}, ...lines));
  cells[0][0].tabIndex = 0;

  const positionOf = (cell) => {
    const row = lines.indexOf(cell.parentNode);
    return [row, cells[row].indexOf(cell)];
  };
  const spell = (cell) => {
    const [row, column] = positionOf(cell);
    readout.textContent = visible(
      `${matrix.rows[row].name} → ${matrix.columns[column].name}: ${spelled(matrix, row, column)}`);
  };
  const body = table.tBodies[0];
  body.addEventListener("pointerover", ({ target }) => { if (target.tagName === "TD") spell(target); });
  body.addEventListener("focusin", ({ target }) => spell(target));
  body.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = positionOf(event.target);
    const next = cells[row + step[0]]?.[column + step[1]];
    if (!next) return;
    event.target.removeAttribute("tabindex"); // one cell at a time is a stop of the Tab key
    next.tabIndex = 0;
    next.focus();
  });
  return element("div", {}, readout, element("div", { class: "scroll" }, table));
}

/** The class of the first label of a domain: a line is drawn before this label. */
const edge = (labels, at) => (at && labels[at - 1].domain !== labels[at].domain ? "edge" : null);

function heatCell(value, digits, edgeClass) {
  const cell = element("td", { class: edgeClass });
  const share = Math.max(0, Math.min(1, value));
  if (share > 0) cell.style.setProperty("--share", `${(100 * share).toFixed(0)}%`);
  if (share > 0.62) cell.classList.add("strong"); // where dark and light text are equally readable
  if (digits && value >= 0.005) cell.textContent = (100 * value).toFixed(0);
  return cell;
}

function spelled(matrix, row, column) {
  const value = matrix.values[row][column];
  if (!matrix.counts.length) return value.toFixed(2);
  const size = matrix.counts[row];
  return `${percent(value)} (${Math.round(value * size)} of ${size} rows)`;
}

function showRetrieval(maps) {
  const choice = byId("retrieval-run");
  choice.append(...maps.map((map, index) => element("option", { value: String(index) }, map.title)));
  const show = () => byId("retrieval-map").replaceChildren(heatMap(maps[choice.value], true));
  choice.addEventListener("change", show);
  drawLater(byId("retrieval-map"), maps[0], show);
}

function showSimilarity(matrix) {
  const box = byId("similarity-map");
  drawLater(box, matrix, () => box.append(heatMap(matrix, false)));
}

/** A full-size heat map takes a tenth of a second, so it is drawn when it comes into view. Its room is reserved before. */
function drawLater(box, matrix, draw) {
  box.style.setProperty("--room", `${1.3 * matrix.rows.length + 8}rem`);
  whenNear(box, draw);
}
