// The leaderboard: a line for each run. The ticked runs are shown in the tables and in the reader below.

const RUNS_CHANGED = "runschanged"; // the event of the document after `chosenRuns` changed
const chosenRuns = new Set(); // the names of the ticked runs
const boxesOfRuns = new Map(); // each run's name with its box

const MEAN = "mean over tasks";
const NO_NUMBER = [null, null, null, "–"];
const numberCell = (value, interval) => (value === null ? NO_NUMBER : [value, ...(interval ?? [null, null]), ""]);
const STANDING_COLUMNS = {
  "what the run does": (standing) => standing.does,
  [MEAN]: (standing) => numberCell(standing.mean, standing.interval),
  "exact match": (standing) => numberCell(standing.exact, null),
  "normalized": (standing) => numberCell(standing.normalized, standing.normalized_interval),
  "seconds a row": (standing) => (standing.seconds === null ? NO_NUMBER : [Number(standing.seconds.toPrecision(2))]),
  "own adapter first, %": (standing) => numberCell(standing.first, null),
  "own adapter used, %": (standing) => numberCell(standing.used, null),
};

/** The columns: their names with the functions that give a standing's cells. Groups of rows stand behind the mean. */
function standingColumns(groups) {
  const ofGroups = (groups?.values ?? []).map((value, place) =>
    [`mean, ${groups.field}: ${value}`, ({ groups: means }) => numberCell(...(means[place] ?? [null]))]);
  return Object.entries(STANDING_COLUMNS).flatMap((column) => (column[0] === MEAN ? [column, ...ofGroups] : [column]));
}

/** Show the leaderboard. `groups`: the field by which the rows are split, and its values; null: they are not split. */
function showLeaderboard(standings, groups) {
  const columns = standingColumns(groups).filter(([, cell]) => standings.some((one) => cell(one) !== NO_NUMBER));
  const known = columns.map(([name]) => name);
  const rows = standings.map((standing) => [standing.run, columns.map(([, cell]) => cell(standing))]);
  const table = scoreTable(
    { name: "Runs", corner: "run", columns: known, rows, foot: rows.length, signed: false, scale: [0, 100] });
  const lines = [...table.querySelectorAll("tbody tr")];
  lines.forEach((line, place) => {
    const { run } = standings[place];
    const box = element("input", { type: "checkbox", checked: true, "aria-label": `show ${run} below` });
    box.addEventListener("change", readBoxes);
    boxesOfRuns.set(run, box);
    chosenRuns.add(run);
    line.cells[0].replaceChildren(element("label", {}, box, ` ${run}`));
  });
  byId("leaderboard").append(table);
  const mean = known.indexOf(MEAN) + 1;
  table.querySelectorAll("thead th")[mean].firstChild.click(); // the best run first

  const search = byId("run-search");
  const find = () => {
    const wanted = search.value.toLowerCase();
    lines.forEach((line, place) => {
      line.hidden = !`${standings[place].run} ${standings[place].does}`.toLowerCase().includes(wanted);
    });
  };
  const tickFound = (ticked) => {
    lines.forEach((line, place) => { if (!line.hidden) boxesOfRuns.get(standings[place].run).checked = ticked; });
    readBoxes();
  };
  search.addEventListener("input", find);
  byId("tick-runs").addEventListener("click", () => tickFound(true));
  byId("untick-runs").addEventListener("click", () => tickFound(false));
}

/** Make the ticked boxes the chosen runs, and tell the sections of the page. */
function readBoxes() {
  chosenRuns.clear();
  boxesOfRuns.forEach((box, run) => { if (box.checked) chosenRuns.add(run); });
  document.dispatchEvent(new Event(RUNS_CHANGED));
}

/** Tick all runs but those of the given names. */
function showRunsWithout(names) {
  boxesOfRuns.forEach((box, run) => { box.checked = !names.includes(run); });
  readBoxes();
}

/** Whether a column of a table is shown: it is no run, or a chosen run. */
const isShownColumn = (name) => !boxesOfRuns.has(name) || chosenRuns.has(name);
