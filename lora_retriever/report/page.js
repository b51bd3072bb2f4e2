// The page: reads the data, shows every section, and marks the time from which the page is usable.

const content = JSON.parse(byId("data").textContent);
showLeaderboard(content.leaderboard, content.groups);
showTables(content.tables, content.notes);
if (content.retrieval.length) showRetrieval(content.retrieval);
if (content.similarity) showSimilarity(content.similarity);
if (content.sweeps.length) showSweeps(content.sweeps);
showUse(content.use);
const runNames = content.runs.map((run) => run.name);
showReader(content.rows, runNames, content.groups?.values ?? []);

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
});
requestAnimationFrame(() => setTimeout(() => performance.mark("usable"))); // the first frame is drawn
