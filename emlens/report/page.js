"use strict";
// What the page shares between its scripts, the selectors, and the figures that follow them.
var emlens = (function () {
  var root = document.documentElement;
  var config = { displayModeBar: false, responsive: true, showTips: false };
  var listeners = [];

  function all(selector, within) {
    return Array.prototype.slice.call((within || document).querySelectorAll(selector));
  }

  function data(id) {
    var block = document.getElementById(id);
    return block ? JSON.parse(block.textContent) : null;
  }

  function unpack(text) {
    var bytes = Uint8Array.from(atob(text), function (c) { return c.charCodeAt(0); });
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function element(tag, text, className) {
    var node = document.createElement(tag);
    if (text !== undefined && text !== null) { node.textContent = text; }
    if (className) { node.className = className; }
    return node;
  }

  // ---- the selectors -------------------------------------------------------------------------

  var pickers = {};
  ["model", "group", "position"].forEach(function (name) {
    pickers[name] = document.getElementById("pick-" + name);
  });

  function chosen(name) {
    return pickers[name] ? pickers[name].value : "";
  }

  // How figures spell a name.
  function key(value) {
    return value.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  // How selectors spell a name: without characters that steer a terminal or the direction of writing.
  function printable(value) {
    return value.replace(/[\t\n\r\u2028\u2029]/g, " ").replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu, "\uFFFD");
  }

  function changed() {
    var model = chosen("model");
    all("[data-model]").forEach(function (node) { node.hidden = Boolean(model) && node.dataset.model !== model; });
    all(".selected-model").forEach(function (node) { if (model) { node.textContent = model; } });
    slots.forEach(function (slot) { slot.show(); });
    listeners.forEach(function (listener) { listener(); });
  }

  // ---- light and dark ------------------------------------------------------------------------

  var DARK = {
    "#FFFFFF": "#16191d", "#1F1F1F": "#e8e8e6", "#404040": "#c9c9c5", "#E8E8E8": "#2c3138",
    "#8A8A8A": "#8d939b", "#9A9A9A": "#767c84", "#000000": "#f0f0ee", "#6B6B6B": "#a3a8af",
    "#0072B2": "#4ea8de", "#D55E00": "#ff8c42", "#009E73": "#35c79a", "#EFEFEF": "#2a2e34",
    "#D9D9D9": "#4a4f56", "#CC79A7": "#dd96bf", "#b5b5b5": "#5f656d"
  };
  var TEXTS = { text: 1, customdata: 1, name: 1, ticktext: 1, hovertemplate: 1, x: 1, y: 1, z: 1, meta: 1, colorscale: 1, textfont: 1 };

  function darkColour(value) {
    if (DARK[value]) { return DARK[value]; }
    var parts = /^rgba\((\d+),(\d+),(\d+),(.+)\)$/.exec(value);
    if (!parts) { return value; }
    var hex = "#" + parts.slice(1, 4).map(function (n) { return (256 + Number(n)).toString(16).slice(1); }).join("").toUpperCase();
    if (!DARK[hex]) { return value; }
    var to = DARK[hex];
    return "rgba(" + [1, 3, 5].map(function (i) { return parseInt(to.slice(i, i + 2), 16); }).join(",") + "," + parts[4] + ")";
  }

  // A copy in the colours of the dark page; texts and numbers stay as they are.
  function darkened(value, key) {
    if (TEXTS[key] && key !== "text") { return value; }
    if (typeof value === "string") { return key === "text" ? value : darkColour(value); }
    if (Array.isArray(value)) { return value.map(function (item) { return darkened(item, key); }); }
    if (value && typeof value === "object") {
      var copy = {};
      Object.keys(value).forEach(function (name) { copy[name] = darkened(value[name], name); });
      return copy;
    }
    return value;
  }

  var onPaper = false;

  function isDark() {
    return !onPaper && root.dataset.theme === "dark";
  }

  function setTheme(name) {
    root.dataset.theme = name;
    var button = document.getElementById("theme");
    button.textContent = name === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(name === "dark"));
  }

  setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.getElementById("theme").addEventListener("click", function () {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
    redraw();
    listeners.forEach(function (listener) { listener(); });
  });

  // ---- figures -------------------------------------------------------------------------------

  // A packed figure is unpacked once; until then there is none.
  var unpackedFigures = {};
  function figureOf(name) {
    var value = unpackedFigures[name] ? JSON.parse(unpackedFigures[name]) : data(name);
    return typeof value === "string" ? null : value;
  }

  function unpackFigure(name) {
    return unpack(data(name)).then(function (text) { unpackedFigures[name] = text; });
  }

  // The rows of a figure that are about the selected fine-tune or domain are set off.
  function marked(figure) {
    var rows = ((figure.layout.meta || {}).rows) || {};
    var shapes = (figure.layout.shapes || []).slice();
    Object.keys(rows).forEach(function (name) {
      var place = rows[name][key(chosen(name))];
      if (place === undefined) { return; }
      shapes.push({
        type: "rect", xref: "paper", x0: 0, x1: 1, yref: "y", y0: place - 0.5, y1: place + 0.5,
        line: { color: "#0072B2", width: 1.5 }, fillcolor: "rgba(0,114,178,0.06)", layer: "below"
      });
    });
    figure.layout.shapes = shapes;
    var group = key(chosen("group"));
    var has = group && figure.data.some(function (trace) { return trace.meta && trace.meta.group === group; });
    if (has) {
      figure.data.forEach(function (trace) {
        if (trace.meta && trace.meta.group !== undefined && trace.meta.group !== group) {
          trace.opacity = 0.12;
        }
      });
    }
    return figure;
  }

  // A legend that wraps on a narrow screen takes its height from the page, not from the plot.
  function grow(node, height, top) {
    var extra = Math.round(node._fullLayout._size.t - top);
    if (extra <= 40) { return null; }
    node.style.height = height + extra - 40 + "px";
    return Plotly.relayout(node, { height: height + extra - 40 });
  }

  // What lies in a folded part is drawn when the part is opened.
  function isFolded(node) {
    return node.closest("details:not([open])") !== null;
  }

  function Slot(node) {
    var record = data(node.dataset.slot);
    var slot = { node: node, plot: node.querySelector(".plot"), record: record, own: {}, drawn: null, near: false };
    var buttons = all(".toggles button", node);

    function fits(variant, column, place) {
      var own = pickers[column] ? chosen(column) : slot.own[column];
      return !own || variant.values[place] === own;
    }

    // The fine-tune must be the selected one; what has no figure at the selected position or domain shows the first.
    slot.pick = function () {
      var rest = record.variants;
      record.columns.forEach(function (column, place) {
        var fitting = rest.filter(function (variant) { return fits(variant, column, place); });
        if (fitting.length || column === "model") { rest = fitting; }
      });
      return rest[0] || null;
    };

    function label(variant) {
      node.querySelector(".which").textContent = variant ? variant.label : "";
      buttons.forEach(function (button) {
        var place = record.columns.indexOf(button.dataset.column);
        button.setAttribute("aria-pressed", String(Boolean(variant) && variant.values[place] === button.dataset.value));
      });
    }

    function empty(variant) {
      var note = node.querySelector(".empty");
      var place = record.columns.indexOf("model");
      note.hidden = Boolean(variant);
      node.querySelector(".frame").hidden = !variant;
      if (!variant) {
        var models = Array.from(new Set(record.variants.map(function (v) { return v.values[place]; })));
        note.textContent = "Not measured for " + chosen("model") + ". Measured for " + models.join(", ") + ".";
      }
    }

    slot.show = function () {
      var variant = slot.pick();
      label(variant);
      empty(variant);
      slot.variant = variant;
      if (variant) {
        slot.plot.setAttribute("aria-label", variant.alternative);
        if (slot.drawn === null) { slot.plot.style.height = variant.height + "px"; }
      }
      return slot.near ? slot.draw() : Promise.resolve();
    };

    slot.draw = function () {
      var variant = slot.variant;
      if (!variant || isFolded(node)) { return Promise.resolve(); }
      var state = [variant.figure, chosen("model"), chosen("group"), isDark()].join("\n");
      if (slot.drawn === state) { return Promise.resolve(); }
      slot.drawn = state;
      function failed(error) {
        node.dataset.drawn = "failed";
        slot.plot.textContent = "This figure could not be drawn here: " + error;
      }
      var figure = figureOf(variant.figure);
      if (figure) { return put(variant, figure).catch(failed); }
      return unpackFigure(variant.figure).then(function () {
        // another selection may have come meanwhile
        return slot.drawn === state ? put(variant, figureOf(variant.figure)) : null;
      }).catch(failed);
    };

    function put(variant, figure) {
      figure = marked(figure);
      if (isDark()) { figure = darkened(figure); }
      slot.plot.style.height = variant.height + "px";
      return Plotly.react(slot.plot, figure.data, figure.layout, config).then(function () {
        node.dataset.drawn = "yes";
        if (!root.dataset.first) { root.dataset.first = Math.round(performance.now()); }
        return grow(slot.plot, figure.layout.height, figure.layout.margin.t);
      });
    }

    buttons.forEach(function (button) {
      button.addEventListener("click", function () {
        slot.own[button.dataset.column] = button.dataset.value;
        slot.show();
        slot.draw();
      });
    });
    var save = node.querySelector("button.svg");
    save.addEventListener("click", function () {
      slot.draw().then(function () {
        Plotly.downloadImage(slot.plot, {
          format: "svg", filename: save.dataset.of,
          width: slot.plot.clientWidth, height: slot.plot.clientHeight
        });
      });
    });
    return slot;
  }

  var slots = all("figure.slot").map(Slot);
  var watcher = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (!entry.isIntersecting) { return; }
      slots.forEach(function (slot) {
        if (slot.node === entry.target) { slot.near = true; slot.draw(); }
      });
    });
  }, { rootMargin: "400px 0px" });

  function redraw() {
    return Promise.all(slots.map(function (slot) { return slot.near ? slot.draw() : null; }));
  }

  // The first at once, then what is open while the reader reads, so that nothing is missing when scrolling fast.
  var waiting = slots.slice();
  function later() {
    var slot = waiting.shift();
    if (!slot) {
      root.dataset.drawn = "all";
      return;
    }
    if (!isFolded(slot.node)) { slot.near = true; }
    slot.draw().then(function () { window.setTimeout(later, isFolded(slot.node) ? 0 : 30); });
  }
  changed();
  ["model", "group", "position"].forEach(function (name) {
    if (pickers[name]) { pickers[name].addEventListener("change", changed); }
  });
  (slots.length ? slots[0].draw() : Promise.resolve()).then(function () {
    slots.forEach(function (slot) { watcher.observe(slot.node); });
    window.setTimeout(later, 200);
  });

  // What is opened is drawn, one figure after the other.
  function drawAll(rest) {
    var slot = rest.shift();
    if (slot) {
      slot.near = true;
      slot.draw().then(function () { window.setTimeout(function () { drawAll(rest); }, 0); });
    }
  }
  all("details.part").forEach(function (part) {
    part.addEventListener("toggle", function () {
      if (part.open) { drawAll(slots.filter(function (slot) { return part.contains(slot.node); })); }
    });
  });

  // ---- a phone opens with the first sentence -------------------------------------------------

  if (window.matchMedia("(max-width: 640px)").matches) {
    all("details.rest").forEach(function (node) { node.open = false; });
  }

  // ---- links into folded parts ---------------------------------------------------------------

  function openAround(node) {
    while (node) {
      if (node.tagName === "DETAILS") { node.open = true; }
      node = node.parentElement;
    }
  }

  function arrive() {
    var target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) { return; }
    openAround(target);
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", arrive);
  all("a[href^='#']").forEach(function (link) {
    link.addEventListener("click", function () {
      var target = document.getElementById(link.getAttribute("href").slice(1));
      all("details.contents").forEach(function (menu) { menu.open = false; });
      if (target) { openAround(target); }
    });
  });
  arrive();

  // ---- paper ---------------------------------------------------------------------------------

  // On paper the statements and the cautions are open, figures are light and as wide as their column.
  var opened = [];
  window.addEventListener("beforeprint", function () {
    onPaper = true;
    root.classList.add("paper");
    opened = all(".part:has(> .statements):not([open]), .statements:not([open]), #cautions details:not([open]), details.rest:not([open]), details.fourth:not([open])");
    opened.forEach(function (node) { node.open = true; });
    all(".part:has(> .statements)").forEach(function (node) { node.classList.add("paper-part"); });
    slots.forEach(function (slot) {
      // what is still being unpacked has no drawing yet
      if (isFolded(slot.node) || !slot.variant || !slot.plot.data) { return; }
      slot.draw();
      var zoom = Number(getComputedStyle(slot.plot).zoom) || 1;
      Plotly.relayout(slot.plot, { autosize: false, width: Math.floor(slot.plot.parentNode.clientWidth / zoom) });
    });
  });
  window.addEventListener("afterprint", function () {
    onPaper = false;
    opened.forEach(function (node) { node.open = false; });
    root.classList.remove("paper");
    slots.forEach(function (slot) {
      if (!slot.plot.data || isFolded(slot.node)) { return; }
      slot.draw();
      Plotly.relayout(slot.plot, { autosize: true, width: null });
    });
  });

  return {
    all: all, data: data, unpack: unpack, element: element, chosen: chosen, printable: printable,
    whenChanged: function (listener) { listeners.push(listener); }
  };
})();
