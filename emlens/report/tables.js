"use strict";
// Tables with search, sorting and pages, read from the same data as the downloads.
emlens.tables = (function () {
  var PAGE = 20;
  var FORMULA = /^'(?=\s*[=+\-@\t\r\n\uFF1D\uFF0B\uFF0D\uFF20])/;
  var all = emlens.all, element = emlens.element;
  var read = {}, terms = emlens.data("terms") || {};

  function unpacked(name) {
    return emlens.unpack(emlens.data("csv-" + name));
  }

  // Fields in quotes may hold commas, line ends and doubled quotes.
  function parsed(text) {
    var rows = [], row = [], field = "", quoted = false, i = 0;
    while (i < text.length) {
      var c = text[i];
      if (quoted) {
        if (c === '"' && text[i + 1] === '"') { field += '"'; i += 1; }
        else if (c === '"') { quoted = false; }
        else { field += c; }
      } else if (c === '"') { quoted = true; }
      else if (c === ",") { row.push(field); field = ""; }
      else if (c === "\n") { row.push(field); rows.push(row); row = []; field = ""; }
      else { field += c; }
      i += 1;
    }
    if (field || row.length) { row.push(field); rows.push(row); }
    return rows;
  }

  // A promise of {columns, rows, numeric}; texts that were set off for spreadsheets are as they were.
  function load(name) {
    if (!read[name]) {
      read[name] = unpacked(name).then(function (text) {
        var rows = parsed(text).map(function (row) {
          return row.map(function (cell) { return cell.replace(FORMULA, ""); });
        });
        var columns = rows.shift() || [];
        var numeric = columns.map(function (_, place) {
          var filled = rows.filter(function (row) { return row[place] !== ""; });
          return filled.length > 0 && filled.every(function (row) { return !isNaN(row[place]); });
        });
        return { columns: columns, rows: rows, numeric: numeric };
      });
    }
    return read[name];
  }

  function shown(cell, numeric) {
    if (cell === "") { return "–"; }
    if (!numeric) { return cell; }
    var number = Number(cell);
    return (/\.\d$/.test(cell) ? cell : String(Number.isInteger(number) ? number : Number(number.toPrecision(4)))).replace("-", "−");
  }

  function compare(place, numeric, down) {
    return function (a, b) {
      if (a[place] === "" || b[place] === "") { return (a[place] === "") - (b[place] === ""); }
      var order = numeric ? a[place] - b[place] : a[place].localeCompare(b[place]);
      return down ? -order : order;
    };
  }

  // A table in place of a node; `pick` is called with a row that was selected.
  function view(host, table, options) {
    var state = { page: 0, sort: -1, down: false, words: "" };
    var search = element("input");
    search.type = "search";
    search.setAttribute("aria-label", "search the table");
    search.placeholder = "search";
    var count = element("span", "", "count");
    var previous = element("button", "‹"), next = element("button", "›");
    previous.type = next.type = "button";
    previous.setAttribute("aria-label", "page before");
    next.setAttribute("aria-label", "next page");
    var bar = element("div", null, "table-bar");
    if (!options.bare) { bar.append(search); }
    bar.append(previous, count, next);
    var box = element("div", null, "scroll");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", options.label);
    host.replaceChildren(bar, box);

    function rowsNow() {
      var rows = table.rows;
      if (state.words) {
        rows = rows.filter(function (row) { return row.join("\n").toLowerCase().indexOf(state.words) >= 0; });
      }
      if (state.sort >= 0) {
        rows = rows.slice().sort(compare(state.sort, table.numeric[state.sort], state.down));
      }
      return rows;
    }

    function header() {
      var row = element("tr");
      table.columns.forEach(function (name, place) {
        var head = element("th"), button = element("button", name);
        head.scope = "col";
        if (table.numeric[place]) { head.className = "number"; }
        button.type = "button";
        if (terms[name]) { button.title = terms[name]; }
        if (state.sort === place) {
          head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
          button.append(state.down ? " ↓" : " ↑");
        }
        button.addEventListener("click", function () {
          state.down = state.sort === place ? !state.down : table.numeric[place];
          state.sort = place;
          state.page = 0;
          draw();
        });
        head.append(button);
        row.append(head);
      });
      return row;
    }

    function line(cells) {
      var row = element("tr");
      cells.forEach(function (cell, place) {
        if (place >= table.columns.length) { return; }
        row.append(element("td", shown(cell, table.numeric[place]), table.numeric[place] ? "number" : ""));
      });
      if (options.pick) {
        row.tabIndex = 0;
        row.className = "pick";
        row.setAttribute("role", "button");
        row.addEventListener("click", function () { options.pick(cells); });
        row.addEventListener("keydown", function (event) {
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); options.pick(cells); }
        });
      }
      return row;
    }

    function draw() {
      var rows = rowsNow(), size = options.size || PAGE;
      var pages = Math.max(1, Math.ceil(rows.length / size));
      state.page = Math.min(state.page, pages - 1);
      count.textContent = rows.length + " rows, page " + (state.page + 1) + " of " + pages;
      previous.disabled = state.page === 0;
      next.disabled = state.page === pages - 1;
      var head = element("thead"), body = element("tbody"), whole = element("table");
      head.append(header());
      body.append.apply(body, rows.slice(state.page * size, (state.page + 1) * size).map(line));
      whole.append(head, body);
      box.replaceChildren(whole);
    }

    search.addEventListener("input", function () {
      state.words = search.value.toLowerCase();
      state.page = 0;
      draw();
    });
    previous.addEventListener("click", function () { state.page -= 1; draw(); });
    next.addEventListener("click", function () { state.page += 1; draw(); });
    draw();
    return {
      rows: function (rows) { table.rows = rows; draw(); },
      first: function () { state.page = 0; state.sort = -1; }
    };
  }

  var canUnpack = typeof DecompressionStream !== "undefined";
  all("details[data-table]").forEach(function (node) {
    node.addEventListener("toggle", function () {
      if (!node.open || node.dataset.live || !canUnpack) { return; }
      node.dataset.live = "yes";
      var name = node.dataset.table;
      load(name).then(function (table) {
        var host = element("div", null, "live");
        node.querySelector(".scroll").replaceWith(host);
        view(host, { columns: table.columns, rows: table.rows, numeric: table.numeric }, { label: "table " + name });
      });
    });
  });

  // ---- downloads -----------------------------------------------------------------------------

  function save(name, blob) {
    var url = URL.createObjectURL(blob);
    var link = element("a");
    link.href = url;
    link.download = name;
    document.body.appendChild(link);
    link.click();
    link.remove();
    window.setTimeout(function () { URL.revokeObjectURL(url); }, 10000);
  }

  function tooOld(button, name) {
    button.textContent = "This browser is too old to unpack it; the study’s folder holds tables/" + name + ".csv";
  }

  all("button.download").forEach(function (button) {
    button.addEventListener("click", function () {
      var name = button.dataset.csv;
      if (!canUnpack) { tooOld(button, name); return; }
      unpacked(name).then(function (text) {
        save(name + ".csv", new Blob([text], { type: "text/csv;charset=utf-8" }));
      });
    });
  });

  var CRC = new Uint32Array(256).map(function (_, n) {
    for (var k = 0; k < 8; k += 1) { n = n & 1 ? 0xEDB88320 ^ (n >>> 1) : n >>> 1; }
    return n;
  });

  function crc32(bytes) {
    var crc = 0xFFFFFFFF;
    for (var i = 0; i < bytes.length; i += 1) { crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8); }
    return (crc ^ 0xFFFFFFFF) >>> 0;
  }

  function littleEndian(fields) {
    var bytes = [];
    fields.forEach(function (field) {
      for (var i = 0; i < field[1]; i += 1) { bytes.push((field[0] >>> (8 * i)) & 255); }
    });
    return new Uint8Array(bytes);
  }

  // A ZIP archive whose files are stored as they are (PKWARE APPNOTE 4.3).
  function zip(files) {
    var parts = [], index = [], at = 0, size = 0;
    files.forEach(function (file) {
      var name = new TextEncoder().encode(file.name), bytes = new TextEncoder().encode(file.text);
      var common = [[20, 2], [0x800, 2], [0, 2], [0, 2], [33, 2], [crc32(bytes), 4], [bytes.length, 4], [bytes.length, 4], [name.length, 2], [0, 2]];
      var local = littleEndian([[0x04034B50, 4]].concat(common));
      index.push(littleEndian([[0x02014B50, 4], [20, 2]].concat(common, [[0, 2], [0, 2], [0, 2], [0, 4], [at, 4]])), name);
      parts.push(local, name, bytes);
      at += local.length + name.length + bytes.length;
    });
    index.forEach(function (part) { size += part.length; });
    var end = littleEndian([[0x06054B50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [at, 4], [0, 2]]);
    return new Blob(parts.concat(index, [end]), { type: "application/zip" });
  }

  var everything = document.getElementById("download-all");
  if (everything) {
    everything.addEventListener("click", function () {
      var names = emlens.data("tables");
      if (!canUnpack) { tooOld(everything, names[0]); return; }
      Promise.all(names.map(unpacked)).then(function (texts) {
        save("tables.zip", zip(names.map(function (name, i) { return { name: name + ".csv", text: texts[i] }; })));
      });
    });
  }

  return { load: load, view: view, canUnpack: canUnpack };
})();
