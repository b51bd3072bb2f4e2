// The reader of rows: filters, a list that holds only the visible items, and one row with every run's answer.

const ITEM_HEIGHT = 52; // pixels; page.css gives list items the same
const MARGIN = 10; // number of items made above and below the visible items
const MOST_MARKS = 1000; // maximum number of matches that are marked in one text
const NOT_RECORDED = -2; // in `RunRows.used`: the file does not say which adapters were used
const FIELDS = ["text", "domain", "task", "group", "run", "verdict", "retrieval", "disagree", "threshold"];

/** Set up the reader on `rows`, the packed rows, the runs' names, and the values by which the rows are split. */
function showReader(rows, runs, groups) {
  const controls = Object.fromEntries(FIELDS.map((field) => [field, byId(`filter-${field}`)]));
  const list = byId("list");
  const inner = byId("list-inner");
  const searchable = searchTexts(rows);
  let found = []; // indices of the rows that pass the filters
  let chosen = 0; // index in `found` of the row that is shown
  let reading = false; // whether the filters are being set by the address

  fillChoices(controls, rows, runs, groups);
  const defaults = filters();

  function filters() {
    const read = (control) => (control.type === "checkbox" ? (control.checked ? "1" : "") : control.value);
    return Object.fromEntries(FIELDS.map((field) => [field, read(controls[field])]));
  }

  /** Filter again. The row that was shown stays if it passes the filters. */
  function filter(wanted = rows.ids[found[chosen]]) {
    const passes = rowFilter(rows, runs, filters(), searchable);
    found = rows.ids.map((_, row) => row).filter(passes);
    chosen = Math.max(0, found.findIndex((row) => rows.ids[row] === wanted));
    byId("filter-count").textContent = `${found.length} of ${rows.ids.length} rows`;
    inner.style.height = `${found.length * ITEM_HEIGHT}px`;
    choose(chosen);
  }

  function choose(item) {
    chosen = Math.max(0, Math.min(found.length - 1, item));
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
    for (let position = first; position < last; position += 1) {
      const item = listItem(rows, found[position], rows.runs[run], Number(threshold));
      item.id = `item-${position}`;
      item.style.top = `${position * ITEM_HEIGHT}px`;
      item.setAttribute("aria-selected", String(position === chosen));
      item.setAttribute("aria-posinset", String(position + 1));
      item.setAttribute("aria-setsize", String(found.length));
      item.addEventListener("click", () => move(position));
      items.push(item);
    }
    inner.replaceChildren(...items);
    if (found.length) list.setAttribute("aria-activedescendant", `item-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  /** The address names the row and every filter that differs from its default; runs by their names. */
  function writeAddress() {
    const state = new URLSearchParams();
    for (const [field, value] of Object.entries(filters())) {
      if (value !== defaults[field]) state.set(field, field === "run" ? runs[value] : value);
    }
    runs.filter((run) => !chosenRuns.has(run)).forEach((run) => state.append("without", run));
    if (found.length) state.set("row", rows.ids[found[chosen]]);
    history.replaceState(null, "", `#reader?${state}`);
  }

  /** Apply the filters and the row that an address names; unknown values are ignored. False: the address names none. */
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
    reading = true;
    showRunsWithout(state.getAll("without"));
    reading = false;
    filter(Number(state.get("row")));
    byId("reader").scrollIntoView();
    return true;
  }

  const refilter = () => {
    filter();
    writeAddress();
  };
  const move = (item) => {
    choose(item);
    writeAddress();
  };
  document.addEventListener(RUNS_CHANGED, () => {
    [...controls.run.options].forEach((option) => { option.disabled = !chosenRuns.has(runs[option.value]); });
    if (controls.run.selectedOptions[0]?.disabled) {
      controls.run.value = [...controls.run.options].find((option) => !option.disabled)?.value ?? defaults.run;
    }
    if (!reading) refilter();
  });
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

function fillChoices(controls, rows, runs, groups) {
  const domains = [...new Set(rows.tasks.map((task) => task.domain))];
  const option = (value, name = value) => element("option", { value }, name);
  controls.domain.append(option("", "all"), ...domains.map((domain) => option(domain)));
  const tasksOf = (domain) => rows.tasks.filter((task) => task.domain === domain).map((task) => option(task.name));
  controls.task.append(
    option("", "all"), ...domains.map((domain) => element("optgroup", { label: domain }, ...tasksOf(domain))));
  controls.group.append(option("", "all"), ...groups.map((value, index) => option(String(index), value)));
  controls.run.append(...runs.map((name, index) => option(String(index), name)));
}

/** Gives a row's lower-cased text: input, target and all answers. The texts of all rows are made at the first call. */
function searchTexts(rows) {
  let texts;
  return (wanted) => {
    texts ??= rows.ids.map((_, row) => {
      const answers = new Set(rows.runs.map((run) => rows.texts[run.answers[row]] ?? ""));
      return [rows.inputs[row], rows.targets[row], ...answers].join("\n").toLowerCase();
    });
    return texts[wanted];
  };
}

/** A function that says whether the row at an index passes. */
function rowFilter(rows, runs, filters, searchable) {
  const { text, domain, task, group, run, verdict, retrieval, disagree, threshold } = filters;
  const wanted = text.toLowerCase();
  const answered = rows.runs[run];
  const ticked = rows.runs.filter((_, number) => chosenRuns.has(runs[number]));
  return (at) => {
    const its = rows.tasks[rows.task[at]];
    return (!domain || its.domain === domain)
      && (!task || its.name === task)
      && (!group || rows.group[at] === Number(group))
      && (!verdict || verdictOf(answered, at, threshold) === verdict)
      && (!retrieval || retrievalOf(rows, answered, at) === retrieval)
      && (!disagree || disagreeing(ticked, at, threshold))
      && (!wanted || searchable(at).includes(wanted));
  };
}

/** Whether one run's answer is right and another run's is wrong. */
function disagreeing(runs, at, threshold) {
  const verdicts = runs.map((run) => verdictOf(run, at, threshold));
  return verdicts.includes("right") && verdicts.includes("wrong");
}

function verdictOf(run, at, threshold) {
  if (run.answers[at] === -1) return "absent";
  return run.scores[at] >= threshold ? "right" : "wrong";
}

/** The position of the row's own adapter among the used adapters; "" if the row was not answered. */
function retrievalOf(rows, run, at) {
  if (run.used[at] === NOT_RECORDED) return "unknown";
  const [adapters] = rows.used[run.used[at]] ?? [[]];
  const own = adapters.findIndex((adapter) => rows.adapters[adapter] === rows.tasks[rows.task[at]].name);
  if (own === 0) return "first";
  if (own > 0) return "among";
  if (adapters.length) return "absent";
  return run.answers[at] === -1 ? "" : "none";
}

/** The first characters of a text; no half of a surrogate pair is left at the end. */
const start = (text, length) => text.slice(0, length).replace(/[\ud800-\udbff]$/, "");

function listItem(rows, at, run, threshold) {
  const verdict = verdictOf(run, at, threshold);
  const name = rows.tasks[rows.task[at]].name;
  return element("div", { class: "item", role: "option" },
    element("div", {}, scoreMark(verdict, run.scores[at]), ` ${rows.ids[at]} · ${name}`),
    element("div", { class: "excerpt" }, start(rows.inputs[at], 160)));
}

/** A score with a sign for right or wrong, so that readers need no colour to tell them apart. */
function scoreMark(verdict, score) {
  const sign = { right: "✓", wrong: "✗", absent: "–" }[verdict];
  const number = verdict === "absent" ? "" : ` ${score === null ? "?" : Number(score.toFixed(1))}`;
  return element("span", { class: `mark ${verdict}` }, sign + number);
}

function rowDetail(rows, runs, at, { run: chosenRun, text, threshold }) {
  const task = rows.tasks[rows.task[at]];
  const ticked = runs.map((_, number) => number).filter((number) => chosenRuns.has(runs[number]));
  const lines = ticked.map((number) => {
    const run = rows.runs[number];
    const verdict = verdictOf(run, at, threshold);
    const answer = verdict === "absent" ? ["not answered"] : shownAnswer(rows.texts[run.answers[at]], text);
    return element("tr", { class: String(number) === chosenRun ? "chosen" : null },
      element("th", { scope: "row" }, ...breakable(runs[number])),
      element("td", { class: "text" }, ...answer, ...optionLines(rows, run, at)),
      element("td", {}, scoreMark(verdict, run.scores[at])),
      element("td", { class: "adapters" }, ...adapterLines(rows, run, at, task.name)));
  });
  const heads = ["run", "answer", "score", "adapter · weight · retrieval score · probability"];
  return [
    element("h3", {}, `Row ${rows.ids[at]} · ${task.name}`, element("small", {}, ` ${task.domain}, ${task.metric}`)),
    element("h4", {}, "Input"),
    element("div", { class: "text boxed" }, ...marked(rows.inputs[at], text)),
    ...promptParts(rows, runs, ticked, at),
    element("h4", {}, "Target"),
    element("div", { class: "text boxed" }, ...marked(rows.targets[at], text)),
    element("h4", {}, "Answers"),
    element("table", { class: "answers" },
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...lines)),
    ...stageParts(rows, runs, ticked, at, task.name),
    ...foundParts(rows, runs, ticked, at, task.name),
  ];
}

