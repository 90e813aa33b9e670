"use strict";
// Draws each sample's quadtree and mosaic at a budget. A node is [x, y, scale, split step]: left and
// top in units of the patch size, and -1 if the node is never split. Of a sample, the page holds
// the nodes that are split, in split order; the children of the k-th follow all nodes before them.

const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("controls");
const slider = document.getElementById("slider");
const count = document.getElementById("count");
const histogram = document.getElementById("histogram");
const gallery = document.getElementById("gallery");
const zoom = Math.max(1, Math.ceil(512 / Math.max(data.width, data.height)));
const unit = data.patch * zoom;
const roots = rootNodes().length;

function rootNodes() {
  const side = 1 << data.scale;
  const nodes = [];
  for (let y = 0; y < data.height / data.patch; y += side)
    for (let x = 0; x < data.width / data.patch; x += side) nodes.push([x, y, data.scale, -1]);
  return nodes;
}

function unfold(splits) {
  const nodes = rootNodes();
  splits.forEach((split, step) => {
    const [x, y, scale] = nodes[split];
    const half = 1 << (scale - 1);
    nodes[split][3] = step;
    for (const dy of [0, half])
      for (const dx of [0, half]) nodes.push([x + dx, y + dy, scale - 1, -1]);
  });
  return nodes;
}

// Numbers of the nodes that tile the image: those that exist after k splits and are not split.
function leaves(nodes, k) {
  const found = [];
  for (let i = 0; i < roots + 4 * k; i++)
    if (nodes[i][3] < 0 || nodes[i][3] >= k) found.push(i);
  return found;
}

function drawMosaic(sample, tiles, chosen, canvas) {
  const context = canvas.getContext("2d");
  const columns = Math.ceil(Math.sqrt(sample.nodes.length));
  context.imageSmoothingEnabled = false;
  for (const i of chosen) {
    const [x, y, scale] = sample.nodes[i];
    const side = unit << scale;
    context.drawImage(
      tiles, (i % columns) * data.patch, Math.floor(i / columns) * data.patch,
      data.patch, data.patch, x * unit, y * unit, side, side);
  }
}

function drawTree(sample, chosen, canvas) {
  const context = canvas.getContext("2d");
  context.drawImage(sample.backdrop, 0, 0, canvas.width, canvas.height);
  context.beginPath();
  for (const i of chosen) {
    const [x, y, scale] = sample.nodes[i];
    context.rect(x * unit, y * unit, unit << scale, unit << scale);
  }
  for (const [color, width] of [["rgba(0, 0, 0, .6)", 3.4 * zoom], ["#fff", 2 * zoom]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.stroke();
  }
}

// The numbers of tokens of the samples, and the row of the table of means, if it is chosen.
function chosenCounts() {
  const value = Number(slider.value);
  if (form.elements.mode.value === "tokens") return [data.samples.map(() => value), null];
  const row = data.means.reduce((best, each) =>
    Math.abs(each.mean - value) < Math.abs(best.mean - value) ? each : best);
  return [row.tokens, row];
}

function show() {
  const [tokens, row] = chosenCounts();
  data.samples.forEach((sample, number) => {
    const chosen = leaves(sample.nodes, (tokens[number] - roots) / 3);
    drawMosaic(sample, sample.tiles, chosen, sample.mosaic);
    drawTree(sample, chosen, sample.tree);
    sample.caption.textContent = `${chosen.length} tokens`;
  });
  const text = row ? `${row.mean} on average` : `${slider.value} tokens`;
  count.textContent = text;
  slider.setAttribute("aria-valuetext", text);
  drawHistogram(row);
}

function drawHistogram(row) {
  histogram.replaceChildren();
  const shares = row ? row.shares : [];
  const largest = Math.max(...shares, 1);
  // A bar stands above the place of the slider for its numbers of tokens.
  const places = Math.max(1, (slider.max - slider.min) / 3);
  histogram.setAttribute("viewBox", `0.5 0 ${places} 100`);
  shares.forEach((share, bin) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = (100 * share) / largest;
    const place = {
      x: data.group * bin + 0.1, y: 100 - height, width: data.group - 0.2, height };
    for (const [name, value] of Object.entries(place)) bar.setAttribute(name, value);
    histogram.append(bar);
  });
  form.classList.toggle("each", Boolean(row));
}

function start({ mode, value }) {
  form.elements.mode.value = mode;
  slider.value = value;
}

// #tokens=37 or #mean=37, so that a link opens the page at a budget.
function followHash() {
  const match = /^#(tokens|mean)=(\d{1,7})$/.exec(location.hash);
  if (match) start({ mode: match[1], value: match[2] });
  return Boolean(match);
}

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

function newCanvas() {
  const canvas = document.createElement("canvas");
  canvas.width = data.width * zoom;
  canvas.height = data.height * zoom;
  return canvas;
}

async function prepare(sample, figure) {
  [sample.tree, sample.mosaic] = figure.querySelectorAll("canvas");
  for (const canvas of [sample.tree, sample.mosaic])
    [canvas.width, canvas.height] = [data.width * zoom, data.height * zoom];
  sample.caption = figure.querySelector(".count");
  sample.nodes = unfold(sample.splits);
  sample.tiles = await decoded(sample.pixels);
  sample.backdrop = sample.image ? await decoded(sample.image) : newCanvas();
  if (!sample.image)
    drawMosaic(sample, sample.tiles, leaves(sample.nodes, sample.splits.length), sample.backdrop);
}

async function main() {
  const figures = gallery.querySelectorAll("figure");
  await Promise.all(data.samples.map((sample, number) => prepare(sample, figures[number])));
  start(data.start);
  followHash();
  form.hidden = data.means.length < 2;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () =>
    history.replaceState(null, "", `#${form.elements.mode.value}=${slider.value}`));
  addEventListener("hashchange", () => followHash() && show());
  show();
  gallery.setAttribute("aria-busy", "false");
}

main();
