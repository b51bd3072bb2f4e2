// Tables of scores: numbers with whiskers, sortable by every column.

const NEXT_ORDER = { none: "descending", descending: "ascending", ascending: "none" };

const note = (text) => element("p", { class: "note" }, text);

/** The tables of the page, and the notes that the tables share. The screen shows one table at a time, a print all. */
function showTables(tables, notes) {
  const buttons = tables.map((table, index) => {
    const button = element("button", { type: "button", "aria-pressed": String(index === 0) }, table.name);
    button.addEventListener("click", () => show(index));
    return button;
  });
  const panels = tables.map((table, index) => {
    const panel = element("div", { class: "panel", "data-shown": String(index === 0) });
    const draw = () => panel.replaceChildren(
      element("h3", { class: "print-only" }, table.name), scoreTable(ofChosenRuns(table)), ...table.notes.map(note));
    whenNear(panel, () => {
      draw();
      document.addEventListener(RUNS_CHANGED, draw);
    });
    return panel;
  });
  const show = (chosen) => {
    panels.forEach((panel, index) => { panel.dataset.shown = String(index === chosen); });
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === chosen)));
  };
  byId("table-choice").append(...buttons);
  byId("tables").append(...panels, ...notes.map(note));
}

/** A table without the columns of runs that are not chosen. */
function ofChosenRuns(table) {
  const kept = table.columns.map((_, column) => column).filter((column) => isShownColumn(table.columns[column]));
  const rows = table.rows.map(([label, cells]) => [label, kept.map((column) => cells[column])]);
  return { ...table, columns: kept.map((column) => table.columns[column]), rows };
}

/**
 * A scrollable, sortable table of numbers [value, low, high, mark], texts or nothing; rows from `foot` on stay below.
 * A count is [value], a number that is not known is `UNKNOWN`. `bounds`: intervals are shown by their ends, not by half
 * their width. `signed`: the numbers are differences; the scales hold 0, and a line stands at 0. Whiskers lie on the
 * given scale. Without a given scale each row has its own, shown at the end of the row.
 */
function scoreTable({ name, corner = "score", columns, rows, foot, signed, bounds, scale }) {
  const ofWords = (column) => rows.some(([, cells]) => typeof cells[column - 1] === "string");
  const heads = [corner, ...columns].map((label, column) =>
    element("th", { scope: "col", class: ofWords(column) ? "words" : null, "aria-sort": "none" },
      element("button", { type: "button" }, ...breakable(label))));
  const lines = rows.map(([label, cells]) => scoreRow(label, cells, signed, bounds, scale));
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

function scoreRow(label, cells, signed, bounds, fixed) {
  const numbers = cells.filter(Array.isArray).flatMap((cell) => cell.slice(0, 3)).filter((number) => number !== null);
  if (signed && numbers.length) numbers.push(0);
  const scale = fixed ?? [Math.min(...numbers), Math.max(...numbers)];
  const ends = numbers.length ? scale.map((end) => end.toFixed(0)).join(" – ") : "";
  return element("tr", {},
    element("th", { scope: "row" }, label),
    ...cells.map((cell) => scoreCell(cell, scale, signed, bounds)),
    ...(fixed ? [] : [element("td", { class: "scale" }, ends)]));
}

function scoreCell(cell, scale, signed, bounds) {
  if (typeof cell === "string") return element("td", { class: "words" }, cell);
  if (cell === null) return element("td", {}, "–");
  const [value, low, high, mark] = cell;
  if (value === null) return element("td", {}, mark || "–");
  if (cell.length === 1) return element("td", {}, String(value));
  const number = signed ? signedNumber : rounded;
  const made = element("td", {}, number(value));
  if (low !== null) {
    const ends = `[${number(low)}, ${number(high)}]`;
    made.append(element("small", {}, bounds ? ` ${ends}` : ` ±${rounded((high - low) / 2)}`));
    made.title = `${number(value)} ${ends}`;
  }
  if (mark) made.append(element("small", {}, ` ${mark}`));
  if (low !== null) made.append(whisker(value, low, high, scale, signed));
  return made;
}
