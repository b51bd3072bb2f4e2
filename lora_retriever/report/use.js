// Which adapters each run used, and how often it was right, by the outcome of retrieval.

const USE_COLUMNS = {
  "adapters a row": (use) => use.adapters_per_row,
  "different adapters": (use) => use.distinct,
  "own adapter first, %": (use) => use.own_first,
  "own adapter used, %": (use) => use.own_used,
  "first of the row's domain, %": (use) => use.domain_first,
};

function showUse(uses) {
  const situations = uses[0].situations.map((situation) => situation.name);
  const bySituation = (name, cell) => useTable(name, situations, uses, (use) => use.situations.map(cell));
  const used = useTable("What each run used", [...Object.keys(USE_COLUMNS), "most used, % of rows"], uses, (use) => [
    ...Object.values(USE_COLUMNS).map((column) => [column(use), null, null, ""]),
    use.most_used.map(([name, share]) => `${name} ${shown(share)}`).join(", ") || null,
  ]);
  const right = bySituation("Exact-match tasks: right answers, %", (found) =>
    [found.right, found.low, found.high, `n ${found.exact}`]);
  const scores = bySituation("Other tasks: mean of the rows' own scores", (found) =>
    [found.score, null, null, `n ${found.others}`]);
  for (const table of [used, right, scores]) {
    byId("use-tables").append(element("h3", {}, table.name), scoreTable(table));
  }
}

/** A table of scores with a row for every run. */
function useTable(name, columns, uses, cells) {
  const rows = uses.map((use) => [use.run, cells(use)]);
  return { name, corner: "run", columns, rows, foot: rows.length, signed: false, scale: [0, 100] };
}