/** What the procedure of a row asked stage by stage, with the answers, which is shown on demand; one part for a run. */
function stageParts(rows, runs, numbers, at, own) {
  const heads = ["stage", "question", "answer", "adapter · weight"];
  const staged = numbers.filter((number) => rows.runs[number].stages[at]);
  return staged.map((number) => {
    const stages = rows.runs[number].stages[at];
    const lines = stages.flatMap((stage, place) => stage.map(([question, answer, used]) => element("tr", {},
      element("th", { scope: "row" }, String(place + 1)),
      element("td", { class: "text" }, rows.texts[question]),
      element("td", { class: "text" }, rows.texts[answer]),
      element("td", { class: "adapters" }, ...usedLines(rows, used, own)))));
    return element("details", { class: "stages" },
      element("summary", {}, `Stages of ${runs[number]}: ${lines.length} questions`),
      element("table", { class: "answers" },
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
        element("tbody", {}, ...lines)));
  });
}

/** An answer with the found texts marked. An answer without a visible character is named. */
function shownAnswer(answer, wanted) {
  return answer.trim() ? marked(answer, wanted) : [answer, element("span", { class: "weight" }, "(empty)")];
}

/** The runs of the given numbers by what `key` gives for them; null and undefined are left out. */
function grouped(numbers, key) {
  const groups = new Map();
  for (const number of numbers) {
    const found = key(number);
    if (found !== null && found !== undefined) groups.set(found, [...(groups.get(found) ?? []), number]);
  }
  return groups;
}

