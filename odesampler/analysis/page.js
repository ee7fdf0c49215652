"use strict";
// Tables sort by the ranks that the cells were given, and only compare them. Cells without a rank stay last.
// The heads are buttons only here, so that without this script none is dead.
for (const cell of document.querySelectorAll("table[data-sortable] th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...cell.childNodes);
  cell.append(button);
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const body = head.closest("table").tBodies[0];
    const falling = head.getAttribute("aria-sort") === "ascending";
    const rank = (row) => row.cells[head.cellIndex].dataset.rank;
    const rows = [...body.rows].sort((one, other) => {  // stable: equal ones keep their order
      const [a, b] = [rank(one), rank(other)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return falling ? b - a : a - b;
    });
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    body.replaceChildren(...rows);
  });
}

// The page follows the system's light or dark until somebody chooses; the choice is kept where pages may keep things.
const KEY = "odesampler-theme";
const root = document.documentElement;
const remembered = (theme) => {
  try {
    if (theme) localStorage.setItem(KEY, theme);
    return localStorage.getItem(KEY);
  } catch {
    return theme;  // a page opened as a file, or a browser that keeps nothing
  }
};
const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const before = remembered();
if (before === "light" || before === "dark") root.dataset.theme = before;
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  remembered(root.dataset.theme);
});
