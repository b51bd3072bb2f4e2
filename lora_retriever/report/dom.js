"use strict";
// What all parts of the page share. Texts of users reach the page as text nodes alone, never as markup.

const byId = (id) => document.getElementById(id);

/** A new element: its attributes (`class`, `aria-…`; null or false: left out) and its children, nodes or texts. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** The same in SVG. */
function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Call `draw` once: when the node comes near what is in view, or before the page is printed. */
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
  return parts.flatMap((part, place) => (place ? [element("wbr"), part] : [part]));
}

/** One decimal; a dash where there is no number. */
const shown = (value) => (value === null || value === undefined ? "–" : value.toFixed(1));

const percent = (share) => `${Number((100 * share).toFixed(1))} %`;

/** A bar over an interval with a tick at the value, on the scale [start, end]. */
function whisker(value, low, high, [start, end]) {
  const made = element("span", { class: "whisker", "aria-hidden": "true" });
  const place = (number) => `${(100 * (number - start)) / (end - start || 1)}%`;
  made.style.setProperty("--low", place(low));
  made.style.setProperty("--high", place(high));
  made.style.setProperty("--at", place(value));
  return made;
}
