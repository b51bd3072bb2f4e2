// Tables of scores: numbers with whiskers, sortable by every column.

const NEXT_ORDER = { none: "descending", descending: "ascending", ascending: "none" };

/** The tables of the page. The screen shows one table at a time, a print shows all. */
function showTables(tables) {
  const buttons = tables.map((table, index) => {
    const button = element("button", { type: "button", "aria-pressed": String(index === 0) }, table.name);
    button.addEventListener("click", () => show(index));
    return button;
  });
  const panels = tables.map((table, index) => {
    const panel = element("div", { class: "panel", "data-shown": String(index === 0) },
      element("h3", { class: "print-only" }, table.name));
    whenNear(panel, () => panel.append(
      scoreTable(table), ...table.notes.map((note) => element("p", { class: "note" }, note))));
    return panel;
  });
  const show = (chosen) => {
    panels.forEach((panel, index) => { panel.dataset.shown = String(index === chosen); });
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === chosen)));
  };
  byId("table-choice").append(...buttons);
  byId("tables").append(...panels);
}

/**
 * A scrollable, sortable table of numbers [value, low, high, mark], texts or nothing; rows from `foot` on stay below.
 * Whiskers lie on the given scale. Without one each row has its own scale, shown at the end of the row.
 */
function scoreTable({ name, corner = "score", columns, rows, foot, signed, scale }) {
  const ofWords = (column) => rows.some(([, cells]) => typeof cells[column - 1] === "string");
  const heads = [corner, ...columns].map((label, column) =>
    element("th", { scope: "col", class: ofWords(column) ? "words" : null, "aria-sort": "none" },
      element("button", { type: "button" }, ...breakable(label))));
  const lines = rows.map(([label, cells]) => scoreRow(label, cells, signed, scale));
  const body = element("tbody", {}, ...lines.slice(0, foot));
  const table = element("table", { class: "scores" },
    element("caption", {}, name),
    element("thead", {}, element("tr", {}, ...heads, ...(scale ? [] : [element("th", { scope: "col" }, "scale")]))),
    body,
    element("tfoot", {}, ...lines.slice(foot)));
  const value = ([label, cells], column) => {
    const cell = column === 0 ? label : cells[column - 1];
    return Array.isArray(cell) ? cell[0] : cell;
  };
  heads.forEach((head, column) => {
    head.firstChild.addEventListener("click", () => {
      const order = NEXT_ORDER[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const sorted = rows.slice(0, foot).map((_, row) => row);
      if (order !== "none") sorted.sort((a, b) => compared(value(rows[a], column), value(rows[b], column), order));
      body.append(...sorted.map((row) => lines[row]));
    });
  });
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table ${name}` }, table);
}

/** The order of two values. Missing values come last in both orders. */
function compared(a, b, order) {
  if (a === null || b === null) return (a === null) - (b === null);
  const less = typeof a === "string" ? a.localeCompare(b) : a - b;
  return order === "ascending" ? less : -less;
}

function scoreRow(label, cells, signed, fixed) {
  const numbers = cells.filter(Array.isArray).flatMap((cell) => cell.slice(0, 3)).filter((number) => number !== null);
  const scale = fixed ?? [Math.min(...numbers), Math.max(...numbers)];
  const ends = numbers.length ? scale.map((end) => end.toFixed(0)).join(" – ") : "";
  return element("tr", {},
    element("th", { scope: "row" }, label),
    ...cells.map((cell) => scoreCell(cell, scale, signed)),
    ...(fixed ? [] : [element("td", { class: "scale" }, ends)]));
}

function scoreCell(cell, scale, signed) {
  if (typeof cell === "string") return element("td", { class: "words" }, cell);
  if (cell === null) return element("td", {}, "–");
  const [value, low, high, mark] = cell;
  if (value === null) return element("td", {}, "–");
  const digits = low === null && Number.isInteger(value) ? 0 : 1; // a count, most likely
  const made = element("td", {}, (signed && value > 0 ? "+" : "") + value.toFixed(digits));
  if (low !== null) made.append(element("small", {}, ` ±${((high - low) / 2).toFixed(1)}`));
  if (mark) made.append(element("small", {}, ` ${mark}`));
  if (low !== null) {
    made.title = `${value.toFixed(1)} [${low.toFixed(1)}, ${high.toFixed(1)}]`;
    made.append(whisker(value, low, high, scale));
  }
  return made;
}
