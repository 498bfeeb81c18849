"use strict";
(function () {
  var config = {
    displaylogo: false,
    responsive: true,
    showTips: false,
    // Named one by one: the default bar may offer to send the figure somewhere.
    modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: "figure" }
  };

  var root = document.documentElement;

  function data(id) {
    return JSON.parse(document.getElementById(id).textContent);
  }

  // A legend that wraps on a narrow screen takes its height from the page, not from the plot.
  function grow(node, height, top) {
    var extra = Math.round(node._fullLayout._size.t - top);
    if (extra <= 40) { return null; }
    node.style.height = height + extra - 40 + "px";
    return Plotly.relayout(node, { height: height + extra - 40 });
  }

  function draw(node) {
    if (node.dataset.drawn) { return Promise.resolve(); }
    node.dataset.drawn = "yes";
    var figure = data(node.dataset.figure);
    var height = figure.layout.height;
    return Plotly.newPlot(node, figure.data, figure.layout, config).then(function () {
      if (!root.dataset.first) { root.dataset.first = Math.round(performance.now()); }
      return grow(node, height, figure.layout.margin.t);
    });
  }

  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var watcher = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (entry.isIntersecting) {
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    });
  }, { rootMargin: "400px 0px" });
  // The first at once, the rest while the reader reads, so that nothing is missing when scrolling fast or printing.
  var waiting = plots.slice();
  function later() {
    while (waiting.length && waiting[0].dataset.drawn) { waiting.shift(); }
    if (waiting.length) {
      draw(waiting.shift());
      window.setTimeout(later, 60);
    } else {
      root.dataset.drawn = "all";
    }
  }
  (waiting.length ? draw(waiting.shift()) : Promise.resolve()).then(function () {
    plots.forEach(function (node) { watcher.observe(node); });
    window.setTimeout(later, 400);
  });

  // On paper everything is open and as wide as a page.
  var opened = [];
  function fit() {
    plots.forEach(draw);
    plots.forEach(function (node) { Plotly.relayout(node, { autosize: false, width: node.clientWidth }); });
  }
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.slice.call(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (node) { node.open = true; });
    root.classList.add("paper");
    fit();
  });
  window.addEventListener("afterprint", function () {
    opened.forEach(function (node) { node.open = false; });
    root.classList.remove("paper");
    plots.forEach(function (node) { Plotly.relayout(node, { autosize: true }); });
  });

  function unpacked(text) {
    var bytes = Uint8Array.from(atob(text), function (c) { return c.charCodeAt(0); });
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  }

  function save(name, content) {
    var url = URL.createObjectURL(new Blob([content], { type: "text/csv;charset=utf-8" }));
    var link = document.createElement("a");
    link.href = url;
    link.download = name + ".csv";
    document.body.appendChild(link);
    link.click();
    link.remove();
    window.setTimeout(function () { URL.revokeObjectURL(url); }, 10000);
  }

  document.querySelectorAll("button.download").forEach(function (button) {
    button.addEventListener("click", function () {
      var name = button.dataset.csv;
      if (typeof DecompressionStream === "undefined") {
        button.textContent = "This browser is too old to unpack it; the study’s folder holds tables/" + name + ".csv";
        return;
      }
      unpacked(data("csv-" + name)).then(function (content) { save(name, content); });
    });
  });
})();
