// The reader of rows: filters, a list of which only what is in view exists, and one row with every run's answer.

const ITEM_HEIGHT = 52; // pixels; page.css gives list items the same
const MARGIN = 10; // items made above and below those in view
const FIELDS = ["text", "domain", "task", "run", "verdict", "retrieval", "disagree", "threshold"];

/** Set up the reader on `rows`, the packed rows, and the runs' names. */
function showReader(rows, runs) {
  const controls = Object.fromEntries(FIELDS.map((field) => [field, byId(`filter-${field}`)]));
  const list = byId("list");
  const inner = byId("list-inner");
  const searchable = searchTexts(rows);
  let found = []; // places of the rows that pass the filters
  let chosen = 0; // the place in `found` of the row that is shown

  fillChoices(controls, rows, runs);
  const defaults = filters();

  function filters() {
    const read = (control) => (control.type === "checkbox" ? (control.checked ? "1" : "") : control.value);
    return Object.fromEntries(FIELDS.map((field) => [field, read(controls[field])]));
  }

  /** Filter anew; the row that was shown stays if it passes. */
  function filter(wanted = rows.ids[found[chosen]]) {
    const passes = rowFilter(rows, runs, filters(), searchable);
    found = rows.ids.map((_, place) => place).filter(passes);
    chosen = Math.max(0, found.findIndex((place) => rows.ids[place] === wanted));
    byId("filter-count").textContent = `${found.length} of ${rows.ids.length} rows`;
    inner.style.height = `${found.length * ITEM_HEIGHT}px`;
    choose(chosen);
  }

  function choose(place) {
    chosen = Math.max(0, Math.min(found.length - 1, place));
    const top = chosen * ITEM_HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    const overhang = top + ITEM_HEIGHT - list.clientHeight;
    if (overhang > list.scrollTop) list.scrollTop = overhang;
    drawList();
    byId("detail").replaceChildren(...(found.length
      ? rowDetail(rows, runs, found[chosen], filters())
      : [element("p", {}, "No row passes these filters.")]));
  }

  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ITEM_HEIGHT) - MARGIN);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ITEM_HEIGHT) + MARGIN);
    const { run, threshold } = filters();
    const items = [];
    for (let place = first; place < last; place += 1) {
      const item = listItem(rows, found[place], rows.runs[run], Number(threshold));
      item.id = `item-${place}`;
      item.style.top = `${place * ITEM_HEIGHT}px`;
      item.setAttribute("aria-selected", String(place === chosen));
      item.setAttribute("aria-posinset", String(place + 1));
      item.setAttribute("aria-setsize", String(found.length));
      item.addEventListener("click", () => move(place));
      items.push(item);
    }
    inner.replaceChildren(...items);
    if (found.length) list.setAttribute("aria-activedescendant", `item-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  /** The address names the row, and every filter that is not as it was at first; runs by their names. */
  function writeAddress() {
    const state = new URLSearchParams();
    for (const [field, value] of Object.entries(filters())) {
      if (value !== defaults[field]) state.set(field, field === "run" ? runs[value] : value);
    }
    if (found.length) state.set("row", rows.ids[found[chosen]]);
    history.replaceState(null, "", `#reader?${state}`);
  }

  /** Take over what an address says, unknown values aside; false if it says nothing of the reader's. */
  function readAddress() {
    if (!location.hash.startsWith("#reader?")) return false;
    const state = new URLSearchParams(location.hash.slice("#reader?".length));
    for (const field of FIELDS) {
      const value = state.get(field) ?? defaults[field];
      if (field === "disagree") {
        controls[field].checked = value === "1";
        continue;
      }
      const wanted = field === "run" && state.has(field) ? String(runs.indexOf(value)) : value;
      controls[field].value = wanted;
      if (controls[field].value !== wanted) controls[field].value = defaults[field];
    }
    filter(Number(state.get("row")));
    byId("reader").scrollIntoView();
    return true;
  }

  const refilter = () => {
    filter();
    writeAddress();
  };
  const move = (place) => {
    choose(place);
    writeAddress();
  };
  const form = byId("filters");
  form.addEventListener("input", refilter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(refilter)); // the fields are reset after this event
  list.addEventListener("scroll", () => requestAnimationFrame(drawList));
  window.addEventListener("hashchange", readAddress);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === controls.text) list.focus();
    else if (typing) return;
    else if (event.key === "/") controls.text.focus();
    else if (event.key === "j" || (event.key === "ArrowDown" && event.target === list)) move(chosen + 1);
    else if (event.key === "k" || (event.key === "ArrowUp" && event.target === list)) move(chosen - 1);
    else if (event.key === "Home" && event.target === list) move(0);
    else if (event.key === "End" && event.target === list) move(found.length - 1);
    else return;
    event.preventDefault();
  });
  if (!readAddress()) filter(rows.ids[0]);
}

function fillChoices(controls, rows, runs) {
  const domains = [...new Set(rows.tasks.map((task) => task.domain))];
  const option = (value, name = value) => element("option", { value }, name);
  controls.domain.append(option("", "all"), ...domains.map((domain) => option(domain)));
  const tasksOf = (domain) => rows.tasks.filter((task) => task.domain === domain).map((task) => option(task.name));
  controls.task.append(
    option("", "all"), ...domains.map((domain) => element("optgroup", { label: domain }, ...tasksOf(domain))));
  controls.run.append(...runs.map((name, place) => option(String(place), name)));
}