/** The prompt of a row, which is shown on demand; one for each template of the runs. */
function promptParts(rows, runs, numbers, at) {
  const templates = [...grouped(numbers, (number) => rows.runs[number].template)];
  const cut = rows.cut[at] ? [note(`${rows.cut[at]} tokens at the end of the input were cut off.`)] : [];
  const prompts = templates.map(([template, users]) => {
    const { before } = rows.runs[users[0]];
    const filled = template === "chat"
      ? "The input in the chat template of the base's tokenizer. `lora-retriever prompts` shows all tokens."
      : template.replaceAll("{inputs}", () => rows.inputs[at]);
    const title = templates.length > 1 ? `Prompt of ${users.map((number) => runs[number]).join(", ")}` : "Prompt";
    return element("details", {}, element("summary", {}, title),
      ...(before ? [note(`Before the input: ${before}.`)] : []),
      element("div", { class: "text boxed prompt" }, filled));
  });
  return [...cut, ...prompts];
}

/** All adapters that retrieval found for a row, whether used or not. Runs that found the same share a list. */
function foundParts(rows, runs, numbers, at, own) {
  const groups = [...grouped(numbers, (number) => rows.found[rows.runs[number].found[at]])];
  if (!groups.length) return [];
  const lists = groups.map(([[adapters, scores, probabilities], users]) => element("div", {},
    element("p", { class: "note" }, users.map((number) => runs[number]).join(", ")),
    element("ol", {}, ...adapters.map((adapter, rank) => element("li", {},
      adapterName(rows.adapters[adapter], own),
      element("span", { class: "weight" }, numbersOf(scores[rank], probabilities[rank])))))));
  return [
    element("h4", {}, "Retrieved: adapter · retrieval score · probability"),
    element("div", { class: "found" }, ...lists),
  ];
}

/** The log-likelihood of each option of a row under a run. */
function optionLines(rows, run, at) {
  const likelihoods = run.likelihoods[at] ?? [];
  return likelihoods.map((likelihood, place) =>
    element("div", { class: "weight" }, `${rows.options[at][place]} ${likelihood.toFixed(2)}`));
}

const adapterName = (name, own) =>
  (name === own ? element("strong", { title: "the row's own adapter" }, `${name} (own)`) : name);

/** A retrieval score and a probability behind an adapter's name, where they are known. */
const numbersOf = (score, probability) =>
  (typeof score === "number" ? ` · ${score.toFixed(3)}` : "")
  + (typeof probability === "number" ? ` · p ${probability.toFixed(2)}` : "");

function adapterLines(rows, run, at, own) {
  if (run.used[at] === NOT_RECORDED) return ["unknown"];
  return usedLines(rows, run.used[at], own, rows.found[run.found[at]]);
}

/** The adapters of an entry of `Rows.used`, a line each; with the probabilities of an entry of `Rows.found`. */
function usedLines(rows, used, own, [found, , probabilities] = [[], [], []]) {
  const [adapters, weights, scores] = rows.used[used] ?? [[], [], []];
  if (!adapters.length) return ["–"];
  return adapters.map((adapter, rank) => {
    const weight = typeof weights[rank] === "number" ? Number(weights[rank].toFixed(3)) : "?";
    const numbers = numbersOf(scores[rank], probabilities[found.indexOf(adapter)]);
    return element("div", {},
      adapterName(rows.adapters[adapter], own), element("span", { class: "weight" }, ` · ${weight}${numbers}`));
  });
}

/** A text as nodes, with up to `MOST_MARKS` matches of the search marked. */
function marked(text, wanted) {
  const low = text.toLowerCase();
  if (!wanted || low.length !== text.length) return [text]; // lower-casing can lengthen a text, which shifts positions
  const nodes = [];
  let end = 0; // of the last match
  let at = low.indexOf(wanted.toLowerCase());
  while (at !== -1 && nodes.length < 2 * MOST_MARKS) {
    nodes.push(text.slice(end, at), element("mark", {}, text.slice(at, at + wanted.length)));
    end = at + wanted.length;
    at = low.indexOf(wanted.toLowerCase(), end);
  }
  return [...nodes, text.slice(end)];
}
