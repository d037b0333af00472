"use strict";
// The plots of the page: thin clothes around uPlot, with the colours of page.css.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const drawn = new Set(); // all plots, to be drawn anew when light becomes dark

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of drawn) plot.redraw(false, true);
});

const widths = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    target.plot.setSize({ width: contentRect.width, height: target.plot.height });
  }
});

function plot(parent, height, options, data) {
  const axis = {
    stroke: () => colour("--quiet"), font: "11px system-ui", size: 26, gap: 3,
    grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false },
  };
  const [x, y] = options.axes;
  const place = document.createElement("div");
  place.className = "plot";
  parent.append(place);
  const made = new uPlot({
    width: Math.max(place.clientWidth, 100), height, padding: [6, 16, 0, 0], legend: { show: false },
    cursor: { show: false }, ...options,
    axes: [{ ...axis, ...x }, { ...axis, size: 46, space: 28, ...y }],
  }, data, place);
  place.plot = made;
  drawn.add(made);
  widths.observe(place);
  return {
    set: (next) => made.setData(next),
    remove: () => { widths.unobserve(place); drawn.delete(made); made.destroy(); place.remove(); },
  };
}

const line = (name, width = 1) => ({ stroke: () => colour(name), width, points: { show: false } });

// Times are a clock's, or seconds of a recording; a date takes a line of its own.
const dated = (times) => times.length > 0 && times.at(-1) > 1e8;
const below = (times) => ({ size: dated(times) ? 38 : 26 });

const marks = (alarms, height) => (u) => {
  u.ctx.save();
  u.ctx.fillStyle = colour("--alarm");
  for (const time of alarms()) {
    const x = u.valToPos(time, "x", true);
    if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
    u.ctx.fillRect(x - 1, u.bbox.top, 2 * devicePixelRatio, height * u.bbox.height);
  }
  u.ctx.restore();
};

// A channel's values, and the band where they were expected. Data: times, low, high, forecast, values.
function signalPlot(parent, times, alarms) {
  return plot(parent, 150, {
    scales: { x: { time: dated(times) } }, axes: [below(times), {}],
    series: [{}, { ...line("--band", 0) }, { ...line("--band", 0) }, line("--forecast", 3), line("--ink", 1.2)],
    bands: [{ series: [2, 1], fill: () => colour("--band") }],
    hooks: { draw: [marks(alarms, 0.08)] },
  }, [[], [], [], [], []]);
}

function scorePlot(parent, times, alarms) {
  return plot(parent, 90, {
    scales: { x: { time: dated(times) }, y: { range: [0, 1.02] } },
    axes: [below(times), { splits: () => [0, 0.5, 1] }],
    series: [{}, line("--ink", 1.2)],
    hooks: { draw: [marks(alarms, 1)] },
  }, [[], []]);
}

// Colours of the levels: of the mandatory answer, then the higher the stronger.
const levelColour = (n, many) =>
  n === 0 ? colour("--mandatory") : `hsl(211 ${45 + 20 * (n / many)}% ${78 - (40 * n) / (many - 1 || 1)}%)`;

// Shares of the levels, one upon the other. Data: seconds ago, then shares by level [%].
function sharePlot(parent, levels) {
  const areas = levels.map((_, n) => ({
    ...line("--card", 0.5), fill: () => levelColour(n, levels.length),
  })).reverse(); // the sum of all is drawn first
  return plot(parent, 120, {
    scales: { x: { time: false, range: [-60, 0] }, y: { range: [0, 100] } },
    axes: [{ values: (_, all) => all.map((s) => (s > -60 ? `${s} s` : "")) }, { splits: () => [0, 50, 100], values: (_, all) => all.map((s) => `${s} %`) }],
    series: [{}, ...areas],
  }, [[], ...levels.map(() => [])]);
}

function stacked(shares) {
  const sums = [];
  for (const share of shares) {
    sums.push(share.map((value, n) => value + (sums.length ? sums.at(-1)[n] : 0)));
  }
  return sums.reverse();
}

// Round numbers, up to three of each decade.
function decades(low, high) {
  const marks = [], wide = high / low, steps = wide < 200 ? [1, 2, 5] : wide < 2000 ? [1, 3] : [1];
  for (let one = 10 ** Math.floor(Math.log10(low)); one <= high; one *= 10) marks.push(...steps.map((step) => step * one));
  return marks.filter((mark) => mark >= low && mark <= high);
}

// A histogram over a logarithmic axis.
function histogramPlot(parent, suffix) {
  return plot(parent, 120, {
    scales: { x: { time: false, distr: 3, range: (_, low, high) => [low, high] }, y: { range: (_, low, high) => [0, high || 1] } },
    axes: [
      {
        splits: (_, axis, low, high) => decades(low, high), filter: (_, all) => all,
        values: (_, all) => all.map((v) => `${+v.toPrecision(2)}${suffix}`),
      },
      { values: (_, all) => all.map((v) => `${v} %`) },
    ],
    series: [{}, { fill: () => colour("--bar"), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.92] }) }],
  }, [[], []]);
}

function binned({ low, ratio, counts }, scale) {
  const whole = counts.reduce((sum, count) => sum + count, 0) || 1;
  const empty = [0, 0, 0]; // at either end, so that a single bin does not fill the plot
  const all = [...empty, ...counts, ...empty];
  return [all.map((_, n) => scale * low * ratio ** (n - 2.5)), all.map((count) => (100 * count) / whole)];
}
