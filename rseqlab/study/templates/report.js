// The only script of the page. Everything can be read without it: it adds buttons, the choice of
// colours, a search and sorting, folds the contents on narrow screens and marks the current section.
(() => {
  "use strict";
  const root = document.documentElement;
  const key = "rseqlab-theme";

  // A page opened from file:// may be denied storage; the choice then lasts as long as the page.
  const remembered = () => { try { return localStorage.getItem(key); } catch { return null; } };
  const remember = (theme) => {
    try { theme === "system" ? localStorage.removeItem(key) : localStorage.setItem(key, theme); } catch { /* see above */ }
  };

  // Before the body is parsed, so that the page is never painted in the wrong colours.
  const chosen = remembered();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  // Three states: the system's colours, which may change while the page is open, or one of the two.
  const themeChoice = (choice) => {
    for (const input of choice.querySelectorAll("input")) {
      input.checked = input.value === (root.dataset.theme ?? "system");
      input.addEventListener("change", () => {
        if (input.value === "system") delete root.dataset.theme;
        else root.dataset.theme = input.value;
        remember(input.value);
      });
    }
    choice.hidden = false;
  };

  // The clipboard may be denied to a page from file://; the older way works there.
  const copyButton = (listing) => {
    const button = document.createElement("button");
    const copy = () => {
      getSelection().selectAllChildren(listing.querySelector("code"));
      if (!document.execCommand("copy")) throw new Error("copying was refused");
      getSelection().removeAllRanges();
    };
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.setAttribute("aria-live", "polite");
    button.addEventListener("click", async () => {
      try {
        try { await navigator.clipboard.writeText(listing.textContent.trim()); } catch { copy(); }
        button.textContent = "Copied";
      } catch { button.textContent = "Select and copy by hand"; }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    listing.closest(".rl-command").append(button);
  };

  const codeButton = (button) => {
    const cells = [...document.querySelectorAll("details.code")];
    const anyFolded = () => cells.some((cell) => !cell.open);
    const label = () => { button.textContent = anyFolded() ? "Show all code" : "Hide all code"; };
    button.addEventListener("click", () => {
      const open = anyFolded();
      for (const cell of cells) cell.open = open;
      label();
    });
    for (const cell of cells) cell.addEventListener("toggle", label);
    button.hidden = cells.length === 0;
  };

  const foldContents = (contents) => {
    const wide = matchMedia("(min-width: 64rem)");
    const fit = () => { contents.open = wide.matches; };
    wide.addEventListener("change", fit);
    fit();
    contents.addEventListener("click", (event) => {
      if (!wide.matches && event.target.closest("a")) contents.open = false;
    });
  };

  const markCurrent = (contents) => {
    const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
    let current = null;
    // A heading is current once it has passed the upper fifth of the window.
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        current?.removeAttribute("aria-current");
        current = links.get(target.id);
        current.setAttribute("aria-current", "location");
      }
    }, { rootMargin: "0px 0px -80% 0px" });
    for (const id of links.keys()) observer.observe(document.getElementById(id));
  };

  // Finds what the browser's own search cannot: text in code and notes that are folded.
  const search = (box) => {
    const field = box.querySelector("input"), said = box.querySelector("output");
    const most = 1000;
    let found = [], at = -1;
    const texts = function* () {
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const parent = walker.currentNode.parentElement;
        if (!parent.closest("nav, script, style, .skip")) yield walker.currentNode;
      }
    };
    const mark = () => {
      if (!window.CSS?.highlights) return;
      CSS.highlights.set("found", new Highlight(...found));
      CSS.highlights.set("found-here", new Highlight(...found.slice(at, at + 1)));
    };
    const go = (place) => {
      at = found.length ? (place + found.length) % found.length : -1;
      mark();
      if (at < 0) return;
      const element = found[at].startContainer.parentElement;
      for (let fold = element.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
      element.scrollIntoView({ block: "center" });
      said.textContent = `${at + 1} of ${found.length}${found.length === most ? " or more" : ""}`;
    };
    const find = () => {
      const wanted = field.value.trim().toLowerCase();
      found = [];
      if (wanted.length > 1) {
        for (const node of texts()) {
          const text = node.data.toLowerCase();
          for (let i = text.indexOf(wanted); i >= 0 && found.length < most; i = text.indexOf(wanted, i + wanted.length)) {
            const range = document.createRange();
            range.setStart(node, i);
            range.setEnd(node, i + wanted.length);
            found.push(range);
          }
        }
      }
      at = -1;
      mark();
      said.textContent = wanted.length > 1 ? `${found.length}${found.length === most ? " or more" : ""} found` : "";
    };
    field.addEventListener("input", find);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); go(at + (event.shiftKey ? -1 : 1)); }
      if (event.key === "Escape") { field.value = ""; find(); }
    });
    box.hidden = false;
  };

  // Numbers by their value, with the unit or factor after them; everything else as text.
  const sortable = (table) => {
    const head = table.tHead?.rows, body = table.tBodies[0];
    if (head?.length !== 1 || !body || body.rows.length < 2 || table.querySelector("[rowspan], [colspan]")) return;
    const value = (row, place) => row.cells[place]?.textContent.trim() ?? "";
    const number = (text) => (/^[-+]?[\d,]*\.?\d+/.test(text) ? Number.parseFloat(text.replaceAll(",", "")) : Number.NaN);
    const collator = new Intl.Collator("en", { numeric: true });
    const compare = (one, two) => {
      const [a, b] = [number(one), number(two)];
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b) || collator.compare(one, two);
      return a - b;
    };
    [...head[0].cells].forEach((cell, place) => {
      if (!cell.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const falling = cell.getAttribute("aria-sort") === "ascending";
        for (const other of head[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(value(a, place), value(b, place)));
        body.append(...(falling ? rows.reverse() : rows));
      });
    });
  };

  document.addEventListener("DOMContentLoaded", () => {
    const contents = document.getElementById("contents");
    themeChoice(document.getElementById("theme"));
    codeButton(document.getElementById("toggle-code"));
    foldContents(contents);
    markCurrent(contents);
    search(document.getElementById("search"));
    document.querySelectorAll(".rl-command pre").forEach(copyButton);
    document.querySelectorAll("header table, main table:not(.rl-matrix)").forEach(sortable);
  });
})();
