// Scores against a swept setting, as lines with intervals, and the same numbers as a table.

const PLOT = { width: 640, height: 320, left: 48, right: 12, top: 12, bottom: 40 };
const MARKERS = ["●", "■", "▲", "◆", "○", "□", "△", "◇"];

function showSweeps(sweeps) {
  for (const sweep of sweeps) {
    byId("sweep-plots").append(element("div", { class: "sweep" },
      element("h3", {}, `Against ${sweep.setting}`),
      element("figure", {}, sweepPlot(sweep), sweepLegend(sweep)),
      scoreTable(sweepTable(sweep))));
  }
}

function sweepTable({ setting, values, lines }) {
  const cell = (line, value) => {
    const point = line.points.find((candidate) => candidate.value === value);
    return point ? [point.mean, point.low, point.high, ""] : null;
  };
  return {
    name: `mean over tasks by ${setting}`,
    columns: values.map((value) => `${setting}=${value}`),
    rows: lines.map((line) => [line.name, values.map((value) => cell(line, value))]),
    corner: "method",
    foot: lines.length,
    signed: false,
  };
}

function sweepPlot(sweep) {
  const points = sweep.lines.flatMap((line) => line.points);
  const bottom = Math.floor(Math.min(...points.map((point) => point.low ?? point.mean)) / 5) * 5;
  const top = Math.ceil(Math.max(bottom + 1, ...points.map((point) => point.high ?? point.mean)) / 5) * 5;
  const { width, height } = PLOT;
  const step = (width - PLOT.left - PLOT.right) / sweep.values.length;
  const x = (value, line) =>  // lines are drawn beside each other, so that their whiskers do not overlap
    PLOT.left + step * (sweep.values.indexOf(value) + 0.5) + 7 * (line - (sweep.lines.length - 1) / 2);
  const y = (score) => height - PLOT.bottom - ((score - bottom) / (top - bottom)) * (height - PLOT.bottom - PLOT.top);
  const plot = drawn("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `Mean over tasks against ${sweep.setting}; the table below has the numbers`,
  });
  for (let score = bottom; score <= top; score += top - bottom > 40 ? 10 : 5) {
    plot.append(
      drawn("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: y(score), y2: y(score) }),
      drawn("text", { x: PLOT.left - 8, y: y(score) + 4, "text-anchor": "end" }, String(score)));
  }
  for (const value of sweep.values) {
    const middle = PLOT.left + step * (sweep.values.indexOf(value) + 0.5);
    plot.append(drawn("text", { x: middle, y: height - 20, "text-anchor": "middle" }, value));
  }
  plot.append(drawn("text", { x: (PLOT.left + width) / 2, y: height - 3, "text-anchor": "middle" }, sweep.setting));
  sweep.lines.forEach((line, index) => {
    const path = line.points.map((point) => `${x(point.value, index)},${y(point.mean)}`).join(" ");
    const group = drawn("g", { class: `line line-${index % MARKERS.length}` }, drawn("polyline", { points: path }));
    for (const point of line.points) {
      const at = x(point.value, index);
      group.append(
        drawn("line", { x1: at, x2: at, y1: y(point.low ?? point.mean), y2: y(point.high ?? point.mean) }),
        drawn("text", { class: "marker", x: at, y: y(point.mean) + 4.5, "text-anchor": "middle" },
          MARKERS[index % MARKERS.length],
          drawn("title", {}, `${point.run}: ${shown(point.mean)} [${shown(point.low)}, ${shown(point.high)}]`)));
    }
    plot.append(group);
  });
  return plot;
}

function sweepLegend({ lines }) {
  return element("figcaption", {}, ...lines.map((line, index) =>
    element("span", { class: `legend line-${index % MARKERS.length}` },
      element("span", { class: "marker" }, MARKERS[index % MARKERS.length]), ` ${line.name}`)));
}