/** The lower-cased text of a row, input, target and all answers: made when first asked for. */
function searchTexts(rows) {
  let texts;
  return (place) => {
    texts ??= rows.ids.map((_, row) => {
      const answers = new Set(rows.runs.map((run) => rows.texts[run.answers[row]] ?? ""));
      return [rows.inputs[row], rows.targets[row], ...answers].join("\n").toLowerCase();
    });
    return texts[place];
  };
}

/** A function that says whether the row at a place passes. */
function rowFilter(rows, runs, { text, domain, task, run, verdict, retrieval, disagree, threshold }, searchable) {
  const wanted = text.toLowerCase();
  const answered = rows.runs[run];
  return (place) => {
    const its = rows.tasks[rows.task[place]];
    return (!domain || its.domain === domain)
      && (!task || its.name === task)
      && (!verdict || verdictOf(answered, place, threshold) === verdict)
      && (!retrieval || retrievalOf(rows, answered, place) === retrieval)
      && (!disagree || disagreeing(rows, place, threshold))
      && (!wanted || searchable(place).includes(wanted));
  };
}

/** Whether some run's answer is right and another's wrong. */
function disagreeing(rows, place, threshold) {
  const verdicts = rows.runs.map((run) => verdictOf(run, place, threshold));
  return verdicts.includes("right") && verdicts.includes("wrong");
}

function verdictOf(run, place, threshold) {
  if (run.answers[place] === -1) return "absent";
  return run.scores[place] >= threshold ? "right" : "wrong";
}

/** Where the row's own adapter stands among those used; "" where nothing was. */
function retrievalOf(rows, run, place) {
  const [adapters] = rows.used[run.used[place]] ?? [[]];
  const own = adapters.findIndex((adapter) => rows.adapters[adapter] === rows.tasks[rows.task[place]].name);
  if (own === 0) return "first";
  if (own > 0) return "among";
  return adapters.length ? "absent" : "";
}

function listItem(rows, place, run, threshold) {
  const verdict = verdictOf(run, place, threshold);
  const name = rows.tasks[rows.task[place]].name;
  return element("div", { class: "item", role: "option" },
    element("div", {}, scoreMark(verdict, run.scores[place]), ` ${rows.ids[place]} · ${name}`),
    element("div", { class: "excerpt" }, rows.inputs[place].slice(0, 160)));
}

/** A score with a sign for right or wrong, so that colour is not all that tells them apart. */
function scoreMark(verdict, score) {
  const sign = { right: "✓", wrong: "✗", absent: "–" }[verdict];
  const number = verdict === "absent" ? "" : ` ${score === null ? "?" : Number(score.toFixed(1))}`;
  return element("span", { class: `mark ${verdict}` }, sign + number);
}

function rowDetail(rows, runs, place, { run: chosenRun, text, threshold }) {
  const task = rows.tasks[rows.task[place]];
  const lines = rows.runs.map((run, number) => {
    const verdict = verdictOf(run, place, threshold);
    const answer = verdict === "absent" ? ["not answered"] : marked(rows.texts[run.answers[place]], text);
    return element("tr", { class: String(number) === chosenRun ? "chosen" : null },
      element("th", { scope: "row" }, ...breakable(runs[number])),
      element("td", { class: "text" }, ...answer),
      element("td", {}, scoreMark(verdict, run.scores[place])),
      element("td", { class: "adapters" }, ...adapterLines(rows, run, place, task.name)));
  });
  const heads = ["run", "answer", "score", "adapter · weight · retrieval score"];
  return [
    element("h3", {}, `Row ${rows.ids[place]} · ${task.name}`, element("small", {}, ` ${task.domain}, ${task.metric}`)),
    element("h4", {}, "Input"),
    element("div", { class: "text boxed" }, ...marked(rows.inputs[place], text)),
    element("h4", {}, "Target"),
    element("div", { class: "text boxed" }, ...marked(rows.targets[place], text)),
    element("h4", {}, "Answers"),
    element("table", { class: "answers" },
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...lines)),
  ];
}

function adapterLines(rows, run, place, own) {
  const [adapters, weights, scores] = rows.used[run.used[place]] ?? [[], [], []];
  if (!adapters.length) return ["–"];
  return adapters.map((adapter, rank) => {
    const name = rows.adapters[adapter];
    const score = typeof scores[rank] === "number" ? ` · ${scores[rank].toFixed(3)}` : "";
    return element("div", {},
      name === own ? element("strong", { title: "the row's own adapter" }, `${name} (own)`) : name,
      element("span", { class: "weight" }, ` · ${Number(weights[rank].toFixed(3))}${score}`));
  });
}

/** A text as nodes, what was searched for marked. */
function marked(text, wanted) {
  const low = text.toLowerCase();
  if (!wanted || low.length !== text.length) return [text]; // lower-casing can lengthen a text: places would be off
  const nodes = [];
  let start = 0;
  for (let at = low.indexOf(wanted.toLowerCase()); at !== -1; at = low.indexOf(wanted.toLowerCase(), start)) {
    nodes.push(text.slice(start, at), element("mark", {}, text.slice(at, at + wanted.length)));
    start = at + wanted.length;
  }
  return [...nodes, text.slice(start)];
}
