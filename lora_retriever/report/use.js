// Which adapters each run used, and how often it was right, by the outcome of retrieval.

const UNKNOWN = [null, null, null, "unknown"];
const orUnknown = (value) => (value === null ? UNKNOWN : [value, null, null, ""]);
const USE_COLUMNS = {
  "adapters a row": (use) => orUnknown(use.adapters_per_row),
  "different adapters": (use) => (use.distinct === null ? UNKNOWN : [use.distinct]),
  "own adapter first, %": (use) => orUnknown(use.own_first),
  "own adapter used, %": (use) => orUnknown(use.own_used),
  "first of the row's domain, %": (use) => orUnknown(use.domain_first),
};

function showUse(uses) {
  const draw = () => byId("use-tables").replaceChildren(...useTables(uses.filter(({ run }) => chosenRuns.has(run))));
  draw();
  document.addEventListener(RUNS_CHANGED, draw);
}

function useTables(uses) {
  if (!uses.length) return [note("No run is ticked.")];
  const hasRows = (place) => uses.some(({ situations }) => situations[place].exact || situations[place].others);
  const shownOnes = (situations) => situations.filter((_, place) => hasRows(place));
  const names = shownOnes(uses[0].situations).map((situation) => situation.name);
  const bySituation = (name, cell) => useTable(name, names, uses, (use) => shownOnes(use.situations).map(cell));
  const used = useTable("What each run used", [...Object.keys(USE_COLUMNS), "most used, % of rows"], uses, (use) => [
    ...Object.values(USE_COLUMNS).map((column) => column(use)),
    mostUsed(use),
  ]);
  const right = bySituation("Exact-match tasks: right answers, %", (found) =>
    [found.right, found.low, found.high, `n ${found.exact}`]);
  const scores = bySituation("Other tasks: mean of the rows' own scores", (found) =>
    [found.score, null, null, `n ${found.others}`]);
  return [used, right, scores].flatMap((table) => [element("h3", {}, table.name), scoreTable(table)]);
}

/** The adapters that a run used most, in one text. */
function mostUsed({ most_used: names }) {
  return names === null ? UNKNOWN : names.map(([name, share]) => `${name} ${shown(share)}`).join(", ") || null;
}

/** A table of scores with a row for every run. */
function useTable(name, columns, uses, cells) {
  const rows = uses.map((use) => [use.run, cells(use)]);
  return { name, corner: "run", columns, rows, foot: rows.length, signed: false, scale: [0, 100] };
}
