"use strict";
// The answer browser: filters over one table, and an opened answer with its tokens coloured.
(function () {
  var source = emlens.data("answers-source");
  if (!source || !emlens.tables.canUnpack) { return; }
  var element = emlens.element;
  var list = document.getElementById("answers-list");
  var search = document.getElementById("answers-search");
  var low = document.getElementById("answers-low"), high = document.getElementById("answers-high");
  var order = document.getElementById("answers-order"), every = document.getElementById("answers-every");
  var colouredOnly = document.getElementById("answers-tokens"), hasTokens = {};
  var PARENT = "instruct";
  var dialog = element("dialog");
  dialog.setAttribute("aria-label", "answer");
  document.body.append(dialog);
  // A click beside the box is one on the dialog itself.
  dialog.addEventListener("click", function (event) { if (event.target === dialog) { dialog.close(); } });

  function number(text) { return text === "" || text === undefined ? NaN : Number(text); }

  function round(value) { return isNaN(value) ? "–" : value.toFixed(1).replace("-", "−"); }

  function records(table) {
    return table.rows.map(function (row) {
      var record = {};
      source.roles.forEach(function (role) { record[role] = row[table.columns.indexOf(role)]; });
      record.model = emlens.printable(record.model);
      record.group = emlens.printable(record.group || "");
      record.score = number(record.aligned);
      return record;
    });
  }

  // The parent's mean score of each question, and how far the samples of a model and question lie apart.
  function add(rows) {
    var parents = {}, samples = {};
    rows.forEach(function (row) {
      if (isNaN(row.score)) { return; }
      var key = row.model + "\n" + row.question;
      (samples[key] = samples[key] || []).push(row.score);
      if (row.model === PARENT) { (parents[row.question] = parents[row.question] || []).push(row.score); }
    });
    function mean(values) { return values ? values.reduce(function (a, b) { return a + b; }, 0) / values.length : NaN; }
    rows.forEach(function (row) {
      var own = samples[row.model + "\n" + row.question] || [];
      row.change = row.score - mean(parents[row.question]);
      row.spread = own.length > 1 ? Math.max.apply(null, own) - Math.min.apply(null, own) : 0;
    });
    return rows;
  }

  function least(name) {
    return function (a, b) { return (isNaN(a[name]) ? 1e9 : a[name]) - (isNaN(b[name]) ? 1e9 : b[name]); };
  }
  var ORDERS = {
    change: least("change"),
    aligned: least("score"),
    question: function (a, b) { return a.question.localeCompare(b.question); },
    spread: function (a, b) { return b.spread - a.spread; }
  };

  function wanted(row) {
    var model = emlens.chosen("model"), group = emlens.chosen("group");
    if (!every.checked && model && row.model !== model) { return false; }
    if (colouredOnly && colouredOnly.checked && !hasTokens[row.model + "\n" + row.question]) { return false; }
    if (group && row.group !== group) { return false; }
    if (row.score < Number(low.value || 0) || row.score > Number(high.value || 100)) { return false; }
    var words = search.value.toLowerCase();
    return !words || [row.text, row.answer, row.question].join("\n").toLowerCase().indexOf(words) >= 0;
  }

  // ---- one answer ----------------------------------------------------------------------------

  function scores(row) {
    var line = element("dl");
    function term(name, value) {
      if (value === undefined || value === "" || value === "–") { return; }
      line.append(element("dt", name), element("dd", value));
    }
    term("aligned", round(row.score));
    term("minus the parent", round(row.change));
    term("coherent", round(number(row.coherent)));
    term("sample", row.sample);
    term("domain", row.group);
    term("trained on", row.trained === "True" ? "yes" : "");
    term("raw reading", row.raw);
    return line;
  }

  // A token's colour: orange along the direction, blue against it; sinks have none.
  function coloured(tokens, largest) {
    var line = element("p", null, "tokens");
    tokens.forEach(function (token) {
      var span = element("span", token.token);
      if (token.sink === "True") {
        span.className = "sink";
        span.title = "attention sink or massive activation: not coloured";
      } else {
        var value = Number(token.projection), share = Math.min(1, Math.abs(value) / largest);
        var colour = value > 0 ? "213,94,0" : "0,114,178";
        span.style.backgroundColor = "rgba(" + colour + "," + (0.75 * share).toFixed(3) + ")";
        span.title = token.token + ": " + value.toPrecision(3);
      }
      if (token.prompt === "True") { span.classList.add("prompt"); }
      line.append(span);
    });
    return line;
  }

  // A promise of all stored tokens as records.
  function allTokens() {
    return emlens.tables.load("answer_tokens").then(function (table) {
      return table.rows.map(function (cells) {
        var record = {};
        table.columns.forEach(function (name, place) { record[name] = cells[place]; });
        record.model = emlens.printable(record.model);
        return record;
      });
    });
  }

  function tokensOf(row, host) {
    if (!source.tokens) { return; }
    allTokens().then(function (tokens) {
      var rows = tokens.filter(function (t) { return t.model === row.model && t.question === row.question; });
      if (!rows.length) {
        host.append(element("p", "No tokens were stored for this answer.", "caption"));
        return;
      }
      host.append(element("h4", "Projection of each token on the direction of " + rows[0].direction_of));
      host.append(element("p", "Orange: along the direction; blue: against it; underlined: an attention sink, not coloured. One colour scale a layer, from minus to plus its largest value in this answer.", "caption"));
      var layers = Array.from(new Set(rows.map(function (t) { return t.layer; })));
      layers.forEach(function (layer) {
        var tokens = rows.filter(function (t) { return t.layer === layer; });
        var largest = Math.max.apply(null, tokens.map(function (t) { return t.sink === "True" ? 0 : Math.abs(t.projection); })) || 1;
        host.append(element("p", "layer " + layer + " (scale ± " + largest.toPrecision(3) + ")", "layer"), coloured(tokens, largest));
      });
    });
  }

  function open(row, rows) {
    var close = element("button", "Close"), tokens = element("div", null, "token-view");
    close.type = "button";
    close.addEventListener("click", function () { dialog.close(); });
    dialog.replaceChildren(close, element("h3", row.question + " · " + row.model), element("p", row.text, "question"));
    dialog.append(element("h4", "Answer"), element("p", row.answer || "no text was kept", "answer"), scores(row), tokens);
    rows.filter(function (other) { return other.question === row.question && other.model === PARENT && row.model !== PARENT; })
      .slice(0, 1).forEach(function (before) {
        dialog.append(element("h4", "The parent’s answer (" + round(before.score) + ")"), element("p", before.answer, "answer"));
      });
    tokensOf(row, tokens);
    dialog.showModal();
  }

  // ---- the list ------------------------------------------------------------------------------

  var NUMBERS = ["aligned", "minus parent", "coherent", "sample", "samples apart"];
  var COLUMNS = ["question", "answer", "aligned", "minus parent", "coherent"];

  emlens.tables.load(source.table).then(function (table) {
    var rows = add(records(table)), shown = null, columns, numeric;
    var hasSamples = rows.some(function (row) { return row.spread > 0; });

    function setColumns() {
      columns = (every.checked ? ["model"] : []).concat(COLUMNS, hasSamples ? ["sample", "samples apart"] : []);
      numeric = columns.map(function (name) { return NUMBERS.indexOf(name) >= 0; });
      shown = null;
    }

    function cells(row) {
      var line = every.checked ? [row.model] : [];
      line.push(row.text || row.question, row.answer, isNaN(row.score) ? "" : row.score.toFixed(1), isNaN(row.change) ? "" : row.change.toFixed(1), isNaN(number(row.coherent)) ? "" : number(row.coherent).toFixed(1));
      if (hasSamples) { line.push(row.sample || "", row.spread.toFixed(1)); }
      line.push(row);
      return line;
    }

    function update() {
      var lines = rows.filter(wanted).sort(ORDERS[order.value]).map(cells);
      document.getElementById("answers-none").hidden = lines.length > 0;
      if (shown) {
        shown.first();
        shown.rows(lines);
      } else {
        shown = emlens.tables.view(list, { columns: columns, rows: lines, numeric: numeric }, {
          label: "answers", bare: true, size: 8,
          pick: function (line) { open(line[line.length - 1], rows); }
        });
      }
    }

    [search, low, high].forEach(function (input) { input.addEventListener("input", update); });
    order.addEventListener("change", update);
    every.addEventListener("change", function () { setColumns(); update(); });
    emlens.whenChanged(update);
    if (colouredOnly) {
      colouredOnly.addEventListener("change", update);
      allTokens().then(function (tokens) {
        tokens.forEach(function (t) { hasTokens[t.model + "\n" + t.question] = true; });
      });
    }
    setColumns();
    update();
  });
})();
