"use strict";
// The page of the server. Texts of users, models and adapters reach the page as text nodes only, never as markup.

const SHOWN = 10; // Number of adapters that are shown.
const PAUSE = 150; // Time without a key after which adapters are searched, in milliseconds.
const FIRST_METHODS = ["base", "selection", "mixture", "fusion"];

const pool = { adapters: [], hues: new Map() };
const masked = new Set();
let asking = new AbortController(); // of the answers that are made now
let search = { text: null, abort: new AbortController() };
let timer = 0;

// ---- The server ----

/** Ask the server. `body`: sent as JSON; without it the request is a GET. Errors are the server's own messages. */
async function call(path, body, signal) {
  const key = byId("key").value;
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  if (response.status === 401) byId("key-row").hidden = false;
  if (!response.ok) {
    const failure = await response.json().catch(() => null);
    throw new Error(failure?.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

/** The events of a stream of the server, one by one. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// ---- What is asked, and the address that keeps it ----

const chosenMethods = () => [...document.querySelectorAll("#methods :checked")].map((box) => box.value);

function keepInAddress() {
  const state = new URLSearchParams();
  if (byId("text").value) state.set("q", byId("text").value);
  state.set("k", byId("k").value);
  state.set("scorer", byId("scorer").value);
  state.set("methods", chosenMethods().join(","));
  for (const name of masked) state.append("mask", name);
  history.replaceState(null, "", `#${state}`);
}

function readAddress() {
  const state = new URLSearchParams(location.hash.slice(1));
  byId("text").value = state.get("q") ?? "";
  if (state.get("k")) byId("k").value = state.get("k");
  if ([...byId("scorer").options].some((option) => option.value === state.get("scorer"))) {
    byId("scorer").value = state.get("scorer");
  }
  const methods = state.has("methods") ? state.get("methods").split(",") : FIRST_METHODS;
  for (const box of document.querySelectorAll("#methods input")) box.checked = methods.includes(box.value);
  const known = new Set(pool.adapters.map((adapter) => adapter.id));
  masked.clear();
  for (const name of state.getAll("mask")) if (known.has(name)) masked.add(name);
}

// ---- The adapters found ----

function later() {
  keepInAddress();
  clearTimeout(timer);
  timer = setTimeout(find, PAUSE);
}

/** Search the adapters of the text, and show them. */
async function find() {
  const text = byId("text").value;
  search.abort.abort();
  search = { text, abort: new AbortController() };
  showMasked();
  if (!text.trim()) {
    byId("found").replaceChildren();
    byId("presence").textContent = "Write or choose an input to see which adapters fit it.";
    return;
  }
  const k = Math.min(Math.max(SHOWN, Number(byId("k").value)), pool.adapters.length - masked.size);
  if (k < 1) return;
  try {
    const body = { input: text, k, scorer: byId("scorer").value, exclude: [...masked] };
    const [found] = (await (await call("v1/retrieve", body, search.abort.signal)).json()).data;
    showFound(found);
    tell(null);
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
  }
}

function showFound({ adapters, presence }) {
  const k = Number(byId("k").value);
  const best = Math.max(...adapters.map((adapter) => adapter.score));
  const least = Math.min(...adapters.map((adapter) => adapter.score), 0);
  byId("found").replaceChildren(...adapters.map((adapter, place) => {
    const share = adapter.probability ?? (adapter.score - least) / (best - least || 1);
    const button = element("button", {
      type: "button", class: place < k ? "adapter used" : "adapter", title: "Click to mask this adapter",
    },
      element("span", { class: "name" }, adapter.name),
      element("span", { class: "share" }, adapter.probability === null ? "" : percent(adapter.probability)),
      element("small", {}, adapter.domain),
      element("small", {}, adapter.score.toPrecision(3)),
    );
    button.style.setProperty("--share", `${100 * share}%`);
    button.style.setProperty("--hue", hueOf(adapter.domain));
    button.addEventListener("click", () => toggle(adapter.name));
    return element("li", {}, button);
  }));
  byId("presence").textContent = presence === null ? "" :
    `The pool has an adapter for this input with a probability of ${percent(presence)}.`;
}

function toggle(name) {
  if (!masked.delete(name)) masked.add(name);
  keepInAddress();
  find();
}

function showMasked() {
  byId("masked-row").hidden = masked.size === 0;
  byId("masked").replaceChildren(...[...masked].map((name) => {
    const button = element("button", { type: "button", title: "Click to use this adapter again" }, element("s", {}, name), " ×");
    button.addEventListener("click", () => toggle(name));
    return button;
  }));
}

/** The hue of a domain, in degrees: neighbours in the list of domains get different hues. */
const hueOf = (domain) => String(pool.hues.get(domain) ?? 250);

// ---- The answers ----

async function ask() {
  const text = byId("text").value;
  if (!text.trim()) return byId("text").focus();
  asking.abort();
  asking = new AbortController();
  keepInAddress();
  if (search.text !== text) find();
  const methods = chosenMethods();
  if (!methods.length) return tell(new Error("Choose at least one method."));
  tell(null);
  const cards = methods.map((method) => makeCard(method));
  byId("answers").replaceChildren(...cards.map((card) => card.node));
  await Promise.all(cards.map((card) => answer(card, text, asking.signal)));
}

function makeCard(method) {
  const text = element("div", { class: "text" });
  const time = element("span");
  const used = element("div");
  const node = element("article", { class: "card answer running", "data-method": method },
    element("header", {}, element("h3", {}, method), time), text, used);
  return { method, node, text, time, used };
}

async function answer(card, text, signal) {
  const started = performance.now();
  const takes = pool.methods.get(card.method);
  const lora = { exclude: card.method === "base" ? [] : [...masked] };
  if (takes.k) lora.k = Number(byId("k").value);
  if (takes.scorer) lora.scorer = byId("scorer").value;
  const body = { model: card.method, messages: [{ role: "user", content: text }], stream: true, lora };
  try {
    for await (const event of events(await call("v1/chat/completions", body, signal))) {
      if (event.lora) showUsed(card, event.lora);
      card.text.append(visible(event.choices[0]?.delta?.content ?? ""));
    }
    card.time.textContent = `${((performance.now() - started) / 1000).toFixed(2)} s`;
    if (!card.text.textContent) card.text.replaceChildren(element("em", { class: "soft" }, "an empty answer"));
  } catch (error) {
    if (error.name === "AbortError") return;
    card.text.replaceChildren(element("span", { class: "error" }, error.message));
  }
  card.node.classList.remove("running");
}

/** The adapters of an answer, as a bar of their weights and as words. */
function showUsed(card, lora) {
  if (lora.gate) {
    card.used.replaceChildren(element("p", { class: "parts" }, `${lora.gate} weighs ${lora.offered} adapters at every token`));
    return;
  }
  const total = lora.adapters.reduce((sum, adapter) => sum + Math.abs(adapter.weight), 0) || 1;
  const bar = element("div", { class: "mix", "aria-hidden": "true" }, ...lora.adapters.map((adapter) => {
    const part = element("i");
    part.style.setProperty("--share", `${(100 * Math.abs(adapter.weight)) / total}%`);
    part.style.setProperty("--hue", hueOf(adapter.domain));
    return part;
  }));
  const words = lora.adapters.map(({ name, weight }) => `${name}\u00a0${percent(weight).replace(" ", "\u00a0")}`).join(" · ");
  card.used.replaceChildren(bar, element("p", { class: "parts" }, words || "no adapter"));
}

function tell(error) {
  byId("problem").hidden = !error;
  byId("problem").textContent = error ? visible(error.message) : "";
}

// ---- The page ----

function example(adapter) {
  if (!adapter) return;
  byId("text").value = adapter.example;
  later();
}

const anyAdapter = () => pool.adapters[Math.floor(Math.random() * pool.adapters.length)];

async function load() {
  const [adapters, models, server] = await Promise.all(
    ["v1/adapters", "v1/models", "v1/scorers"].map(async (path) => (await call(path)).json()),
  );
  pool.adapters = adapters.data;
  pool.methods = new Map(models.data.filter((model) => model.lora.kind === "method").map((model) => [model.id, model.lora.takes]));
  const domains = [...new Set(pool.adapters.map((adapter) => adapter.domain))].sort();
  domains.forEach((domain, place) => pool.hues.set(domain, Math.round((250 + place * 137.5) % 360)));
  byId("about").textContent = `${pool.adapters.length} adapters of ${domains.length} domains`;
  byId("example").replaceChildren(element("option", { value: "" }, "choose one …"), ...domains.map((domain) =>
    element("optgroup", { label: domain }, ...pool.adapters.filter((adapter) => adapter.domain === domain)
      .map((adapter) => element("option", { value: adapter.id }, adapter.id)))));
  byId("scorer").replaceChildren(...server.data.map((name) => element("option", { value: name }, name)));
  byId("scorer").value = server.default;
  byId("k").value = server.k;
  byId("methods").replaceChildren(element("legend", { class: "hidden" }, "Methods"),
    ...models.data.filter((model) => model.lora.kind === "method").map((model) =>
      element("label", { class: "chip", title: model.lora.summary },
        element("input", { type: "checkbox", value: model.id }), element("span", {}, model.id))));
  readAddress();
  tell(null);
  find();
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
byId("text").addEventListener("input", later);
for (const id of ["k", "scorer"]) byId(id).addEventListener("change", later);
byId("methods").addEventListener("change", keepInAddress);
byId("another").addEventListener("click", () => example(anyAdapter()));
byId("key").addEventListener("change", () => load().catch(tell));
byId("example").addEventListener("change", (event) => {
  example(pool.adapters.find((adapter) => adapter.id === event.target.value));
});
byId("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
});
window.addEventListener("hashchange", () => { readAddress(); find(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); return; }
  if (event.key === "Escape") { document.activeElement.blur(); return; }
  if (event.target.matches("textarea, input:not([type=checkbox]), select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); byId("text").focus(); }
  if (event.key === "e") example(anyAdapter());
  if (/^[1-9]$/.test(event.key)) document.querySelectorAll("#found button")[Number(event.key) - 1]?.click();
});
load().catch(tell);
