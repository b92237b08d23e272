// The only script of the page. Everything can be read without it: it adds two buttons, folds the
// contents on narrow screens and marks the current section in them.
(() => {
  "use strict";
  const root = document.documentElement;
  const key = "rseqlab-theme";

  // A page opened from file:// may be denied storage; the choice then lasts as long as the page.
  const remembered = () => { try { return localStorage.getItem(key); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem(key, theme); } catch { /* see above */ } };

  // Before the body is parsed, so that the page is never painted in the wrong colours.
  const chosen = remembered();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);

  const themeButton = (button) => {
    const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      remember(root.dataset.theme);
      label();
    });
    systemDark.addEventListener("change", label);
    label();
    button.hidden = false;
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

  document.addEventListener("DOMContentLoaded", () => {
    const contents = document.getElementById("contents");
    themeButton(document.getElementById("toggle-theme"));
    codeButton(document.getElementById("toggle-code"));
    foldContents(contents);
    markCurrent(contents);
  });
})();
