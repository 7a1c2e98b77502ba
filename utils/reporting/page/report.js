"use strict";
for (const button of document.querySelectorAll("button[data-kind]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("button[data-kind]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    for (const picture of document.querySelectorAll("figure[data-kinds]")) {
      const kinds = picture.dataset.kinds.split(" ");
      picture.hidden = button.dataset.kind !== "all" && !kinds.includes(button.dataset.kind);
    }
  });
}
for (const button of document.querySelectorAll("button[data-toggle]")) {
  button.addEventListener("click", () => {
    const isOff = document.getElementById("pictures").classList.toggle(button.dataset.toggle);
    button.setAttribute("aria-pressed", String(!isOff));
  });
}
