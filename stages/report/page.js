"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  const buttons = document.querySelectorAll("[data-show]");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.classList.toggle("on", other === button);
      const show = button.dataset.show;
      for (const card of document.querySelectorAll(".card")) {
        card.hidden = show !== "all" && !card.classList.contains(show);
      }
    });
  }
})();
