"use strict";
// What all parts of the page share. Texts of users reach the page as text nodes only, never as markup.

const byId = (id) => document.getElementById(id);

// Characters that act instead of being seen, but tab and line feed: `visible` in escaping.py has the same list.
const HIDDEN =
  /(?![\t\n])[\p{Cc}\p{Cs}\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\u{e0000}-\u{e0fff}]/gu;

/** A text with each hidden character as its escape, as Python writes it: \x1b, \u202e. */
const visible = (text) => text.replace(HIDDEN, (found) => {
  if (found === "\r") return "\\r";
  const code = found.codePointAt(0);
  const [letter, digits] = code < 0x100 ? ["x", 2] : code < 0x10000 ? ["u", 4] : ["U", 8];
  return `\\${letter}${code.toString(16).padStart(digits, "0")}`;
});

const shownChild = (child) => (typeof child === "string" ? visible(child) : child);

/**
 * A new element: its attributes (`class`, `aria-…`; null or false: left out) and its children, nodes or texts. Hidden
 * characters become visible, except in `value`, by which the script finds things again.
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    made.setAttribute(name, value === true ? "" : name === "value" ? value : visible(value));
  }
  made.append(...children.map(shownChild));
  return made;
}

/** The same in SVG; attributes may be numbers. */
function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, visible(String(value)));
  made.append(...children.map(shownChild));
  return made;
}

/** Call `draw` once: when the node comes near the visible part of the page, or before the page is printed. */
function whenNear(node, draw) {
  const drawOnce = () => {
    watch.disconnect();
    window.removeEventListener("beforeprint", drawOnce);
    draw();
  };
  const watch = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) drawOnce();
  }, { rootMargin: "400px" });
  watch.observe(node);
  window.addEventListener("beforeprint", drawOnce);
}

/** A run's name that may break after `_`, `@` and `,`. */
function breakable(name) {
  const parts = name.split(/(?<=[_@,])/);
  return parts.flatMap((part, index) => (index ? [element("wbr"), part] : [part]));
}

/** One decimal, rounded as Python rounds in all other tables: of two equally near numbers, the one with an even digit. */
function rounded(value) {
  const between = Math.abs(value) % 1 === 0.25; // .75 is the only other such number, and toFixed rounds it to .8, too
  return (between ? value - Math.sign(value) * 0.05 : value).toFixed(1);
}

/** One decimal with its sign. */
const signedNumber = (value) => (value < 0 ? "" : "+") + rounded(value);

/** One decimal; a dash where there is no number. */
const shown = (value) => (value === null || value === undefined ? "–" : rounded(value));

const percent = (share) => `${Number((100 * share).toFixed(1))} %`;

/** A bar over an interval with a tick at the value, on the scale [start, end]; `hasZero`: with a line at 0. */
function whisker(value, low, high, [start, end], hasZero) {
  const made = element("span", { class: hasZero ? "whisker zero" : "whisker", "aria-hidden": "true" });
  const position = (number) => `${(100 * (number - start)) / (end - start || 1)}%`;
  made.style.setProperty("--low", position(low));
  made.style.setProperty("--high", position(high));
  made.style.setProperty("--at", position(value));
  if (hasZero) made.style.setProperty("--zero", position(0));
  return made;
}
